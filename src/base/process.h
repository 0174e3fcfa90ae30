// Starting and supervising child processes. A child dies with its parent, gets a deadline to stop, and is always reaped.
// (The kernel ties a child to the *thread* that started it: start children from a thread that lives as long as they should.)
#pragma once

#include <absl/time/time.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool {

struct ProcessOptions {
  std::vector<std::string> command;                // command[0] is a path, or a name looked up in PATH
  std::map<std::string, std::string> environment;  // added to this process's environment
  std::vector<std::pair<int, int>> descriptors;    // {ours, number in the child}; others but 0, 1, 2 are closed there
  bool capture_stdout = false;                     // a pipe, read through stdout_fd()
  bool new_process_group = true;                   // Ctrl-C of the terminal reaches us only
  std::string working_directory;
};

struct ExitStatus {
  bool signalled = false;
  int code = 0;  // exit code, or the signal's number
  bool ok() const { return !signalled && code == 0; }
  std::string Describe() const;  // "exited with code 3", "was killed by signal 9 (Killed)"
};

// A running or ended child. Destroying it kills and reaps it. Thread-compatible.
class ChildProcess {
 public:
  static StatusOr<ChildProcess> Start(const ProcessOptions& options);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  int pid() const { return pid_; }
  int pid_fd() const { return pid_fd_.get(); }  // readable once the process has ended
  int stdout_fd() const { return stdout_.get(); }
  bool Running();
  Status Signal(int signal);
  // DEADLINE_EXCEEDED if it still runs.
  StatusOr<ExitStatus> Wait(absl::Time deadline);
  // SIGTERM, then SIGKILL after `grace`.
  ExitStatus Stop(absl::Duration grace);

 private:
  ChildProcess() = default;
  int pid_ = -1;
  UniqueFd pid_fd_, stdout_;
  bool reaped_ = false;
  ExitStatus exit_;
};

// The environment of a child that computes on `threads` threads (0: all cores) beside others: its idle threads sleep instead of
// spinning on cores that somebody else needs.
std::map<std::string, std::string> ArithmeticEnvironment(int threads);

// The directory of the running executable: where its sibling binaries are.
std::string ExecutableDirectory();

}  // namespace tidepool
