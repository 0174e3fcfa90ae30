// A cache of encoded records in memory, before any RecordSource.
//
// A hit is a view of the cached bytes: nothing is copied, nothing is allocated, no system call is made (docs/data.md says why).
// The view pins its bytes: they stay as they are as long as it lives, even if the record is evicted meanwhile.
//
// A miss is read once, however many threads ask for it at the same time: one reads, the others wait for it, up to wait_limit, and
// get the same view or the same error. Nothing is kept of a read that failed; the next Read tries again.
//
// Accounts: each Read of a record that exists counts once in hits, misses, joined or failed. Bytes of what is kept never exceed
// budget_bytes; what was evicted while a view pinned it counts in lingering_bytes until the view goes.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "data/cache_hints.h"
#include "data/cache_policy.h"
#include "data/record_source.h"

namespace tidepool::data {

struct CacheOptions {
  CacheKind kind = CacheKind::kMinio;
  int64_t budget_bytes = 0;  // of record bytes
  CacheKind page_cache_list = CacheKind::kFifo;
  MinioAdmission admission = MinioAdmission::kUntilFull;
  uint64_t seed = 0;        // of kSeededHash
  int64_t total_bytes = 0;  // of kSeededHash: of all records
  // How long a Read waits for another thread that reads the same record.
  absl::Duration wait_limit = absl::Seconds(60);
  Clock* clock = Clock::Real();
  std::string metrics_label;  // exports tidepool_cache_* with cache="label"; empty: not

  Status Validate() const;
};

struct CacheStats {
  int64_t hits = 0;
  int64_t misses = 0;   // read from the source by this call
  int64_t joined = 0;   // got what another thread's miss read
  int64_t waiting = 0;  // for another thread, now
  int64_t failed = 0;   // ended with an error, of whichever kind
  int64_t hit_bytes = 0, miss_bytes = 0;
  int64_t failed_reads = 0;  // of the source; each fails the calls that wait for it too
  int64_t admitted = 0, refused = 0, evicted = 0;
  int64_t items = 0, used_bytes = 0, budget_bytes = 0, peak_bytes = 0;
  int64_t lingering_bytes = 0;

  int64_t reads() const { return hits + misses + joined + failed; }
  double hit_share() const { return reads() == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(reads()); }
};

// How a Read of a cache ended.
enum class CacheOutcome : uint8_t { kHit, kMiss, kJoined, kFailed };

// Thread-safe.
class Cache : public RecordSourceWrapper {
 public:
  // `base` outlives the cache.
  static StatusOr<std::unique_ptr<Cache>> Create(const RecordSource* base, CacheOptions options);
  ~Cache() override;

  // Also: DEADLINE_EXCEEDED if another thread reads the record and is not done within wait_limit.
  StatusOr<RecordView> Read(int64_t record) const override {
    CacheOutcome ignored;
    return ReadAndTell(record, &ignored);
  }
  StatusOr<RecordView> ReadAndTell(int64_t record, CacheOutcome* outcome) const;
  // From the cache if all records of the group are there, else with one ReadGroup of the source, of which the cache takes what
  // its policy admits. Each record counts as one Read.
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override;
  // Passed on for what is not cached.
  void WillNeed(int64_t record) const override;
  void WontNeed(int64_t record) const override;

  // The record if it is cached. Counts as a hit, or not at all.
  std::optional<RecordView> TryGet(int64_t record) const;
  bool Contains(int64_t record) const;
  // Whether the cache would keep the record if it were read now.
  bool WouldAdmit(int64_t record, int64_t bytes) const;

  CacheStats stats() const;
  const CacheOptions& options() const { return options_; }

 private:
  static constexpr size_t kShards = 64;
  static constexpr size_t kMostPendingUses = 128;

  // A read of the source that is under way.
  struct Flight {
    bool done = false;
    Status status;
    RecordView view;
  };
  using FlightPtr = std::shared_ptr<Flight>;
  struct alignas(64) Shard {
    mutable absl::Mutex mu;
    absl::flat_hash_map<int64_t, RecordView> cached ABSL_GUARDED_BY(mu);
    absl::flat_hash_map<int64_t, FlightPtr> flights ABSL_GUARDED_BY(mu);
    CacheStats counts ABSL_GUARDED_BY(mu);  // of the reads of this shard
  };
  // What a Read has to do: take the view, wait for the flight, or read and end the flight.
  struct Plan {
    RecordView view;
    FlightPtr flight;
    enum class Step : uint8_t { kHit, kJoin, kRead } step = Step::kHit;
  };

  Cache(const RecordSource* base, CacheOptions options, std::unique_ptr<CachePolicy> policy);
  Shard& ShardOf(int64_t record) const { return shards_[static_cast<uint64_t>(record) % kShards]; }
  Status CheckIndex(int64_t record) const;
  Plan Begin(int64_t record) const;
  // Keeps what the policy admits, then gives the outcome to all who wait for it.
  StatusOr<RecordView> Finish(int64_t record, Flight* flight, StatusOr<RecordView> outcome) const;
  StatusOr<RecordView> Join(int64_t record, const FlightPtr& flight) const;
  // The same bytes in memory of the cache, if it keeps them.
  RecordView Keep(int64_t record, const RecordView& view) const;
  void NoteUse(int64_t record) const;
  void ApplyUses() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(policy_mu_);
  void ExportMetrics();

  const CacheOptions options_;
  const bool hits_matter_;
  const std::shared_ptr<std::atomic<int64_t>> block_bytes_;  // of all blocks that live
  mutable HintLedger hints_;
  mutable std::array<Shard, kShards> shards_;

  // Lock order: policy_mu_, then a shard's mutex. A hit takes one after the other, never both.
  mutable absl::Mutex policy_mu_;
  const std::unique_ptr<CachePolicy> policy_ ABSL_PT_GUARDED_BY(policy_mu_);
  mutable int64_t kept_bytes_ ABSL_GUARDED_BY(policy_mu_) = 0;  // of records, without rounding to pages
  mutable int64_t peak_bytes_ ABSL_GUARDED_BY(policy_mu_) = 0;

  // Uses that met a policy somebody else was busy with; whoever has it next applies them.
  mutable absl::Mutex uses_mu_;
  mutable std::vector<int64_t> uses_ ABSL_GUARDED_BY(uses_mu_);

  std::shared_ptr<void> collector_;
};

}  // namespace tidepool::data
