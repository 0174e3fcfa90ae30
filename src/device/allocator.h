// Hands out byte ranges of one region of memory: first fit over free ranges in address order, neighbours joined when they come
// back. Sizes are exact in the accounts: with kAlignment-sized requests the last byte of the region can be had and not one more.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "base/status.h"

namespace tidepool::device {

class Allocator;

// A range of an Allocator's region that goes back when this object ends, which must be before the allocator does. Movable.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : allocator_(std::exchange(other.allocator_, nullptr)), data_(other.data_), size_(other.size_) {}
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_; }

 private:
  friend class Allocator;
  Buffer(Allocator* allocator, std::byte* data, int64_t size) : allocator_(allocator), data_(data), size_(size) {}
  Allocator* allocator_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// Thread-safe.
class Allocator {
 public:
  static constexpr int64_t kAlignment = 256;  // of addresses; sizes are rounded up to it

  // `name` stands in errors.
  Allocator(std::string name, std::byte* base, int64_t size_bytes) : name_(std::move(name)), base_(base), size_(size_bytes) {
    if (size_ > 0) free_[0] = size_;
  }
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  // RESOURCE_EXHAUSTED if no free range is large enough; names what is free and the largest range of it.
  StatusOr<Buffer> Allocate(int64_t size_bytes);

  struct Report {
    int64_t capacity_bytes = 0;
    int64_t free_bytes = 0;
    int64_t largest_free_bytes = 0;
    int64_t free_ranges = 0;
    int64_t peak_bytes = 0;  // most in use at once
  };
  Report report() const;

 private:
  friend class Buffer;
  void Free(const std::byte* data, int64_t size_bytes);

  const std::string name_;
  std::byte* const base_;
  const int64_t size_;
  mutable absl::Mutex mu_;
  std::map<int64_t, int64_t> free_ ABSL_GUARDED_BY(mu_);  // offset -> size
  int64_t used_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t peak_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace tidepool::device
