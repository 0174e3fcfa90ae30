#include "train/cpu_yield.h"

#include <dirent.h>
#include <sched.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/log.h"

namespace tidepool::train {
namespace {

bool SetClass(int thread, int policy) {
  const sched_param parameters{};
  return ::sched_setscheduler(thread, policy, &parameters) == 0;
}

// Leaving SCHED_IDLE needs a privilege or a generous RLIMIT_NICE: tried on a thread that ends right away.
bool MayLeaveIdleClass() {
  bool may = false;
  std::thread probe([&may] { may = SetClass(0, SCHED_IDLE) && SetClass(0, SCHED_OTHER); });
  probe.join();
  return may;
}

}  // namespace

std::set<int> ThreadsOfThisProcess() {
  std::set<int> threads;
  DIR* folder = ::opendir("/proc/self/task");
  if (folder == nullptr) return threads;
  while (const dirent* entry = ::readdir(folder)) {
    if (const int thread = std::atoi(entry->d_name); thread > 0) threads.insert(thread);
  }
  ::closedir(folder);
  return threads;
}

CpuYield::CpuYield(std::set<int> service_threads) : service_threads_(std::move(service_threads)) {
  if (!MayLeaveIdleClass()) {
    mode_ = Mode::kNice;
    Log(LogLevel::kWarning,
        "training yields the CPU by nice 19 only, because this process may not leave the idle scheduling class again",
        {{"mend", "run as root, or raise RLIMIT_NICE to 20"}});
  }
  Refresh();
}

CpuYield::~CpuYield() { SetUrgent(true); }

void CpuYield::Refresh() {
  absl::MutexLock lock(&mu_);
  Apply();
}

void CpuYield::SetUrgent(bool urgent) {
  absl::MutexLock lock(&mu_);
  if (urgent_ == urgent) return;
  urgent_ = urgent;
  Apply();
}

// Listed anew each time: the number of a thread that has ended may be another process's by now.
void CpuYield::Apply() {
  for (const int thread : ThreadsOfThisProcess()) {
    if (service_threads_.contains(thread)) continue;
    if (mode_ == Mode::kIdleClass) {
      SetClass(thread, urgent_ ? SCHED_OTHER : SCHED_IDLE);
    } else if (!urgent_) {
      ::setpriority(PRIO_PROCESS, static_cast<id_t>(thread), 19);
    }
  }
}

}  // namespace tidepool::train
