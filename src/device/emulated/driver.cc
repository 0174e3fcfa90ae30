#include "device/emulated/driver.h"

#include <absl/synchronization/notification.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <optional>

namespace tidepool::device::emulated {
namespace {

// Below this many cores, spinning takes time from the very threads that are measured.
constexpr unsigned kCoresToSpin = 4;

// How far real time has run ahead of this thread, by driver. Drivers' ids are never used again, so entries of ended ones do no
// harm.
struct Lag {
  uint64_t driver;
  int64_t ns;
};
thread_local std::vector<Lag> thread_lags;

int64_t LagOf(uint64_t driver) {
  for (const Lag& lag : thread_lags) {
    if (lag.driver == driver) return lag.ns;
  }
  return 0;
}

void SetLag(uint64_t driver, int64_t ns) {
  for (Lag& lag : thread_lags) {
    if (lag.driver != driver) continue;
    lag.ns = ns;
    return;
  }
  constexpr size_t kMost = 16;
  if (thread_lags.size() >= kMost) thread_lags.erase(thread_lags.begin());
  thread_lags.push_back({driver, ns});
}

// Timers of threads that wait fire when they should, not up to 50 us later in company of others.
void SharpenTimers() {
  static thread_local bool done = false;
  if (std::exchange(done, true)) return;
  ::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
}

uint64_t NextDriverId() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1);
}

}  // namespace

std::thread StartClockThread(Clock* clock, std::function<void()> body) {
  auto registered = std::make_shared<absl::Notification>();
  std::thread thread([clock, registered, body = std::move(body)] {
    std::optional<VirtualClock::Actor> actor;
    if (auto* virtual_clock = dynamic_cast<VirtualClock*>(clock)) actor.emplace(virtual_clock);
    registered->Notify();
    body();
  });
  registered->WaitForNotification();
  return thread;
}

Driver::Driver(const Options& options)
    : options_(options),
      id_(NextDriverId()),
      may_spin_(options.spin_ns > 0 && std::thread::hardware_concurrency() >= kCoresToSpin),
      simulation_({.seed = options.seed,
                   .start_ns = std::max<int64_t>(0, absl::ToInt64Nanoseconds(options.clock->Now() - options.zero))}) {
  thread_ = StartClockThread(options_.clock, [this] { Run(); });
}

Driver::~Driver() { Stop(); }

void Driver::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

int64_t Driver::ThreadNs() const { return std::max<int64_t>(0, NowNs() - LagOf(id_)); }

void Driver::CatchUp() {
  if (simulation_.running()) return;  // called from within an event
  int64_t now_ns = NowNs();
  while (true) {
    const int64_t next_ns = simulation_.NextEventNs();
    if (next_ns > now_ns) {
      now_ns = NowNs();
      if (next_ns > now_ns) return;
    }
    simulation_.Run(Simulation::kNever, 1);
  }
}

void Driver::Changed() {
  if (has_leader_ && simulation_.NextEventNs() < leader_wakes_ns_) ++changes_;
}

void Driver::SleepAsLeader(const std::function<bool()>& wake, absl::Time until) {
  has_leader_ = true;
  const int64_t next_ns = simulation_.NextEventNs();
  leader_wakes_ns_ = next_ns;
  if (next_ns != Simulation::kNever) until = std::min(until, TimeOf(next_ns));
  const uint64_t seen = changes_;
  const auto condition = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return changes_ != seen || wake(); };
  bool woken = options_.clock->Await(&mu_, condition, may_spin_ ? until - absl::Nanoseconds(options_.spin_ns) : until);
  while (may_spin_ && !woken && options_.clock->Now() < until) {
    mu_.Unlock();
    mu_.Lock();
    woken = condition();
  }
  has_leader_ = false;
}

bool Driver::Await(const std::function<bool()>& condition, absl::Time deadline) {
  SharpenTimers();
  ++waiting_;
  bool holds;
  while (true) {
    CatchUp();
    holds = condition();
    if (holds || options_.clock->Now() >= deadline) break;
    if (!has_leader_) {
      SleepAsLeader(condition, deadline);
    } else {
      const auto wake = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return condition() || !has_leader_; };
      options_.clock->Await(&mu_, wake, deadline);
    }
  }
  --waiting_;
  return holds;
}

void Driver::Run() {
  SharpenTimers();
  absl::MutexLock lock(&mu_);
  const auto wanted = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_ || !deferred_.empty(); };
  while (true) {
    CatchUp();
    if (!deferred_.empty()) {
      std::vector<std::function<void()>> callbacks;
      callbacks.swap(deferred_);
      mu_.Unlock();
      for (const auto& callback : callbacks) callback();
      callbacks.clear();
      mu_.Lock();
    } else if (stopping_) {
      return;
    } else if (waiting_ == 0 && !has_leader_) {
      SleepAsLeader([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return wanted() || waiting_ > 0; }, absl::InfiniteFuture());
    } else {
      const auto free = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return wanted() || (waiting_ == 0 && !has_leader_); };
      options_.clock->Await(&mu_, free, absl::InfiniteFuture());
    }
  }
}

void Driver::Woken(int64_t called_ns, int64_t event_ns) {
  if (event_ns <= called_ns) return;  // it was there already: the thread's time goes on as before
  SetLag(id_, std::max<int64_t>(0, NowNs() - event_ns));
}

void Driver::Charge(int64_t called_ns, int64_t cost_ns) {
  SharpenTimers();
  const int64_t until_ns = Simulation::Later(called_ns, cost_ns);
  options_.clock->SleepUntil(TimeOf(until_ns));
  Woken(called_ns, until_ns);
}

void Driver::Defer(std::function<void()> callback) { deferred_.push_back(std::move(callback)); }

void Driver::NoteEnd(int64_t end_ns) { lateness_.Add(NowNs() - end_ns); }

void Driver::NoteSubmit() { behind_max_ns_ = std::max(behind_max_ns_, LagOf(id_)); }

}  // namespace tidepool::device::emulated
