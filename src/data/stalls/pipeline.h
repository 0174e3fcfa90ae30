// The input pipeline of a training job in virtual time: storage, cache, preparation, delivery, accelerator.
//
//   storage model -> cache policy -> fetch -> prepare on N cores -> batch -> pin -> copy -> compute
//
// The same cache policies and storage models that the real loader uses decide here; only the bytes and the threads are missing.
// A run is one Simulation, single-threaded, and depends on nothing but its spec: same spec, same hash.
//
// Stages can be left out. That is how rates are measured (analysis.h): without fetch every sample is in memory, without
// preparation it costs nothing, without the device steps take no time.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "data/cache_policy.h"
#include "data/storage_model.h"

namespace tidepool::data::stalls {

// Bytes of each sample; shared, because many runs use one list.
using SampleSizes = std::shared_ptr<const std::vector<int64_t>>;
SampleSizes ConstantSizes(int64_t samples, int64_t bytes);
// Log-normal with this mean and coefficient of variation (standard deviation / mean); every size is at least 1.
SampleSizes LogNormalSizes(int64_t samples, int64_t mean_bytes, double variation, uint64_t seed);
// `samples` sizes drawn from those in `text`, one a line. INVALID_ARGUMENT names the line.
StatusOr<SampleSizes> DrawSizes(std::string_view text, int64_t samples, uint64_t seed);
int64_t TotalBytes(const SampleSizes& sizes);

// Who prepares what.
enum class Assignment : uint8_t {
  kSample,  // a core takes the next sample of the order; many cores work on one batch
  kBatch,   // core i prepares batches i, i + cores, ... alone, as the workers of PyTorch's DataLoader do
};

struct PipelineSpec {
  // Data.
  SampleSizes sizes;
  uint64_t seed = 0;  // of the order of each epoch

  // Fetch.
  StorageSpec storage;
  CacheKind cache = CacheKind::kMinio;
  int64_t cache_bytes = 0;
  // Samples that are read before a core asks for them; 0: a core reads its sample itself and waits for it. Only with kSample.
  int64_t read_ahead = 256;

  // Preparation: decode, crop, resize, normalise.
  int cores = 1;
  double prep_seconds = 0;  // of each sample
  double prep_seconds_per_byte = 0;
  Assignment assignment = Assignment::kSample;

  // Delivery, in order.
  int64_t batch = 256;
  int64_t batches_ahead = 4;  // being prepared or waiting, beside the one on the device
  double pin_seconds = 0;     // of each batch, one after the other
                              // Host time that a step loses for each second of it that pinning takes (a shared interpreter lock).
  double pin_turn_seconds = 0;

  // Accelerator, per step.
  double copy_seconds = 0;
  double compute_seconds = 0;
  double host_seconds = 0;   // of the training loop between steps; not the storage's fault
  bool overlap_copy = true;  // the next batch is copied while this one is computed

  // Run.
  int epochs = 2;                   // the last one is measured; the ones before fill the cache
  bool restart_each_epoch = false;  // nothing is read ahead across epochs, and each begins with restart_seconds
  double restart_seconds = 0;

  // Stages that are there.
  bool with_fetch = true, with_prep = true, with_device = true;

  int64_t samples() const { return sizes == nullptr ? 0 : static_cast<int64_t>(sizes->size()); }
  int64_t batches_per_epoch() const { return (samples() + batch - 1) / batch; }
  Status Validate() const;
};

// Of the measured epoch. Seconds are virtual.
struct PipelineRun {
  double seconds = 0;  // without restart_each_epoch: from the end of the epoch before to its own end
  double samples_per_s = 0;
  double wait_seconds = 0;  // the training loop waited for data
  double copy_seconds = 0;  // the training loop waited for copies (without overlap_copy)
  double compute_seconds = 0;
  double host_seconds = 0;
  double first_wait_seconds = 0;  // of wait_seconds, for the first batch
  double utilisation = 1;         // of the accelerator, host overhead not charged (device/emulated/utilisation.h)
  int64_t hits = 0, misses = 0;
  int64_t hit_bytes = 0, miss_bytes = 0;
  int64_t events = 0;  // of the whole run
  uint64_t hash = 0;

  double miss_share() const {
    const int64_t all = hits + misses;
    return all == 0 ? 0 : static_cast<double>(misses) / static_cast<double>(all);
  }
};

StatusOr<PipelineRun> RunPipeline(const PipelineSpec& spec);

}  // namespace tidepool::data::stalls
