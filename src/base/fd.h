// Ownership of file descriptors, and the few descriptor helpers that several folders need.
#pragma once

#include <string>
#include <utility>

#include "base/status.h"

namespace tidepool {

// Closes its descriptor when destroyed. Movable, not copyable. Thread-compatible.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

// An anonymous memory file of `size_bytes`, close-on-exec, sealed against resizing. Nothing of it survives its last holder.
StatusOr<UniqueFd> CreateMemFd(const std::string& name, int64_t size_bytes);
// A descriptor that becomes readable when process `pid` has ended completely.
StatusOr<UniqueFd> OpenPidFd(int pid);
// Clears close-on-exec, so that a child started next inherits `fd`.
Status SetInheritable(int fd);

StatusOr<std::string> ReadFile(const std::string& path, int64_t limit_bytes);
// Writes `path` so that it holds either the old or the new content, also after a crash (temporary file, fsync, rename).
Status WriteFileAtomically(const std::string& path, std::string_view content);

}  // namespace tidepool
