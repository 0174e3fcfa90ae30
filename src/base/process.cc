#include "base/process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

extern char** environ;

namespace tidepool {
namespace {

constexpr size_t kMaxDescriptors = 32;

// Runs in the child between fork and exec, with all signals blocked: only async-signal-safe calls.
[[noreturn]] void ExecChild(const ProcessOptions& options, char* const* arguments, char* const* environment, int stdout_fd,
                            int error_fd, int parent) {
  auto fail = [&] {
    const int error = errno;
    (void)!::write(error_fd, &error, sizeof(error));
    ::_exit(127);
  };
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // the parent died before the line above
  if (options.new_process_group) ::setpgid(0, 0);
  // The parent's handlers must not run here: they would act on the parent's state. What it ignores stays ignored, but for
  // SIGPIPE.
  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction action;
    if (::sigaction(signal, nullptr, &action) != 0) continue;
    if (action.sa_handler != SIG_IGN || signal == SIGPIPE) ::signal(signal, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (!options.working_directory.empty() && ::chdir(options.working_directory.c_str()) != 0) fail();

  // Libraries may have opened descriptors without close-on-exec. Old kernels refuse; then only those are inherited.
  ::syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
  std::pair<int, int> wanted[kMaxDescriptors + 1];
  size_t count = 0;
  if (stdout_fd >= 0) wanted[count++] = {stdout_fd, STDOUT_FILENO};
  for (const auto& descriptor : options.descriptors) wanted[count++] = descriptor;
  // Move everything that is passed on out of the way of its targets first, then into place.
  int high = std::max(error_fd, 2);
  for (size_t i = 0; i < count; ++i) high = std::max({high, wanted[i].first, wanted[i].second});
  const int safe_error = ::fcntl(error_fd, F_DUPFD_CLOEXEC, high + 1);
  if (safe_error < 0) fail();
  error_fd = safe_error;
  for (size_t i = 0; i < count; ++i) {
    wanted[i].first = ::fcntl(wanted[i].first, F_DUPFD_CLOEXEC, high + 1);
    if (wanted[i].first < 0) fail();
  }
  for (size_t i = 0; i < count; ++i) {
    if (::dup2(wanted[i].first, wanted[i].second) < 0) fail();
  }
  ::execvpe(arguments[0], arguments, environment);
  fail();
  ::_exit(127);
}

// fork() with all signals blocked in the child until it has put its own dispositions in place.
int ForkBlocked() {
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int pid = ::fork();
  const int error = errno;
  if (pid != 0) ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return pid;
}

}  // namespace

std::string ExitStatus::Describe() const {
  if (signalled)
    return fmt::format("was killed by signal {} ({})", code, ::sigdescr_np(code) != nullptr ? ::sigdescr_np(code) : "unknown");
  return fmt::format("exited with code {}", code);
}

StatusOr<ChildProcess> ChildProcess::Start(const ProcessOptions& options) {
  if (options.command.empty()) return InvalidArgument("a process needs a command");
  if (options.descriptors.size() > kMaxDescriptors) {
    return InvalidArgument("{} descriptors are to be passed to '{}'; allowed: at most {}", options.descriptors.size(),
                           options.command[0], kMaxDescriptors);
  }
  std::vector<char*> arguments;
  for (const std::string& argument : options.command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (!options.environment.contains(std::string(text.substr(0, text.find('='))))) variables.emplace_back(text);
  }
  for (const auto& [name, value] : options.environment) variables.push_back(name + "=" + value);
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);

  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoError(errno, "pipe");
  UniqueFd error_read(pipe_fds[0]), error_write(pipe_fds[1]);
  UniqueFd out_read, out_write;
  if (options.capture_stdout) {
    if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoError(errno, "pipe");
    out_read.reset(pipe_fds[0]);
    out_write.reset(pipe_fds[1]);
  }
  const int parent = ::getpid();
  const int pid = ForkBlocked();
  if (pid < 0) return ErrnoError(errno, "fork");
  if (pid == 0) ExecChild(options, arguments.data(), environment.data(), out_write.get(), error_write.get(), parent);

  error_write.reset();
  out_write.reset();
  int error = 0;
  ssize_t got;
  do {
    got = ::read(error_read.get(), &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  if (got == sizeof(error)) {
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return ErrnoError(error, fmt::format("starting '{}'", options.command[0]));
  }
  ChildProcess child;
  child.pid_ = pid;
  child.stdout_ = std::move(out_read);
  auto pid_fd = OpenPidFd(pid);
  if (!pid_fd.ok()) return pid_fd.status();
  child.pid_fd_ = std::move(pid_fd).value();
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept { *this = std::move(other); }

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  if (pid_ > 0 && !reaped_) Stop(absl::ZeroDuration());
  pid_ = std::exchange(other.pid_, -1);
  pid_fd_ = std::move(other.pid_fd_);
  stdout_ = std::move(other.stdout_);
  reaped_ = std::exchange(other.reaped_, false);
  exit_ = std::exchange(other.exit_, {});
  return *this;
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0 && !reaped_) Stop(absl::ZeroDuration());
}

bool ChildProcess::Running() {
  if (pid_ <= 0 || reaped_) return false;
  return !Wait(absl::InfinitePast()).ok();
}

Status ChildProcess::Signal(int signal) {
  if (pid_ <= 0 || reaped_) return FailedPrecondition("the process has ended");
  if (::kill(pid_, signal) != 0) return ErrnoError(errno, fmt::format("sending signal {} to process {}", signal, pid_));
  return {};
}

StatusOr<ExitStatus> ChildProcess::Wait(absl::Time deadline) {
  if (reaped_) return exit_;
  if (pid_ <= 0) return FailedPrecondition("no process was started");
  while (true) {
    int status = 0;
    const int done = ::waitpid(pid_, &status, WNOHANG);
    if (done == pid_) {
      reaped_ = true;
      exit_.signalled = WIFSIGNALED(status);
      exit_.code = exit_.signalled ? WTERMSIG(status) : WEXITSTATUS(status);
      return exit_;
    }
    if (done < 0 && errno != EINTR) return ErrnoError(errno, fmt::format("waiting for process {}", pid_));
    const absl::Duration left = deadline - Clock::Real()->Now();
    if (left <= absl::ZeroDuration()) return DeadlineExceeded("process {} still runs", pid_);
    pollfd entry{pid_fd_.get(), POLLIN, 0};
    ::poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Seconds(1))) + 1));
  }
}

ExitStatus ChildProcess::Stop(absl::Duration grace) {
  if (reaped_ || pid_ <= 0) return exit_;  // kill(-1) would reach every process of the user
  if (grace > absl::ZeroDuration()) {
    ::kill(pid_, SIGTERM);
    if (auto ended = Wait(Clock::Real()->Now() + grace); ended.ok()) return *ended;
  }
  ::kill(pid_, SIGKILL);
  auto ended = Wait(absl::InfiniteFuture());
  return ended.ok() ? *ended : ExitStatus{.signalled = true, .code = SIGKILL};
}

std::string ExecutableDirectory() {
  char path[4096];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0) return ".";
  const std::string_view text(path, static_cast<size_t>(length));
  return std::string(text.substr(0, text.rfind('/')));
}

std::map<std::string, std::string> ArithmeticEnvironment(int threads) {
  // OpenBLAS has threads of its own, which spin for 2^timeout cycles after each product before they sleep.
  std::map<std::string, std::string> environment = {
      {"OMP_WAIT_POLICY", "passive"}, {"GOMP_SPINCOUNT", "0"}, {"OPENBLAS_THREAD_TIMEOUT", "4"}};
  if (threads > 0) {
    environment["OMP_NUM_THREADS"] = std::to_string(threads);
    environment["OPENBLAS_NUM_THREADS"] = std::to_string(threads);
  }
  return environment;
}

}  // namespace tidepool
