// The analyzer on this machine: real files, real decoding, the real loader and caches; an emulated accelerator in real time.
//
// The phases are those of analysis.h. Storage is either the disk as it is (then what the page cache holds is fast, and the rates
// say so) or a storage model over the real files, which needs neither root nor an empty page cache. Everything in memory means a
// cache of ours that holds all records. The disk of the model is passed by while the cache is filled, so that slow disks do not
// make the preparations slow.
//
// The accelerator is an emulated device whose step takes a given time: copies overlap with computation, two batches are on it.
// Its utilisation charges only waits for data to the storage. If this machine could not keep the device's time, `host_limited`
// says why, and the figures are those of this machine, not of the device.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/status.h"
#include "data/cache_policy.h"
#include "data/stalls/analysis.h"
#include "data/storage_model.h"

namespace tidepool::data::stalls {

struct HybridOptions {
  std::string data;                    // as containers.h reads it
  std::optional<StorageSpec> storage;  // absent: the disk as it is
  CacheKind cache = CacheKind::kMinio;
  double cached_share = 0;  // of the bytes of the samples that are used
  int threads = 0;          // of the loader; 0: one per core
  int64_t batch = 64;
  int64_t read_ahead = 64;  // samples
  int image_size = 224;
  double min_area = 0.08;  // of the random crop
  double copy_seconds = 0, compute_seconds = 0;
  uint64_t seed = 1;

  int64_t most_samples = 20'000;                 // of the data set
  int64_t most_bytes = int64_t{1} << 30;         // likewise; they are held in memory
  absl::Duration phase = absl::Seconds(3);       // measured time of each phase, at least one batch
  absl::Duration limit = absl::Seconds(120);     // a batch that takes longer is DEADLINE_EXCEEDED
  std::function<void(const std::string&)> note;  // hears what is being measured
  std::function<bool()> stopped;                 // CANCELLED

  Status Validate() const;
};

struct HybridPhase {
  int64_t samples = 0;
  double seconds = 0;
  double samples_per_s() const { return seconds > 0 ? static_cast<double>(samples) / seconds : 0; }
};

struct HybridAnalysis {
  int threads = 0;
  int64_t samples = 0, bytes = 0;  // of the data set that was used
  // Measured, real time. `cold`: without the cache.
  HybridPhase ingestion, preparation, fetch_cold, fetch, cached, full;
  Rates rates;
  double miss_share = 0;  // of `full`
  double prep_stall = 0, fetch_stall = 0;
  double predicted_samples_per_s = 0;  // min(F / m, P, G)
  Bottleneck bottleneck = Bottleneck::kIngestion;
  double utilisation = 1, host_idle_share = 0;  // of `full`
  double lateness_p99_seconds = 0;              // at which this machine noticed the end of steps
  bool host_limited = false;
  std::string host_limited_reason;
};

StatusOr<HybridAnalysis> AnalyzeHybrid(const HybridOptions& options);

}  // namespace tidepool::data::stalls
