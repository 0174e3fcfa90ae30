// The elastic trainer: trains a network in whatever device memory the node's broker leaves to it, and gives that back within
// milliseconds. The global batch is fixed; the micro-batch floats with the limit. docs/train.md has the state machine.
//
// Runs on the calling thread, which must be the one that called engine::InitRuntime. No torch here.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "engine/runtime.h"
#include "train/job.h"

namespace tidepool::pool {
class Broker;
}

namespace tidepool::train {

// Asks a trainer to checkpoint and end. Thread-safe.
class StopToken {
 public:
  void Stop();
  bool stopped() const;
  // Calls `callback` at Stop, or at once if that has been. Null ends it; no call is under way when this returns.
  void OnStop(std::function<void()> callback);

 private:
  mutable absl::Mutex mu_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void()> callback_ ABSL_GUARDED_BY(mu_);
};

using ProgressSink = std::function<void(const TrainProgress&)>;

// What the process around a trainer, or a test, gives it.
struct TrainerHooks {
  Clock* clock = Clock::Real();
  pool::Broker* broker = nullptr;  // instead of options.pool_socket
  std::set<int> service_threads;   // of the process, that never run in the idle scheduling class
  // Before every attempt at a micro-batch, with its size: a place to arm the token.
  std::function<void(int64_t batch, engine::AbortToken&)> before_micro_batch;
};

// Trains to the end of options.epochs or options.max_steps. OK also when `stop` ended it, after a checkpoint if
// options.checkpoint names a directory. UNAVAILABLE when the broker is gone (a checkpoint is written then too).
Status RunTrainer(const TrainOptions& options, const ProgressSink& sink, StopToken* stop, const TrainerHooks& hooks = {});

}  // namespace tidepool::train
