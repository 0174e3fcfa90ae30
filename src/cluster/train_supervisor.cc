#include "cluster/train_supervisor.h"

#include "base/log.h"
#include "base/units.h"

namespace tidepool::cluster {
namespace {

constexpr absl::Duration kMaxBackoff = absl::Seconds(10);

}  // namespace

std::string_view Name(TrainState state) {
  switch (state) {
    case TrainState::kNone: return "none";
    case TrainState::kRunning: return "running";
    case TrainState::kRestarting: return "restarting";
    case TrainState::kFinished: return "finished";
    case TrainState::kFailed: return "failed";
    case TrainState::kStopped: return "stopped";
  }
  return "none";
}

TrainSupervisor::TrainSupervisor(TrainSupervisorOptions options)
    : options_([](TrainSupervisorOptions given) {
        if (!given.start) {
          given.start = [train = given.train, binary = given.worker_binary](const auto& on_progress) {
            return train::TrainJob::Start(train, binary, on_progress);
          };
        }
        return given;
      }(std::move(options))),
      policy_(options_.restarts, options_.backoff, kMaxBackoff),
      thread_([this] { Run(); }) {}

TrainSupervisor::~TrainSupervisor() {
  std::shared_ptr<train::TrainJob> job;
  {
    absl::MutexLock lock(&mu_);
    quit_ = true;
    wanted_ = false;
    job = job_;
  }
  if (job != nullptr) job->Stop(absl::ZeroDuration()).IgnoreError();
  job.reset();
  thread_.join();
}

Status TrainSupervisor::Start() {
  absl::MutexLock lock(&mu_);
  if (!ended()) return FailedPrecondition("training job '{}' is {} already", options_.train.name, Name(state_));
  policy_ = RestartPolicy(options_.restarts, options_.backoff, kMaxBackoff);
  next_start_ = absl::InfinitePast();
  last_error_ = Status();
  state_ = TrainState::kRunning;
  wanted_ = true;
  return {};
}

Status TrainSupervisor::Stop() {
  std::shared_ptr<train::TrainJob> job;
  {
    absl::MutexLock lock(&mu_);
    wanted_ = false;
    if (ended()) return {};
    job = job_;
  }
  // Without a job object the thread is between two runs and sees `wanted_` itself.
  Status stopped = job == nullptr ? Status() : job->Stop(options_.stop_limit);
  absl::MutexLock lock(&mu_);
  const absl::Time deadline = options_.clock->Now() + options_.stop_limit + absl::Seconds(2);
  if (!options_.clock->Await(
          &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return ended(); }, deadline)) {
    return DeadlineExceeded("training job '{}' did not end within {}", options_.train.name,
                            tidepool::FormatDuration(options_.stop_limit));
  }
  return stopped;
}

TrainStatus TrainSupervisor::status() {
  absl::MutexLock lock(&mu_);
  return {.state = state_,
          .pid = job_ == nullptr ? 0 : job_->pid(),
          .restarts = restarts_,
          .last_error = last_error_,
          .latest = latest_};
}

Status TrainSupervisor::WaitUntilEnded(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  if (!options_.clock->Await(
          &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return ended(); }, deadline)) {
    return DeadlineExceeded("training job '{}' is still {}", options_.train.name, Name(state_));
  }
  return last_error_;
}

Status TrainSupervisor::RunOnce() {
  const auto on_progress = [this](const train::TrainProgress& progress) {
    {
      absl::MutexLock lock(&mu_);
      latest_ = progress;
    }
    if (options_.on_progress) options_.on_progress(progress);
  };
  {
    // Before the start: the job may report a step before the call below returns.
    absl::MutexLock lock(&mu_);
    step_at_start_ = latest_.step;
  }
  StatusOr<std::unique_ptr<train::TrainJob>> started = options_.start(on_progress);
  if (!started.ok()) return started.status();
  const std::shared_ptr<train::TrainJob> job = *std::move(started);
  bool wanted = true;
  {
    absl::MutexLock lock(&mu_);
    job_ = job;
    wanted = wanted_;
  }
  Log(LogLevel::kInfo, "training started", {{"job", options_.train.name}, {"pid", job->pid()}});
  // Stop may have come while the process was being started.
  if (!wanted) job->Stop(options_.stop_limit).IgnoreError();
  while (true) {
    const Status end = job->Wait(options_.clock->Now() + absl::Seconds(1));
    if (!absl::IsDeadlineExceeded(end)) return end;
  }
}

void TrainSupervisor::OnEnd(const Status& end) {
  job_.reset();
  last_error_ = end;
  if (!wanted_) {
    state_ = TrainState::kStopped;
    return;
  }
  if (end.ok()) {
    state_ = TrainState::kFinished;
    wanted_ = false;
    return;
  }
  // A job that ends with an error of its own would end so again. One that was killed may do better, and one that found no memory
  // to begin with may find it once models that are idle have gone.
  const bool progressed = latest_.step > step_at_start_;
  const bool again = absl::IsAborted(end) || (absl::IsResourceExhausted(end) && !progressed);
  const auto wait = again ? policy_.OnKilled(progressed) : std::nullopt;
  if (!wait) {
    state_ = TrainState::kFailed;
    wanted_ = false;
    return;
  }
  state_ = TrainState::kRestarting;
  next_start_ = options_.clock->Now() + *wait;
  ++restarts_;
}

void TrainSupervisor::Run() {
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      const auto due = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return quit_ || wanted_ || !ended(); };
      while (!options_.clock->Await(&mu_, due, options_.clock->Now() + absl::Minutes(1))) {
      }
      if (quit_) return;
      if (wanted_ && next_start_ > options_.clock->Now()) {
        options_.clock->Await(
            &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return quit_ || !wanted_; }, next_start_);
      }
      if (quit_) return;
      if (!wanted_) {
        if (!ended()) state_ = TrainState::kStopped;
        continue;
      }
      state_ = TrainState::kRunning;
    }
    const Status end = RunOnce();
    TrainState state;
    bool asked = false;
    {
      absl::MutexLock lock(&mu_);
      asked = !wanted_;
      OnEnd(end);
      state = state_;
    }
    Log(end.ok() || asked ? LogLevel::kInfo : LogLevel::kWarning, "training ended",
        {{"job", options_.train.name}, {"state", Name(state)}, {"status", end}});
  }
}

}  // namespace tidepool::cluster
