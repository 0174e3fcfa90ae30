// Requests and names of searches.
#include "plan/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/testing.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;

TEST(SearchNames, GoBothWays) {
  for (const SearchKind kind : {SearchKind::kAuto, SearchKind::kOpDp, SearchKind::kExact, SearchKind::kAceso, SearchKind::kGrid,
                                SearchKind::kRandom, SearchKind::kInterIntra}) {
    const auto back = SearchKindFrom(NameOf(kind));
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(*back, kind);
  }
}

TEST(SearchNames, OfAnUnknownSearchListWhatIsAllowed) {
  const auto kind = SearchKindFrom("bogo");
  ASSERT_FALSE(kind.ok());
  EXPECT_EQ(MessageOf(kind.status()), "search 'bogo'; allowed: auto, op-dp, exact, aceso, grid, random, inter-intra");
}

TEST(SearchRequests, AreCheckedWithAllFaultsAtOnce) {
  std::mt19937 random(1);
  const auto problem = testing::MakeRandomProblem(random);
  SearchRequest request{.global_batch = 12,
                        .micro_batches = {1, 5, 1},
                        .threads = -1,
                        .top_k = 0,
                        .min_stages = 9,
                        .max_stages = 3,
                        .budget = -1,
                        .wall_limit = absl::ZeroDuration(),
                        .start = Plan{}};
  const Status status = Validate(request, *problem->model);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  for (const char* text : {"micro_batches has 1 twice", "micro_batches has 5; allowed: divisors of global_batch, 12",
                           "threads is -1", "top_k is 0", "min_stages is 9; allowed: 1 to 4", "max_stages is 3", "budget is -1",
                           "wall_limit is 0 s", "start: the plan has no stages"}) {
    EXPECT_THAT(MessageOf(status), HasSubstr(text));
  }
  EXPECT_THAT(MessageOf(Validate(SearchRequest{}, *problem->model)), HasSubstr("global_batch is 0; allowed: 1 or more"));
  EXPECT_THAT(MessageOf(Validate(SearchRequest{}, *problem->model)), HasSubstr("micro_batches is empty"));
}

}  // namespace
}  // namespace tidepool::plan
