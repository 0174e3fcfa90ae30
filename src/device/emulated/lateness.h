// A histogram of durations, right to 13 %: eight buckets per power of two. Thread-compatible.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace tidepool::device::emulated {

class LatenessHistogram {
 public:
  void Add(int64_t ns) {
    const auto value = static_cast<uint64_t>(std::max<int64_t>(0, ns));
    ++buckets_[BucketOf(value)];
    ++count_;
    max_ns_ = std::max(max_ns_, static_cast<int64_t>(value));
  }
  int64_t count() const { return count_; }
  int64_t max_ns() const { return max_ns_; }
  // The upper edge of the bucket that holds the quantile; 0 without values.
  int64_t Quantile(double q) const {
    const auto rank = static_cast<int64_t>(q * static_cast<double>(count_));
    int64_t before = 0;
    for (size_t i = 0; i < buckets_.size(); ++i) {
      before += buckets_[i];
      if (before > rank) return std::min(max_ns_, UpperEdge(i));
    }
    return max_ns_;
  }

 private:
  static constexpr int kSubBits = 3;
  static size_t BucketOf(uint64_t value) {
    if (value < (1u << kSubBits)) return value;
    const int exponent = static_cast<int>(std::bit_width(value)) - 1 - kSubBits;
    return static_cast<size_t>(exponent + 1) * (1u << kSubBits) + static_cast<size_t>((value >> exponent) - (1u << kSubBits));
  }
  static int64_t UpperEdge(size_t bucket) {
    constexpr size_t kSub = 1u << kSubBits;
    if (bucket < kSub) return static_cast<int64_t>(bucket);
    const size_t exponent = bucket / kSub - 1;
    return static_cast<int64_t>(((bucket % kSub + kSub + 1) << exponent) - 1);
  }
  std::array<int64_t, 62u << kSubBits> buckets_{};
  int64_t count_ = 0;
  int64_t max_ns_ = 0;
};

}  // namespace tidepool::device::emulated
