#include "cli/stop_signal.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "base/clock.h"
#include "base/status.h"

namespace tidepool::cli {
namespace {

std::atomic<bool> stop_requested{false};
int stop_event = -1;  // readable for ever once a stop is requested

void OnSignal(int signal) {
  if (stop_requested.exchange(true)) ::_exit(128 + signal);
  const int saved = errno;
  const uint64_t one = 1;
  (void)!::write(stop_event, &one, sizeof(one));
  errno = saved;
}

}  // namespace

void InstallStopSignals() {
  stop_event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  TIDEPOOL_CHECK(stop_event >= 0, "eventfd failed with error {}", errno);
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a closed pipe is seen where it is written to
}

bool StopRequested() { return stop_requested.load(); }

bool WaitForStop(absl::Time deadline) {
  while (!StopRequested()) {
    const absl::Duration left = deadline - Clock::Real()->Now();
    if (left <= absl::ZeroDuration()) return false;
    pollfd entry{stop_event, POLLIN, 0};
    ::poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Hours(1))) + 1));
  }
  return true;
}

}  // namespace tidepool::cli
