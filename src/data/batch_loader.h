// Reads a data set batch by batch on threads of its own. Samples are decoded straight into the batch's memory, which goes round:
// nothing is copied and, once it runs, nothing is allocated.
//
// The samples of an epoch stand in the order of order.h, and the epoch is cut into batches from its first sample (or from where
// reading was resumed); the last one may be short. So which samples a batch holds, and their bytes, depend on the seed and the
// options that say so, never on threads or timing. Only the order in which batches are handed out depends on timing, and only if
// as-ready delivery is asked for.
//
// Broken samples: kFail makes Next return the error in place of the batch; kReplace puts the next readable sample in its place;
// kSkip leaves it out, so that the batch is shorter. In each epoch that is gone through, delivered + skipped == the number of
// samples.
//
// Back-pressure: the memory of all batches that are being filled, are ready or are held by the caller stays within max_bytes.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "data/dataset.h"
#include "data/loader.h"
#include "data/sample_reader.h"

namespace tidepool::data {

// Where reading stands: all that is needed, beside the data set and the options, to go on with exactly the samples that were not
// handed out.
struct LoaderCursor {
  uint64_t seed = 0;
  uint64_t fingerprint = 0;  // of the data, if it has one
  int64_t epoch = 0;
  int64_t offset = 0;                    // within the epoch: everything before it was handed out
  std::vector<PositionRange> delivered;  // and these ranges of positions behind it (only with as-ready delivery)

  // "seed=7 fingerprint=0123456789abcdef epoch=2 offset=128 delivered=2240-2272,2304-2336".
  std::string ToText() const;
  static StatusOr<LoaderCursor> FromText(const std::string& text);
  friend bool operator==(const LoaderCursor&, const LoaderCursor&) = default;
};

struct BatchLoaderOptions {
  int threads = 1;
  int64_t batch = 32;                      // samples
  int64_t max_bytes = int64_t{256} << 20;  // of batches in memory; at least two batches
  bool drop_last = false;                  // leave out the short batch at the end of an epoch; its samples count as skipped
  bool as_ready = false;                   // hand out batches as they are complete instead of in order
  int64_t epochs = -1;                     // nothing is read behind this epoch; negative: no end
  bool shuffle = true;
  int64_t window_groups = 16;
  int64_t read_ahead = 64;
  bool augment = true;
  OnError on_error = OnError::kFail;
  int max_replacements = 16;
  LoaderCursor start;        // the seed, and where to begin
  uint64_t fingerprint = 0;  // of the data set; 0: unknown. A cursor of other data is refused
  Clock* clock = Clock::Real();
  std::function<void()> on_thread_start;  // called first thing on every reading thread

  Status Validate(const Dataset& dataset) const;
};

// One epoch's account; complete once its last batch was handed out.
struct EpochAccount {
  int64_t epoch = 0;
  int64_t delivered = 0;
  int64_t skipped = 0;   // broken samples and, with drop_last, the rest
  int64_t replaced = 0;  // of those delivered, how many stand in for a broken one
};

struct BatchLoaderStats {
  int64_t batches = 0;  // handed out
  int64_t delivered = 0, skipped = 0, replaced = 0;
  int64_t reads = 0;         // of samples, replacements included
  int64_t output_bytes = 0;  // of samples handed out
  int64_t epoch = 0, offset = 0, epoch_size = 0;
  int64_t memory_bytes = 0, peak_memory_bytes = 0;
  std::vector<std::string> errors;                // the first of broken samples that were skipped or replaced, with their places
  std::vector<EpochAccount> accounts;             // of the last epochs, the running one last
  absl::Duration elapsed = absl::ZeroDuration();  // since the start
  absl::Duration waited = absl::ZeroDuration();   // callers waited for data
  absl::Duration reading = absl::ZeroDuration();  // all threads together read and decoded
  absl::Duration blocked = absl::ZeroDuration();  // all threads together waited for room

  double samples_per_second() const;  // over the whole run
};

// A batch in the loader's memory. Giving it up returns the memory; it may outlive the loader.
class Batch {
 public:
  int64_t size() const { return static_cast<int64_t>(samples_.size()); }
  std::span<const std::byte> inputs() const { return inputs_; }    // size() samples without gaps
  std::span<const std::byte> targets() const { return targets_; }  // likewise
  std::span<const int64_t> samples() const { return samples_; }    // which sample of the data set each is
  int64_t epoch() const { return epoch_; }
  PositionRange positions() const { return positions_; }  // that it covers, skipped samples included

 private:
  friend class BatchLoaderImpl;
  std::shared_ptr<std::byte> memory_;
  std::span<const std::byte> inputs_, targets_;
  std::vector<int64_t> samples_;
  int64_t epoch_ = 0;
  PositionRange positions_;
};

// Thread-safe.
class BatchLoader {
 public:
  // `dataset` outlives the loader.
  static StatusOr<std::unique_ptr<BatchLoader>> Start(const Dataset* dataset, BatchLoaderOptions options);
  virtual ~BatchLoader() = default;  // joins the threads; waits for the samples that are being read

  // The next batch; nothing after the last epoch. DEADLINE_EXCEEDED if it did not come in time, CANCELLED after Cancel. The error
  // of a batch with a broken sample (kFail) comes once; the batch then counts as handed out.
  virtual StatusOr<std::optional<Batch>> Next(absl::Time deadline) = 0;
  virtual void Cancel() = 0;
  // After the batches that Next has handed out.
  virtual LoaderCursor cursor() const = 0;
  virtual BatchLoaderStats stats() const = 0;
};

}  // namespace tidepool::data
