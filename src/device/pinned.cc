#include "device/pinned.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <functional>
#include <limits>

#include "base/units.h"

namespace tidepool::device {
namespace {

constexpr int64_t kSystemPage = 4096;

}  // namespace

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  if (this != &other) {
    if (pool_ != nullptr) pool_->Return(data_, size_);
    pool_ = std::exchange(other.pool_, nullptr);
    data_ = other.data_;
    size_ = other.size_;
  }
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (pool_ != nullptr) pool_->Return(data_, size_);
}

PinnedPool::PinnedPool(std::string name, const PinnedOptions& options, std::function<void(int64_t)> pinned)
    : name_(std::move(name)), options_(options), pinned_(std::move(pinned)) {}

PinnedPool::~PinnedPool() { Trim(); }

StatusOr<std::byte*> PinnedPool::Pin(int64_t size_bytes) const {
  const auto size = static_cast<size_t>(RoundUp(size_bytes, kSystemPage));
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED)
    return ErrnoError(errno, fmt::format("device '{}': allocating {} of host memory", name_, FormatBytes(size_bytes)));
  if (options_.lock && ::mlock(data, size) != 0) {
    const int error = errno;
    ::munmap(data, size);
    rlimit limit{};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    if (error == ENOMEM || error == EPERM || error == EAGAIN) {
      return ResourceExhausted(
          "device '{}': {} of host memory could not be locked; RLIMIT_MEMLOCK allows {} for all of it: raise it "
          "(ulimit -l), or do without locking",
          name_, FormatBytes(size_bytes),
          limit.rlim_cur == RLIM_INFINITY ? "any amount" : FormatBytes(static_cast<int64_t>(limit.rlim_cur)));
    }
    return ErrnoError(error, fmt::format("device '{}': locking {} of host memory", name_, FormatBytes(size_bytes)));
  }
  return static_cast<std::byte*>(data);
}

void PinnedPool::Release(std::byte* data, int64_t size_bytes) {
  ::munmap(data, static_cast<size_t>(RoundUp(size_bytes, kSystemPage)));  // unlocks too
}

std::vector<std::pair<std::byte*, int64_t>> PinnedPool::MakeRoom(int64_t size_bytes) {
  std::vector<std::pair<std::byte*, int64_t>> out;
  while (!kept_.empty() && used_bytes_ + kept_bytes_ > options_.limit_bytes - size_bytes) {
    const auto largest = std::prev(kept_.end());
    out.emplace_back(largest->second, largest->first);
    all_.erase(reinterpret_cast<uintptr_t>(largest->second));
    kept_bytes_ -= largest->first;
    kept_.erase(largest);
  }
  return out;
}

StatusOr<PinnedBuffer> PinnedPool::Allocate(int64_t size_bytes) {
  if (size_bytes < 1) return InvalidArgument("device '{}': {} bytes of pinned memory; allowed: 1 or more", name_, size_bytes);
  std::vector<std::pair<std::byte*, int64_t>> released;
  {
    absl::MutexLock lock(&mu_);
    if (const auto kept = kept_.find(size_bytes); kept != kept_.end()) {
      PinnedBuffer buffer(this, kept->second, size_bytes);
      kept_.erase(kept);
      kept_bytes_ -= size_bytes;
      used_bytes_ += size_bytes;
      return buffer;
    }
    if (size_bytes > options_.limit_bytes - used_bytes_) {
      return ResourceExhausted(
          "device '{}': {} bytes of pinned memory asked for, {} of {} in use; give buffers back or raise the limit", name_,
          size_bytes, used_bytes_, options_.limit_bytes);
    }
    released = MakeRoom(size_bytes);
    used_bytes_ += size_bytes;  // reserved, so that nobody passes the limit meanwhile
  }
  for (const auto& [data, size] : released) Release(data, size);
  StatusOr<std::byte*> data = Pin(size_bytes);
  {
    absl::MutexLock lock(&mu_);
    if (!data.ok()) {
      used_bytes_ -= size_bytes;
      return data.status();
    }
    all_[reinterpret_cast<uintptr_t>(*data)] = size_bytes;
    ++pinned_count_;
  }
  if (pinned_) pinned_(size_bytes);
  return PinnedBuffer(this, *data, size_bytes);
}

void PinnedPool::Return(std::byte* data, int64_t size_bytes) {
  absl::MutexLock lock(&mu_);
  used_bytes_ -= size_bytes;
  kept_bytes_ += size_bytes;
  kept_.emplace(size_bytes, data);
}

bool PinnedPool::Contains(const void* data, int64_t size_bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  absl::MutexLock lock(&mu_);
  const auto after = all_.upper_bound(begin);
  if (after == all_.begin() || size_bytes < 0) return false;
  const auto& [start, size] = *std::prev(after);
  return size_bytes <= size && begin - start <= static_cast<uintptr_t>(size - size_bytes);
}

PinnedPool::Report PinnedPool::report() const {
  absl::MutexLock lock(&mu_);
  return {
      .limit_bytes = options_.limit_bytes, .used_bytes = used_bytes_, .kept_bytes = kept_bytes_, .pinned_count = pinned_count_};
}

void PinnedPool::Trim() {
  std::vector<std::pair<std::byte*, int64_t>> released;
  {
    absl::MutexLock lock(&mu_);
    released = MakeRoom(std::numeric_limits<int64_t>::max());
  }
  for (const auto& [data, size] : released) Release(data, size);
}

}  // namespace tidepool::device
