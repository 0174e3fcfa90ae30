#include "base/clock.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <limits>
#include <list>
#include <vector>

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
    if (wake <= Now()) return;
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

constexpr int kNoActor = std::numeric_limits<int>::max();

}  // namespace

int64_t MonotonicNanos() { return ReadClock(CLOCK_MONOTONIC); }

Clock* Clock::Real() {
  static RealClock* clock = new RealClock;
  return clock;
}

// Lock order: the mutex of an Await before `mu`. So the clock evaluates conditions without holding `mu`; a waiter that is being
// looked at is pinned, and does not leave before it is let go.
struct VirtualClock::State {
  struct Waiter {
    absl::Time deadline;
    int actor = kNoActor;  // order of registration
    absl::Mutex* user_mu = nullptr;
    const std::function<bool()>* condition = nullptr;
    std::atomic<bool> granted{false};  // may go on: its time has come, or its condition was seen to hold
    int pins = 0;
  };

  absl::Mutex mu;
  absl::CondVar changed;  // signalled when a waiter without a mutex is granted, and when a pin is taken off
  absl::Time now ABSL_GUARDED_BY(mu);
  int expected ABSL_GUARDED_BY(mu) = 0;
  int registered ABSL_GUARDED_BY(mu) = 0;  // ever
  int actors ABSL_GUARDED_BY(mu) = 0;
  int waiting_actors ABSL_GUARDED_BY(mu) = 0;  // those that wait and are not granted
  uint64_t epoch ABSL_GUARDED_BY(mu) = 0;      // counts arrivals, departures and grants
  std::list<Waiter*> waiters ABSL_GUARDED_BY(mu);

  static thread_local const State* actor_of;
  static thread_local int actor_number;

  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return actors > 0 && registered >= expected && waiting_actors == actors; }

  void Enter(Waiter* waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (actor_of == this) waiter->actor = actor_number;
    waiters.push_back(waiter);
    ++epoch;
    if (waiter->deadline <= now) {  // time was moved by hand since the caller looked
      waiter->granted = true;
    } else if (waiter->actor != kNoActor) {
      ++waiting_actors;
    }
  }

  void Grant(Waiter* waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (waiter->granted.exchange(true)) return;
    if (waiter->actor != kNoActor) --waiting_actors;
    ++epoch;
    changed.SignalAll();
  }

  void Leave(Waiter* waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Grant(waiter);
    waiters.remove(waiter);
    while (waiter->pins > 0) changed.Wait(&mu);
  }

  std::vector<Waiter*> PinAwaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::vector<Waiter*> pinned;
    for (Waiter* waiter : waiters) {
      if (waiter->user_mu == nullptr || waiter->granted) continue;
      ++waiter->pins;
      pinned.push_back(waiter);
    }
    return pinned;
  }

  void Unpin(const std::vector<Waiter*>& pinned) ABSL_LOCKS_EXCLUDED(mu) {
    absl::MutexLock lock(&mu);
    for (Waiter* waiter : pinned) --waiter->pins;
    changed.SignalAll();
  }

  // Releasing a mutex makes its waiters look at their conditions, of which `granted` is a part.
  static void Nudge(const std::vector<Waiter*>& pinned) {
    for (Waiter* waiter : pinned) {
      if (!waiter->granted) continue;
      waiter->user_mu->Lock();
      waiter->user_mu->Unlock();
    }
  }

  // Grants every actor whose condition holds. True if there was one.
  bool GrantSatisfied(const std::vector<Waiter*>& pinned) ABSL_LOCKS_EXCLUDED(mu) {
    bool found = false;
    for (Waiter* waiter : pinned) {
      bool holds;
      {
        absl::MutexLock user_lock(waiter->user_mu);
        holds = (*waiter->condition)();
      }
      if (!holds) continue;
      absl::MutexLock lock(&mu);
      Grant(waiter);
      found = found || waiter->actor != kNoActor;
    }
    return found;
  }

  // The waiters to wake once nobody can run: everybody outside whose time has come, and the first of the actors.
  void JumpToEarliest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    absl::Time earliest = absl::InfiniteFuture();
    for (const Waiter* waiter : waiters) {
      if (!waiter->granted) earliest = std::min(earliest, waiter->deadline);
    }
    if (earliest == absl::InfiniteFuture()) return;
    now = std::max(now, earliest);
    Waiter* first = nullptr;
    for (Waiter* waiter : waiters) {
      if (waiter->granted || waiter->deadline > now) continue;
      if (waiter->actor == kNoActor) {
        Grant(waiter);
      } else if (first == nullptr || std::pair(waiter->deadline, waiter->actor) < std::pair(first->deadline, first->actor)) {
        first = waiter;
      }
    }
    if (first != nullptr) Grant(first);
  }

  // Called, without any lock, whenever an actor has begun to wait or has gone: moves time until an actor can run.
  void Settle() ABSL_LOCKS_EXCLUDED(mu) {
    while (true) {
      std::vector<Waiter*> pinned;
      uint64_t seen;
      {
        absl::MutexLock lock(&mu);
        if (!Idle()) return;
        pinned = PinAwaiting();
        seen = epoch;
      }
      const bool found = GrantSatisfied(pinned);
      bool moved = false;
      if (!found) {
        absl::MutexLock lock(&mu);
        // If anybody came or went meanwhile, the conditions must be looked at again before time may move.
        if (epoch == seen && Idle()) {
          JumpToEarliest();
          moved = true;
        }
      }
      Nudge(pinned);
      Unpin(pinned);
      if (found) return;
      if (moved) {
        absl::MutexLock lock(&mu);
        if (epoch == seen) return;  // nobody has a deadline
      }
    }
  }
};

thread_local const VirtualClock::State* VirtualClock::State::actor_of = nullptr;
thread_local int VirtualClock::State::actor_number = kNoActor;

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
  State::Waiter waiter;
  waiter.deadline = wake;
  {
    absl::MutexLock lock(&state_->mu);
    if (wake <= state_->now) return;
    state_->Enter(&waiter);
  }
  state_->Settle();
  absl::MutexLock lock(&state_->mu);
  while (!waiter.granted) state_->changed.Wait(&state_->mu);
  state_->Leave(&waiter);
}

bool VirtualClock::Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) {
  while (!condition()) {
    if (Now() >= deadline) return false;
    State::Waiter waiter;
    waiter.deadline = deadline;
    waiter.user_mu = mu;
    waiter.condition = &condition;
    {
      absl::MutexLock lock(&state_->mu);
      state_->Enter(&waiter);
    }
    mu->Unlock();
    state_->Settle();
    mu->Lock();
    auto may_go = +[](State::Waiter* self) { return self->granted.load() || (*self->condition)(); };
    mu->Await(absl::Condition(may_go, &waiter));
    // The clock may be about to lock `mu` to look at this waiter; it cannot leave with the mutex held.
    mu->Unlock();
    {
      absl::MutexLock lock(&state_->mu);
      state_->Leave(&waiter);
    }
    mu->Lock();
  }
  return true;
}

VirtualClock::Actor::Actor(VirtualClock* clock) : clock_(clock) {
  TIDEPOOL_CHECK(State::actor_of == nullptr, "this thread is an actor already");
  State* state = clock_->state_.get();
  absl::MutexLock lock(&state->mu);
  ++state->actors;
  State::actor_of = state;
  State::actor_number = state->registered++;
}

VirtualClock::Actor::~Actor() {
  State* state = clock_->state_.get();
  {
    absl::MutexLock lock(&state->mu);
    --state->actors;
    ++state->epoch;
  }
  State::actor_of = nullptr;
  State::actor_number = kNoActor;
  state->Settle();
}

void VirtualClock::ExpectActors(int count) {
  absl::MutexLock lock(&state_->mu);
  state_->expected = count;
}

void VirtualClock::AdvanceTo(absl::Time time) {
  std::vector<State::Waiter*> pinned;
  {
    absl::MutexLock lock(&state_->mu);
    state_->now = std::max(state_->now, time);
    pinned = state_->PinAwaiting();
    for (State::Waiter* waiter : state_->waiters) {
      if (waiter->deadline <= state_->now) state_->Grant(waiter);
    }
  }
  State::Nudge(pinned);
  state_->Unpin(pinned);
}

}  // namespace tidepool
