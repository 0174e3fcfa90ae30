// Host memory that a device's copy engines reach without a bounce copy.
//
// Pinning is slow (3 to 4 GB/s), so buffers that come back are kept and given out again by their exact size, as frameworks do.
// What is pinned, used or kept, never exceeds the limit: kept buffers go first, then Allocate fails. With `lock` the pages are
// really locked, where RLIMIT_MEMLOCK allows it.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace tidepool::device {

struct PinnedOptions {
  int64_t limit_bytes = int64_t{1} << 30;
  bool lock = false;  // mlock every buffer
};

class PinnedPool;

// Goes back to its pool when it ends, which must be before the pool does. Movable.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), data_(other.data_), size_(other.size_) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();
  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_; }

 private:
  friend class PinnedPool;
  PinnedBuffer(PinnedPool* pool, std::byte* data, int64_t size) : pool_(pool), data_(data), size_(size) {}
  PinnedPool* pool_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// Thread-safe.
class PinnedPool {
 public:
  // `pinned` is called, without a lock, with the bytes that were newly pinned: the caller's time is charged there. May be null.
  PinnedPool(std::string name, const PinnedOptions& options, std::function<void(int64_t)> pinned = nullptr);
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  // RESOURCE_EXHAUSTED above the limit, or above RLIMIT_MEMLOCK with `lock`.
  StatusOr<PinnedBuffer> Allocate(int64_t size_bytes);
  // Whether all of [data, data + size_bytes) lies in one buffer of the pool.
  bool Contains(const void* data, int64_t size_bytes) const;

  struct Report {
    int64_t limit_bytes = 0;
    int64_t used_bytes = 0;
    int64_t kept_bytes = 0;    // came back, and wait for a request of their size
    int64_t pinned_count = 0;  // how often memory was pinned; all other allocations were served from kept buffers
  };
  Report report() const;
  // Unpins what is kept.
  void Trim();

 private:
  friend class PinnedBuffer;
  void Return(std::byte* data, int64_t size_bytes);
  static void Release(std::byte* data, int64_t size_bytes);
  StatusOr<std::byte*> Pin(int64_t size_bytes) const;
  // Takes kept buffers out, largest first, until `size_bytes` more fit or none is kept.
  std::vector<std::pair<std::byte*, int64_t>> MakeRoom(int64_t size_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string name_;
  const PinnedOptions options_;
  const std::function<void(int64_t)> pinned_;
  mutable absl::Mutex mu_;
  std::map<uintptr_t, int64_t> all_ ABSL_GUARDED_BY(mu_);         // used and kept: address -> size
  std::multimap<int64_t, std::byte*> kept_ ABSL_GUARDED_BY(mu_);  // by size
  int64_t used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t kept_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t pinned_count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace tidepool::device
