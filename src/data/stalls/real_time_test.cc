#include "data/stalls/real_time.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidepool::data::stalls {
namespace {

using ::testing::HasSubstr;

// 40 batches of 8 samples; each worker reads for 1 ms and prepares for 1 ms; steps of 4 ms.
PipelineSpec Spec() {
  PipelineSpec spec;
  spec.sizes = ConstantSizes(320, 1000);
  spec.storage = {.name = "disk", .bytes_per_s = 1e9, .random_latency = absl::Milliseconds(1), .depth = 32};
  spec.cache = CacheKind::kMinio;
  spec.cache_bytes = 160 * 1000;
  spec.prep_seconds = 0.001;
  spec.cores = 4;
  spec.batch = 8;
  spec.batches_ahead = 8;
  spec.compute_seconds = 0.004;
  spec.read_ahead = 0;
  spec.assignment = Assignment::kBatch;
  spec.overlap_copy = false;
  spec.restart_each_epoch = true;
  return spec;
}

// Nothing here depends on how late this machine wakes its threads: only counts, and what cannot be faster than it is.
TEST(RealTime, AnEpochTakesAtLeastTheTimeOfItsStagesAndMissesWhatTheCacheDoesNotHold) {
  const auto run = RunInRealTime(Spec(), nullptr);
  ASSERT_TRUE(run.ok()) << ToString(run.status());
  EXPECT_EQ(run->run.hits, 160);
  EXPECT_EQ(run->run.misses, 160);
  EXPECT_GE(run->run.seconds, 40 * 0.004 * (1 - 1e-9));
  EXPECT_NEAR(run->run.compute_seconds, 40 * 0.004, 1e-9);
  EXPECT_NEAR(run->run.samples_per_s, 320 / run->run.seconds, 1e-6);
  EXPECT_GT(run->run.wait_seconds, 0.008) << "the first batch is prepared while the loop waits";
  EXPECT_GE(run->run.wait_seconds, run->run.first_wait_seconds);
}

TEST(RealTime, PinningAndSlowWorkersSetThePace) {
  PipelineSpec spec = Spec();
  spec.with_fetch = false;
  spec.pin_seconds = 0.010;
  spec.restart_seconds = 0.02;
  const auto pinned = RunInRealTime(spec, nullptr);
  ASSERT_TRUE(pinned.ok()) << ToString(pinned.status());
  EXPECT_GE(pinned->run.seconds, 0.02 + 40 * 0.010);
  EXPECT_EQ(pinned->run.hits + pinned->run.misses, 0);
  spec.pin_seconds = 0;
  spec.cores = 1;
  const auto alone = RunInRealTime(spec, nullptr);
  ASSERT_TRUE(alone.ok()) << ToString(alone.status());
  EXPECT_GE(alone->run.seconds, 0.02 + 320 * 0.001);
}

TEST(RealTime, ASmallerPipelineHasTheSameSharesAndRates) {
  PipelineSpec spec = Spec();
  spec.sizes = ConstantSizes(64'000, 100'000);
  spec.cache = CacheKind::kPageCache;
  spec.cache_bytes = int64_t{64'000} * 50'000;
  spec.batch = 256;
  spec.pin_seconds = 0.016;
  spec.compute_seconds = 0.128;
  spec.restart_seconds = 0.4;
  const PipelineScale scale{.samples = 16, .batch = 16, .speed = 2, .bytes = 16};
  const PipelineSpec small = ScaledDown(spec, scale);
  EXPECT_EQ(small.samples(), 4000);
  EXPECT_EQ(small.batch, 16);
  EXPECT_EQ(small.cache, CacheKind::kFifo);
  EXPECT_EQ(small.cache_bytes, int64_t{4000} * 3125);
  EXPECT_DOUBLE_EQ(small.pin_seconds, 0.0005);
  EXPECT_DOUBLE_EQ(small.prep_seconds, 0.0005);
  EXPECT_DOUBLE_EQ(small.restart_seconds, 0.0125);
  EXPECT_EQ(small.storage.random_latency, absl::Microseconds(500));
  const auto whole = RunPipeline(spec), part = RunPipeline(small);
  ASSERT_TRUE(whole.ok() && part.ok());
  const PipelineRun up = ScaledUp(*part, scale);
  EXPECT_NEAR(up.seconds / whole->seconds, 1, 0.03);
  EXPECT_NEAR(up.samples_per_s / whole->samples_per_s, 1, 0.03);
  EXPECT_NEAR(up.wait_seconds / up.seconds, whole->wait_seconds / whole->seconds, 0.02);
  EXPECT_NEAR(part->miss_share(), whole->miss_share(), 0.02);
}

TEST(RealTime, StopsWhenItIsAskedToAndRefusesOtherLoaders) {
  PipelineSpec spec = Spec();
  int asked = 0;
  EXPECT_EQ(RunInRealTime(spec, [&] { return ++asked > 340; }).status().code(), StatusCode::kCancelled);
  spec.compute_seconds = 1e-4;
  spec.prep_seconds = 1;  // no batch for 8 s
  spec.cores = 1;
  spec.batch = 1;
  spec.batches_ahead = 1;
  asked = 0;
  spec.with_fetch = false;
  EXPECT_EQ(RunInRealTime(spec, [&] { return ++asked > 1; }).status().code(), StatusCode::kCancelled);
  spec.overlap_copy = true;
  EXPECT_THAT(MessageOf(RunInRealTime(spec, nullptr).status()), HasSubstr("on the real clock only pipelines"));
  spec.batch = 0;
  EXPECT_THAT(MessageOf(RunInRealTime(spec, nullptr).status()), HasSubstr("batch 0"));
}

}  // namespace
}  // namespace tidepool::data::stalls
