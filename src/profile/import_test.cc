#include "profile/import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace tidepool::profile {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kBatchHeader[] =
    "gpu\tcudnn\tquality\tmodel\tbatch\tn_samples\th2d_median_s\tcompute_median_s\tcompute_mean_s\tcompute_p10_s\tcompute_p90_s\t"
    "first_iter_s\tsource_dir\n";

StatusOr<Bundle> Import(const std::vector<std::pair<std::string, std::string>>& files, const ImportOptions& options = {},
                        ImportReport* report = nullptr) {
  Importer importer(options);
  for (const auto& [name, text] : files) TIDEPOOL_RETURN_IF_ERROR(importer.Add(name, text));
  StatusOr<Bundle> bundle = importer.Finish();
  if (report != nullptr) *report = importer.report();
  return bundle;
}

TEST(Import, TakesATablePerBatchAndLeavesOutWhatItFlags) {
  const std::string table = std::string(kBatchHeader) +
                            "P100\tyes\tok\tnet\t64\t55\t0.0032\t0.0331\t0.0332\t0.0330\t0.0335\t1.5\ta\n"
                            "P100\tyes\tok\tnet\t64\t10\t0.0050\t0.0400\t0.0332\t0.0330\t0.0435\t1.5\tb\n"
                            "P100\tyes\tsuspect:x\tnet\t128\t55\t0.0064\t0.001\t0.001\t0.001\t0.001\t1.5\ta\n"
                            "V100\tyes\tok\tnet\t64\t55\t0.0032\t0.0231\t0.0332\t0.0230\t0.0335\t1.5\tc\n";
  ImportReport report;
  const auto bundle = Import({{"t.tsv", table}}, {.gpu = "p100"}, &report);
  ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
  ASSERT_EQ(bundle->ops.size(), 1u);
  const OpRow& row = bundle->ops[0];
  EXPECT_EQ(ToText(row.key), "net step B=64 F32");
  EXPECT_EQ(row.repeats, 55) << "the series with more repeats is kept";
  EXPECT_NEAR(row.median_us, 33100, 1e-6);
  EXPECT_NEAR(row.p90_us, 33500, 1e-6);
  EXPECT_NEAR(row.first_us, 1.5e6, 1e-6);
  ASSERT_EQ(bundle->links.size(), 1u);
  EXPECT_EQ(bundle->links[0].bytes, 64 * 602112.0);
  EXPECT_NEAR(bundle->links[0].median_us, 3200, 1e-6);
  EXPECT_EQ(report.rows, 1);
  EXPECT_EQ(report.duplicates, 1);
  EXPECT_EQ(report.flagged.at("suspect:x"), 1);
  EXPECT_EQ(Import({{"t.tsv", table}}, {.gpu = "p100", .keep_flagged = true})->ops.size(), 2u);
  EXPECT_THAT(MessageOf(Import({{"t.tsv", table}}).status()),
              HasSubstr("several devices; choose one of: --gpu 'p100' --cudnn yes; --gpu 'v100' --cudnn yes"));
  EXPECT_THAT(MessageOf(Import({{"t.tsv", table}}, {.gpu = "a100"}).status()),
              HasSubstr("no row was taken; the tables hold: --gpu 'p100' --cudnn yes; --gpu 'v100' --cudnn yes"));
}

TEST(Import, TakesADeviceTableWithoutHeader) {
  ImportReport report;
  const auto bundle = Import({{"profile.csv",
                               "v100\t32510MiB\talexnet\t64\t\t\t0.003\t0.019\t20018\t64.058\t380.346\t\r\n"
                               "v100\t32510MiB\tinception_v3\t64\t\t\t#DIV/0!\t#DIV/0!\t20018\t#DIV/0!\t#DIV/0!\t\r\n"
                               "v100\t32510MiB\tgooglenet\t64\t\t\tN/A\tN/A\t20018\t#VALUE!\t#VALUE!\r\n"
                               "p100\t\tresnet50\t64\t\t\t0.0034\t0.3017\t20018"}},
                             {.gpu = "V100"}, &report);
  ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
  ASSERT_EQ(bundle->ops.size(), 1u);
  EXPECT_NEAR(bundle->ops[0].median_us, 19000, 1e-6);
  EXPECT_EQ(bundle->ops[0].repeats, 0);
  EXPECT_EQ(report.not_measured, 2);
}

TEST(Import, TakesIterationsWhoseFirstIsTheWarmUp) {
  std::string text = "cpu2gpu_time\tgpu_time\n0.09\t2.5\n";
  for (int i = 0; i <= 10; ++i) text += fmt::format("0.003{}\t0.1{:02}\n", i % 3, i);
  const auto bundle = Import({{"some/v100-cudnn_resnet_x-batch128.csv", text}});
  ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
  const OpRow& row = bundle->ops.at(0);
  EXPECT_EQ(ToText(row.key), "resnet_x step B=128 F32");
  EXPECT_EQ(row.repeats, 11);
  EXPECT_NEAR(row.first_us, 2.5e6, 1e-6);
  EXPECT_NEAR(row.median_us, 105e3, 1e-6);
  EXPECT_NEAR(row.p10_us, 101e3, 1e-6);
  EXPECT_NEAR(row.p90_us, 109e3, 1e-6);
  EXPECT_THAT(MessageOf(Import({{"x.csv", text}}).status()), HasSubstr("is to be <gpu>_<model>-batch<N>.csv"));
  EXPECT_THAT(MessageOf(Import({{"a_b-batch1.csv", "cpu2gpu_time\tgpu_time\n1\t1\n"}}).status()),
              HasSubstr("1 iterations; allowed: 2"));
}

TEST(Import, AddsPinTimesAndMemoryToTheRows) {
  const std::string table =
      std::string(kBatchHeader) + "P100\tyes\tok\tnet\t64\t55\t0.0032\t0.0331\t0.0332\t0.0330\t0.0335\t1.5\ta\n";
  ImportReport report;
  const auto bundle =
      Import({{"t", table}, {"pin.csv", "64,0.013\n128,0.023"}, {"mem.tsv", "64\t1089.5\t520.1\n65\t1093\t521\n"}},
             {.model = "net"}, &report);
  ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
  EXPECT_EQ(bundle->ops[0].memory.peak_bytes, 1089.5 * 1048576);
  ASSERT_EQ(bundle->pins.size(), 2u);
  EXPECT_EQ(bundle->pins[0].bytes, 64 * 602112.0);
  EXPECT_NEAR(bundle->pins[0].median_us, 13000, 1e-6);
  EXPECT_EQ(report.without_time, 1);
  EXPECT_THAT(MessageOf(Import({{"mem.tsv", "64\t1089.5\t520.1\n"}}).status()), HasSubstr("does not name its model"));
}

TEST(Import, SaysWhereAFileIsWrong) {
  const auto fault = [](const std::string& text) { return MessageOf(Import({{"f", text}}, {.model = "m"}).status()); };
  EXPECT_THAT(fault(""), HasSubstr("f:1:1: the first line is ''; allowed: a table per batch"));
  EXPECT_THAT(fault("64,0.1\n64;1\n"), HasSubstr("f:2:1: field 1 begins a line of 1 fields; allowed: 2"));
  EXPECT_THAT(fault("64,0.1\n0,1\n"), HasSubstr("f:2:1: field 1 is '0'; allowed: a batch from 1"));
  EXPECT_THAT(fault("64,0.1\n65,x\n"), HasSubstr("f:2:4: field 2 is 'x'; allowed: a decimal number"));
  EXPECT_THAT(fault("a\t\tm\t64\t\t\t0.1\tfast\n"), HasSubstr("f:1:15: field 8 is 'fast'"));
  EXPECT_THAT(fault("a\t\t\t64\t\t\t0.1\t1\n"), HasSubstr("f:1:4: field 3 is empty"));
  EXPECT_THAT(fault(std::string(kBatchHeader) + "P100\tyes\tok\tnet\t0\t55\t0.0032\tx\t0\t0\t0\t1.5\ta\n"),
              AllOf(HasSubstr("f:2:17: batch is '0'"), HasSubstr("compute_median_s is 'x'")));
}

TEST(Import, SurvivesRandomDamage) {
  const std::vector<std::string> texts = {
      std::string(kBatchHeader) + "P100\tyes\tok\tnet\t64\t55\t0.0032\t0.0331\t0.0332\t0.0330\t0.0335\t1.5\ta\n",
      "v100\t32510MiB\talexnet\t64\t\t\t0.003\t0.019\t20018\t64.058\t380.346\t\nv100\t\ta\t128\t\t\t0.003\t0.019\t\t\t\t\n",
      "cpu2gpu_time\tgpu_time\n0.1\t0.2\n0.1\t0.3\n0.2\t0.25\n", "64,0.013\n128,0.023\n",
      "1\t864.47\t484.04\n2\t867.73\t484.3\n"};
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = texts[random() % texts.size()];
    for (uint32_t change = 0, changes = 1 + random() % 3; change < changes && !text.empty(); ++change) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, 1 + random() % 8); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 30)); break;
        default: text.resize(at); break;
      }
    }
    const auto bundle = Import({{"a_b-batch1.csv", text}}, {.model = "m"});
    if (bundle.ok()) {
      ++accepted;
    } else {
      EXPECT_FALSE(MessageOf(bundle.status()).empty());
    }
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace tidepool::profile
