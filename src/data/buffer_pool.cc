#include "data/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "base/units.h"

namespace tidepool::data {
namespace {

// Capacities come in steps of an eighth of their size, so that buffers of nearly one size serve each other.
int64_t CapacityFor(int64_t bytes) {
  const int64_t floor = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(bytes, 1))));
  return RoundUp(std::max<int64_t>(bytes, 1), std::max(kDiskAlignment, floor / 8));
}

}  // namespace

std::shared_ptr<BufferPool> BufferPool::Create(int64_t kept_bytes) {
  return std::shared_ptr<BufferPool>(new BufferPool(kept_bytes));
}

BufferPool::~BufferPool() {
  for (const auto& [capacity, buffers] : free_) {
    for (std::byte* buffer : buffers) std::free(buffer);
  }
}

StatusOr<std::shared_ptr<std::byte>> BufferPool::Get(int64_t bytes) {
  const int64_t capacity = CapacityFor(bytes);
  std::byte* buffer = nullptr;
  {
    absl::MutexLock lock(&mu_);
    if (auto found = free_.find(capacity); found != free_.end()) {
      buffer = found->second.back();
      found->second.pop_back();
      free_bytes_ -= capacity;
      if (found->second.empty()) free_.erase(found);
    }
  }
  if (buffer == nullptr) buffer = static_cast<std::byte*>(std::aligned_alloc(kDiskAlignment, static_cast<size_t>(capacity)));
  if (buffer == nullptr) return ResourceExhausted("no memory for a buffer of {}", FormatBytes(capacity));
  return std::shared_ptr<std::byte>(buffer, [pool = weak_from_this(), capacity](std::byte* done) {
    if (const auto alive = pool.lock()) {
      alive->Return(done, capacity);
    } else {
      std::free(done);
    }
  });
}

void BufferPool::Return(std::byte* buffer, int64_t capacity) {
  std::vector<std::byte*> surplus;
  {
    absl::MutexLock lock(&mu_);
    free_[capacity].push_back(buffer);
    free_bytes_ += capacity;
    // The largest go first: they are the least likely to fit again.
    while (free_bytes_ > kept_bytes_) {
      auto largest = std::prev(free_.end());
      surplus.push_back(largest->second.back());
      free_bytes_ -= largest->first;
      largest->second.pop_back();
      if (largest->second.empty()) free_.erase(largest);
    }
  }
  for (std::byte* each : surplus) std::free(each);
}

int64_t BufferPool::free_bytes() const {
  absl::MutexLock lock(&mu_);
  return free_bytes_;
}

}  // namespace tidepool::data
