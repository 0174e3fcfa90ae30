// A few threads for calls that block (load, unload, rescan), so that they never hold up the threads that answer requests.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "base/status.h"

namespace tidepool::api {

// Thread-safe.
class AdminExecutor {
 public:
  AdminExecutor(int threads, size_t queue_limit);
  ~AdminExecutor();  // waits for running tasks; those that still wait are called with UNAVAILABLE

  // `task` is called exactly once: on a thread of the executor with OK, or with the reason why it must not do its work:
  // RESOURCE_EXHAUSTED at once if the queue is full, UNAVAILABLE if the executor ends first.
  void Submit(std::function<void(const Status&)> task);

 private:
  void Work();
  const size_t queue_limit_;
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::function<void(const Status&)>> queue_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace tidepool::api
