// Moves a Simulation along a Clock, for threads that block: events run when their time has come, never before.
//
// Whoever waits drives. Of several waiting threads one leads: it sleeps until the next event, runs it, and wakes who waited for
// it; when its own wait is over another one leads. While nobody waits a thread of the driver's own does it. So a thread that
// waits for its own event wakes at that event's time, without a second hop.
//
// Lateness. A thread that waited for an event of time e goes on at some later real time w. What it does then belongs to the
// moment e: the driver keeps per thread how far real time has run ahead (its lag, w - e), and a thread's time is real time less
// its lag. What is submitted carries the thread's time. So waking late is never charged to the timeline, and whatever a thread
// does or waits for elsewhere is. In virtual time lags are zero.
//
// With a VirtualClock the driver's own thread is an actor; callers that are actors too make runs deterministic.
//
// Thread-safe; what lies on the simulation is guarded by mu().
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/simulation.h"
#include "device/emulated/lateness.h"

namespace tidepool::device::emulated {

class Driver {
 public:
  struct Options {
    Clock* clock = Clock::Real();
    uint64_t seed = 0;
    absl::Time zero;      // the clock's time at the simulation's time 0
    int64_t spin_ns = 0;  // the last part of a sleep that is spent looking at the clock, where cores are to spare
  };
  explicit Driver(const Options& options);
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // Ends the driver's own thread; events no longer run by themselves. What the simulation's events refer to may end after that.
  void Stop();

  absl::Mutex* mu() ABSL_LOCK_RETURNED(mu_) { return &mu_; }
  Clock* clock() const { return options_.clock; }
  Simulation* simulation() { return &simulation_; }
  int64_t NowNs() const { return NanosOf(options_.clock->Now()); }
  int64_t NanosOf(absl::Time time) const { return absl::ToInt64Nanoseconds(time - options_.zero); }
  absl::Time TimeOf(int64_t ns) const { return options_.zero + absl::Nanoseconds(ns); }

  // The calling thread's time. Never negative.
  int64_t ThreadNs() const;

  // Runs what is due. Call it before the simulation is looked at or changed, and Changed() after a change.
  void CatchUp() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Changed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Waits until `condition`, which is evaluated under mu(), holds or the clock's `deadline` passes. Returns whether it holds.
  bool Await(const std::function<bool()>& condition, absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The calling thread has waited, from its time `called_ns`, for something of time `event_ns`: sets its lag.
  void Woken(int64_t called_ns, int64_t event_ns);
  // Puts the calling thread's time forward by `cost_ns`, sleeping as far as real time has not passed yet.
  void Charge(int64_t called_ns, int64_t cost_ns);

  // Runs `callback` soon, on the driver's own thread and without mu().
  void Defer(std::function<void()> callback) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // An operation that ended at `end_ns` was noticed now.
  void NoteEnd(int64_t end_ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  const LatenessHistogram& lateness() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return lateness_; }
  // How far real time was ahead of a thread at worst when that thread submitted something.
  int64_t behind_max_ns() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return behind_max_ns_; }
  void NoteSubmit() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

 private:
  void Run();
  void SleepAsLeader(const std::function<bool()>& wake, absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  const uint64_t id_;
  const bool may_spin_;
  absl::Mutex mu_;
  Simulation simulation_;
  bool has_leader_ ABSL_GUARDED_BY(mu_) = false;
  int64_t leader_wakes_ns_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t changes_ ABSL_GUARDED_BY(mu_) = 0;  // that the leader must know of
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::function<void()>> deferred_ ABSL_GUARDED_BY(mu_);
  LatenessHistogram lateness_ ABSL_GUARDED_BY(mu_);
  int64_t behind_max_ns_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

// Runs `body` on a new thread that is an actor of `clock` if that is a VirtualClock; returns when it is registered.
std::thread StartClockThread(Clock* clock, std::function<void()> body);

}  // namespace tidepool::device::emulated
