#include "serve/slo.h"

#include <gtest/gtest.h>

namespace tidepool::serve {
namespace {

constexpr ModelId kModel(1);

TEST(ComputeEstimator, KnowsNothingAtFirst) {
  ComputeEstimator estimator;
  EXPECT_EQ(estimator.Expected(kModel, 1), absl::ZeroDuration());
  EXPECT_EQ(estimator.Least(kModel, 1), absl::ZeroDuration());
}

TEST(ComputeEstimator, InterpolatesBetweenKnownSizesAndScalesAboveThem) {
  ComputeEstimator estimator;
  estimator.Record(kModel, 2, absl::Milliseconds(10));
  estimator.Record(kModel, 4, absl::Milliseconds(20));
  EXPECT_EQ(estimator.Expected(kModel, 1), absl::Milliseconds(10));
  EXPECT_EQ(estimator.Expected(kModel, 3), absl::Milliseconds(15));
  EXPECT_EQ(estimator.Expected(kModel, 8), absl::Milliseconds(40));
  EXPECT_EQ(estimator.Least(kModel, 8), absl::Milliseconds(20)) << "a larger batch cannot be faster than a smaller one";
  EXPECT_EQ(estimator.Least(kModel, 1), absl::ZeroDuration()) << "nothing is proved about smaller ones";
}

TEST(ComputeEstimator, FollowsChangingTimesByItsWeight) {
  ComputeEstimator estimator;
  estimator.Record(kModel, 1, absl::Milliseconds(10));
  estimator.Record(kModel, 1, absl::Milliseconds(20));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(estimator.Expected(kModel, 1)), 12, 1e-6);
  for (int i = 0; i < 100; ++i) estimator.Record(kModel, 1, absl::Milliseconds(20));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(estimator.Expected(kModel, 1)), 20, 1e-3);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(estimator.Least(kModel, 1)), 20, 1e-3);
}

TEST(ComputeEstimator, DoubtLowersTheLeastTimeUntilARequestIsTried) {
  ComputeEstimator estimator;
  estimator.Record(kModel, 1, absl::Seconds(1));  // a cold first run
  int refusals = 0;
  while (estimator.Least(kModel, 1) > absl::Milliseconds(50)) {
    estimator.Doubt(kModel);
    ASSERT_LT(++refusals, 100);
  }
  EXPECT_EQ(estimator.Expected(kModel, 1), absl::Seconds(1));
}

TEST(SloAccount, UsesTheGivenObjectiveBeforeTheMeasuredOne) {
  SloAccount measured(absl::ZeroDuration(), 4);
  EXPECT_EQ(measured.slo(), absl::ZeroDuration());
  EXPECT_TRUE(measured.Within(absl::Hours(1)));
  measured.SetSolo(absl::Milliseconds(5));
  EXPECT_EQ(measured.slo(), absl::Milliseconds(20));
  EXPECT_TRUE(measured.Within(absl::Milliseconds(20)));
  EXPECT_FALSE(measured.Within(absl::Milliseconds(21)));
  SloAccount given(absl::Milliseconds(7), 4);
  given.SetSolo(absl::Milliseconds(5));
  EXPECT_EQ(given.slo(), absl::Milliseconds(7));
  EXPECT_EQ(given.Target(absl::UnixEpoch(), absl::InfiniteFuture()), absl::UnixEpoch() + absl::Milliseconds(7));
  EXPECT_EQ(given.Target(absl::UnixEpoch(), absl::UnixEpoch()), absl::UnixEpoch()) << "never after the deadline";
}

}  // namespace
}  // namespace tidepool::serve
