#include "data/stalls/analysis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "data/order.h"

namespace tidepool::data::stalls {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSamples = 2000;

// A pipeline whose rates are known because they were put there.
struct Planted {
  PipelineSpec spec;
  double ingestion = 0, preparation = 0, fetch_cold = 0, fetch = 0;
  Bottleneck bottleneck() const {
    if (ingestion <= std::min(preparation, fetch)) return Bottleneck::kIngestion;
    return fetch < preparation ? Bottleneck::kFetch : Bottleneck::kPreparation;
  }
};

class Planter {
 public:
  explicit Planter(uint64_t seed) : random_(seed) {}

  Planted Next() {
    Planted planted;
    PipelineSpec& spec = planted.spec;
    spec.seed = random_();
    const int64_t mean = static_cast<int64_t>(Between(20e3, 500e3));
    spec.sizes =
        random_() % 2 == 0 ? ConstantSizes(kSamples, mean) : LogNormalSizes(kSamples, mean, Between(0.1, 0.6), spec.seed);
    const double bytes = static_cast<double>(TotalBytes(spec.sizes)) / kSamples;
    spec.batch = Pick({20, 40, 50});
    spec.batches_ahead = Pick({4, 8, 16});
    spec.read_ahead = 300;

    planted.ingestion = Between(500, 20'000);
    spec.compute_seconds = static_cast<double>(spec.batch) / planted.ingestion;
    spec.copy_seconds = spec.compute_seconds * Between(0, 0.8);  // hidden

    planted.preparation = Between(500, 20'000);
    spec.cores = Pick({1, 2, 4, 8, 16});
    const double seconds = spec.cores / planted.preparation, proportional = Between(0, 1);
    spec.prep_seconds = (1 - proportional) * seconds;
    spec.prep_seconds_per_byte = proportional * seconds / bytes;

    // The link, the operations or the latency limit the disk.
    planted.fetch_cold = Between(500, 20'000);
    spec.storage = {.name = "planted", .bytes_per_s = planted.fetch_cold * bytes, .depth = 256};
    const int64_t kind = Pick({0, 1, 2});
    if (kind > 0) spec.storage.bytes_per_s *= Between(2, 10);
    if (kind == 1) spec.storage.ops_per_s = planted.fetch_cold;
    if (kind == 2) {
      spec.storage.depth = static_cast<int>(Pick({4, 16, 32}));
      spec.storage.random_latency = absl::Seconds(spec.storage.depth / planted.fetch_cold);
    }
    spec.cache = CacheKind::kMinio;
    spec.cache_bytes = static_cast<int64_t>(Between(0, 0.75) * static_cast<double>(TotalBytes(spec.sizes)));
    const auto [misses, miss_bytes] = MissesOf(spec);
    // A link carries bytes; operations and latencies do not depend on them.
    planted.fetch =
        planted.fetch_cold * (kind == 0 ? static_cast<double>(TotalBytes(spec.sizes)) / miss_bytes : kSamples / misses);
    return planted;
  }

 private:
  // What the cache holds is known without any time.
  static std::pair<double, double> MissesOf(const PipelineSpec& spec) {
    const auto policy = CachePolicy::Create({.kind = spec.cache, .budget_bytes = spec.cache_bytes, .items = kSamples});
    int64_t misses = 0, bytes = 0;
    for (const int64_t sample : EpochOrder(kSamples, spec.seed, 0)) (*policy)->Access(sample, (*spec.sizes)[sample]);
    for (int64_t sample = 0; sample < kSamples; ++sample) {
      if ((*policy)->Contains(sample)) continue;
      ++misses;
      bytes += (*spec.sizes)[sample];
    }
    return {misses, bytes};
  }
  // Log-uniform where both are above 0.
  double Between(double low, double high) {
    const double share = std::uniform_real_distribution<double>(0, 1)(random_);
    return low > 0 ? low * std::pow(high / low, share) : low + (high - low) * share;
  }
  int64_t Pick(std::vector<int64_t> of) { return of[random_() % of.size()]; }
  std::mt19937_64 random_;
};

TEST(Analysis, RecoversPlantedRatesAndNamesTheBottleneckIn200RandomPipelines) {
  constexpr int kPipelines = 200;
  Planter planter(20260101);
  int named = 0;
  for (int i = 0; i < kPipelines; ++i) {
    SCOPED_TRACE(fmt::format("pipeline {}", i));
    const Planted planted = planter.Next();
    const auto rates = MeasureRates(planted.spec);
    const auto run = RunPipeline(planted.spec);
    ASSERT_TRUE(rates.ok() && run.ok()) << ToString(rates.status());
    EXPECT_NEAR(rates->ingestion, planted.ingestion, 0.03 * planted.ingestion);
    EXPECT_NEAR(rates->preparation, planted.preparation, 0.03 * planted.preparation);
    EXPECT_NEAR(rates->fetch_cold, planted.fetch_cold, 0.03 * planted.fetch_cold);
    EXPECT_NEAR(rates->fetch, planted.fetch, 0.03 * planted.fetch);
    named += BottleneckOf(planted.spec, *rates, run->miss_share()) == planted.bottleneck();
  }
  EXPECT_GE(named, 190);
}

// ResNet-like: 100 samples a step of 50 ms, 8 cores of 400 samples/s, a disk of 1,000 samples/s.
PipelineSpec Spec() {
  PipelineSpec spec;
  spec.sizes = ConstantSizes(kSamples, 100'000);
  spec.storage = {.name = "disk", .bytes_per_s = 100e6, .depth = 32};
  spec.cache = CacheKind::kMinio;
  spec.cores = 8;
  spec.prep_seconds = 1 / 400.0;
  spec.batch = 100;
  spec.compute_seconds = 0.05;
  return spec;
}

TEST(Analysis, StallSharesAddUpToTheTimeThatTheAcceleratorStandsStill) {
  const auto analysis = Analyze(Spec(), {.changes = false});
  ASSERT_TRUE(analysis.ok());
  EXPECT_EQ(analysis->bottleneck, Bottleneck::kFetch);
  EXPECT_NEAR(analysis->prep_stall, 0, 0.01);
  EXPECT_NEAR(analysis->fetch_stall, 0.5, 0.01);
  EXPECT_NEAR(1 - analysis->full.utilisation, analysis->prep_stall + analysis->fetch_stall, 0.02);
  PipelineSpec slow = Spec();
  slow.cores = 1;
  const auto prepares = Analyze(slow, {.changes = false});
  ASSERT_TRUE(prepares.ok());
  EXPECT_EQ(prepares->bottleneck, Bottleneck::kPreparation);
  EXPECT_NEAR(prepares->prep_stall, 0.8, 0.01);
  EXPECT_NEAR(prepares->fetch_stall, 0, 0.01);
}

TEST(Analysis, TheBestPurchaseIsTheOneForTheBottleneck) {
  const auto analysis = Analyze(Spec(), {});
  ASSERT_TRUE(analysis.ok());
  ASSERT_GE(analysis->best_purchase, 0);
  EXPECT_EQ(analysis->changes[analysis->best_purchase].point.name, "two 'disk' instead of one");
  EXPECT_NEAR(analysis->changes[analysis->best_purchase].gain, 1.0, 0.02);
  EXPECT_EQ(analysis->needed_cores, 5);
  EXPECT_NEAR(analysis->needed_cache_share, 0.5, 0.011);
  for (const Change& change : analysis->changes) EXPECT_NEAR(change.point.error(), 0, 0.03) << change.point.name;
}

TEST(Analysis, NothingIsBoughtWhereNothingAloneHelps) {
  PipelineSpec spec = Spec();  // all three at 1,000 samples/s
  spec.cores = 4;
  spec.prep_seconds = 0.004;
  spec.compute_seconds = 0.1;
  const auto analysis = Analyze(spec, {});
  ASSERT_TRUE(analysis.ok());
  EXPECT_EQ(analysis->best_purchase, -1);
}

TEST(Analysis, PredictionsStandBesideSimulationsOverCacheCoresAndDisks) {
  for (const int64_t read_ahead : {64, 0}) {
    for (const CacheKind cache : {CacheKind::kMinio, CacheKind::kLru, CacheKind::kPageCache}) {
      PipelineSpec spec = Spec();
      // Little is buffered beside the length of an epoch.
      constexpr int64_t kMany = 8000;
      spec.sizes = ConstantSizes(kMany, 100'000);
      spec.batch = 20;
      spec.compute_seconds /= 5;
      spec.read_ahead = read_ahead;
      spec.cache = cache;
      spec.cache_bytes = kMany * 100'000 / 3;
      const auto analysis =
          Analyze(spec, {.cache_shares = {0, 0.2, 0.4, 0.6, 0.8, 1},
                         .cores = {1, 2, 3, 8, 16},
                         .disks = {*ParseStorageSpec("hdd"), *ParseStorageSpec("sata-ssd"), *ParseStorageSpec("nvme")},
                         .changes = false});
      ASSERT_TRUE(analysis.ok());
      // Cores that read themselves queue at a nearly busy disk, which the bounds do not know.
      const double tolerance = read_ahead > 0 ? 0.04 : 0.08;
      for (const auto* points : {&analysis->by_cache, &analysis->by_cores, &analysis->by_disk}) {
        for (const Point& point : *points) {
          EXPECT_NEAR(point.error(), 0, tolerance) << point.name << " " << CacheKindName(cache) << " ahead " << read_ahead;
        }
      }
    }
  }
}

TEST(Analysis, WorkersThatReadThemselvesAreToldToReadAhead) {
  PipelineSpec spec = Spec();
  spec.read_ahead = 0;
  spec.assignment = Assignment::kBatch;
  spec.batches_ahead = 16;
  spec.storage = {.name = "far", .bytes_per_s = 1e9, .random_latency = absl::Milliseconds(10), .depth = 64};
  const auto analysis = Analyze(spec, {});
  ASSERT_TRUE(analysis.ok());
  EXPECT_EQ(analysis->bottleneck, Bottleneck::kFetch);
  EXPECT_EQ(analysis->changes[0].point.name, "reading ahead");
  EXPECT_FALSE(analysis->changes[0].purchase);
}

TEST(Analysis, StopsWhenItIsAskedTo) {
  const auto analysis = Analyze(Spec(), {.cores = {1}, .stopped = [] { return true; }});
  EXPECT_EQ(analysis.status().code(), StatusCode::kCancelled);
  EXPECT_THAT(MessageOf(analysis.status()), HasSubstr("stopped before '1 cores'"));
}

}  // namespace
}  // namespace tidepool::data::stalls
