#include "data/cache_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <list>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "data/order.h"

namespace tidepool::data {
namespace {

std::unique_ptr<CachePolicy> Make(const CachePolicyOptions& options) {
  auto policy = CachePolicy::Create(options);
  EXPECT_TRUE(policy.ok()) << ToString(policy.status());
  return std::move(*policy);
}

// The share of hits once the cache is warm, over epochs that visit every item once in a new order each.
double HitShare(CachePolicy* policy, int64_t bytes_each, int epochs, int warm_epochs = 12) {
  int64_t hits = 0, uses = 0;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    for (const int64_t id : EpochOrder(policy->items(), 5, epoch)) {
      const bool hit = policy->Access(id, bytes_each).hit;
      EXPECT_LE(policy->used_bytes(), policy->budget_bytes());
      if (epoch < warm_epochs) continue;
      ++uses;
      hits += hit ? 1 : 0;
    }
  }
  return static_cast<double>(hits) / static_cast<double>(uses);
}

constexpr int64_t kItems = 4000, kBytesEach = 1000;
double HitShare(CachePolicyOptions options, double cached) {
  options.items = kItems;
  options.total_bytes = kItems * kBytesEach;
  options.budget_bytes = static_cast<int64_t>(std::llround(cached * kItems * kBytesEach));
  return HitShare(Make(options).get(), kBytesEach, 60);
}

constexpr double kShares[] = {0.40, 0.589, 0.65, 0.768, 0.961};
constexpr double kPoint = 0.01;

TEST(CachePolicy, MinioHitsTheShareThatFits) {
  for (const double share : kShares) {
    EXPECT_NEAR(HitShare({.kind = CacheKind::kMinio}, share), share, 1e-9);
    EXPECT_NEAR(HitShare({.kind = CacheKind::kMinio, .admission = MinioAdmission::kSeededHash, .seed = 3}, share), share,
                2 * kPoint);
  }
}

TEST(CachePolicy, LruHitsWhatTheFormulaSays) {
  for (const double share : kShares) {
    EXPECT_NEAR(HitShare({.kind = CacheKind::kLru}, share), share + (1 - share) * std::log(1 - share), kPoint) << share;
  }
}

TEST(CachePolicy, FifoAndTwoListHitWhatTheSimulatedTableSays) {
  constexpr double kFifo[] = {0.110, 0.303, 0.404, 0.597, 0.931};
  constexpr double kTwoList[] = {0.192, 0.309, 0.356, 0.476, 0.844};
  for (size_t i = 0; i < std::size(kShares); ++i) {
    EXPECT_NEAR(HitShare({.kind = CacheKind::kFifo}, kShares[i]), kFifo[i], kPoint) << kShares[i];
    EXPECT_NEAR(HitShare({.kind = CacheKind::kTwoList}, kShares[i]), kTwoList[i], kPoint) << kShares[i];
  }
}

TEST(CachePolicy, ThePageCacheModelIsFifoOverWholePages) {
  // 1000 bytes take a page of 4096, so a budget of c of the pages holds c of the files.
  auto policy = Make({.kind = CacheKind::kPageCache, .budget_bytes = kItems * 4096 * 589 / 1000, .items = kItems});
  EXPECT_NEAR(HitShare(policy.get(), kBytesEach, 40), 0.303, kPoint);
  EXPECT_EQ(policy->used_bytes() % 4096, 0);
  auto lru = Make({.kind = CacheKind::kPageCache,
                   .budget_bytes = kItems * 4096 * 589 / 1000,
                   .items = kItems,
                   .page_cache_list = CacheKind::kLru});
  EXPECT_NEAR(HitShare(lru.get(), kBytesEach, 40), 0.224, kPoint);
}

TEST(CachePolicy, NoneHitsNothing) {
  auto policy = Make({.kind = CacheKind::kNone, .budget_bytes = 1 << 30, .items = 10});
  EXPECT_EQ(HitShare(policy.get(), 10, 20), 0);
  EXPECT_EQ(policy->used_bytes(), 0);
  EXPECT_EQ(policy->counts().refused, 200);
}

TEST(CachePolicy, MinioNeverEvictsAndKeepsWhatItTookFirst) {
  std::mt19937_64 random(1);
  for (const MinioAdmission admission : {MinioAdmission::kUntilFull, MinioAdmission::kSeededHash}) {
    auto policy =
        Make({.kind = CacheKind::kMinio, .budget_bytes = 50'000, .items = 500, .admission = admission, .total_bytes = 90'000});
    std::set<int64_t> kept;
    for (int i = 0; i < 100'000; ++i) {
      const auto id = static_cast<int64_t>(random() % 500);
      const CacheAccess access = policy->Access(id, 1 + id % 359);
      ASSERT_TRUE(access.evicted.empty());
      ASSERT_EQ(access.hit, kept.contains(id));
      if (access.admitted) kept.insert(id);
      ASSERT_LE(policy->used_bytes(), 50'000);
    }
    EXPECT_EQ(policy->used_items(), static_cast<int64_t>(kept.size()));
    EXPECT_EQ(policy->counts().evicted, 0);
    EXPECT_GT(policy->counts().refused, 0);
  }
}

TEST(CachePolicy, SeededAdmissionIsTheSameEverywhereAndFollowsTheSeed) {
  auto take = [](uint64_t seed, uint64_t order_seed) {
    auto policy = Make({.kind = CacheKind::kMinio,
                        .budget_bytes = 1000,
                        .items = 2000,
                        .admission = MinioAdmission::kSeededHash,
                        .seed = seed,
                        .total_bytes = 4000});
    for (const int64_t id : EpochOrder(2000, order_seed, 0)) policy->Access(id, 1);
    std::vector<int64_t> kept;
    for (int64_t id = 0; id < 2000; ++id) {
      if (policy->Contains(id)) kept.push_back(id);
    }
    return kept;
  };
  EXPECT_EQ(take(1, 1), take(1, 2));
  EXPECT_NE(take(1, 1), take(2, 1));
  EXPECT_TRUE(InSeededShare(7, 3, 1));
  EXPECT_FALSE(InSeededShare(7, 3, 0));
}

// The lists of the standard library as the reference.
class Reference {
 public:
  Reference(CacheKind kind, int64_t budget) : kind_(kind), budget_(budget) {}
  CacheAccess Access(int64_t id, int64_t bytes, std::vector<int64_t>* evicted) {
    evicted->clear();
    const auto found = std::find(order_.begin(), order_.end(), id);
    if (found != order_.end()) {
      if (kind_ == CacheKind::kLru) order_.splice(order_.begin(), order_, found);
      return {.hit = true};
    }
    if (bytes > budget_) return {};
    while (used_ + bytes > budget_) {
      evicted->push_back(order_.back());
      used_ -= sizes_[order_.back()];
      order_.pop_back();
    }
    order_.push_front(id);
    sizes_[id] = bytes;
    used_ += bytes;
    return {.admitted = true};
  }
  int64_t used() const { return used_; }

 private:
  const CacheKind kind_;
  const int64_t budget_;
  std::list<int64_t> order_;
  std::map<int64_t, int64_t> sizes_;
  int64_t used_ = 0;
};

TEST(CachePolicy, LruAndFifoDecideAsPlainListsDoWithItemsOfAllSizes) {
  for (const CacheKind kind : {CacheKind::kLru, CacheKind::kFifo}) {
    auto policy = Make({.kind = kind, .budget_bytes = 3000, .items = 100});
    Reference reference(kind, 3000);
    std::mt19937_64 random(2);
    std::vector<int64_t> expected;
    for (int i = 0; i < 50'000; ++i) {
      const auto id = static_cast<int64_t>(random() % 100);
      const int64_t bytes = id == 7 ? 3001 : id * 37 % 500;  // one is too large, some are empty
      const CacheAccess got = policy->Access(id, bytes);
      const CacheAccess wanted = reference.Access(id, bytes, &expected);
      ASSERT_EQ(got.hit, wanted.hit);
      ASSERT_EQ(got.admitted, wanted.admitted);
      ASSERT_EQ(std::vector<int64_t>(got.evicted.begin(), got.evicted.end()), expected);
      ASSERT_EQ(policy->used_bytes(), reference.used());
    }
    EXPECT_GT(policy->counts().evicted, 0);
  }
}

TEST(CachePolicy, EveryPolicyKeepsItsAccounts) {
  for (const CacheKind kind :
       {CacheKind::kNone, CacheKind::kPageCache, CacheKind::kMinio, CacheKind::kLru, CacheKind::kFifo, CacheKind::kTwoList}) {
    auto policy = Make({.kind = kind, .budget_bytes = 40'000, .items = 64});
    std::map<int64_t, int64_t> kept;
    std::mt19937_64 random(3);
    for (int i = 0; i < 30'000; ++i) {
      const auto id = static_cast<int64_t>(random() % 64);
      const auto bytes = static_cast<int64_t>(random() % (i % 100 == 0 ? 50'000 : 3000));
      const bool would = policy->WouldAdmit(id, bytes);
      const CacheAccess access = policy->Access(id, bytes);
      ASSERT_EQ(access.hit, kept.contains(id));
      ASSERT_EQ(access.admitted, would);
      for (const int64_t gone : access.evicted) ASSERT_EQ(kept.erase(gone), 1u);
      if (access.admitted) kept[id] = kind == CacheKind::kPageCache ? (bytes + 4095) / 4096 * 4096 : bytes;
      int64_t used = 0;
      for (const auto& [each, size] : kept) used += size;
      ASSERT_EQ(policy->used_bytes(), used);
      ASSERT_LE(used, 40'000);
      ASSERT_EQ(policy->used_items(), static_cast<int64_t>(kept.size()));
      if (i % 10'000 == 9'999) {
        policy->Clear();
        kept.clear();
      }
    }
    const CacheCounts& counts = policy->counts();
    EXPECT_EQ(counts.hits + counts.misses, 30'000);
    EXPECT_EQ(counts.admitted + counts.refused, counts.misses);
  }
}

TEST(CachePolicy, ATwoListItemIsReplacedOnlyAfterThoseThatWereUsedOnce) {
  auto policy = Make({.kind = CacheKind::kTwoList, .budget_bytes = 4, .items = 10});
  for (const int64_t id : {0, 1, 0, 2, 3}) policy->Access(id, 1);
  for (const int64_t id : {4, 5, 6}) policy->Access(id, 1);
  EXPECT_TRUE(policy->Contains(0));
  EXPECT_FALSE(policy->Contains(1));
  EXPECT_FALSE(policy->Contains(2));
}

TEST(CachePolicy, OptionsAndNamesAreChecked) {
  const auto fault = [](CachePolicyOptions options) { return ToString(CachePolicy::Create(options).status()); };
  EXPECT_EQ(fault({.budget_bytes = -1, .items = 1}), "INVALID_ARGUMENT: cache budget of -1 bytes; allowed: 0 or more");
  EXPECT_EQ(fault({.items = 0}), "INVALID_ARGUMENT: cache of 0 items; allowed: 1 to 2147483646");
  EXPECT_EQ(fault({.items = int64_t{1} << 31}), "INVALID_ARGUMENT: cache of 2147483648 items; allowed: 1 to 2147483646");
  EXPECT_EQ(fault({.kind = CacheKind::kPageCache, .items = 1, .page_cache_list = CacheKind::kMinio}),
            "INVALID_ARGUMENT: page-cache model 'minio'; allowed: fifo, lru, two-list");
  EXPECT_EQ(fault({.items = 1, .admission = MinioAdmission::kSeededHash}),
            "INVALID_ARGUMENT: MinIO admission by seeded hash with total_bytes 0; needed: the bytes of all items");
  EXPECT_EQ(ToString(ParseCacheKind("lur").status()),
            "INVALID_ARGUMENT: cache policy 'lur'; allowed: none, page-cache, minio, lru, fifo, two-list. Did you mean 'lru'?");
  for (const CacheKind kind : {CacheKind::kNone, CacheKind::kPageCache, CacheKind::kTwoList}) {
    EXPECT_EQ(*ParseCacheKind(CacheKindName(kind)), kind);
  }
}

}  // namespace
}  // namespace tidepool::data
