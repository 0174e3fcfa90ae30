#include "device/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <vector>

namespace tidepool::device {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSize = 64 * Allocator::kAlignment;

class AllocatorTest : public ::testing::Test {
 protected:
  std::vector<std::byte> region_ = std::vector<std::byte>(kSize);
  Allocator allocator_{"region", region_.data(), kSize};
};

TEST_F(AllocatorTest, ReturnedNeighboursJoin) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < 64; ++i) buffers.push_back(std::move(allocator_.Allocate(1)).value());
  EXPECT_EQ(allocator_.report().free_bytes, 0);
  for (size_t i = 0; i < 64; i += 2) buffers[i] = Buffer();
  EXPECT_EQ(allocator_.report().free_ranges, 32);
  const Status scattered = allocator_.Allocate(Allocator::kAlignment + 1).status();
  EXPECT_THAT(MessageOf(scattered), HasSubstr("8192 of 16384 bytes free, the largest range 256 bytes"));
  for (size_t i = 1; i < 64; i += 2) buffers[i] = Buffer();
  EXPECT_EQ(allocator_.report().free_ranges, 1);
  EXPECT_EQ(allocator_.report().largest_free_bytes, kSize);
  EXPECT_EQ(allocator_.report().peak_bytes, kSize);
}

TEST_F(AllocatorTest, RefusesSizesThatAreNone) {
  for (const int64_t size : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ(allocator_.Allocate(size).status().code(), StatusCode::kInvalidArgument) << size;
  }
}

TEST_F(AllocatorTest, BuffersNeverOverlapAndAccountsAddUp) {
  std::mt19937 random(5);
  std::vector<Buffer> held;
  for (int step = 0; step < 5000; ++step) {
    if (held.empty() || random() % 2 == 0) {
      auto buffer = allocator_.Allocate(1 + static_cast<int64_t>(random() % 2000));
      if (buffer.ok()) held.push_back(std::move(*buffer));
    } else {
      std::swap(held[random() % held.size()], held.back());
      held.pop_back();
    }
    std::map<const std::byte*, int64_t> ranges;
    int64_t used = 0;
    for (const Buffer& buffer : held) {
      ranges[buffer.data()] = buffer.size_bytes();
      used += (buffer.size_bytes() + Allocator::kAlignment - 1) / Allocator::kAlignment * Allocator::kAlignment;
    }
    ASSERT_EQ(ranges.size(), held.size());
    const std::byte* end = region_.data();
    for (const auto& [start, size] : ranges) {
      ASSERT_GE(start, end);
      end = start + size;
    }
    ASSERT_LE(end, region_.data() + kSize);
    ASSERT_EQ(allocator_.report().free_bytes, kSize - used);
  }
}

TEST_F(AllocatorTest, MovedBufferGoesBackOnce) {
  Buffer a = std::move(allocator_.Allocate(100)).value();
  Buffer b = std::move(a);
  Buffer c;
  c = std::move(b);
  EXPECT_EQ(allocator_.report().free_bytes, kSize - Allocator::kAlignment);
  c = Buffer();
  EXPECT_EQ(allocator_.report().free_bytes, kSize);
}

}  // namespace
}  // namespace tidepool::device
