#include "data/shard_scan.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace tidepool::data {
namespace {

constexpr size_t kWindow = 4096;

}  // namespace

StatusOr<ShardScan> ShardScan::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", path));
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, fmt::format("reading the size of '{}'", path));
  if (!S_ISREG(info.st_mode)) return InvalidArgument("'{}' is no regular file", path);
  // The data between the headers is not wanted.
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
  return ShardScan(path, std::move(fd), info.st_size);
}

StatusOr<size_t> ShardScan::Pread(int64_t offset, std::span<std::byte> buffer) const {
  size_t got = 0;
  while (got < buffer.size()) {
    const ssize_t n = ::pread(fd_.get(), buffer.data() + got, buffer.size() - got, offset + static_cast<int64_t>(got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, fmt::format("reading '{}' at byte {}", path_, offset + static_cast<int64_t>(got)));
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  return got;
}

StatusOr<size_t> ShardScan::ReadAt(int64_t offset, std::span<std::byte> buffer) {
  if (buffer.size() > kWindow) return Pread(offset, buffer);
  const int64_t end = window_offset_ + static_cast<int64_t>(window_.size());
  if (offset < window_offset_ || offset + static_cast<int64_t>(buffer.size()) > end) {
    window_.resize(kWindow);
    window_offset_ = offset;
    TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, Pread(offset, window_));
    window_.resize(got);
  }
  const size_t skip = static_cast<size_t>(offset - window_offset_);
  const size_t count = std::min(buffer.size(), window_.size() - std::min(skip, window_.size()));
  if (count > 0) std::memcpy(buffer.data(), window_.data() + skip, count);
  return count;
}

}  // namespace tidepool::data
