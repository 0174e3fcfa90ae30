#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/fd.h"
#include "base/json.h"
#include "base/testing.h"
#include "base/units.h"
#include "cli/stalls_setting.h"
#include "cli/testing.h"

namespace tidepool::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A step of 100 ms for 100 samples, 4 cores of 500 samples/s, a disk of 500 samples/s, half of the data cached.
std::vector<std::string> Words(std::vector<std::string> more) {
  std::vector<std::string> words = {"stalls",    "--step-time",    "100ms",        "--batch", "100",
                                    "--samples", "20000",          "--cores",      "4",       "--prep-rate",
                                    "500",       "--sample-bytes", "100000",       "--disk",  "custom,rate=50MB,depth=32",
                                    "--cache",   "minio",          "--cache-size", "25%",     "--simulated-samples",
                                    "4000"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(StallsVerb, NamesTheBottleneckAndTheBestPurchase) {
  const Outcome text = RunWords(Words({"--sweeps=false"}));
  ASSERT_EQ(text.code, kExitDone) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("step time given by hand"), HasSubstr("simulated: 4000 of 20000 samples"),
                              HasSubstr("Limited by fetch"), HasSubstr("Best next purchase: "), Not(HasSubstr("CORES"))));
  const Outcome result = RunWords(Words({"-o", "json"}));
  ASSERT_EQ(result.code, kExitDone) << result.err;
  const nlohmann::json json = result.json();
  EXPECT_NEAR(json["rates"]["ingestion"].get<double>(), 1000, 10);
  EXPECT_NEAR(json["rates"]["preparation"].get<double>(), 2000, 20);
  EXPECT_NEAR(json["rates"]["fetch_cold"].get<double>(), 500, 15);
  EXPECT_EQ(json["bottleneck"], "fetch");
  EXPECT_NEAR(json["samples_per_s"]["predicted"].get<double>() / json["samples_per_s"]["simulated"].get<double>(), 1, 0.05);
  EXPECT_EQ(json["best_purchase"]["kind"], "purchase");
  EXPECT_GE(json["by_cache"].size(), 11u);
  EXPECT_GE(json["by_cores"].size(), 7u);
  EXPECT_EQ(json["by_disk"].size(), 4u);
}

TEST(StallsVerb, SaysThatABuiltInStepTimeIsEstimated) {
  const Outcome text = RunWords({"stalls", "--device", "emulated:p100x8", "--samples", "5000", "--sweeps=false"});
  ASSERT_EQ(text.code, kExitDone) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("resnet50 step of F32 on p100, batch 32 a device (estimated)"),
                              HasSubstr("The step time is estimated")));
}

TEST(StallsVerb, JudgesAWorkloadByItsUtilisation) {
  const Outcome fast = RunWords({"stalls", "--workload", "cosmoflow-h100", "--samples", "3000", "--prep-rate", "0",
                                 "--cache-size", "100%", "--disk", "nvme", "--sweeps=false"});
  ASSERT_EQ(fast.code, kExitDone) << fast.err;
  EXPECT_THAT(fast.out, HasSubstr("The workload asks for 70.0 %: passed."));
  const Outcome slow = RunWords({"stalls", "--workload", "cosmoflow-h100", "--samples", "3000", "--prep-rate", "0", "--cache",
                                 "none", "--disk", "sata-ssd", "--sweeps=false"});
  EXPECT_THAT(slow.out, HasSubstr("The workload asks for 70.0 %: failed."));
}

TEST(StallsVerb, WritesPageAndPlots) {
  const testing::TempDir root;
  const Outcome done =
      RunWords(Words({"--html", root.File("a.html"), "--svg", root.File("a.svg"), "--json", root.File("a.json")}));
  ASSERT_EQ(done.code, kExitDone) << done.err;
  EXPECT_THAT(*ReadFile(root.File("a.html"), kMiB),
              AllOf(HasSubstr("Speed over cache size"), HasSubstr("What one change would do")));
  EXPECT_THAT(*ReadFile(root.File("a.svg"), kMiB), AllOf(HasSubstr("<svg"), HasSubstr("Speed over cores")));
  EXPECT_TRUE(nlohmann::json::parse(*ReadFile(root.File("a.json"), kMiB)).contains("rates"));
}

TEST(StallsVerb, WrongOptionsAreNamed) {
  const auto error_of = [](std::vector<std::string> more) {
    const Outcome outcome = RunWords(Words(std::move(more)));
    EXPECT_EQ(outcome.code, kExitUsage);
    return outcome.err;
  };
  EXPECT_THAT(error_of({"--disk", "sata-sdd"}), HasSubstr("Did you mean 'sata-ssd'?"));
  EXPECT_THAT(error_of({"--cache", "arc"}), HasSubstr("'arc'"));
  EXPECT_THAT(error_of({"--cache-size", "135%"}), HasSubstr("--cache-size '135%'; allowed: 0% to 100%"));
  EXPECT_THAT(error_of({"--cores", "0"}), HasSubstr("0 cores; allowed"));
  EXPECT_THAT(error_of({"--loader", "dali"}), HasSubstr("--loader 'dali'; allowed: tidepool, pytorch"));
  EXPECT_THAT(error_of({"--prep-rate", "-1"}), HasSubstr("--prep-rate -1; allowed: 0 (free) or more"));
  EXPECT_THAT(error_of({"--workload", "bert"}), HasSubstr("workload 'bert'; allowed: resnet50-a100"));
  EXPECT_THAT(error_of({"--samples", "0"}), HasSubstr("0 samples of 100000 bytes; needed"));
  EXPECT_THAT(error_of({"--variation", "-2"}), HasSubstr("--variation -2; allowed: 0 to 10"));
}

TEST(StallExperiments, RunByNameAndKeepWhatTheyAre) {
  const testing::TempDir root;
  const Outcome done = RunWords({"experiment", "stalls/figure-4a", "--quick", "--svg", root.File("f.svg"), "-o", "json"});
  ASSERT_EQ(done.code, kExitDone) << done.err;
  const nlohmann::json json = done.json();
  EXPECT_EQ(json["mode"], "virtual");
  EXPECT_EQ(json["series"][0]["rows"].size(), 6u);
  EXPECT_GT(json["events"], 10'000);
  EXPECT_THAT(*ReadFile(root.File("f.svg"), kMiB), HasSubstr("Figure 4a"));
  EXPECT_THAT(RunWords({"experiment"}).out, AllOf(HasSubstr("stalls/figure-3"), HasSubstr("stalls/figure-6")));
}

TEST(StallExperiments, RunOnTheRealClockBesideWhatVirtualTimePredicts) {
  const Outcome done = RunWords({"experiment", "stalls/figure-4a", "--quick", "--mode", "real-time", "-o", "json"});
  ASSERT_EQ(done.code, kExitDone) << done.err;
  const nlohmann::json json = done.json();
  EXPECT_EQ(json["mode"], "real-time");
  ASSERT_EQ(json["series"][0]["rows"].size(), 6u);
  for (const auto& row : json["series"][0]["rows"]) {
    EXPECT_TRUE(row["ours"].is_number()) << row;
    EXPECT_TRUE(row["predicted"].is_number()) << row;
    EXPECT_FALSE(row.contains("published")) << row;
  }
  EXPECT_EQ(json["predictions"], 0) << "a quick run is too short to be judged";
  // Other notes say where this machine could not keep the device's time.
  EXPECT_THAT(json["notes"].dump(), HasSubstr("1/16 of the samples in batches of 1/16"));
  EXPECT_THAT(RunWords({"experiment", "stalls/figure-4a", "--mode", "fast"}).err,
              HasSubstr("--mode 'fast'; allowed: virtual, real-time"));
  EXPECT_THAT(RunWords({"experiment", "planning/prices", "--mode", "real-time"}).err,
              HasSubstr("'planning/prices' has none; allowed: virtual"));
}

}  // namespace
}  // namespace tidepool::cli
