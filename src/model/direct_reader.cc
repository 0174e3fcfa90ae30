#include "model/direct_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/units.h"

namespace tidepool::model {
namespace {

constexpr int64_t kAlignment = 4096;  // of offsets, lengths and memory; every block device of today accepts it
constexpr int64_t kBlockBytes = 4 * kMiB;

}  // namespace

void DirectReader::Freed::operator()(std::byte* memory) const { std::free(memory); }

StatusOr<std::unique_ptr<DirectReader>> DirectReader::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT));
  if (!fd.valid() && errno == EINVAL) return Unimplemented("the file system of '{}' has no direct reads", path);
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}' for direct reads", path));
  void* block = nullptr;
  if (::posix_memalign(&block, kAlignment, kBlockBytes) != 0) {
    return ResourceExhausted("no memory for a block of {} to read '{}'", FormatBytes(kBlockBytes), path);
  }
  return std::unique_ptr<DirectReader>(new DirectReader(path, std::move(fd), static_cast<std::byte*>(block)));
}

Status DirectReader::ReadBlock(int64_t begin) {
  begin_ = end_ = begin;
  while (end_ - begin_ < kBlockBytes) {
    const ssize_t got =
        ::pread(fd_.get(), block_.get() + (end_ - begin_), static_cast<size_t>(kBlockBytes - (end_ - begin_)), end_);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, fmt::format("reading '{}' at byte {}", path_, end_));
    end_ += got;
    if (got % kAlignment != 0 || got == 0) break;  // the file's end
  }
  return {};
}

Status DirectReader::Read(int64_t offset, std::span<std::byte> target) {
  while (!target.empty()) {
    if (offset < begin_ || offset >= end_) TIDEPOOL_RETURN_IF_ERROR(ReadBlock(offset - offset % kAlignment));
    if (offset >= end_) {
      return DataLoss("'{}' ends at or before byte {}; {} more bytes are wanted from there", path_, offset, target.size());
    }
    const size_t part = std::min(target.size(), static_cast<size_t>(end_ - offset));
    std::memcpy(target.data(), block_.get() + (offset - begin_), part);
    target = target.subspan(part);
    offset += static_cast<int64_t>(part);
  }
  return {};
}

}  // namespace tidepool::model
