#include "data/stalls/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace tidepool::data::stalls {
namespace {

using ::testing::HasSubstr;

// 1,000 samples of 1 kB on a disk of 1 MB/s without latency: 1,000 samples/s. Prepared at 500 samples/s a core.
PipelineSpec Spec() {
  PipelineSpec spec;
  spec.sizes = ConstantSizes(1000, 1000);
  spec.storage = {.name = "disk", .bytes_per_s = 1e6, .depth = 32};
  spec.cache = CacheKind::kNone;
  spec.prep_seconds = 0.002;
  spec.cores = 4;
  spec.batch = 50;
  spec.compute_seconds = 0.04;
  return spec;
}

PipelineRun RunOf(const PipelineSpec& spec) {
  const auto run = RunPipeline(spec);
  EXPECT_TRUE(run.ok()) << ToString(run.status());
  return run.value_or(PipelineRun());
}

std::string ErrorOf(const PipelineSpec& spec) { return MessageOf(RunPipeline(spec).status()); }

TEST(Pipeline, TheSlowestStageSetsTheSpeed) {
  PipelineSpec spec = Spec();
  EXPECT_NEAR(RunOf(spec).samples_per_s, 1000, 1);  // the disk
  spec.storage.bytes_per_s = 1e9;
  EXPECT_NEAR(RunOf(spec).samples_per_s, 1250, 1);  // 50 samples in 40 ms
  spec.cores = 1;
  EXPECT_NEAR(RunOf(spec).samples_per_s, 500, 1);
  spec.with_prep = false;
  EXPECT_NEAR(RunOf(spec).samples_per_s, 1250, 1);
}

TEST(Pipeline, LatencyIsHiddenAsFarAsReadingAheadAndTheSlotsReach) {
  PipelineSpec spec = Spec();
  spec.with_prep = spec.with_device = false;
  spec.storage = {.name = "disk", .bytes_per_s = 1e12, .random_latency = absl::Milliseconds(10), .depth = 8};
  EXPECT_NEAR(RunOf(spec).samples_per_s, 800, 10);
  spec.storage.depth = 1024;
  spec.cores = 1;
  spec.read_ahead = 19;
  EXPECT_NEAR(RunOf(spec).samples_per_s, 2000, 40);
}

TEST(Pipeline, ACoreThatReadsItselfWaitsForTheDiskAndThenPrepares) {
  PipelineSpec spec = Spec();
  spec.with_device = false;
  spec.read_ahead = 0;
  spec.storage = {.name = "disk", .bytes_per_s = 1e12, .random_latency = absl::Milliseconds(3), .depth = 64};
  EXPECT_NEAR(RunOf(spec).samples_per_s, 4 / 0.005, 4);
  spec.assignment = Assignment::kBatch;
  EXPECT_NEAR(RunOf(spec).samples_per_s, 4 / 0.005, 4);
}

TEST(Pipeline, CopiesHideBehindComputationOnlyIfTheyMay) {
  PipelineSpec spec = Spec();
  spec.with_fetch = spec.with_prep = false;
  spec.copy_seconds = 0.01;
  EXPECT_NEAR(RunOf(spec).seconds, 20 * 0.04, 1e-9);
  spec.overlap_copy = false;
  EXPECT_NEAR(RunOf(spec).seconds, 20 * 0.05, 1e-9);
  EXPECT_NEAR(RunOf(spec).copy_seconds, 20 * 0.01, 1e-9);
  spec.overlap_copy = true;
  spec.copy_seconds = 0.1;
  EXPECT_NEAR(RunOf(spec).seconds, 20 * 0.1, 1e-9);
}

// Workers that restart: the first batch takes one worker 50 x 2 ms, then four batches come every 100 ms for 20 ms steps.
TEST(Pipeline, AnEpochThatBeginsAnewWaitsForItsFirstBatch) {
  PipelineSpec spec = Spec();
  spec.with_fetch = false;
  spec.assignment = Assignment::kBatch;
  spec.read_ahead = 0;
  spec.batches_ahead = 8;
  spec.restart_each_epoch = true;
  spec.restart_seconds = 0.5;
  spec.compute_seconds = 0.020;
  spec.overlap_copy = false;
  const PipelineRun run = RunOf(spec);
  EXPECT_NEAR(run.first_wait_seconds, 0.5 + 0.1, 1e-9);
  // Five rounds of four batches; the last batch of a round is ready with the others and computed as the fourth.
  EXPECT_NEAR(run.seconds, 0.5 + 5 * 0.1 + 4 * 0.020, 1e-9);
  EXPECT_NEAR(run.wait_seconds + run.compute_seconds, run.seconds, 1e-9);
}

TEST(Pipeline, PinningIsOneStageOfItsOwn) {
  PipelineSpec spec = Spec();
  spec.with_fetch = spec.with_prep = false;
  spec.pin_seconds = 0.06;
  EXPECT_NEAR(RunOf(spec).seconds, 20 * 0.06, 1e-9);
  spec.pin_seconds = 0.02;
  EXPECT_NEAR(RunOf(spec).seconds, 20 * 0.04, 1e-9);
  // A step of p seconds loses 10 ms for the share of it that pinning takes: p = 40 ms + 10 ms * 20 ms / p.
  spec.overlap_copy = false;
  spec.pin_turn_seconds = 0.01;
  EXPECT_NEAR(RunOf(spec).seconds, 20 * (0.04 + std::sqrt(0.04 * 0.04 + 4 * 0.01 * 0.02)) / 2, 1e-3);
}

TEST(Pipeline, ACacheOfHalfTheDataDoublesTheFetchRate) {
  PipelineSpec spec = Spec();
  spec.with_prep = spec.with_device = false;
  spec.cache = CacheKind::kMinio;
  spec.cache_bytes = 500 * 1000;
  const PipelineRun run = RunOf(spec);
  EXPECT_EQ(run.hits, 500);
  EXPECT_EQ(run.miss_bytes, 500 * 1000);
  EXPECT_NEAR(run.samples_per_s, 2000, 20);
  spec.cache_bytes = 1000 * 1000;
  EXPECT_EQ(RunOf(spec).misses, 0);
}

// MLPerf-like steps of 0.3 ms with 0.1 ms of host code between them: fast storage is not charged for it.
TEST(Pipeline, InfinitelyFastStorageScoresFullUtilisationEvenForShortSteps) {
  PipelineSpec spec = Spec();
  spec.with_fetch = spec.with_prep = false;
  spec.compute_seconds = 0.0003;
  spec.host_seconds = 0.0001;
  spec.overlap_copy = false;
  const PipelineRun run = RunOf(spec);
  EXPECT_NEAR(run.seconds, 20 * 0.0004, 1e-9);
  EXPECT_GE(run.utilisation, 0.99);
  // A disk that delivers every 0.8 ms what takes 0.3 ms is charged.
  spec.with_fetch = true;
  spec.host_seconds = 0;
  spec.storage.bytes_per_s = 50 * 1000 / 0.0008;
  EXPECT_NEAR(RunOf(spec).utilisation, 0.3 / 0.8, 0.02);
}

TEST(Pipeline, TheSameSpecGivesTheSameRunAndAnotherSeedAnother) {
  PipelineSpec spec = Spec();
  spec.sizes = LogNormalSizes(1000, 1000, 0.6, 3);
  spec.cache = CacheKind::kLru;
  spec.cache_bytes = 300 * 1000;
  const PipelineRun a = RunOf(spec), b = RunOf(spec);
  EXPECT_EQ(a.hash, b.hash);
  EXPECT_EQ(a.seconds, b.seconds);
  spec.seed = 1;
  EXPECT_NE(RunOf(spec).hash, a.hash);
}

TEST(Pipeline, EverySampleIsFetchedOnceAnEpochWhateverTheShape) {
  for (const int cores : {1, 3, 16}) {
    for (const int64_t batch : {1, 7, 64, 1000}) {
      for (const int64_t ahead : {1, 2, 9}) {
        for (const bool restart : {false, true}) {
          for (const Assignment assignment : {Assignment::kSample, Assignment::kBatch}) {
            PipelineSpec spec = Spec();
            spec.cores = cores;
            spec.batch = batch;
            spec.batches_ahead = ahead;
            spec.restart_each_epoch = restart;
            spec.assignment = assignment;
            spec.epochs = 3;
            spec.read_ahead = assignment == Assignment::kBatch ? 0 : 100 * ahead;
            const PipelineRun run = RunOf(spec);
            EXPECT_EQ(run.hits + run.misses, 1000) << cores << " cores, batch " << batch << ", ahead " << ahead;
            EXPECT_GT(run.seconds, 0);
          }
        }
      }
    }
  }
}

TEST(Pipeline, SizesHaveTheMeanThatWasAskedFor) {
  const SampleSizes sizes = LogNormalSizes(50'000, 117'000, 0.6, 1);
  EXPECT_NEAR(static_cast<double>(TotalBytes(sizes)) / 50'000, 117'000, 1500);
  const auto drawn = DrawSizes("10\n20\n\n30\n", 3000, 1);
  ASSERT_TRUE(drawn.ok());
  EXPECT_NEAR(static_cast<double>(TotalBytes(*drawn)) / 3000, 20, 0.6);
  EXPECT_THAT(MessageOf(DrawSizes("10\nx2\n", 3, 1).status()), HasSubstr("line 2: size 'x2'; allowed"));
  EXPECT_THAT(MessageOf(DrawSizes("10\n-2\n", 3, 1).status()), HasSubstr("line 2: size '-2'"));
  EXPECT_THAT(MessageOf(DrawSizes("\n", 3, 1).status()), HasSubstr("there are no sizes"));
}

TEST(Pipeline, AWrongSpecIsNamed) {
  const auto wrong = [](auto change) {
    PipelineSpec spec = Spec();
    change(&spec);
    return ErrorOf(spec);
  };
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->sizes = nullptr; }), HasSubstr("a data set of 0 samples"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->cores = 0; }), HasSubstr("0 cores; allowed: 1 to"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->batch = 1001; }), HasSubstr("batch 1001; allowed: 1 to the 1000 samples"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->epochs = 0; }), HasSubstr("0 epochs"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->compute_seconds = NAN; }), HasSubstr("compute nan s; allowed"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->prep_seconds = -1; }), HasSubstr("preparation of a sample -1 s"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->assignment = Assignment::kBatch; }), HasSubstr("read-ahead of 256 samples"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->storage.bytes_per_s = 0; }), HasSubstr("storage 'disk': rate"));
  EXPECT_THAT(wrong([](PipelineSpec* spec) { spec->cache_bytes = -1; }), HasSubstr("a cache of -1 bytes"));
}

}  // namespace
}  // namespace tidepool::data::stalls
