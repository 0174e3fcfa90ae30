// The shared memory in which requests and results lie while the worker computes: the allocator (in the front end) and the mapping
// (in both processes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "base/fd.h"
#include "base/status.h"
#include "serve/protocol.h"

namespace tidepool::serve {

// First fit over one range; neighbouring free blocks merge. Sizes are rounded up to kSlabAlignment. Pure. Thread-compatible.
class SlabAllocator {
 public:
  explicit SlabAllocator(int64_t size_bytes);
  std::optional<int64_t> Allocate(int64_t size_bytes);
  void Free(int64_t offset);  // of a block that Allocate gave
  int64_t largest_free_bytes() const;
  int64_t used_bytes() const { return used_bytes_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  int64_t size_bytes_ = 0, used_bytes_ = 0;
  std::map<int64_t, int64_t> free_, used_;  // offset to size
};

// A mapped memfd. Thread-safe; what lies in it is guarded by who owns the block.
class SlabMapping {
 public:
  static StatusOr<std::unique_ptr<SlabMapping>> Create(int64_t size_bytes);
  // FAILED_PRECONDITION if the file is not sealed against shrinking or has another size: a peer could make an access fault.
  static StatusOr<std::unique_ptr<SlabMapping>> Map(UniqueFd fd, int64_t size_bytes);
  ~SlabMapping();
  SlabMapping(const SlabMapping&) = delete;
  std::byte* base() const { return base_; }
  int64_t size_bytes() const { return size_bytes_; }
  int fd() const { return fd_.get(); }

 private:
  SlabMapping(UniqueFd fd, std::byte* base, int64_t size_bytes) : fd_(std::move(fd)), base_(base), size_bytes_(size_bytes) {}
  UniqueFd fd_;
  std::byte* base_ = nullptr;
  int64_t size_bytes_ = 0;
};

}  // namespace tidepool::serve
