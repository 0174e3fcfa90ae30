#include "train/train_worker.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
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

// SIGTERM and SIGINT, passed through a pipe to a thread that may lock. (A signal mask would not do: the arithmetic's libraries
// start threads when they are loaded, before main could block anything.)
class SignalThread {
 public:
  explicit SignalThread(StopToken* stop) {
    int ends[2];
    TIDEPOOL_CHECK(::pipe2(ends, O_CLOEXEC) == 0, "pipe: {}", std::strerror(errno));
    read_.reset(ends[0]);
    write_fd_ = ends[1];
    for (const int signal : {SIGTERM, SIGINT}) {
      struct sigaction action = {};
      action.sa_handler = [](int) {
        const int saved = errno;
        (void)!::write(write_fd_, "s", 1);
        errno = saved;
      };
      action.sa_flags = SA_RESTART;
      ::sigaction(signal, &action, nullptr);
    }
    thread_ = std::thread([this, stop] {
      thread_id_ = ::gettid();
      char byte = 0;
      while (true) {
        const ssize_t n = ::read(read_.get(), &byte, 1);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0 || byte == 'e') return;
        stop->Stop();
      }
    });
  }
  // 0 until the thread runs.
  int thread_id() const { return thread_id_; }
  ~SignalThread() {
    (void)!::write(write_fd_, "e", 1);
    thread_.join();
    // The writing end stays open: a late signal finds it.
  }

 private:
  static inline int write_fd_ = -1;
  std::atomic<int> thread_id_{0};
  UniqueFd read_;
  std::thread thread_;
};

bool failure_printed = false;

void PrintProgress(const TrainProgress& progress) {
  failure_printed = failure_printed || progress.event == "failed";
  const std::string line = ToJson(progress) + "\n";
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

Status Run(int options_fd, StopToken* stop, const SignalThread& signals) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadAll(UniqueFd(options_fd)));
  TIDEPOOL_ASSIGN_OR_RETURN(const TrainOptions options, ParseTrainOptions(text));
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_RETURN_IF_ERROR(InitLogging({.process = "train"}));
  TIDEPOOL_RETURN_IF_ERROR(engine::InitRuntime({.threads = options.threads}));
  return RunTrainer(options, PrintProgress, stop, {.service_threads = {signals.thread_id()}});
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
  const Status status = Run(options_fd, &stop, signals);
  if (status.ok()) return 0;
  Log(LogLevel::kError, "training failed", {{"error", status}});
  if (!failure_printed) PrintProgress({.event = "failed", .time = Clock::Real()->Now(), .message = ToString(status)});
  return 1;
}

}  // namespace tidepool::train
