#include "train/sample_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace tidepool::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SampleLedger, GivesTheLowestPositionsFirst) {
  SampleLedger ledger({100, 110});
  EXPECT_THAT(ledger.Get(4)->ranges, ElementsAre(PositionRange{100, 104}));
  EXPECT_THAT(ledger.Get(4)->ranges, ElementsAre(PositionRange{104, 108}));
  EXPECT_THAT(ledger.Get(4)->ranges, ElementsAre(PositionRange{108, 110}));
  EXPECT_EQ(ledger.processing(), 10);
  const Status empty = ledger.Get(1).status();
  EXPECT_EQ(empty.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(MessageOf(empty), HasSubstr("no sample of [100, 110) is left: 10 processing, 0 processed"));
}

TEST(SampleLedger, GivesAnAbortedRangeAgainAndMergesNeighbours) {
  SampleLedger ledger({0, 12});
  const auto a = *ledger.Get(4), b = *ledger.Get(4);
  ASSERT_TRUE(ledger.Finish(b).ok());
  ASSERT_TRUE(ledger.Abort(a).ok());
  EXPECT_EQ(ledger.processed(), 4);
  const auto rest = *ledger.Get(12);
  EXPECT_THAT(rest.ranges, ElementsAre(PositionRange{0, 4}, PositionRange{8, 12}));
  EXPECT_EQ(rest.size(), 8);
  ASSERT_TRUE(ledger.Finish(rest).ok());
  EXPECT_TRUE(ledger.done());
}

TEST(SampleLedger, RefusesToEndATicketTwice) {
  SampleLedger ledger({0, 4});
  const auto ticket = *ledger.Get(4);
  ASSERT_TRUE(ledger.Finish(ticket).ok());
  EXPECT_EQ(ledger.Finish(ticket).code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(ledger.Abort(ticket)), HasSubstr("ticket 1 over [0, 4) has ended or never was"));
  EXPECT_EQ(ledger.processed(), 4);
}

TEST(SampleLedger, ClaimsExactRangesOnlyWhereNothingIsTaken) {
  SampleLedger ledger({10, 20});
  const auto middle = *ledger.GetExactly({{12, 14}, {16, 17}});
  EXPECT_EQ(ledger.unprocessed(), 7);
  EXPECT_THAT(MessageOf(ledger.GetExactly({{10, 13}}).status()), HasSubstr("position 12 of range [10, 13) is not unprocessed"));
  EXPECT_THAT(MessageOf(ledger.GetExactly({{9, 11}}).status()), HasSubstr("position 9"));
  EXPECT_THAT(MessageOf(ledger.GetExactly({{17, 21}}).status()), HasSubstr("position 20"));
  EXPECT_THAT(MessageOf(ledger.GetExactly({{18, 19}, {17, 18}}).status()), HasSubstr("not sorted, disjoint and non-empty"));
  EXPECT_FALSE(ledger.GetExactly({}).ok());
  EXPECT_EQ(ledger.unprocessed(), 7);
  ASSERT_TRUE(ledger.Finish(middle).ok());
}

TEST(SampleLedger, RefusesAnEmptyMicroBatch) {
  SampleLedger ledger({0, 4});
  EXPECT_THAT(MessageOf(ledger.Get(0).status()), HasSubstr("a micro-batch of 0 samples; allowed: 1 and above"));
}

TEST(SampleLedger, ProcessesEachSampleExactlyOnceUnderRandomAborts) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int64_t begin = random() % 1000, size = 1 + random() % 100;
    SampleLedger ledger({begin, begin + size});
    std::vector<SampleLedger::Ticket> open;
    std::map<int64_t, int> times;
    int64_t held = 0;
    while (!ledger.done()) {
      if (ledger.unprocessed() > 0 && (open.empty() || random() % 2 == 0)) {
        const int64_t wanted = 1 + random() % 16;
        const int64_t before = ledger.unprocessed();
        open.push_back(*ledger.Get(wanted));
        ASSERT_EQ(open.back().size(), std::min(wanted, before));
        held += open.back().size();
      } else {
        const size_t which = random() % open.size();
        const SampleLedger::Ticket ticket = open[which];
        open.erase(open.begin() + which);
        held -= ticket.size();
        if (random() % 3 == 0) {
          ASSERT_TRUE(ledger.Abort(ticket).ok());
        } else {
          ASSERT_TRUE(ledger.Finish(ticket).ok());
          for (const PositionRange& range : ticket.ranges) {
            for (int64_t p = range.begin; p < range.end; ++p) ++times[p];
          }
        }
      }
      ASSERT_EQ(ledger.processing(), held);
      ASSERT_EQ(ledger.unprocessed() + ledger.processing() + ledger.processed(), size);
    }
    ASSERT_EQ(static_cast<int64_t>(times.size()), size);
    for (const auto& [position, count] : times) {
      ASSERT_EQ(count, 1) << position;
      ASSERT_TRUE(position >= begin && position < begin + size);
    }
  }
}

}  // namespace
}  // namespace tidepool::train
