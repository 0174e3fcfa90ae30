#include "base/fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace tidepool {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

StatusOr<UniqueFd> CreateMemFd(const std::string& name, int64_t size_bytes) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("memfd_create '{}'", name));
  if (::ftruncate(fd.get(), size_bytes) != 0) {
    return ErrnoError(errno, fmt::format("sizing memory file '{}' to {} bytes", name, size_bytes));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return ErrnoError(errno, fmt::format("sealing memory file '{}'", name));
  }
  return fd;
}

StatusOr<UniqueFd> OpenPidFd(int pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("pidfd_open of process {}", pid));
  return fd;
}

Status SetInheritable(int fd) {
  const int flags = ::fcntl(fd, F_GETFD);
  if (flags < 0 || ::fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC) != 0) {
    return ErrnoError(errno, fmt::format("making descriptor {} inheritable", fd));
  }
  return {};
}

StatusOr<std::string> ReadFile(const std::string& path, int64_t limit_bytes) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", path));
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, fmt::format("reading '{}' at byte {}", path, content.size()));
    if (got == 0) return content;
    content.append(buffer, static_cast<size_t>(got));
    if (static_cast<int64_t>(content.size()) > limit_bytes) {
      return OutOfRange("'{}' is larger than {} bytes, the most that is read of such a file", path, limit_bytes);
    }
  }
}

Status WriteFileAtomically(const std::string& path, std::string_view content) {
  static std::atomic<uint64_t> counter{0};
  const std::string temporary = fmt::format("{}.tmp.{}.{}", path, ::getpid(), counter.fetch_add(1));
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("creating '{}'", temporary));
  auto fail = [&](const std::string& what) {
    const Status error = ErrnoError(errno, what);
    ::unlink(temporary.c_str());
    return error;
  };
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t put = ::write(fd.get(), content.data() + done, content.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail(fmt::format("writing '{}' at byte {}", temporary, done));
    done += static_cast<size_t>(put);
  }
  if (::fsync(fd.get()) != 0) return fail(fmt::format("flushing '{}'", temporary));
  if (::rename(temporary.c_str(), path.c_str()) != 0) return fail(fmt::format("renaming '{}' to '{}'", temporary, path));
  return {};
}

}  // namespace tidepool
