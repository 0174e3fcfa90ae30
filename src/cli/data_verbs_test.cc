#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/testing.h"
#include "cli/loader_bench.h"
#include "cli/testing.h"
#include "data/containers.h"
#include "data/dataset.h"
#include "data/jpeg.h"
#include "data/partition.h"
#include "data/shared_loader.h"
#include "data/shared_prep_coordinator.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class DataVerbs : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 6; ++i) {
      const std::vector<uint8_t> grey(size_t{3} * 32 * 24, static_cast<uint8_t>(40 * i));
      fs::create_directories(fmt::format("{}/in/c{}", root_.path(), i / 3));
      files_.push_back(fmt::format("{}/in/c{}/{}.jpg", root_.path(), i / 3, i));
      ASSERT_TRUE(WriteFileAtomically(files_.back(), data::EncodeJpeg(grey, 32, 24, 90).value()).ok());
    }
  }
  std::string in() const { return root_.path() + "/in"; }
  testing::TempDir root_;
  std::vector<std::string> files_;
};

TEST_F(DataVerbs, PackThenShowAndCheckGiveTheSamePictures) {
  const std::string out = root_.path() + "/x.tpk";
  const Outcome packed = RunWords({"data", "pack", "imagefolder:" + in(), out, "--shuffle", "-o", "json"});
  ASSERT_EQ(packed.code, kExitDone) << packed.err;
  EXPECT_EQ(packed.json()["records"], 6);
  EXPECT_EQ(packed.json()["files"][0], out);
  const Outcome shown = RunWords({"data", "show", out, "-o", "json"});
  ASSERT_EQ(shown.code, kExitDone) << shown.err;
  EXPECT_EQ(shown.json()["records"], 6);
  EXPECT_EQ(shown.json()["classes"], 2);
  EXPECT_EQ(shown.json()["class_names"], nlohmann::json({"c0", "c1"}));
  EXPECT_EQ(shown.json()["groups"], 1);
  const Outcome checked = RunWords({"data", "check", out, "-o", "json"});
  EXPECT_EQ(checked.code, kExitDone) << checked.err;
  EXPECT_EQ(checked.json()["faulty"], 0);
  EXPECT_THAT(RunWords({"data", "show", in()}).out, HasSubstr("records      6\nclasses      2\n"));
}

TEST_F(DataVerbs, MakeGivesTheSameReadablePicturesForASeedAndLeavesFullFoldersAlone) {
  const auto make = [&](const std::string& folder) {
    return RunWords(
        {"data", "make", root_.path() + "/" + folder, "--pictures", "5", "--classes", "2", "--seed", "7", "-o", "json"});
  };
  const Outcome made = make("a/b");
  ASSERT_EQ(made.code, kExitDone) << made.err;
  EXPECT_EQ(made.json()["pictures"], 5);
  const Outcome checked = RunWords({"data", "check", root_.path() + "/a/b", "-o", "json"});
  ASSERT_EQ(checked.code, kExitDone) << checked.err;
  EXPECT_EQ(checked.json()["faulty"], 0);
  EXPECT_EQ(RunWords({"data", "show", root_.path() + "/a/b", "-o", "json"}).json()["classes"], 2);
  ASSERT_EQ(make("c").code, kExitDone);
  EXPECT_EQ(ReadFile(root_.path() + "/a/b/00001/00000003.jpg", 1 << 20).value(),
            ReadFile(root_.path() + "/c/00001/00000003.jpg", 1 << 20).value());
  EXPECT_THAT(make("c").err, HasSubstr("/c' is not empty; allowed: a new or an empty folder"));
  EXPECT_THAT(RunWords({"data", "make", root_.path() + "/d", "--quality", "0"}).err, HasSubstr("quality 0; allowed: 1 to"));
}

TEST_F(DataVerbs, CheckNamesFaultyPicturesAndFails) {
  fs::resize_file(files_[4], fs::file_size(files_[4]) - 40);
  const Outcome checked = RunWords({"data", "check", in(), "-o", "json"});
  EXPECT_EQ(checked.code, kExitFailed);
  EXPECT_EQ(checked.json()["faulty"], 1);
  EXPECT_THAT(checked.json()["faults"][0].get<std::string>(), AllOf(HasSubstr(files_[4] + ": "), HasSubstr("Premature end")));
  EXPECT_EQ(RunWords({"data", "check", in(), "--decode=false"}).code, kExitDone);
}

TEST_F(DataVerbs, TellWhatIsWrongWithTheirArguments) {
  EXPECT_EQ(RunWords({"data", "show", "lmdb:/x"}).code, kExitUsage);
  EXPECT_THAT(RunWords({"data", "show", "lmdb:/x"}).err, HasSubstr("of kind 'lmdb'; allowed: imagefolder:PATH"));
  EXPECT_THAT(RunWords({"data", "check", root_.path() + "/none"}).err, HasSubstr("is text; needed: pictures"));
  EXPECT_THAT(RunWords({"data", "pack", in(), root_.path() + "/x.tpk", "--group", "0"}).err,
              HasSubstr("groups of 0 bytes; allowed: 1 to"));
  EXPECT_THAT(RunWords({"bench", "loader", "--rounds", "0", "--min-area", "2"}).err,
              HasSubstr("min_area 2; allowed: above 0, at most 1; 0 rounds; allowed: 1 to 100"));
}

TEST_F(DataVerbs, LoadTellsHitsOfTheCacheAndOperationsOfTheStorageForEachEpoch) {
  const int64_t bytes = static_cast<int64_t>(fs::file_size(files_[0]));
  const Outcome load =
      RunWords({"data", "load", in(), "--epochs", "3", "--batch", "4", "--threads", "2", "--image-size", "16", "--cache", "minio",
                "--cache-bytes", fmt::format("{}", 3 * bytes + bytes / 2), "--storage", "custom,rate=1GB,depth=2", "-o", "json"});
  ASSERT_EQ(load.code, kExitDone) << load.err;
  const auto json = load.json();
  ASSERT_EQ(json["epochs"].size(), 3u) << load.out;
  EXPECT_EQ(json["records"], 6);
  // Threads read ahead of what is handed out, so only sums over all epochs are exact.
  int64_t reads = 0, hits = 0, ops = 0;
  for (size_t epoch = 0; epoch < 3; ++epoch) {
    const auto& report = json["epochs"][epoch];
    EXPECT_EQ(report["epoch"], epoch);
    EXPECT_EQ(report["samples"], 6);
    EXPECT_EQ(report["batches"], 2);
    EXPECT_EQ(report["cache"]["evicted"], 0);
    EXPECT_LE(report["cache"]["used_bytes"], 3 * bytes + bytes / 2);
    for (const char* outcome : {"hits", "misses", "joined"}) reads += report["cache"][outcome].get<int64_t>();
    hits += report["cache"]["hits"].get<int64_t>();
    ops += report["storage"]["ops"].get<int64_t>();
  }
  EXPECT_EQ(reads, 18);
  EXPECT_GE(hits, 2);
  EXPECT_LE(hits, 10);
  EXPECT_GT(ops, 0);
  EXPECT_THAT(RunWords({"data", "load", in(), "--image-size", "16", "--cache", "lru", "--cache-bytes", "1MiB"}).out,
              AllOf(HasSubstr("samples/s"), HasSubstr("evicted")));
}

TEST_F(DataVerbs, LoadReadsThroughTheMemoryOfAnotherNodeAndFromStorageWhenThatIsGone) {
  const auto records = data::OpenRecordSource("imagefolder:" + in());
  ASSERT_TRUE(records.ok()) << ToString(records.status());
  const auto owned_by_1 = [](uint64_t seed) {
    int64_t owned = 0;
    for (int64_t i = 0; i < 6; ++i) owned += data::PartitionOwner(seed, i, 2) == 1;
    return owned;
  };
  uint64_t seed = 1;
  while (owned_by_1(seed) < 2 || owned_by_1(seed) > 4) ++seed;
  const int64_t owned = owned_by_1(seed);
  auto other = data::PartitionedCache::Create(records->get(), {.nodes = 2, .node = 1, .seed = seed, .budget_bytes = 1 << 20});
  ASSERT_TRUE(other.ok()) << ToString(other.status());
  ASSERT_TRUE((*other)->Fill(testing::Soon()).ok());

  const auto load = [&, peers = "127.0.0.1:0," + (*other)->address()] {
    const Outcome outcome =
        RunWords({"data",         "load",    in(),           "--epochs", "2",       "--batch",      "4",
                  "--threads",    "2",       "--image-size", "16",       "--cache", "minio",        "--cache-bytes",
                  "1MiB",         "--peers", peers,          "--node",   "0",       "--cache-seed", fmt::format("{}", seed),
                  "--peer-limit", "20s",     "-o",           "json"});
    EXPECT_EQ(outcome.code, kExitDone) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("node 0 of 2 answers at 127.0.0.1:"));
    return outcome.json();
  };
  // Threads read ahead of what is handed out, so only sums over both epochs are exact.
  const auto sum = [](const nlohmann::json& json, const char* key) {
    int64_t total = 0;
    for (const auto& epoch : json["epochs"]) total += epoch["partition"][key].get<int64_t>();
    return total;
  };
  // The first epoch gets from the owner what it owns, and the second finds everything in this node's memory.
  nlohmann::json json = load();
  EXPECT_EQ(sum(json, "remote_hits"), owned) << json;
  EXPECT_EQ(sum(json, "storage"), 6 - owned);
  EXPECT_EQ(sum(json, "local_hits") + sum(json, "joined"), 6);
  EXPECT_EQ(sum(json, "failed"), 0);
  EXPECT_EQ(json["partition"]["peers"][0]["records"], owned);
  EXPECT_EQ(json["partition"]["peers"][0]["up"], true);
  EXPECT_EQ((*other)->stats().server.records, owned);

  other->reset();
  json = load();
  EXPECT_EQ(sum(json, "remote_hits"), 0) << json;
  EXPECT_EQ(sum(json, "storage"), 6);
  EXPECT_EQ(sum(json, "peer_failed"), owned);
  EXPECT_EQ(sum(json, "failed"), 0);
  EXPECT_EQ(json["partition"]["peers"][0]["up"], false);
}

TEST_F(DataVerbs, LoadOverSeveralNodesSaysWhatIsWrongWithItsArguments) {
  const auto error_of = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {"data", "load", in(), "--image-size", "16"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome outcome = RunWords(words);
    EXPECT_EQ(outcome.code, kExitUsage) << outcome.err;
    return outcome.err;
  };
  const std::vector<std::string> cache = {"--cache", "minio", "--cache-bytes", "1MiB"};
  const auto with_cache = [&](std::vector<std::string> more) {
    more.insert(more.end(), cache.begin(), cache.end());
    return error_of(more);
  };
  EXPECT_THAT(error_of({"--peers", "127.0.0.1:0"}), HasSubstr("--peers without a cache"));
  EXPECT_THAT(error_of({"--fill"}), HasSubstr("--fill without --peers"));
  EXPECT_THAT(with_cache({"--peers", "127.0.0.1:0,-", "--node", "2"}), HasSubstr("--node is 2 with 2 peers; allowed: 0 to 1"));
  EXPECT_THAT(with_cache({"--peers", "127.0.0.1:0,-", "--node", "1"}), HasSubstr("no address for node 1, which is this one"));
  EXPECT_THAT(with_cache({"--peers", "127.0.0.1:0,localhost:1"}), HasSubstr("node 1: address 'localhost:1'; allowed: a numeric"));
  EXPECT_THAT(with_cache({"--peers", "127.0.0.1:0", "--peer-limit", "0s"}), HasSubstr("request_limit 0"));
}

TEST_F(DataVerbs, LoadAndShareSayWhatIsWrongWithTheirArguments) {
  EXPECT_EQ(RunWords({"data", "load", in(), "--cache", "mini"}).code, kExitUsage);
  EXPECT_THAT(RunWords({"data", "load", in(), "--cache", "mini"}).err,
              HasSubstr("cache policy 'mini'; allowed: none, page-cache, minio, lru, fifo, two-list. Did you mean 'minio'?"));
  EXPECT_THAT(RunWords({"data", "load", in(), "--cache", "lru"}).err, HasSubstr("give --cache-bytes too"));
  EXPECT_THAT(RunWords({"data", "load", in(), "--storage", "hdd,rate=-1"}).err, HasSubstr("storage 'hdd,rate=-1'"));
  EXPECT_THAT(RunWords({"data", "load", in(), "--shared", root_.path() + "/none"}).err,
              HasSubstr("/none': No such file or directory"));
  EXPECT_THAT(RunWords({"data", "share"}).err, HasSubstr("--socket is missing"));
  EXPECT_THAT(RunWords({"data", "share", "--socket", root_.path() + "/s", "--jobs", "0"}).err, HasSubstr("0 jobs to wait for"));
  EXPECT_THAT(RunWords({"bench", "loader", "--cache", "lru"}).err, HasSubstr("give --cache-bytes too"));
}

TEST_F(DataVerbs, LoadJoinsOthersThatPrepareTogether) {
  const auto coordinator = data::PrepCoordinator::Start({.socket = root_.path() + "/s", .staging_bytes = 1 << 20});
  ASSERT_TRUE(coordinator.ok());
  const Outcome load = RunWords({"data", "load", in(), "--epochs", "2", "--batch", "4", "--threads", "1", "--image-size", "16",
                                 "--shared", root_.path() + "/s", "-o", "json"});
  ASSERT_EQ(load.code, kExitDone) << load.err;
  EXPECT_EQ(load.json()["prepared_batches"], 4);
  EXPECT_EQ(load.json()["epochs"].size(), 2u);
}

TEST_F(DataVerbs, ShareEndsWhenAllJobsHaveLeftAndTellsWhatWasPrepared) {
  const std::string socket = root_.path() + "/s";
  const auto dataset = data::OpenImageFolder({.root = in(), .image_size = 16});
  ASSERT_TRUE(dataset.ok());
  std::thread job([&] {
    const absl::Time deadline = testing::Soon();
    while (!fs::exists(socket) && Clock::Real()->Now() < deadline) std::this_thread::yield();
    StatusOr<std::unique_ptr<data::SharedLoader>> loader = Internal("not yet");
    // The path appears a moment before somebody listens.
    while (!loader.ok() && Clock::Real()->Now() < deadline) {
      loader = data::SharedLoader::Join(dataset->get(), {.socket = socket, .batch = 4}, deadline);
    }
    while (loader.ok()) {
      const auto batch = (*loader)->Next(deadline);
      if (!batch.ok() || !batch->has_value()) break;
    }
  });
  const Outcome share = RunWords({"data", "share", "--socket", socket, "--staging", "1MiB", "-o", "json"});
  job.join();
  ASSERT_EQ(share.code, kExitDone) << share.err;
  EXPECT_EQ(share.json()["joined"], 1);
  EXPECT_EQ(share.json()["epochs"][0]["prepared"], 2);
  EXPECT_EQ(share.json()["epochs"][0]["delivered"], 2);
}

// Small and short: that everything is there, not how fast it is.
TEST_F(DataVerbs, BenchLoaderReportsEveryRateAndRatio) {
  const std::string json_file = root_.path() + "/bench.json";
  const Outcome bench =
      RunWords({"bench",        "loader", "--json",        json_file, "--pictures",  "3",          "--batch",  "2",
                "--image-size", "32",     "--threads",     "2",       "--seconds",   "0.01",       "--rounds", "1",
                "--disk",       "16MiB",  "--python",      "",        "--directory", root_.path(), "-o",       "json",
                "--cache",      "minio",  "--cache-bytes", "1MiB",    "--storage",   "nvme"});
  ASSERT_EQ(bench.code, kExitDone) << bench.err;
  const auto json = nlohmann::json::parse(ReadFile(json_file, 1 << 20).value());
  EXPECT_EQ(json, bench.json());
  EXPECT_EQ(json["pictures"]["count"], 3);
  EXPECT_EQ(json["ours"].size(), 8u);
  for (const auto& rate : json["ours"]) EXPECT_GT(rate["images_per_core_s"], 0) << rate;
  EXPECT_TRUE(json["torch"].contains("absent"));
  EXPECT_EQ(json["work"]["storage"], "nvme");
  EXPECT_GT(json["cache"]["hits"], 0);
  EXPECT_GE(json["disk"].size(), 5u);
  EXPECT_GT(json["ratios"]["loader crop / libjpeg-turbo"], 0);
  EXPECT_GT(json["ratios"]["packed, in order / plain read"], 0);
  for (const auto& entry : fs::directory_iterator(root_.path()))
    EXPECT_THAT(entry.path().string(), ::testing::Not(HasSubstr("loader-bench")));
}

TEST(BenchPicture, IsTheSameEachTimeAndOfThePromisedSize) {
  EXPECT_EQ(BenchPicture(3, 85), BenchPicture(3, 85));
  const std::string jpeg = BenchPicture(4, 85);
  const auto info = data::ReadJpegInfo(std::as_bytes(std::span(jpeg))).value();
  EXPECT_EQ(std::max(info.width, info.height), 500);
}

}  // namespace
}  // namespace tidepool::cli
