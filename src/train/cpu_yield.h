// Leaves the cores to others: the threads that compute and read data run in the idle scheduling class, those that talk to the
// page broker do not. While memory is wanted back the work threads run in the normal class, so that they reach the point where
// they let go of it.
#pragma once

#include <absl/synchronization/mutex.h>

#include <memory>
#include <set>

#include "base/status.h"

namespace tidepool::train {

// The ids of this process's threads.
std::set<int> ThreadsOfThisProcess();

// Thread-safe.
class CpuYield {
 public:
  enum class Mode : uint8_t {
    kIdleClass,  // SCHED_IDLE, left for moments of urgency
    kNice,       // nice 19: this process may not leave SCHED_IDLE once it is in it
  };

  // `service_threads` are left alone. Finds out which mode is possible and says in the log if it is the lesser one.
  explicit CpuYield(std::set<int> service_threads);
  // Back to the normal class as far as that is permitted.
  ~CpuYield();

  Mode mode() const { return mode_; }
  // Puts every thread that is not a service thread into its class; again after threads were made.
  void Refresh();
  void SetUrgent(bool urgent);

 private:
  void Apply() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::set<int> service_threads_;
  Mode mode_ = Mode::kIdleClass;
  absl::Mutex mu_;
  bool urgent_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace tidepool::train
