#include "serve/slab.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "base/units.h"

namespace tidepool::serve {

SlabAllocator::SlabAllocator(int64_t size_bytes) : size_bytes_(size_bytes / kSlabAlignment * kSlabAlignment) {
  if (size_bytes_ > 0) free_[0] = size_bytes_;
}

std::optional<int64_t> SlabAllocator::Allocate(int64_t size_bytes) {
  const int64_t size = RoundUp(std::max<int64_t>(size_bytes, 1), kSlabAlignment);
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < size) continue;
    const int64_t offset = it->first, rest = it->second - size;
    free_.erase(it);
    if (rest > 0) free_[offset + size] = rest;
    used_[offset] = size;
    used_bytes_ += size;
    return offset;
  }
  return std::nullopt;
}

void SlabAllocator::Free(int64_t offset) {
  const auto block = used_.find(offset);
  TIDEPOOL_CHECK(block != used_.end(), "no slab block at {}", offset);
  int64_t size = block->second;
  used_.erase(block);
  used_bytes_ -= size;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += size;
      return;
    }
  }
  free_[offset] = size;
}

int64_t SlabAllocator::largest_free_bytes() const {
  int64_t largest = 0;
  for (const auto& [offset, size] : free_) largest = std::max(largest, size);
  return largest;
}

StatusOr<std::unique_ptr<SlabMapping>> SlabMapping::Create(int64_t size_bytes) {
  TIDEPOOL_ASSIGN_OR_RETURN(UniqueFd fd, CreateMemFd("tidepool-serve-slab", size_bytes));
  return Map(std::move(fd), size_bytes);
}

StatusOr<std::unique_ptr<SlabMapping>> SlabMapping::Map(UniqueFd fd, int64_t size_bytes) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, "fstat of the request slab");
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (info.st_size != size_bytes || seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return FailedPrecondition("the request slab has {} bytes and is {}sealed against shrinking; allowed: {} bytes, sealed",
                              info.st_size, seals >= 0 && (seals & F_SEAL_SHRINK) != 0 ? "" : "not ", size_bytes);
  }
  void* base = ::mmap(nullptr, static_cast<size_t>(size_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return ErrnoError(errno, fmt::format("mapping the request slab of {}", FormatBytes(size_bytes)));
  return std::unique_ptr<SlabMapping>(new SlabMapping(std::move(fd), static_cast<std::byte*>(base), size_bytes));
}

SlabMapping::~SlabMapping() { ::munmap(base_, static_cast<size_t>(size_bytes_)); }

}  // namespace tidepool::serve
