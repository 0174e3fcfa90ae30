// Who prepares which mini-batch, who has used it, and when its memory is free again: coordinated preparation for several jobs
// that train on the same data at once (CoorDL: Mohan et al., VLDB 2021). Pure bookkeeping: no threads, no I/O, no clock; events
// and `now` in, actions out.
//
// Mini-batches are numbered g = epoch * batches + batch. Each is prepared once, by whichever job has a free thread, into a slot
// of staging memory, and is delivered once to each job, in rising order. Its slot is free again when every job has given it up.
//
//   absent ─► leased ─► ready ─► done
//              │ ▲        │
//              ▼ │        └─ (its slot is needed for an earlier one, and nobody looks at it) ─► open
//             open ◄─ lease ran out, or its holder left
//
// A job takes part from the first epoch of which nothing was leased when it joined; so each job gets each batch of its epochs
// exactly once. A job that leaves (its process ended) owes nothing, and what it was preparing is leased again. A job that holds
// up all others for use_limit is expelled: it gets nothing more, and what it still holds, for reading or writing, stays out of
// use until it leaves, because nothing takes memory away from a process that runs.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

enum class PrepJob : uint32_t {};

struct PrepLedgerOptions {
  int64_t batches = 0;                             // of an epoch
  int64_t epochs = 1;                              // -1: no end
  int slots = 0;                                   // of staging memory, each for one batch; at least 2
  int held = 2;                                    // batches that one job holds at a time; at most `slots`
  int jobs = 1;                                    // that the first epoch waits for ...
  absl::Duration join_limit = absl::Seconds(60);   // ... but not longer than this after the first has joined
  absl::Duration lease_limit = absl::Seconds(30);  // doubles each time that a batch is leased again
  absl::Duration use_limit = absl::Seconds(60);    // to hold up others

  Status Validate() const;
};

// What became of preparing a batch.
struct PrepOutcome {
  Status status;        // not OK: no job gets samples, each gets this
  int64_t samples = 0;  // in the slot; fewer than the batch has if broken ones were left out
  int64_t replaced = 0;
};

struct PrepAction {
  enum class Kind : uint8_t {
    kLease,    // tell `job` to prepare `batch` into `slot` and to name `token` when it is done
    kDeliver,  // give the batch to `job`; it holds the slot until it releases it, unless the outcome is an error
    kEnd,      // tell `job` that it has had all
    kExpel,    // tell `job` that it takes part no more
  };
  Kind kind = Kind::kLease;
  PrepJob job{};
  int64_t g = 0;
  int slot = -1;
  uint64_t token = 0;
  PrepOutcome outcome;
};

struct PrepEpochAccount {
  int64_t epoch = 0;
  int64_t prepared = 0;   // batches; each counts once, however often it was tried
  int64_t repeated = 0;   // prepared again because the slot was needed
  int64_t wasted = 0;     // came after the lease had gone to another job
  int64_t takeovers = 0;  // leases that went to another holder
  int64_t delivered = 0;  // to all jobs together
};

struct PrepJobAccount {
  PrepJob job{};
  std::string name;
  bool expelled = false;
  int64_t first = 0;      // the g from which it takes part
  int64_t next = 0;       // the g that it gets next
  int64_t delivered = 0;  // exactly next - first
  int64_t prepared = 0;
  int held = 0, preparing = 0;  // batches, now
};

// Thread-compatible.
class PrepLedger {
 public:
  // `options` are valid.
  explicit PrepLedger(const PrepLedgerOptions& options);

  // RESOURCE_EXHAUSTED above kMostJobs.
  StatusOr<PrepJob> Join(std::string name, absl::Time now);
  // The job has one more thread that can prepare.
  Status Want(PrepJob job);
  // The job wants its next batch. FAILED_PRECONDITION if it has asked already or holds as many as it may.
  Status Take(PrepJob job, absl::Time now);
  // INVALID_ARGUMENT if the job does not hold a lease of that token.
  Status Done(PrepJob job, uint64_t token, PrepOutcome outcome, absl::Time now);
  // INVALID_ARGUMENT if the job does not hold the batch.
  Status Release(PrepJob job, int64_t g, absl::Time now);
  // It gets nothing more, and what it holds stays out of use until it leaves. False if that is so already.
  bool Expel(PrepJob job);
  // The same for a job that has stopped its threads: it only releases what it still reads.
  void Retire(PrepJob job);
  // Its process has ended, or it has said that it uses nothing any more.
  void Leave(PrepJob job);

  // Decides all that can be decided now. Call it after events, and at NextDeadline.
  std::vector<PrepAction> Advance(absl::Time now);
  absl::Time NextDeadline() const;

  std::vector<PrepEpochAccount> epochs() const;  // the last kKeptEpochs
  std::vector<PrepJobAccount> jobs() const;      // those that have not left
  int free_slots() const { return static_cast<int>(free_.size()); }
  // Slots that only expelled jobs or run-out leases keep from being used.
  int stuck_slots() const;
  const PrepLedgerOptions& options() const { return options_; }

  static constexpr size_t kMostJobs = 256, kKeptEpochs = 64;
  // Batches from the oldest that somebody still holds; beyond that nothing is prepared.
  static constexpr size_t kMostAhead = 4096;

 private:
  enum class State : uint8_t { kOpen, kLeased, kReady, kDone };
  struct Entry {
    State state = State::kOpen;
    int slot = -1;
    uint64_t token = 0;
    absl::Time expires, ready_at;
    int attempts = 0;
    bool counted = false;  // as prepared
    PrepOutcome outcome;
    std::set<PrepJob> owing;  // jobs that have not given it up
  };
  struct Writing {
    int64_t g = 0;
    int slot = 0;
  };
  struct Job {
    std::string name;
    bool expelled = false, taking = false;
    int64_t first = 0, next = 0;
    int wants = 0;
    int64_t leases = 0, prepared = 0;
    absl::Time progress;                  // when it last took or gave up a batch
    std::map<int64_t, int> reading;       // g -> slot
    std::map<uint64_t, Writing> writing;  // by token
  };

  StatusOr<Job*> Active(PrepJob job);
  int64_t End() const { return options_.epochs < 0 ? INT64_MAX : options_.epochs * options_.batches; }
  Entry* Find(int64_t g);
  PrepEpochAccount& AccountOf(int64_t g);
  bool Begun(absl::Time now) const;
  void Unpin(int slot);
  void Detach(Entry* entry);             // from its slot
  void Reopen(int64_t g, Entry* entry);  // its lease or its preparation is void
  void GiveUp(PrepJob job, Entry* entry);
  void GiveUpAll(PrepJob job);
  void DropDone();
  void ExpireLeases(absl::Time now);
  void ExpelStalled(absl::Time now, std::vector<PrepAction>* actions);
  bool Full() const;
  bool Reclaim(int64_t g);
  Job* NextPreparer(PrepJob* id);
  bool LeaseOne(absl::Time now, std::vector<PrepAction>* actions);
  void Deliver(absl::Time now, std::vector<PrepAction>* actions);
  // The earliest moment at which somebody may be expelled for holding up others; infinite if nobody waits.
  absl::Time StallDeadline() const;

  const PrepLedgerOptions options_;
  std::map<PrepJob, Job> jobs_;
  uint32_t next_job_ = 1;
  uint64_t next_token_ = 1;
  bool begun_ = false;
  absl::Time begin_by_ = absl::InfiniteFuture();
  int64_t low_ = 0;  // g of entries_.front()
  std::deque<Entry> entries_;
  int failed_ = 0;  // entries that are ready with an error
  std::vector<int> free_;
  std::vector<int> pins_;       // by slot: leases that write and jobs that read
  std::vector<bool> attached_;  // by slot: an entry has it
  std::map<int64_t, PrepEpochAccount> epochs_;
};

}  // namespace tidepool::data
