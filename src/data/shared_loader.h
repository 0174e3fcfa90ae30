// A loader for one of several jobs that train on the same data at the same time: each mini-batch is read, decoded and augmented
// once, by one of them, and all use it from shared memory (coordinated preparation; CoorDL: Mohan et al., VLDB 2021).
//
// Batches hold the same samples and the same bytes as those of a BatchLoader with the same options, and come in the same order;
// who prepared them makes no difference. Every job gets every batch of the epochs that it takes part in exactly once.
//
// A job that is killed costs the others nothing but what it was preparing. If the coordinator is lost, Next says UNAVAILABLE, and
// cursor() is where a BatchLoader of the job's own goes on.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "data/sample_reader.h"

namespace tidepool::data {

struct SharedLoaderOptions {
  std::string socket;  // of the coordinator
  std::string name;    // of this job, for messages
  int threads = 1;     // of this job, that prepare for all
  int64_t batch = 32;
  int64_t epochs = 1;  // -1: no end
  uint64_t seed = 0;
  bool shuffle = true;
  int64_t window_groups = 16;
  bool augment = true;
  bool drop_last = false;
  OnError on_error = OnError::kFail;
  int max_replacements = 16;
  uint64_t fingerprint = 0;  // of the data; jobs with another one are refused
  uint64_t decoding = 0;     // of all options of the data set that decide about its bytes; likewise

  Status Validate() const;
};

// A batch in staging memory. Giving up the last copy lets the memory go back. May outlive the loader. Thread-compatible.
class SharedBatch {
 public:
  int64_t size() const { return static_cast<int64_t>(samples_.size()); }
  std::span<const std::byte> inputs() const { return inputs_; }  // size() samples without gaps
  std::span<const std::byte> targets() const { return targets_; }
  std::span<const int64_t> samples() const { return samples_; }  // which sample of the data set each is
  int64_t epoch() const { return epoch_; }
  int64_t batch() const { return batch_; }        // of the epoch
  int64_t replaced() const { return replaced_; }  // how many stand in for a broken one

 private:
  friend class SharedLoader;
  std::shared_ptr<void> hold_;
  std::span<const std::byte> inputs_, targets_;
  std::span<const int64_t> samples_;
  int64_t epoch_ = 0, batch_ = 0, replaced_ = 0;
};

struct SharedLoaderStats {
  int64_t delivered = 0;  // batches to this job
  int64_t delivered_samples = 0;
  int64_t prepared = 0;  // batches by this job's threads, for all
  int64_t prepared_samples = 0;
  int64_t skipped = 0;                              // broken samples that this job's threads left out
  int64_t held = 0;                                 // batches, now
  std::vector<std::string> errors;                  // the first of broken samples that this job met
  absl::Duration waited = absl::ZeroDuration();     // Next waited for a batch
  absl::Duration preparing = absl::ZeroDuration();  // all threads together
};

// Thread-safe.
class SharedLoader {
 public:
  // `dataset` outlives it. Also UNAVAILABLE if nobody coordinates, FAILED_PRECONDITION if other jobs have other options,
  // RESOURCE_EXHAUSTED if there is no room for this one.
  static StatusOr<std::unique_ptr<SharedLoader>> Join(const Dataset* dataset, SharedLoaderOptions options, absl::Time deadline);
  // Waits for the batches that its threads are preparing.
  ~SharedLoader();

  // The job's next batch; nothing after the last epoch. DEADLINE_EXCEEDED if it did not come in time (it comes with a later
  // call), CANCELLED after Cancel, UNAVAILABLE if the coordinator is gone, FAILED_PRECONDITION if this job was expelled, or holds
  // as many batches as it may. The error of a batch with a broken sample (kFail) comes once; the batch then counts as handed out.
  StatusOr<std::optional<SharedBatch>> Next(absl::Time deadline);
  void Cancel();

  int64_t first_epoch() const;  // that it takes part in
  LoaderCursor cursor() const;  // after the batches that Next has handed out
  SharedLoaderStats stats() const;

 private:
  class Core;
  explicit SharedLoader(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  const std::shared_ptr<Core> core_;
};

}  // namespace tidepool::data
