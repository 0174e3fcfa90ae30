#include "base/clock.h"

#include <absl/container/flat_hash_set.h>
#include <absl/time/clock.h>
#include <time.h>

#include <list>

#include "base/status.h"

namespace tidepool {
namespace {

int64_t ReadClock(clockid_t id) {
  timespec now;
  ::clock_gettime(id, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

class RealClock : public Clock {
 public:
  RealClock() : offset_ns_(ReadClock(CLOCK_REALTIME) - ReadClock(CLOCK_MONOTONIC)) {}

  absl::Time Now() override { return absl::FromUnixNanos(offset_ns_ + MonotonicNanos()); }

  void SleepUntil(absl::Time wake) override {
    const int64_t wake_ns = absl::ToUnixNanos(wake) - offset_ns_;
    const timespec target{static_cast<time_t>(wake_ns / 1'000'000'000), static_cast<long>(wake_ns % 1'000'000'000)};
    while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &target, nullptr) == EINTR) {
    }
  }

  bool Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) override {
    auto holds = +[](const std::function<bool()>* wanted) { return (*wanted)(); };
    return mu->AwaitWithTimeout(absl::Condition(holds, &condition), deadline - Now());
  }

 private:
  const int64_t offset_ns_;  // fixed: a stepped wall clock never moves deadlines
};

}  // namespace

int64_t MonotonicNanos() { return ReadClock(CLOCK_MONOTONIC); }

Clock* Clock::Real() {
  static RealClock* clock = new RealClock;
  return clock;
}

// One thread that waits in the clock. A waiter with a condition is re-examined, in order of arrival, whenever time has moved
// or any other thread has left the clock; so a condition that another actor makes true is seen when that actor next waits.
struct VirtualClock::State {
  struct Waiter {
    absl::Time deadline;
    absl::CondVar wake;
    bool due = false;
    bool is_actor = false;
  };
  absl::Mutex mu;
  absl::Time now ABSL_GUARDED_BY(mu);
  int actors ABSL_GUARDED_BY(mu) = 0;
  int waiting_actors ABSL_GUARDED_BY(mu) = 0;
  std::list<Waiter*> waiters ABSL_GUARDED_BY(mu);

  static thread_local const State* actor_of;

  // Wakes everybody whose time has come.
  void WakeDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    for (Waiter* waiter : waiters) {
      if (!waiter->due && waiter->deadline <= now) {
        waiter->due = true;
        if (waiter->is_actor) --waiting_actors;
        waiter->wake.Signal();
      }
    }
  }

  // If no actor can run, moves to the earliest deadline. With several actors due at one time all of them wake.
  void AdvanceIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (actors == 0 || waiting_actors < actors) return;
    absl::Time earliest = absl::InfiniteFuture();
    for (const Waiter* waiter : waiters) {
      if (!waiter->due) earliest = std::min(earliest, waiter->deadline);
    }
    TIDEPOOL_CHECK(earliest != absl::InfiniteFuture(), "virtual time is stuck: all {} actors wait without a deadline", actors);
    now = std::max(now, earliest);
    WakeDue();
  }

  void Wait(absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Waiter waiter;
    waiter.deadline = deadline;
    waiter.is_actor = actor_of == this;
    if (deadline <= now) return;
    waiters.push_back(&waiter);
    if (waiter.is_actor) ++waiting_actors;
    AdvanceIfIdle();
    while (!waiter.due) waiter.wake.Wait(&mu);
    waiters.remove(&waiter);
  }
};

thread_local const VirtualClock::State* VirtualClock::State::actor_of = nullptr;

VirtualClock::VirtualClock(absl::Time start) : state_(std::make_unique<State>()) {
  absl::MutexLock lock(&state_->mu);
  state_->now = start;
}

VirtualClock::~VirtualClock() = default;

absl::Time VirtualClock::Now() {
  absl::MutexLock lock(&state_->mu);
  return state_->now;
}

void VirtualClock::SleepUntil(absl::Time wake) {
  absl::MutexLock lock(&state_->mu);
  state_->Wait(wake);
}

bool VirtualClock::Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) {
  // The condition may become true by a thread that never touches this clock, so waiting is in steps of virtual time: each step
  // ends when every actor waits. A condition made true by an actor is therefore seen at the virtual moment at which it became
  // true.
  while (!condition()) {
    const absl::Time now = Now();
    if (now >= deadline) return false;
    const absl::Time step = std::min(deadline, now + absl::Microseconds(100));
    mu->Unlock();
    SleepUntil(step);
    mu->Lock();
  }
  return true;
}

VirtualClock::Actor::Actor(VirtualClock* clock) : clock_(clock) {
  absl::MutexLock lock(&clock_->state_->mu);
  ++clock_->state_->actors;
  State::actor_of = clock_->state_.get();
}

VirtualClock::Actor::~Actor() {
  absl::MutexLock lock(&clock_->state_->mu);
  --clock_->state_->actors;
  State::actor_of = nullptr;
  clock_->state_->AdvanceIfIdle();
}

void VirtualClock::AdvanceTo(absl::Time time) {
  absl::MutexLock lock(&state_->mu);
  state_->now = std::max(state_->now, time);
  state_->WakeDue();
}

}  // namespace tidepool
