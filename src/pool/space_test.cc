#include "pool/space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/units.h"

namespace tidepool::pool {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr int64_t kPage = 64 * 1024;

TEST(Space, MergesFreeNeighboursAcrossPages) {
  Space space(kPage, 8);
  space.AddPages({0, 1});
  space.AddPages({2, 1});
  EXPECT_EQ(space.Allocate(2 * kPage), -1);
  space.AddPages({1, 1});
  EXPECT_EQ(space.longest_free_bytes(), 3 * kPage);
  const int64_t block = space.Allocate(2 * kPage + 64);
  EXPECT_EQ(block, 0);
  EXPECT_EQ(space.cached_pages(), 0);
  EXPECT_EQ(space.Free(block), 2 * kPage + 64);
  EXPECT_EQ(space.longest_free_bytes(), 3 * kPage);
  EXPECT_EQ(space.cached_pages(), 3);
  EXPECT_TRUE(space.Consistent());
}

TEST(Space, TakesTheSmallestBlockThatFits) {
  Space space(kPage, 8);
  space.AddPages({0, 4});
  const int64_t a = space.Allocate(4096), gap_a = space.Allocate(64);
  const int64_t b = space.Allocate(1024), gap_b = space.Allocate(64);
  const int64_t c = space.Allocate(40'000 / 64 * 64);
  space.Allocate(64);
  space.Free(a);
  space.Free(b);
  space.Free(c);
  EXPECT_EQ(space.Allocate(960), b);
  EXPECT_EQ(space.Allocate(1088), a);
  EXPECT_EQ(space.Allocate(20'480), c);
  EXPECT_LT(gap_a, gap_b);
  EXPECT_TRUE(space.Consistent());
}

TEST(Space, GivesUpOnlyPagesWithoutALiveByte) {
  Space space(kPage, 8);
  space.AddPages({0, 6});
  const int64_t first = space.Allocate(kPage + 64);
  const int64_t second = space.Allocate(64);
  space.Free(first);
  EXPECT_EQ(space.cached_pages(), 5);
  EXPECT_THAT(space.TakeCachedPages(2), ElementsAre(Extent{4, 2}));
  EXPECT_THAT(space.TakeCachedPages(100), ElementsAre(Extent{0, 1}, Extent{2, 2}));
  EXPECT_THAT(space.TakeCachedPages(100), IsEmpty());
  EXPECT_EQ(space.held_pages(), 1);
  EXPECT_TRUE(space.IsBlock(second));
  EXPECT_EQ(space.longest_free_bytes(), kPage - 128);
  EXPECT_TRUE(space.Consistent());
  space.Free(second);
  EXPECT_THAT(space.TakeCachedPages(100), ElementsAre(Extent{1, 1}));
  EXPECT_TRUE(space.Consistent());
}

// Live blocks and held pages, kept the simple way.
class SpaceSchedule {
 public:
  SpaceSchedule(uint64_t seed, int64_t page_bytes, int32_t pages)
      : random_(seed), page_bytes_(page_bytes), pages_(pages), space_(page_bytes, pages), held_(static_cast<size_t>(pages)) {}

  void Run(int steps) {
    for (int step = 0; step < steps; ++step) {
      switch (Below(8)) {
        case 0: AddSome(); break;
        case 1: TakeSome(); break;
        case 2: case 3: case 4: FreeOne(); break;
        default: AllocateOne(); break;
      }
      ASSERT_FALSE(testing::Test::HasFatalFailure()) << "step " << step;
      ASSERT_NO_FATAL_FAILURE(CompareTotals()) << "step " << step;
      ASSERT_TRUE(step % 8 != 0 || space_.Consistent()) << "step " << step;
    }
  }

 private:
  int64_t Below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

  // Free gaps between live blocks inside runs of held pages.
  std::vector<std::pair<int64_t, int64_t>> Gaps() const {
    std::vector<std::pair<int64_t, int64_t>> gaps;
    for (int32_t page = 0; page < pages_; ++page) {
      if (!held_[static_cast<size_t>(page)]) continue;
      int32_t end = page;
      while (end < pages_ && held_[static_cast<size_t>(end)]) ++end;
      int64_t at = page * page_bytes_;
      for (auto block = blocks_.lower_bound(at); block != blocks_.end() && block->first < end * page_bytes_; ++block) {
        if (block->first > at) gaps.emplace_back(at, block->first - at);
        at = block->first + block->second;
      }
      if (at < end * page_bytes_) gaps.emplace_back(at, end * page_bytes_ - at);
      page = end - 1;
    }
    return gaps;
  }

  void AddSome() {
    const auto first = static_cast<int32_t>(Below(pages_));
    int32_t count = 0;
    while (first + count < pages_ && count < 5 && !held_[static_cast<size_t>(first + count)]) ++count;
    if (count == 0) return;
    std::fill_n(held_.begin() + first, count, true);
    space_.AddPages({first, count});
  }

  void TakeSome() {
    const int64_t cached = space_.cached_pages(), most = 1 + Below(4);
    int64_t taken = 0;
    for (const Extent& extent : space_.TakeCachedPages(most)) {
      taken += extent.count;
      for (PageIndex page = extent.first; page < extent.end(); ++page) {
        ASSERT_TRUE(held_[static_cast<size_t>(page)]);
        held_[static_cast<size_t>(page)] = false;
        const auto block = blocks_.lower_bound(page * page_bytes_);
        ASSERT_TRUE(block == blocks_.end() || block->first >= (page + 1) * page_bytes_) << "page " << page << " is in use";
        if (block != blocks_.begin()) {
          const auto before = std::prev(block);
          ASSERT_LE(before->first + before->second, page * page_bytes_) << "page " << page << " is in use";
        }
      }
    }
    ASSERT_EQ(taken, std::min(cached, most));
  }

  void AllocateOne() {
    const int64_t size = kBlockAlignment * (1 + (Below(3) == 0 ? Below(page_bytes_ / 16) : Below(40)));
    int64_t best = -1;
    for (const auto& [start, length] : Gaps()) {
      if (length >= size && (best < 0 || length < best)) best = length;
    }
    const int64_t offset = space_.Allocate(size);
    ASSERT_EQ(offset < 0, best < 0) << size << " bytes";
    if (offset < 0) return;
    bool found = false;
    for (const auto& [start, length] : Gaps()) found |= start == offset && length == best;
    ASSERT_TRUE(found) << "block at " << offset << " is not the start of a smallest sufficient gap";
    blocks_[offset] = size;
  }

  void FreeOne() {
    if (blocks_.empty()) return;
    auto block = std::next(blocks_.begin(), static_cast<std::ptrdiff_t>(Below(static_cast<int64_t>(blocks_.size()))));
    ASSERT_EQ(space_.Free(block->first), block->second);
    blocks_.erase(block);
  }

  void CompareTotals() {
    int64_t live = 0, cached = 0, held = 0, longest = 0;
    for (const auto& [start, size] : blocks_) live += size;
    for (const bool page : held_) held += page ? 1 : 0;
    for (const auto& [start, length] : Gaps()) {
      cached += std::max<int64_t>(0, (start + length) / page_bytes_ - CeilDiv(start, page_bytes_));
      longest = std::max(longest, length);
    }
    ASSERT_EQ(space_.live_bytes(), live);
    ASSERT_EQ(space_.blocks(), static_cast<int64_t>(blocks_.size()));
    ASSERT_EQ(space_.cached_pages(), cached);
    ASSERT_EQ(space_.held_pages(), held);
    ASSERT_EQ(space_.longest_free_bytes(), longest);
  }

  std::mt19937_64 random_;
  const int64_t page_bytes_;
  const int32_t pages_;
  Space space_;
  std::vector<bool> held_;
  std::map<int64_t, int64_t> blocks_;
};

TEST(Space, MatchesAModelUnderRandomSchedules) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    // Pages below and above the size up to which free blocks lie in bins.
    SpaceSchedule schedule(seed, seed % 2 == 0 ? 4096 : kPage, 24);
    ASSERT_NO_FATAL_FAILURE(schedule.Run(600));
  }
}

}  // namespace
}  // namespace tidepool::pool
