#include "device/allocator.h"

#include <algorithm>
#include <limits>

#include "base/units.h"

namespace tidepool::device {

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (allocator_ != nullptr) allocator_->Free(data_, size_);
    allocator_ = std::exchange(other.allocator_, nullptr);
    data_ = other.data_;
    size_ = other.size_;
  }
  return *this;
}

Buffer::~Buffer() {
  if (allocator_ != nullptr) allocator_->Free(data_, size_);
}

StatusOr<Buffer> Allocator::Allocate(int64_t size_bytes) {
  if (size_bytes < 1 || size_bytes > std::numeric_limits<int64_t>::max() - kAlignment) {
    return InvalidArgument("{}: an allocation of {} bytes; allowed: 1 or more", name_, size_bytes);
  }
  const int64_t need = RoundUp(size_bytes, kAlignment);
  absl::MutexLock lock(&mu_);
  int64_t largest = 0;
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto [offset, size] = *range;
    largest = std::max(largest, size);
    if (size < need) continue;
    free_.erase(range);
    if (size > need) free_[offset + need] = size - need;
    used_ += need;
    peak_ = std::max(peak_, used_);
    return Buffer(this, base_ + offset, size_bytes);
  }
  return ResourceExhausted("{}: out of memory: {} bytes asked for, {} of {} bytes free, the largest range {} bytes", name_,
                           size_bytes, size_ - used_, size_, largest);
}

void Allocator::Free(const std::byte* data, int64_t size_bytes) {
  const int64_t size = RoundUp(size_bytes, kAlignment);
  const int64_t offset = data - base_;
  absl::MutexLock lock(&mu_);
  used_ -= size;
  auto range = free_.emplace(offset, size).first;
  if (const auto next = std::next(range); next != free_.end() && next->first == offset + size) {
    range->second += next->second;
    free_.erase(next);
  }
  if (range == free_.begin()) return;
  const auto before = std::prev(range);
  if (before->first + before->second != offset) return;
  before->second += range->second;
  free_.erase(range);
}

Allocator::Report Allocator::report() const {
  absl::MutexLock lock(&mu_);
  Report report{.capacity_bytes = size_,
                .free_bytes = size_ - used_,
                .free_ranges = static_cast<int64_t>(free_.size()),
                .peak_bytes = peak_};
  for (const auto& [offset, size] : free_) report.largest_free_bytes = std::max(report.largest_free_bytes, size);
  return report;
}

}  // namespace tidepool::device
