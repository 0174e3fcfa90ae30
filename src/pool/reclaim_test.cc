#include "pool/reclaim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace tidepool::pool {
namespace {

using testing::ElementsAre;
using testing::Pair;

const LeaseId kA(1), kB(2), kC(3);

ReclaimView View(int64_t pinned, int64_t demand, int64_t guaranteed = 10, int64_t burst = 100) {
  return {.pinned_pages = pinned, .demand_pages = demand, .leases = {{.id = kA, .guaranteed = guaranteed, .burst = burst}}};
}

TEST(ReclaimPolicy, LeavesToTrainingWhatPinnedLeasesAndTheReserveLeave) {
  ReclaimPolicy policy({.total_pages = 100, .reserve_pages = 20});
  EXPECT_EQ(policy.Update(View(0, 0)).at(kA), 80);
  EXPECT_EQ(policy.Update(View(30, 0)).at(kA), 50);
}

TEST(ReclaimPolicy, DisturbsNobodyForADemandThatTheReserveCovers) {
  ReclaimPolicy policy({.total_pages = 100, .reserve_pages = 20});
  EXPECT_EQ(policy.Update(View(30, 0)).at(kA), 50);
  EXPECT_EQ(policy.Update(View(30, 15)).at(kA), 50);
  EXPECT_EQ(policy.Update(View(45, 0)).at(kA), 50) << "5 of the reserve are left";
  EXPECT_EQ(policy.Update(View(30, 0)).at(kA), 50) << "the reserve is refilled before training grows";
  EXPECT_EQ(policy.Update(View(25, 0)).at(kA), 55);
}

TEST(ReclaimPolicy, RefillsTheWholeReserveWhenItHasToShrink) {
  ReclaimPolicy policy({.total_pages = 100, .reserve_pages = 20});
  policy.Update(View(30, 0));
  EXPECT_EQ(policy.Update(View(30, 25)).at(kA), 25);
  EXPECT_EQ(policy.Update(View(55, 0)).at(kA), 25) << "granting the demand changes nothing";
}

TEST(ReclaimPolicy, NeverGoesBelowAGuaranteeOrAboveABurst) {
  ReclaimPolicy policy({.total_pages = 100, .reserve_pages = 20});
  EXPECT_EQ(policy.Update(View(0, 0, 10, 40)).at(kA), 40);
  EXPECT_EQ(policy.Update(View(90, 0, 10, 40)).at(kA), 10);
}

TEST(ReclaimPolicy, PauseLeavesTheGuaranteeAndForgetsNothing) {
  ReclaimPolicy policy({.total_pages = 100, .reserve_pages = 20});
  policy.Update(View(30, 0));
  policy.Update(View(45, 0));
  ReclaimView paused = View(45, 0);
  paused.paused = true;
  EXPECT_EQ(policy.Update(paused).at(kA), 10);
  EXPECT_EQ(policy.Update(View(45, 0)).at(kA), 50);
}

TEST(ReclaimPolicy, StaticSplitMovesNothing) {
  ReclaimPolicy policy({.total_pages = 100, .reserve_pages = 20, .static_reclaimable_pages = 35});
  EXPECT_EQ(policy.Update(View(0, 0)).at(kA), 35);
  EXPECT_EQ(policy.Update(View(60, 30)).at(kA), 35);
  ReclaimView paused = View(0, 0);
  paused.paused = true;
  EXPECT_EQ(policy.Update(paused).at(kA), 10);
}

TEST(ReclaimPolicy, SharesFairlyBetweenTrainingJobs) {
  auto share = [](int64_t budget, std::vector<ReclaimableLease> leases) { return ReclaimPolicy::Share(budget, leases); };
  EXPECT_THAT(share(90, {{kA, 0, 100}, {kB, 0, 100}, {kC, 0, 100}}), ElementsAre(Pair(kA, 30), Pair(kB, 30), Pair(kC, 30)));
  EXPECT_THAT(share(90, {{kA, 0, 10}, {kB, 0, 100}, {kC, 0, 100}}), ElementsAre(Pair(kA, 10), Pair(kB, 40), Pair(kC, 40)));
  EXPECT_THAT(share(90, {{kA, 50, 100}, {kB, 0, 100}, {kC, 0, 100}}), ElementsAre(Pair(kA, 50), Pair(kB, 20), Pair(kC, 20)));
  EXPECT_THAT(share(91, {{kA, 0, 100}, {kB, 0, 100}, {kC, 0, 100}}), ElementsAre(Pair(kA, 31), Pair(kB, 30), Pair(kC, 30)));
  EXPECT_THAT(share(5, {{kA, 4, 100}, {kB, 4, 100}}), ElementsAre(Pair(kA, 4), Pair(kB, 4)));
  EXPECT_THAT(share(1000, {{kA, 4, 10}, {kB, 4, 20}}), ElementsAre(Pair(kA, 10), Pair(kB, 20)));
  EXPECT_TRUE(share(10, {}).empty());
}

TEST(ReclaimPolicy, SharesOutTheWholeBudgetUnlessBurstsForbidIt) {
  std::mt19937_64 random(3);
  auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int round = 0; round < 3000; ++round) {
    std::vector<ReclaimableLease> leases;
    int64_t guaranteed = 0, bursts = 0;
    for (uint32_t i = 0; i < 1 + static_cast<uint32_t>(below(5)); ++i) {
      const int64_t guarantee = below(20);
      leases.push_back({LeaseId(i + 1), guarantee, guarantee + 1 + below(60)});
      guaranteed += guarantee;
      bursts += leases.back().burst;
    }
    const int64_t budget = below(250);
    int64_t sum = 0;
    const auto limits = ReclaimPolicy::Share(budget, leases);
    for (const ReclaimableLease& lease : leases) {
      ASSERT_GE(limits.at(lease.id), lease.guaranteed);
      ASSERT_LE(limits.at(lease.id), lease.burst);
      sum += limits.at(lease.id);
    }
    ASSERT_EQ(sum, std::max(guaranteed, std::min(budget, bursts))) << "round " << round;
    // Max-min: nobody above its guarantee has 2 more than somebody who could take more.
    for (const ReclaimableLease& rich : leases) {
      for (const ReclaimableLease& poor : leases) {
        if (limits.at(rich.id) > rich.guaranteed && limits.at(poor.id) < poor.burst) {
          ASSERT_LE(limits.at(rich.id), limits.at(poor.id) + 1) << "round " << round;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tidepool::pool
