// Finds where an input pipeline loses time, by differences between runs (DS-Analyzer of Mohan et al., "Analyzing and Mitigating
// Data Stalls in DNN Training", VLDB 2021, section 3 and 5).
//
// Rates, in samples per second, each measured by a run without the other stages:
//   G  ingestion: what the accelerator takes when batches lie in memory
//   P  preparation: what the cores prepare when samples lie in memory
//   F  fetch: what storage and cache deliver when preparation costs nothing; cold: without the cache
// Stall shares, from three runs with the accelerator: T1 synthetic batches, T2 samples in memory, T3 everything:
//   prep stall (T2 - T1) / T3,  fetch stall (T3 - T2) / T3
// Predicted speed, for a cache that misses a share m of the samples, part by part of the epoch:
//   reading ahead             min(F / m, R / t, P, G)           t: one read alone, R: samples that are looked up at once
//   each core reads itself    min(F / m, W / (m t + 1 / p), G)  W: cores, p: what one core prepares per second
// (the second: bounds of a closed queueing network, Denning and Buzen, "The Operational Analysis of Queueing Network Models",
// 1978). The predictions never look at a run with all stages, so they can be held beside one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "data/stalls/pipeline.h"

namespace tidepool::data::stalls {

enum class Bottleneck : uint8_t { kIngestion, kPreparation, kFetch };
std::string_view NameOf(Bottleneck bottleneck);  // "ingestion", "preparation", "fetch"

struct Rates {
  double ingestion = 0;     // G
  double preparation = 0;   // P
  double fetch_cold = 0;    // F
  double fetch = 0;         // F with the cache, measured
  double read_seconds = 0;  // t: of one read alone
};

struct Prediction {
  double miss_share = 1;
  double fetch = 0;  // min(F / m, R / t); infinite where nothing misses
  double samples_per_s = 0;
  Bottleneck bottleneck = Bottleneck::kIngestion;
};

// The share of samples that miss in each of kMissParts equal parts of the measured epoch, from the policy alone: a small data set
// of equal samples is replayed. Caches that replace miss more towards the end of an epoch, and a stage that is slower for a while
// is not made good by one that is faster later.
inline constexpr int kMissParts = 16;
std::vector<double> MissShares(CacheKind kind, double cached_share, int epochs, uint64_t seed);
// Of the whole epoch.
double MissShare(CacheKind kind, double cached_share, int epochs, uint64_t seed);

// What `spec` would reach, from rates that were measured for it.
Prediction Predict(const PipelineSpec& spec, const Rates& rates);

// The slowest stage, from measured rates and the measured share of misses.
Bottleneck BottleneckOf(const PipelineSpec& spec, const Rates& rates, double miss_share);

// Rates of `to` from those of `from`, by arithmetic: preparation goes with cores, fetch with what the storage can do at its
// best, ingestion with the step. Only cores, storage, cache, reading ahead and step times may differ.
Rates Rescale(const Rates& rates, const PipelineSpec& from, const PipelineSpec& to);

// One changed specification: predicted beside simulated.
struct Point {
  std::string name;
  double x = 0;  // cached share, cores, 0
  Prediction predicted;
  double simulated_samples_per_s = 0;
  double error() const;  // predicted / simulated - 1
};

struct Change {
  Point point;
  bool purchase = true;  // something to buy; else a setting
  double gain = 0;       // simulated speed over that of the pipeline as it is, less 1
};

struct Analysis {
  Rates rates;
  PipelineRun full;                                                                      // everything
  double synthetic_samples_per_s = 0, cached_samples_per_s = 0, cold_samples_per_s = 0;  // T1, T2; T3 without the cache
  double prep_stall = 0, fetch_stall = 0;                                                // shares of the time
  Prediction predicted;
  Bottleneck bottleneck = Bottleneck::kIngestion;  // from measured rates

  int needed_cores = 0;            // that prepare as fast as the accelerator takes; 0: preparation costs nothing
  double needed_cache_share = -1;  // of the data set, so that fetch keeps up with min(P, G); -1: no cache does

  std::vector<Point> by_cache, by_cores, by_disk;
  std::vector<Change> changes;  // best first
  int best_purchase = -1;       // in `changes`; -1: none gains kLeastGain
};
inline constexpr double kLeastGain = 0.01;

struct AnalysisOptions {
  std::vector<double> cache_shares;  // of the data set
  std::vector<int> cores;
  std::vector<StorageSpec> disks;
  bool changes = true;
  std::function<bool()> stopped;  // checked between runs; CANCELLED
};

// Measures the rates alone.
StatusOr<Rates> MeasureRates(const PipelineSpec& spec);
StatusOr<Analysis> Analyze(const PipelineSpec& spec, const AnalysisOptions& options);

}  // namespace tidepool::data::stalls
