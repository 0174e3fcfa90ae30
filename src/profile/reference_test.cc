// Against published measurements: the tables that the emulator's authors recorded on P100 and V100 cards. Where they are not
// beside the project (TIDEPOOL_REFERENCE_DIR), the tests skip.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "base/fd.h"
#include "profile/builtin.h"
#include "profile/check.h"
#include "profile/import.h"
#include "profile/lookup.h"
#include "profile/testing.h"

namespace tidepool::profile {
namespace {

using ::testing::HasSubstr;

struct Series {
  std::string gpu, cudnn;
};

class Reference : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::ReferenceFolder("emulator/profiles", TIDEPOOL_SOURCE_DIR);
    if (directory_.empty()) GTEST_SKIP() << "no reference tables; TIDEPOOL_REFERENCE_DIR names their root";
    directory_ += "/";
  }

  Bundle Read(const std::vector<std::string>& files, const ImportOptions& options, std::string_view card) {
    Importer importer(options);
    for (const std::string& file : files) {
      const auto text = ReadFile(directory_ + file, int64_t{64} << 20);
      EXPECT_TRUE(text.ok()) << ToString(text.status());
      const Status added = importer.Add(file, text.value_or(""));
      EXPECT_TRUE(added.ok()) << ToString(added);
    }
    StatusOr<Bundle> bundle = importer.Finish();
    EXPECT_TRUE(bundle.ok()) << ToString(bundle.status());
    report_ = importer.report();
    Bundle result = bundle.value_or(Bundle{});
    result.manifest = FindBuiltin(card)->manifest;
    result.manifest.measured = true;
    result.manifest.date = "2024-12-01";
    return result;
  }

  Bundle ByBatch(const std::string& gpu, const std::string& cudnn, std::string_view card, bool keep_flagged = false) {
    return Read({"profile_by_batch.tsv"}, {.gpu = gpu, .cudnn = cudnn, .keep_flagged = keep_flagged}, card);
  }

  // The rows of each model, as points over the batch.
  static std::map<std::string, std::vector<Curve::Point>> PointsOf(const Bundle& bundle) {
    std::map<std::string, std::vector<Curve::Point>> points;
    for (const OpRow& row : bundle.ops)
      points[row.key.model].push_back({static_cast<double>(row.key.batch), row.median_us, static_cast<double>(row.repeats)});
    return points;
  }

  std::string directory_;
  ImportReport report_;
};

const Series kGoodSeries[] = {{"P100", "yes"}, {"P100", "no"}, {"V100", "yes"}, {"V100", "no"}};

std::string FaultsOf(const Bundle& bundle) { return MessageOf(ToStatus(Check(bundle), bundle.manifest.name)); }

TEST_F(Reference, AffineFitsOfEveryUnflaggedModelAreWithinThreePercentFromBatch32) {
  int models = 0;
  for (const Series& series : kGoodSeries) {
    for (const auto& [model, points] : PointsOf(ByBatch(series.gpu, series.cudnn, series.gpu == "P100" ? "p100" : "v100"))) {
      const AffineFit fit = FitAffine(points, 32);
      if (fit.points < 3) continue;
      ++models;
      EXPECT_LE(fit.mean_error, 0.03) << series.gpu << " cudnn " << series.cudnn << " " << model;
      std::cout << fmt::format(
          "{} cudnn={:<3} {:<20} {:>3} batches: a {:7.2f} ms, b {:6.3f} ms, mean error {:.2f} %, largest {:.2f} %\n", series.gpu,
          series.cudnn, model, fit.points, fit.intercept / 1e3, fit.slope / 1e3, 100 * fit.mean_error, 100 * fit.max_error);
    }
  }
  EXPECT_GE(models, 20);
}

TEST_F(Reference, AffineFitsGiveTheKnownCoefficients) {
  struct Known {
    const char *gpu, *model;
    double intercept_ms, slope_ms;
  };
  const Known known[] = {{"P100", "alexnet", 12.6, 0.349},  {"P100", "resnet18", 10.8, 1.323},
                         {"P100", "resnet50", 28.6, 4.320}, {"P100", "mobilenet_v2", 9.2, 2.061},
                         {"V100", "alexnet", 7.0, 0.197},   {"V100", "resnet50", 10.8, 2.659}};
  for (const Known& k : known) {
    const auto points = PointsOf(ByBatch(k.gpu, "yes", k.gpu == std::string("P100") ? "p100" : "v100"));
    const AffineFit fit = FitAffine(points.at(k.model), 32);
    EXPECT_NEAR(fit.slope / 1e3, k.slope_ms, 0.04 * k.slope_ms) << k.gpu << " " << k.model;
    EXPECT_NEAR(fit.At(128) / 1e3, k.intercept_ms + 128 * k.slope_ms, 0.02 * (k.intercept_ms + 128 * k.slope_ms))
        << k.gpu << " " << k.model;
  }
}

bool IsPowerOfTwo(int64_t batch) { return batch > 0 && (batch & (batch - 1)) == 0; }
bool IsPowerOrMiddle(int64_t batch) { return IsPowerOfTwo(batch) || (batch % 3 == 0 && IsPowerOfTwo(batch / 3)); }
bool IsPowerOrOneMore(int64_t batch) { return IsPowerOfTwo(batch) || IsPowerOfTwo(batch - 1); }

// Mean error by model of what the rows of `all` with `kept` batches say of its others, from batch 32 on.
std::map<std::string, double> ErrorsFrom(const Bundle& all, bool (*kept)(int64_t batch)) {
  auto sparse = std::make_shared<Bundle>(all);
  std::erase_if(sparse->ops, [&](const OpRow& row) { return !kept(row.key.batch); });
  const Lookup lookup(sparse);
  std::map<std::string, std::pair<double, int>> sums;
  for (const OpRow& row : all.ops) {
    if (row.key.batch < 32 || kept(row.key.batch)) continue;
    const auto times = lookup.Find(row.key);
    EXPECT_TRUE(times.ok()) << ToString(times.status());
    if (!times.ok()) continue;
    sums[row.key.model].first += std::abs(times->At(row.key.batch).median_us / row.median_us - 1);
    ++sums[row.key.model].second;
  }
  std::map<std::string, double> errors;
  for (const auto& [model, sum] : sums) errors[model] = sum.first / sum.second;
  return errors;
}

// AlexNet's time climbs by a tenth right after each multiple of 16 or 32 and is flat after it: stairs. Powers of two and their
// middles all lie at the lower edge of one. A row at each side of an edge is what it takes, not more rows.
TEST_F(Reference, ABundleOfAFewBatchesPredictsTheOthersWithinThreePercentIfItHasBothSidesOfTheStairs) {
  for (const char* gpu : {"P100", "V100"}) {
    const Bundle all = ByBatch(gpu, "yes", gpu == std::string("P100") ? "p100" : "v100");
    const std::map<std::string, double> middles = ErrorsFrom(all, IsPowerOrMiddle), both = ErrorsFrom(all, IsPowerOrOneMore);
    ASSERT_GE(both.size(), 2u) << gpu;
    ASSERT_EQ(both.size(), middles.size());
    for (const auto& [model, error] : both) {
      std::cout << fmt::format("{} {:<14} mean error {:.2f} % from powers of two and one more, {:.2f} % from their middles\n",
                               gpu, model, 100 * error, 100 * middles.at(model));
      EXPECT_LE(error, 0.03) << gpu << " " << model;
      EXPECT_LE(middles.at(model), model == "alexnet" ? 0.05 : 0.03) << gpu << " " << model;
    }
  }
}

// The emulator scales the one row that it has through the origin.
TEST_F(Reference, TheFitIsFarBetterThanScalingOneRowThroughTheOrigin) {
  auto bundle = std::make_shared<Bundle>(ByBatch("P100", "yes", "p100"));
  std::map<std::string, std::map<int64_t, double>> times;
  for (const OpRow& row : bundle->ops) times[row.key.model][row.key.batch] = row.median_us;
  const auto scaled = [&](const std::string& model, int64_t batch) {
    return times[model][64] * static_cast<double>(batch) / 64 / times[model][batch] - 1;
  };
  EXPECT_LT(scaled("alexnet", 1), -0.9);
  EXPECT_GT(scaled("alexnet", 256), 0.3);
  // Without the rows themselves: what the neighbours or the fit say.
  for (const auto& [model, batch] :
       {std::pair<std::string, int64_t>{"alexnet", 1}, {"alexnet", 256}, {"resnet18", 256}, {"mobilenet_v2", 256}}) {
    auto without = std::make_shared<Bundle>(*bundle);
    std::erase_if(without->ops, [&, m = model, b = batch](const OpRow& row) { return row.key.model == m && row.key.batch == b; });
    const double ours =
        Lookup(without).Find({.model = model, .phase = Phase::kStep})->At(batch).median_us / times[model][batch] - 1;
    EXPECT_LT(std::abs(ours), 0.06) << model << " " << batch;
    EXPECT_LE(std::abs(ours), std::abs(scaled(model, batch)) + 0.01) << model << " " << batch;
    std::cout << fmt::format("P100 {:<14} B={:<3} through the origin {:+.1f} %, ours {:+.1f} %\n", model, batch,
                             100 * scaled(model, batch), 100 * ours);
  }
}

TEST_F(Reference, GoodTablesAreAccepted) {
  for (const Series& series : kGoodSeries)
    EXPECT_EQ(FaultsOf(ByBatch(series.gpu, series.cudnn, series.gpu == "P100" ? "p100" : "v100")), "")
        << series.gpu << series.cudnn;
  for (const char* gpu : {"p100", "v100"}) {
    EXPECT_EQ(FaultsOf(Read({"gpufs_profile_p100_v100_cudnn.csv"}, {.gpu = gpu}, gpu)), "") << gpu;
    EXPECT_EQ(FaultsOf(Read({"osre_profile_p100_v100_b64_nocudnn.csv"}, {.gpu = gpu}, gpu)), "") << gpu;
  }
  EXPECT_EQ(FaultsOf(Read({"raw/p100-cudnn_alexnet-batch1.csv", "raw/p100-cudnn_alexnet-batch64.csv",
                           "raw/p100-cudnn_resnet50-batch64.csv", "raw/p100-cudnn_resnet50-batch128.csv"},
                          {}, "p100")),
            "");
}

TEST_F(Reference, RowsOfTheFolderNamedK80AreRefusedAsAK80AndAcceptedAsAV100) {
  EXPECT_EQ(Importer({.gpu = "V100?"}).Finish().status().code(), StatusCode::kNotFound);
  const Bundle k80 = ByBatch("V100?", "yes", "k80", /*keep_flagged=*/true);
  EXPECT_EQ(k80.ops.size(), 38u);
  const std::string faults = FaultsOf(k80);
  EXPECT_THAT(faults, HasSubstr("flops: resnet50 step B=64 F32"));
  std::string device;
  for (const Finding& finding : Check(k80)) {
    if (finding.check == "device") device = finding.text;
  }
  EXPECT_THAT(device, HasSubstr("the rows are of another device, for example one like v100"));

  // Two of the four that the table suspects beyond their label cannot be of a V100 either.
  const Bundle v100 = ByBatch("V100?", "yes", "v100", /*keep_flagged=*/true);
  std::vector<std::string> found;
  for (const Finding& finding : Check(v100)) {
    if (finding.level == Finding::Level::kFault) found.push_back(finding.check + " " + finding.where);
  }
  EXPECT_THAT(found, ::testing::UnorderedElementsAre("flops alexnet step B=64 F32", "growth alexnet step B=128 F32",
                                                     "growth googlenet step B=128 F32"));
}

TEST_F(Reference, TheTwoImpossibleV100FilesAreRefusedAndNothingElse) {
  ByBatch("V100", "no", "v100");
  EXPECT_EQ(report_.flagged.at("suspect:faster-than-V100-fp32-peak"), 2) << "left out unless they are asked for";
  std::vector<std::string> found;
  for (const Finding& finding : Check(ByBatch("V100", "no", "v100", /*keep_flagged=*/true))) {
    if (finding.check == "flops" && finding.level == Finding::Level::kFault) found.push_back(finding.where);
  }
  EXPECT_THAT(found, ::testing::UnorderedElementsAre("alexnet step B=128 F32", "resnet50 step B=128 F32"));
}

TEST_F(Reference, TheInventedFastDeviceIsRefused) {
  EXPECT_THAT(FaultsOf(Read({"gpufs_profile_p100_v100_cudnn.csv"}, {.gpu = "fast"}, "v100")), HasSubstr("flops: resnet50"));
  EXPECT_THAT(FaultsOf(Read({"gpufs_profile_p100_v100_cudnn.csv"}, {.gpu = "fast"}, "v100")), HasSubstr("link: host-to-device"));
}

TEST_F(Reference, CopiesRunAtTheRateOfPciExpress3) {
  for (const Series& series : kGoodSeries) {
    const Bundle bundle = ByBatch(series.gpu, series.cudnn, series.gpu == "P100" ? "p100" : "v100");
    const Lookup lookup(std::make_shared<Bundle>(bundle));
    const auto link = lookup.FindLink(LinkKind::kHostToDevice);
    ASSERT_TRUE(link.ok());
    ASSERT_NE(link->fit(), nullptr);
    EXPECT_NEAR(1 / link->fit()->slope / 1e3, 12.35, 0.15) << series.gpu << series.cudnn;
  }
}

TEST_F(Reference, MemoryOfAlexNetIsAffineInTheBatchAndPinningRunsAtThreeGigabytesPerSecond) {
  const auto bundle =
      std::make_shared<Bundle>(Read({"profile_by_batch.tsv", "gpufs_alexnet_gpu_memory_by_batch.tsv", "gpufs_pin_profile.csv"},
                                    {.gpu = "P100", .cudnn = "yes", .model = "alexnet"}, "p100"));
  const Lookup lookup(bundle);
  const auto alexnet = lookup.Find({.model = "alexnet", .phase = Phase::kStep});
  ASSERT_TRUE(alexnet.ok());
  EXPECT_NEAR(alexnet->MemoryAt(64).memory.peak_bytes / 1048576, 1088.9, 0.1);
  EXPECT_EQ(alexnet->MemoryAt(64).origin, Origin::kMeasured);
  EXPECT_NEAR(alexnet->MemoryAt(512).memory.peak_bytes / 1048576, 861 + 3.54 * 512, 15);
  EXPECT_NEAR(lookup.FindPin()->At(128 * 602112.0).median_us, 23000, 1);
  EXPECT_NEAR(128 * 602112.0 / lookup.FindPin()->At(128 * 602112.0).median_us / 1e3, 3.3, 0.3);
}

TEST_F(Reference, TheTwoTablesOfTheSameRunsAgree) {
  const Bundle by_batch = ByBatch("P100", "yes", "p100");
  const Bundle device = Read({"gpufs_profile_p100_v100_cudnn.csv"}, {.gpu = "p100"}, "p100");
  std::map<OpKey, double> medians;
  for (const OpRow& row : by_batch.ops) medians[row.key] = row.median_us;
  int compared = 0;
  for (const OpRow& row : device.ops) {
    if (!medians.contains(row.key)) continue;
    ++compared;
    EXPECT_NEAR(row.median_us, medians[row.key], 0.08 * medians[row.key]) << ToText(row.key);
  }
  EXPECT_GE(compared, 10);
}

}  // namespace
}  // namespace tidepool::profile
