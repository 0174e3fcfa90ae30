// What an answer from a bundle costs on a hot path, and what finding its handle costs.
#include <benchmark/benchmark.h>

#include <memory>

#include "profile/bundle.h"
#include "profile/lookup.h"

namespace {

using tidepool::profile::Bundle;
using tidepool::profile::Lookup;
using tidepool::profile::OpKey;
using tidepool::profile::OpRow;
using tidepool::profile::Phase;

// `models` networks with a row for each batch from 1 to 256.
std::shared_ptr<const Bundle> Table(int models) {
  auto bundle = std::make_shared<Bundle>();
  bundle->manifest.measured = true;
  for (int model = 0; model < models; ++model) {
    for (int64_t batch = 1; batch <= 256; ++batch) {
      bundle->ops.push_back(OpRow{.key = {.model = "network" + std::to_string(model), .phase = Phase::kStep, .batch = batch},
                                  .repeats = 55,
                                  .median_us = 12'600 + 349 * static_cast<double>(batch)});
    }
  }
  return bundle;
}

void BM_Answer(benchmark::State& state, int64_t first_batch, int64_t last_batch) {
  const Lookup lookup(Table(1));
  const auto times = lookup.Find({.model = "network0", .phase = Phase::kStep});
  int64_t batch = first_batch;
  for (auto _ : state) {
    benchmark::DoNotOptimize(times->At(batch));
    batch = batch == last_batch ? first_batch : batch + 1;
  }
}
BENCHMARK_CAPTURE(BM_Answer, row, 1, 256);
BENCHMARK_CAPTURE(BM_Answer, fit, 257, 1024);

void BM_Find(benchmark::State& state) {
  const Lookup lookup(Table(36));
  const OpKey key = {.model = "network17", .phase = Phase::kStep};
  for (auto _ : state) benchmark::DoNotOptimize(lookup.Find(key));
}
BENCHMARK(BM_Find);

void BM_Index(benchmark::State& state) {
  const auto bundle = Table(36);
  for (auto _ : state) benchmark::DoNotOptimize(std::make_unique<Lookup>(bundle));
  state.SetItemsProcessed(static_cast<int64_t>(bundle->ops.size()) * state.iterations());
}
BENCHMARK(BM_Index)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
