// The only source of time. Nobody calls the system clock, sleeps or waits except through a Clock, so that every policy and
// every shell can run in virtual time.
#pragma once

#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace tidepool {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;
  virtual void SleepUntil(absl::Time wake) = 0;
  void SleepFor(absl::Duration duration) { SleepUntil(Now() + duration); }
  // Waits, releasing `mu` (held by the caller), until `condition` holds or `deadline` passes. Returns whether it holds.
  // Whoever makes the condition true does so under `mu`; it is seen at once.
  virtual bool Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) = 0;

  // The process's real clock: monotonic, counted from the wall clock at start-up. Lives for ever.
  static Clock* Real();
};

// Nanoseconds on CLOCK_MONOTONIC, the same for all processes of this machine; for stamps that cross a process boundary.
int64_t MonotonicNanos();

// Time stands still while any registered actor thread runs. When every actor waits in this clock and no awaited condition holds,
// time jumps to the earliest deadline, and one actor goes on: of several with one deadline that which registered first, the next
// when it waits again. So what actors do at which moment is the same in each run. Threads that are no actors may wait too; they
// do not hold time back. If all actors wait without a deadline, time stands still until a thread outside makes a condition true
// or moves time by hand. A condition may be evaluated by any thread that is in the clock, with its mutex held. Thread-safe.
class VirtualClock : public Clock {
 public:
  explicit VirtualClock(absl::Time start = absl::UnixEpoch());
  ~VirtualClock() override;

  absl::Time Now() override;
  void SleepUntil(absl::Time wake) override;
  bool Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) override;

  // While an Actor object lives on a thread, time does not pass unless that thread waits in the clock. One per thread.
  class Actor {
   public:
    explicit Actor(VirtualClock* clock);
    ~Actor();
    Actor(const Actor&) = delete;
    Actor& operator=(const Actor&) = delete;

   private:
    VirtualClock* clock_;
  };
  // Time does not pass by itself before `count` actors have registered in all: call it before starting their threads.
  void ExpectActors(int count);

  // Moves time forward by hand (for tests without actors), waking whoever waited for less.
  void AdvanceTo(absl::Time time);
  void Advance(absl::Duration duration) { AdvanceTo(Now() + duration); }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidepool
