// No test here depends on how fast this machine is, but for the one whose planted disk is hundreds of times slower than anything
// else.
#include "data/stalls/hybrid.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "data/stalls/step_device.h"
#include "data/testing.h"

namespace tidepool::data::stalls {
namespace {

using ::testing::HasSubstr;

class Hybrid : public ::testing::Test {
 protected:
  static constexpr int kPictures = 48;
  void SetUp() override {
    for (int i = 0; i < kPictures; ++i) folder_.Write(fmt::format("class{}/{:03}.jpg", i % 2, i), SmallJpeg(i));
  }
  HybridOptions Options() const {
    HybridOptions options;
    options.data = "imagefolder:" + folder_.path();
    options.threads = 2;
    options.batch = 8;
    options.image_size = 16;
    options.compute_seconds = 0.001;
    options.phase = absl::Milliseconds(20);
    return options;
  }
  TempFolder folder_;
};

TEST_F(Hybrid, MeasuresEveryPhaseOnTheDiskAsItIs) {
  std::vector<std::string> notes;
  HybridOptions options = Options();
  options.cached_share = 0.5;
  options.note = [&](const std::string& note) { notes.push_back(note); };
  const auto analysis = AnalyzeHybrid(options);
  ASSERT_TRUE(analysis.ok()) << ToString(analysis.status());
  EXPECT_EQ(analysis->samples, kPictures);
  for (const HybridPhase* phase : {&analysis->ingestion, &analysis->preparation, &analysis->fetch_cold, &analysis->fetch,
                                   &analysis->cached, &analysis->full}) {
    EXPECT_GE(phase->samples, options.batch);
    EXPECT_GT(phase->samples_per_s(), 0);
  }
  // Half of the bytes are kept; which records these are decides how many.
  EXPECT_GT(analysis->miss_share, 0.3);
  EXPECT_LT(analysis->miss_share, 0.7);
  EXPECT_GT(analysis->utilisation, 0);
  EXPECT_LE(analysis->utilisation, 1);
  EXPECT_LE(analysis->rates.ingestion, 8 / 0.001 * 1.001);  // no step is shorter than it is
  EXPECT_THAT(notes, ::testing::Contains("everything"));
}

TEST_F(Hybrid, NamesASlowDiskOfTheStorageModel) {
  HybridOptions options = Options();
  options.storage = StorageSpec{.name = "slow", .bytes_per_s = 1e9, .depth = 32, .ops_per_s = 40};
  options.phase = absl::Milliseconds(300);
  const auto analysis = AnalyzeHybrid(options);
  ASSERT_TRUE(analysis.ok()) << ToString(analysis.status());
  EXPECT_EQ(analysis->bottleneck, Bottleneck::kFetch);
  EXPECT_EQ(analysis->miss_share, 1);
  EXPECT_LT(analysis->rates.fetch_cold, 80);
  EXPECT_GT(analysis->fetch_stall, 0.3);
  EXPECT_LT(analysis->utilisation, 0.5);
}

TEST_F(Hybrid, KeepsEverythingInTheCacheIfItFits) {
  HybridOptions options = Options();
  options.cached_share = 1;
  options.cache = CacheKind::kMinio;
  const auto analysis = AnalyzeHybrid(options);
  ASSERT_TRUE(analysis.ok()) << ToString(analysis.status());
  EXPECT_EQ(analysis->miss_share, 0);
}

TEST_F(Hybrid, WrongOptionsAndDataAreNamed) {
  const auto error_of = [this](auto change) {
    HybridOptions options = Options();
    change(&options);
    return MessageOf(AnalyzeHybrid(options).status());
  };
  EXPECT_THAT(error_of([](HybridOptions* options) { options->data = ""; }), HasSubstr("no data; needed"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->data = "imagefolder:/nonexistent/x"; }),
              HasSubstr("/nonexistent/x"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->batch = 49; }),
              HasSubstr("48 samples within 1.00 GiB; needed: a batch of 49"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->batch = 0; }), HasSubstr("batch 0"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->cached_share = 1.5; }), HasSubstr("a cached share of 1.5"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->compute_seconds = 0; }), HasSubstr("a step of 0 s"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->threads = -1; }), HasSubstr("-1 threads"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->phase = absl::ZeroDuration(); }), HasSubstr("phases of"));
  EXPECT_THAT(error_of([](HybridOptions* options) { options->stopped = [] { return true; }; }), HasSubstr("stopped"));
}

TEST_F(Hybrid, ABrokenPictureIsNamed) {
  folder_.Write("class0/000.jpg", "this is no picture");
  const auto analysis = AnalyzeHybrid(Options());
  ASSERT_FALSE(analysis.ok());
  EXPECT_THAT(MessageOf(analysis.status()), HasSubstr("000.jpg"));
}

TEST(StepDevice, TakesTheTimeOfItsStepsAndChargesOnlyWaitsForData) {
  const auto device = StepDevice::Open(0.0005, 0.002);
  ASSERT_TRUE(device.ok()) << ToString(device.status());
  int given = 0;
  ASSERT_TRUE((*device)->Run([&]() -> StatusOr<bool> { return given++ < 20; }, absl::Seconds(60)).ok());
  EXPECT_EQ((*device)->steps(), 20);
  // Data is always there: 19 steps without a gap that the host is not to blame for.
  EXPECT_GE((*device)->between_first_and_last(), 19 * absl::Milliseconds(2));
  const auto failed = (*device)->Run([]() -> StatusOr<bool> { return DataLoss("a broken sample"); }, absl::Seconds(60));
  EXPECT_EQ(failed.code(), StatusCode::kDataLoss);
}

}  // namespace
}  // namespace tidepool::data::stalls
