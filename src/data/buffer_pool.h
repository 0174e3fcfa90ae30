// Page-aligned buffers that are used again: first touch of fresh memory costs more than reading into it, and O_DIRECT wants
// alignment.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

inline constexpr int64_t kDiskAlignment =
    4096;  // of offsets, lengths and memory of O_DIRECT; every block device of today accepts it

// Thread-safe. Buffers may outlive the pool.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Keeps at most `kept_bytes` of free buffers for later use.
  static std::shared_ptr<BufferPool> Create(int64_t kept_bytes);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // At least `bytes`, rounded up to kDiskAlignment, contents undefined. Goes back to the pool with its last owner.
  // RESOURCE_EXHAUSTED without memory.
  StatusOr<std::shared_ptr<std::byte>> Get(int64_t bytes);
  int64_t free_bytes() const;

 private:
  explicit BufferPool(int64_t kept_bytes) : kept_bytes_(kept_bytes) {}
  void Return(std::byte* buffer, int64_t capacity);

  const int64_t kept_bytes_;
  mutable absl::Mutex mu_;
  std::map<int64_t, std::vector<std::byte*>> free_ ABSL_GUARDED_BY(mu_);  // by capacity
  int64_t free_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace tidepool::data
