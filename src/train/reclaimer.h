// The trainer's answer to the page broker: hears that memory is wanted back, gives back what holds nothing at once, and decides
// by reclaim_decision.h whether the running phase may end or is aborted. The main thread announces its phases here; between
// phases it is told whether it may go on.
//
//   kIdle --Begin--> phase --End--> kIdle        (main thread)
//   a request in kIdle is answered by the client's thread; one in a phase by End, after an abort or at the boundary.
//
// No torch: what aborting means is a callback.
#pragma once

#include <absl/synchronization/mutex.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "pool/arena.h"
#include "train/reclaim_decision.h"

namespace tidepool::train {

struct ReclaimerOptions {
  ReclaimOptions policy;
  Clock* clock = Clock::Real();
  // Ask the running micro-batch to unwind, and withdraw that. Called with a lock held: they only set a flag.
  std::function<void()> request_abort = [] {};
  std::function<void()> clear_abort = [] {};
  // True from the moment that a request comes until every one is answered, and when the job has to end: the work threads need the
  // cores now. May be called with a lock held.
  std::function<void(bool urgent)> set_urgent = [](bool) {};
  // The longest time between two looks at the abort flag so far; zero while nothing is known. Called with a lock held.
  std::function<absl::Duration()> longest_operator = [] { return absl::ZeroDuration(); };
};

struct ReclaimerStats {
  int64_t requests = 0;        // to give memory back
  int64_t cached_enough = 0;   // answered from cached pages
  int64_t aborts = 0;          // phases that were asked to abort
  int64_t boundary_waits = 0;  // requests that were answered at the end of a phase
  int64_t waiting = 0;         // requests that wait for the main thread now
  absl::Duration slowest;      // from request to answer
};

// Begin, End, ReturnCached and AwaitGate belong to the main thread; the rest is thread-safe.
class Reclaimer {
 public:
  // Becomes the client's handler: make it before a reclaimable lease is opened. The client ends before the reclaimer does.
  Reclaimer(pool::Client* client, ReclaimerOptions options);
  ~Reclaimer();
  // What memory is given back from. Null before the arena ends; waits until the client's thread is done with it.
  void SetArena(pool::Arena* arena);

  enum class Gate : uint8_t { kGo, kTimedOut, kStopped, kDisconnected };
  // Waits until the job is not paused and `may_go(limit_bytes)` holds, or the deadline passes (kTimedOut). Uses no CPU while it
  // waits.
  Gate AwaitGate(const std::function<bool(int64_t limit_bytes)>& may_go, absl::Time deadline);

  // Announces a phase. False for a micro-batch while the job is paused, stopped or cut off: nothing has begun.
  bool Begin(Phase phase, bool protected_run, std::optional<absl::Duration> expected);
  // What the running phase did is undone (it had been aborted): the parts of the handover start here.
  void Unwinding();
  // The phase ended; answers what waited for it.
  void End();
  // Between phases: gives back every page that holds nothing.
  void ReturnCached();

  // The main thread's way out: aborts what runs and opens the gate for good.
  void RequestStop();

  int64_t limit_bytes() const;
  bool paused() const { return client_->paused(); }
  bool stopped() const;
  bool connected() const { return client_->connected(); }
  ReclaimerStats stats() const;

 private:
  struct Pending {
    pool::RevokeRequest request;
    absl::Time received;
    absl::Duration cached;
  };

  void OnRevoke(const pool::RevokeRequest& request);
  void Answer(const Pending& pending, const pool::ReclaimParts& parts);
  // Gives back every cached page above `limit_pages`; how long that took.
  absl::Duration GiveBack(pool::Arena* arena, int64_t limit_pages);
  // The client knows of a new limit before its handler is called for it.
  int64_t LimitPages() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void AskToAbort() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WatchPatience();

  pool::Client* const client_;
  const ReclaimerOptions options_;

  mutable absl::Mutex mu_;
  pool::Arena* arena_ ABSL_GUARDED_BY(mu_) = nullptr;
  Phase phase_ ABSL_GUARDED_BY(mu_) = Phase::kIdle;
  bool protected_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Duration> expected_ ABSL_GUARDED_BY(mu_);
  absl::Time phase_start_ ABSL_GUARDED_BY(mu_);
  absl::Time unwinding_since_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  bool abort_asked_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Pending> pending_ ABSL_GUARDED_BY(mu_);
  absl::Time patience_ends_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  int64_t page_bytes_ ABSL_GUARDED_BY(mu_) = 1;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool disconnected_ ABSL_GUARDED_BY(mu_) = false;
  bool in_handler_ ABSL_GUARDED_BY(mu_) = false;
  int unanswered_ ABSL_GUARDED_BY(mu_) = 0;  // requests that came and were not answered yet
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  ReclaimerStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread watcher_;
};

}  // namespace tidepool::train
