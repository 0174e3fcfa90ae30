// Reads samples ahead on threads of its own and hands them out by position.
//
// A position is a place in the endless sequence epoch 0, epoch 1, ...: position p is sample Order(epoch)[p mod size] of epoch p /
// size. Order is a shuffle keyed by (seed, epoch) (order.h), and augmentation is keyed by (seed, epoch, sample), so a position
// means the same bytes for ever. Whoever wants whole batches, one after the other, takes batch_loader.h, which copies nothing.
//
// Samples are kept from their decoding until Release: a micro-batch that was thrown away fetches again without decoding again.
// Reading ahead stops at `max_bytes` of kept samples; a Fetch always gets what it asks for, even beyond that.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "data/dataset.h"
#include "data/order.h"
#include "data/sample_reader.h"

namespace tidepool::data {

// Half-open.
struct PositionRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const PositionRange&, const PositionRange&) = default;
};

struct LoaderOptions {
  int threads = 1;
  int64_t max_bytes = int64_t{64} << 20;  // of kept samples
  uint64_t seed = 0;
  bool shuffle = true;
  int64_t window_groups = 16;  // as in SampleOptions
  int64_t read_ahead = 64;
  bool augment = true;
  int64_t epochs = -1;         // nothing is read behind this epoch; negative: no end
  int64_t first_position = 0;  // where reading starts
  // kFail or kReplace: a position always has a sample.
  using OnError = ::tidepool::data::OnError;
  OnError on_error = OnError::kFail;
  int max_replacements = 16;  // tries for one position
  Clock* clock = Clock::Real();
  std::function<void()> on_thread_start;  // called first thing on every reading thread

  Status Validate(const Dataset& dataset) const;
};

struct LoaderStats {
  int64_t decoded = 0;    // samples read, replacements included
  int64_t delivered = 0;  // copies handed out by Fetch
  int64_t released = 0;
  int64_t kept = 0;  // samples in memory, or being read
  int64_t kept_bytes = 0;
  int64_t peak_kept_bytes = 0;
  int64_t skipped = 0;                           // samples that were replaced
  std::string first_error;                       // of a skipped sample
  absl::Duration waited = absl::ZeroDuration();  // time that Fetch calls spent waiting for data
};

// Thread-safe.
class Loader {
 public:
  // `dataset` outlives the loader.
  static StatusOr<std::unique_ptr<Loader>> Start(const Dataset* dataset, LoaderOptions options);
  virtual ~Loader() = default;  // joins the threads; waits for the samples that are being read

  // Copies the samples of `ranges`, in order and without gaps, into `inputs` and `targets`. The error of a sample that cannot be
  // read names its position and file and comes at every Fetch of it. FAILED_PRECONDITION for a released position,
  // DEADLINE_EXCEEDED if the data did not come in time, CANCELLED after Cancel.
  virtual Status Fetch(std::span<const PositionRange> ranges, std::span<std::byte> inputs, std::span<std::byte> targets,
                       absl::Time deadline) = 0;
  // Forgets everything before `position`, which never decreases.
  virtual void ReleaseBefore(int64_t position) = 0;
  // Ends reading; waiting and later Fetch calls return CANCELLED.
  virtual void Cancel() = 0;
  virtual LoaderStats stats() const = 0;
};

}  // namespace tidepool::data
