#include "profile/bundle_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <random>

#include "base/testing.h"
#include "profile/builtin.h"

namespace tidepool::profile {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::ReadAll;
using testing::TempDir;
namespace fs = std::filesystem;

constexpr char kOpsHeader[] =
    "model\top\tphase\tbatch\tdtype\ttensor_parallel\talgorithm\trepeats\tmedian_us\tp10_us\tp90_us\tfirst_us\tinput_bytes\t"
    "output_bytes\tweight_bytes\tactivation_bytes\treserved_bytes\tpeak_bytes\tsource\n";

Bundle Example() {
  Bundle bundle;
  bundle.manifest = {.name = "p100-cudnn",
                     .hardware = {.name = "p100",
                                  .memory_bytes = 17071734784,
                                  .memory_bytes_per_s = 732e9,
                                  .peak_flops = {{DType::kF32, 9.3e12}, {DType::kF16, 18.7e12}},
                                  .link_bytes_per_s = {{LinkKind::kHostToDevice, 15.75e9}},
                                  .link_latency_us = {{LinkKind::kHostToDevice, 10}},
                                  .launch_us = 5.5,
                                  .efficiency = {.compute = 0.5, .memory = 0.75, .link = 1}},
                     .software = {{"torch", "1.13.1"}, {"cudnn", "8.2"}},
                     .source = "a \"quoted\" source, with ümlaut",
                     .licence = "none",
                     .date = "2024-12-01",
                     .measured = true};
  bundle.ops = {{.key = {.model = "resnet50", .phase = Phase::kForward, .batch = 1}, .repeats = 55, .median_us = 11438.25},
                {.key = {.model = "resnet50",
                         .op = "conv1",
                         .phase = Phase::kStep,
                         .batch = 64,
                         .dtype = DType::kF16,
                         .tensor_parallel = 2,
                         .algorithm = 1},
                 .repeats = 10,
                 .median_us = 0.1,
                 .p10_us = 0.05,
                 .p90_us = 0.2,
                 .first_us = 3e6,
                 .memory = {1, 2, 3, 4, 5, 6.5},
                 .source = "elsewhere"}};
  bundle.collectives = {{"", CollectiveKind::kAllReduce, 2, 1024, 12.5}, {"net", CollectiveKind::kAllToAll, 8, 1e9, 5e5}};
  bundle.links = {{LinkKind::kHostToDevice, true, 4096, 8.5}, {LinkKind::kHostToDevice, false, 4096, 9}};
  bundle.pins = {{38535168, 13000}};
  SortRows(&bundle);
  return bundle;
}

TEST(BundleFiles, ReadBackWhatWasWritten) {
  const TempDir directory;
  const Bundle bundle = Example();
  ASSERT_TRUE(WriteBundle(bundle, directory.File("b")).ok());
  const StatusOr<Bundle> read = ReadBundle(directory.File("b"));
  ASSERT_TRUE(read.ok()) << ToString(read.status());
  EXPECT_EQ(*read, bundle);
  for (const Bundle& builtin : BuiltinBundles()) {
    const std::string path = directory.File(builtin.manifest.name);
    ASSERT_TRUE(WriteBundle(builtin, path).ok()) << builtin.manifest.name;
    EXPECT_EQ(*ReadBundle(path), builtin);
  }
}

TEST(BundleFiles, AreWrittenToTheByte) {
  const TempDir directory;
  ASSERT_TRUE(WriteBundle(Example(), directory.File("b")).ok());
  EXPECT_EQ(ReadAll(directory.File("b/ops.tsv")),
            std::string(kOpsHeader) +
                "resnet50\t\tforward\t1\tF32\t1\t0\t55\t11438.25\t0\t0\t0\t0\t0\t0\t0\t0\t0\t\n"
                "resnet50\tconv1\tstep\t64\tF16\t2\t1\t10\t0.1\t0.05\t0.2\t3000000\t1\t2\t3\t4\t5\t6.5\telsewhere\n");
  EXPECT_EQ(ReadAll(directory.File("b/collectives.tsv")),
            "model\tkind\tranks\tbytes\tmedian_us\n\tall-reduce\t2\t1024\t12.5\nnet\tall-to-all\t8\t1000000000\t500000\n");
  EXPECT_EQ(ReadAll(directory.File("b/links.tsv")),
            "kind\tmemory\tbytes\tmedian_us\nhost-to-device\tpinned\t4096\t8.5\nhost-to-device\tpageable\t4096\t9\n");
  EXPECT_EQ(ReadAll(directory.File("b/pins.tsv")), "bytes\tmedian_us\n38535168\t13000\n");
  EXPECT_EQ(ReadAll(directory.File("b/manifest.json")), R"({
  "format": "tidepool-profile",
  "version": 1,
  "name": "p100-cudnn",
  "measured": true,
  "source": "a \"quoted\" source, with ümlaut",
  "licence": "none",
  "date": "2024-12-01",
  "software": {
    "cudnn": "8.2",
    "torch": "1.13.1"
  },
  "hardware": {
    "name": "p100",
    "memory_bytes": 17071734784.0,
    "memory_bytes_per_s": 732000000000.0,
    "peak_flops": {
      "F16": 18700000000000.0,
      "F32": 9300000000000.0
    },
    "tf32_flops": 0.0,
    "link_bytes_per_s": {
      "host-to-device": 15750000000.0
    },
    "link_latency_us": {
      "host-to-device": 10.0
    },
    "launch_us": 5.5,
    "efficiency": {
      "compute": 0.5,
      "memory": 0.75,
      "link": 1.0
    }
  }
}
)");
}

TEST(BundleFiles, AreReplacedOnlyOnRequestAndOnlyIfTheyAreABundle) {
  const TempDir directory;
  Bundle bundle = Example();
  ASSERT_TRUE(WriteBundle(bundle, directory.File("b/")).ok()) << "a slash at the end does no harm";
  EXPECT_EQ(WriteBundle(bundle, directory.File("b")).code(), StatusCode::kAlreadyExists);
  bundle.ops.clear();
  ASSERT_TRUE(WriteBundle(bundle, directory.File("b"), {.replace = true}).ok());
  EXPECT_EQ(*ReadBundle(directory.File("b")), bundle);
  EXPECT_FALSE(fs::exists(directory.File("b/ops.tsv"))) << "no file of the old bundle is left";

  fs::create_directory(directory.File("other"));
  directory.Write("other/precious", "x");
  const Status refused = WriteBundle(bundle, directory.File("other"), {.replace = true});
  EXPECT_THAT(MessageOf(refused), HasSubstr("is no bundle and is not replaced"));
  EXPECT_EQ(ReadAll(directory.File("other/precious")), "x");
  EXPECT_EQ(WriteBundle(bundle, directory.File("absent/b")).code(), StatusCode::kNotFound);
  for (const auto& entry : fs::directory_iterator(directory.path()))
    EXPECT_THAT(entry.path().string(), Not(HasSubstr(".tmp."))) << "nothing is left behind";
}

TEST(BundleFiles, AreNotWrittenIfTheyCouldNotBeReadBack) {
  const TempDir directory;
  Bundle bundle = Example();
  bundle.ops.push_back(bundle.ops[0]);
  EXPECT_THAT(MessageOf(WriteBundle(bundle, directory.File("b"))), HasSubstr("b/ops.tsv:3:1: the row has the key of line 2"));
  bundle = Example();
  bundle.ops[0].key.model = "tab\there";
  EXPECT_EQ(WriteBundle(bundle, directory.File("b")).code(), StatusCode::kInvalidArgument);
  bundle = Example();
  bundle.manifest.source = "\xff";
  EXPECT_THAT(MessageOf(WriteBundle(bundle, directory.File("b"))), HasSubstr("not UTF-8"));
  bundle = Example();
  bundle.manifest.name = "../up";
  EXPECT_THAT(MessageOf(WriteBundle(bundle, directory.File("b"))), HasSubstr("name '../up' is not allowed"));
  EXPECT_FALSE(fs::exists(directory.File("b")));
}

TEST(BundleFiles, OfAnotherVersionAreRefused) {
  const TempDir directory;
  ASSERT_TRUE(WriteBundle(Example(), directory.File("b")).ok());
  std::string manifest = ReadAll(directory.File("b/manifest.json"));
  manifest.replace(manifest.find("\"version\": 1"), 12, "\"version\": 2, \"new\": {}");
  directory.Write("b/manifest.json", manifest);
  directory.Write("b/ops.tsv", "another table\n");
  const Status refused = ReadBundle(directory.File("b")).status();
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(refused), HasSubstr("the bundle has version 2; this program reads version 1"));
}

TEST(BundleFiles, ThatCannotBeReadSayWhy) {
  const TempDir directory;
  EXPECT_EQ(ReadBundle(directory.File("absent")).status().code(), StatusCode::kNotFound);
  directory.Write("file", "x");
  EXPECT_THAT(MessageOf(ReadBundle(directory.File("file")).status()), HasSubstr("is not a directory"));
  fs::create_directory(directory.File("empty"));
  EXPECT_THAT(MessageOf(ReadBundle(directory.File("empty")).status()), HasSubstr("empty/manifest.json' does not exist"));
  ASSERT_EQ(::mkfifo(directory.File("empty/manifest.json").c_str(), 0600), 0);
  EXPECT_THAT(MessageOf(ReadBundle(directory.File("empty")).status()), HasSubstr("is not a regular file"));
}

TEST(BundleFiles, ReportTheFaultsOfAllFilesTogether) {
  const TempDir directory;
  ASSERT_TRUE(WriteBundle(Example(), directory.File("b")).ok());
  directory.Write("b/manifest.json", "{\"format\": \"tidepool-profile\",\n \"version\": 1, \"name\": 7}");
  directory.Write("b/ops.tsv",
                  std::string(kOpsHeader) + "net\t\tstep\t0\tF33\t1\t0\t55\t-1\t0\t0\t0\t0\t0\t0\t0\t0\tx\t\nshort\n");
  directory.Write("b/links.tsv", "kind\tmemory\tbytes\n");
  const std::string message = MessageOf(ReadBundle(directory.File("b")).status());
  EXPECT_THAT(message, HasSubstr("b/manifest.json:2:16: name is 7; allowed: a text"));
  EXPECT_THAT(message, HasSubstr("manifest.json:1:1: measured is missing"));
  EXPECT_THAT(message, HasSubstr("b/ops.tsv:2:11: batch is '0'; allowed: an integer from 1 to 1099511627776"));
  EXPECT_THAT(message, HasSubstr("b/ops.tsv:2:13: dtype is not understood: dtype 'F33' is not supported"));
  EXPECT_THAT(message, HasSubstr("b/ops.tsv:2:24: median_us is '-1'; allowed: a decimal number from 1e-06 to 1e+18"));
  EXPECT_THAT(message, HasSubstr("peak_bytes is 'x'; allowed: 0 or a decimal number"));
  EXPECT_THAT(message, HasSubstr("b/ops.tsv:3:1: the line has 1 fields; allowed: 19"));
  EXPECT_THAT(message, HasSubstr("b/links.tsv:1:18: column 4 is ''; allowed: 'median_us'"));
}

TEST(BundleTables, SayWhatIsWrongWithTheirShape) {
  Bundle bundle;
  const auto fault = [&](std::string_view text) { return MessageOf(ParseTable(TableKind::kPins, "p", text, &bundle)); };
  EXPECT_THAT(fault(""), HasSubstr("p:1:1: the file is empty"));
  EXPECT_THAT(fault("bytes\tmedian_us"), HasSubstr("p:1:16: the last line does not end with a line feed"));
  EXPECT_THAT(fault("bytes\tmedian_us\tmore\n"), HasSubstr("p:1:17: the unknown column 'more'"));
  EXPECT_THAT(fault("size\tmedian_us\n"), HasSubstr("p:1:1: column 1 is 'size'; allowed: 'bytes'"));
  EXPECT_THAT(fault("bytes\tmedian_us\n1\t1\n2\t2\n1\t3\n"), HasSubstr("p:4:1: the row has the key of line 2"));
  EXPECT_THAT(fault("bytes\tmedian_us\n1\tnan\n"), HasSubstr("p:2:3: median_us is 'nan'"));
  EXPECT_THAT(fault("bytes\tmedian_us\n1\t1\r\n"), HasSubstr("p:2:3: median_us holds the control character 0x0d"));
  EXPECT_THAT(fault("bytes\tmedian_us\n1\t1e400\n"), HasSubstr("median_us is '1e400'"));
  EXPECT_THAT(fault("bytes\tmedian_us\n1\t1 \n"), HasSubstr("median_us is '1 '"));
  std::string many = "bytes\tmedian_us\n";
  for (int i = 0; i < 100; ++i) many += "x\ty\n";
  EXPECT_THAT(fault(many), HasSubstr("and 180 more faults"));
  EXPECT_LT(fault("bytes\tmedian_us\n1\t" + std::string(1'000'000, '9') + "\n").size(), 400u);
}

TEST(BundleTables, MayHaveTheirRowsInAnyOrder) {
  Bundle bundle;
  ASSERT_TRUE(ParseTable(TableKind::kPins, "p", "bytes\tmedian_us\n3\t1\n2\t2\n1\t3\n", &bundle).ok());
  ASSERT_EQ(bundle.pins.size(), 3u);
  EXPECT_EQ(bundle.pins[0].bytes, 1);
}

TEST(Manifest, SaysWhereItIsWrong) {
  const std::string good = ManifestText(Example().manifest);
  const auto fault = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    const auto manifest = ParseManifest("m", text);
    return manifest.ok() ? std::string("accepted") : MessageOf(manifest.status());
  };
  EXPECT_THAT(fault("\"measured\": true", "\"measured\": maybe"), HasSubstr("m:5:15: not JSON at"));
  EXPECT_THAT(fault("\"measured\": true", "\"measured\": 1"), HasSubstr("m:5:3: measured is 1; allowed: true or false"));
  EXPECT_THAT(fault("\"measured\"", "\"measurd\""), HasSubstr("measurd is an unknown key"));
  EXPECT_THAT(fault("\"launch_us\"", "\"tf32_flops\""), HasSubstr("the key 'tf32_flops' stands twice in one object"));
  EXPECT_THAT(fault("\"F32\": 9300000000000.0", "\"F32\": \"9\""),
              HasSubstr("hardware.peak_flops.F32 is \"9\"; allowed: a number"));
  EXPECT_THAT(fault("\"F32\"", "\"F33\""), HasSubstr("dtype 'F33' is not supported"));
  EXPECT_THAT(fault("\"host-to-device\": 15", "\"host-to-moon\": 15"),
              HasSubstr("'host-to-moon' is no link; allowed: host-to-device, device-to-host, peer, network"));
  EXPECT_THAT(fault("\"compute\": 0.5", "\"compute\": 1.5"), HasSubstr("hardware.efficiency.compute is 1.5; allowed"));
  EXPECT_THAT(fault("tidepool-profile", "other"), HasSubstr("format is 'other'; allowed: 'tidepool-profile'"));
  EXPECT_THAT(fault("\"software\": {", "\"software\": {\"a\": [[[[[[[[[["), HasSubstr("nests deeper than 8 levels"));
  EXPECT_THAT(MessageOf(ParseManifest("m", "[]").status()), HasSubstr("m:1:1: the manifest is []; allowed: an object"));
  EXPECT_THAT(MessageOf(ParseManifest("m", "").status()), HasSubstr("m:1:1: not JSON"));
  EXPECT_THAT(MessageOf(ParseManifest("m", std::string(1'000'000, '[')).status()), HasSubstr("nests deeper"));
}

// Random damage is refused with a message or read as a bundle that can be written and read again.
TEST(BundleFiles, SurviveRandomDamage) {
  const Bundle good = Example();
  std::vector<std::string> texts = {ManifestText(good.manifest)};
  for (const TableKind kind : {TableKind::kOps, TableKind::kCollectives, TableKind::kLinks, TableKind::kPins})
    texts.push_back(TableText(kind, good));
  std::mt19937 random(20250607);
  const std::string tokens = "{}[]\":,0123456789-.eE\t\n \\\xff\x7f";
  int accepted = 0;
  for (int round = 0; round < 40'000; ++round) {
    const size_t which = random() % texts.size();
    std::string text = texts[which];
    for (uint32_t change = 0, changes = 1 + random() % 4; change < changes && !text.empty(); ++change) {
      const size_t at = random() % text.size();
      switch (random() % 5) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text[at] = tokens[random() % tokens.size()]; break;
        case 2: text.erase(at, 1 + random() % 8); break;
        case 3: text.insert(at, text.substr(random() % text.size(), random() % 60)); break;
        default: text.resize(at); break;
      }
    }
    Bundle read = good;
    Status status;
    if (which == 0) {
      auto manifest = ParseManifest("file", text);
      status = manifest.status();
      if (manifest.ok()) read.manifest = *manifest;
    } else {
      status = ParseTable(static_cast<TableKind>(which - 1), "file", text, &read);
    }
    if (!status.ok()) {
      EXPECT_THAT(MessageOf(status), HasSubstr("file:"));
      continue;
    }
    ++accepted;
    if (which == 0) {
      EXPECT_EQ(*ParseManifest("again", ManifestText(read.manifest)), read.manifest);
    } else {
      const auto kind = static_cast<TableKind>(which - 1);
      Bundle again = read;
      ASSERT_TRUE(ParseTable(kind, "again", TableText(kind, read), &again).ok());
      EXPECT_EQ(again, read);
    }
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace tidepool::profile
