// Runs one training job after the other on a thread of its own: starts it, reports its end, and starts it again from its
// checkpoint when it was killed.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "cluster/node.h"
#include "cluster/restart_policy.h"

namespace tidepool::cluster {

struct TrainSupervisorOptions {
  train::TrainOptions train;
  std::string worker_binary;
  int restarts = 5;
  absl::Duration backoff = absl::Milliseconds(200);
  absl::Duration stop_limit = absl::Seconds(10);
  std::function<void(const train::TrainProgress&)> on_progress;
  Clock* clock = Clock::Real();
  // Starts the process. Tests put their own job here.
  std::function<StatusOr<std::unique_ptr<train::TrainJob>>(const std::function<void(const train::TrainProgress&)>&)> start;
};

// States: none -> running -> finished | failed | stopped, and running -> restarting -> running while it is killed. The thread
// lives as long as the supervisor, because a child dies with the thread that started it. Thread-safe.
class TrainSupervisor {
 public:
  explicit TrainSupervisor(TrainSupervisorOptions options);
  ~TrainSupervisor();  // kills a running job

  Status Start();
  Status Stop();
  TrainStatus status();
  Status WaitUntilEnded(absl::Time deadline);

 private:
  void Run();
  // One run of the job until it ends; what it ended with.
  Status RunOnce();
  void OnEnd(const Status& end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool ended() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return state_ != TrainState::kRunning && state_ != TrainState::kRestarting;
  }

  const TrainSupervisorOptions options_;
  absl::Mutex mu_;
  bool quit_ ABSL_GUARDED_BY(mu_) = false;
  bool wanted_ ABSL_GUARDED_BY(mu_) = false;
  TrainState state_ ABSL_GUARDED_BY(mu_) = TrainState::kNone;
  std::shared_ptr<train::TrainJob> job_ ABSL_GUARDED_BY(mu_);
  RestartPolicy policy_ ABSL_GUARDED_BY(mu_);
  absl::Time next_start_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  int restarts_ ABSL_GUARDED_BY(mu_) = 0;
  Status last_error_ ABSL_GUARDED_BY(mu_);
  train::TrainProgress latest_ ABSL_GUARDED_BY(mu_);
  int64_t step_at_start_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace tidepool::cluster
