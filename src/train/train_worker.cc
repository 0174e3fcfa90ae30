#include "train/train_worker.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>
#include <thread>

#include "base/fd.h"
#include "base/log.h"
#include "engine/runtime.h"
#include "train/trainer.h"

namespace tidepool::train {
namespace {

constexpr int64_t kLargestOptions = 1 << 20;

StatusOr<std::string> ReadAll(UniqueFd fd) {
  // The descriptor is a memory file, whose offset is shared with the process that wrote it.
  std::string text;
  char buffer[4096];
  while (static_cast<int64_t>(text.size()) <= kLargestOptions) {
    const ssize_t n = ::pread(fd.get(), buffer, sizeof(buffer), static_cast<off_t>(text.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, fmt::format("reading the training options from descriptor {}", fd.get()));
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
  return InvalidArgument("training options of more than {} bytes", kLargestOptions);
}

// SIGTERM and SIGINT, taken on a thread of their own.
class SignalThread {
 public:
  explicit SignalThread(StopToken* stop) {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    // Before any other thread exists, so that all of them inherit the mask.
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    thread_ = std::thread([this, stop] {
      int signal = 0;
      while (::sigwait(&set_, &signal) == 0 && !ending_) stop->Stop();
    });
  }
  ~SignalThread() {
    ending_ = true;
    ::pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }

 private:
  sigset_t set_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

bool failure_printed = false;

void PrintProgress(const TrainProgress& progress) {
  failure_printed = failure_printed || progress.event == "failed";
  const std::string line = ToJson(progress) + "\n";
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

Status Run(int options_fd, StopToken* stop) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadAll(UniqueFd(options_fd)));
  TIDEPOOL_ASSIGN_OR_RETURN(const TrainOptions options, ParseTrainOptions(text));
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_RETURN_IF_ERROR(InitLogging({.process = "train"}));
  TIDEPOOL_RETURN_IF_ERROR(engine::InitRuntime({.threads = options.threads}));
  return RunTrainer(options, PrintProgress, stop);
}

}  // namespace

int RunTrainWorkerMain(int argc, char** argv) {
  constexpr std::string_view kFlag = "--options-fd=";
  int options_fd = -1;
  if (argc == 2 && std::string_view(argv[1]).starts_with(kFlag)) {
    const std::string_view number = std::string_view(argv[1]).substr(kFlag.size());
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), options_fd);
    if (error != std::errc() || end != number.data() + number.size()) options_fd = -1;
  }
  if (options_fd < 0) {
    std::fprintf(stderr, "usage: tidepool-worker train --options-fd=N   (N is an open descriptor; use `tidepool train`)\n");
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  StopToken stop;
  SignalThread signals(&stop);
  const Status status = Run(options_fd, &stop);
  if (status.ok()) return 0;
  Log(LogLevel::kError, "training failed", {{"error", status}});
  if (!failure_printed) PrintProgress({.event = "failed", .time = Clock::Real()->Now(), .message = ToString(status)});
  return 1;
}

}  // namespace tidepool::train
