#include "pool/run_index.h"

#include <gtest/gtest.h>

#include <random>

namespace tidepool::pool {
namespace {

// The same questions answered by looking at every page.
struct NaiveRuns {
  std::vector<bool> available;

  std::vector<Extent> Runs() const {
    std::vector<Extent> runs;
    for (PageIndex page = 0; page < static_cast<PageIndex>(available.size()); ++page) {
      if (!available[static_cast<size_t>(page)]) continue;
      if (!runs.empty() && runs.back().end() == page) {
        ++runs.back().count;
      } else {
        runs.push_back({page, 1});
      }
    }
    return runs;
  }

  Extent Find(int32_t count, FitPolicy fit, Placement placement) const {
    std::vector<Extent> runs = Runs();
    if (placement == Placement::kHigh) std::reverse(runs.begin(), runs.end());
    const Extent* chosen = nullptr;
    for (const Extent& run : runs) {
      if (run.count < count) continue;
      if (chosen == nullptr || (fit == FitPolicy::kBestFit && run.count < chosen->count)) chosen = &run;
    }
    if (chosen == nullptr) return {};
    return {placement == Placement::kLow ? chosen->first : chosen->end() - count, count};
  }
};

TEST(RunIndex, AnswersAsASearchOfEveryPageDoes) {
  std::mt19937_64 random(7);
  auto below = [&](int64_t n) { return static_cast<int32_t>(random() % static_cast<uint64_t>(n)); };
  for (int round = 0; round < 60; ++round) {
    const int32_t pages = 1 + below(round < 30 ? 40 : 300);
    RunIndex index(pages);
    NaiveRuns naive{std::vector<bool>(static_cast<size_t>(pages), false)};
    for (int step = 0; step < 200; ++step) {
      const PageIndex first = below(pages);
      const bool state = naive.available[static_cast<size_t>(first)];
      int32_t count = 0;
      const int32_t most = 1 + below(12);
      while (first + count < pages && count < most && naive.available[static_cast<size_t>(first + count)] == state) ++count;
      for (int32_t i = 0; i < count; ++i) naive.available[static_cast<size_t>(first + i)] = !state;
      if (state) {
        index.Remove({first, count});
      } else {
        index.Add({first, count});
      }
      const std::vector<Extent> runs = naive.Runs();
      ASSERT_EQ(runs.size(), index.runs().size());
      int64_t sum = 0;
      int32_t longest = 0;
      for (const Extent& run : runs) {
        ASSERT_EQ(index.runs().at(run.first), run.count);
        sum += run.count;
        longest = std::max(longest, run.count);
      }
      ASSERT_EQ(index.pages(), sum);
      ASSERT_EQ(index.longest(), longest);
      const int32_t wanted = 1 + below(pages);
      for (const Placement placement : {Placement::kLow, Placement::kHigh}) {
        for (const FitPolicy fit : {FitPolicy::kFirstFit, FitPolicy::kBestFit}) {
          ASSERT_EQ(index.Find(wanted, fit, placement), naive.Find(wanted, fit, placement))
              << Name(fit) << " " << Name(placement) << " of " << wanted;
        }
        ASSERT_EQ(index.Longest(placement).count, longest);
      }
    }
  }
}

TEST(RunIndex, NextFitGoesOnWhereItStopped) {
  RunIndex index(100);
  index.Add({0, 10});
  index.Add({20, 10});
  index.Add({40, 10});
  auto take = [&] {
    const Extent found = index.Find(6, FitPolicy::kNextFit, Placement::kLow);
    if (found.count > 0) index.Remove(found);
    return found;
  };
  EXPECT_EQ(take(), (Extent{0, 6}));
  EXPECT_EQ(take(), (Extent{20, 6}));
  index.Add({0, 6});
  EXPECT_EQ(take(), (Extent{40, 6}));
  EXPECT_EQ(take(), (Extent{0, 6}));
  EXPECT_EQ(take(), (Extent{}));
}

}  // namespace
}  // namespace tidepool::pool
