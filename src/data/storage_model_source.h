// Makes any RecordSource as slow as a storage model says: real bytes, the times of another disk.
//
// A read ends at the later of the moment that the model gives and the moment at which the real read ended. It waits on the
// injected clock for the absolute moment, so lateness does not add up. A real disk that cannot keep up with the model shows in
// `beyond`.
//
// Announced records are submitted to the model at once, within read_ahead_bytes, as a source that reads ahead does; one operation
// brings in a whole group. A record that nobody announced is an operation of its own.
//
// Operations follow each other (sequential latency) if each begins with the record after the last one of the operation before.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/units.h"
#include "data/record_source.h"
#include "data/storage_model.h"

namespace tidepool::data {

struct PacedSourceOptions {
  StorageSpec storage;
  // Files in groups: runs of this many neighbouring records are read with one operation, whatever the source's own groups are. 0:
  // the source's groups.
  int64_t group_records = 0;
  int64_t read_ahead_bytes = 64 * kMiB;
  Clock* clock = Clock::Real();

  Status Validate() const;
};

struct PacedSourceStats {
  StorageCounts model;
  // Of all readers together: the time of their reads until the model had the bytes, and from then on (or from the beginning of
  // the read, if the model had them before) until the real disk had them too. If the second is not small beside the first, the
  // real disk is slower than the model, and what is measured is the real one's.
  absl::Duration waited = absl::ZeroDuration();
  absl::Duration beyond = absl::ZeroDuration();
  int64_t ahead_bytes = 0, peak_ahead_bytes = 0;
};

// Thread-safe.
class PacedSource : public RecordSourceWrapper {
 public:
  // `base` outlives it.
  static StatusOr<std::unique_ptr<PacedSource>> Create(const RecordSource* base, PacedSourceOptions options);

  RecordRange Group(int64_t record) const override;
  StatusOr<RecordView> Read(int64_t record) const override;
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override;
  void WillNeed(int64_t record) const override;
  void WontNeed(int64_t record) const override;

  PacedSourceStats stats() const;

 private:
  // A group that was announced.
  struct Ahead {
    int64_t wanted = 0;  // announcements without their Read or WontNeed
    int64_t bytes = 0;
    bool submitted = false;
    absl::Time done;
  };

  PacedSource(const RecordSource* base, PacedSourceOptions options)
      : RecordSourceWrapper(base), options_(std::move(options)), model_(options_.storage) {}
  int64_t BytesOf(const RecordRange& records) const;
  // When the bytes of an operation are there that is wanted now.
  absl::Time Arrival(int64_t record, const RecordRange& unannounced) const;
  absl::Time Submit(const RecordRange& records, int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Answer(int64_t group) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SubmitPending() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The real part of a read that began at `begin` is done.
  void WaitFor(absl::Time begin, absl::Time arrival) const;

  const PacedSourceOptions options_;
  mutable absl::Mutex mu_;
  mutable StorageModel model_ ABSL_GUARDED_BY(mu_);
  mutable SequenceDetector sequence_ ABSL_GUARDED_BY(mu_);
  mutable absl::flat_hash_map<int64_t, Ahead> ahead_ ABSL_GUARDED_BY(mu_);  // by the group's first record
  mutable std::deque<int64_t> pending_ ABSL_GUARDED_BY(mu_);                // announced, not submitted; some are answered already
  mutable PacedSourceStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tidepool::data
