#include "profile/curve.h"

#include <gtest/gtest.h>

namespace tidepool::profile {
namespace {

std::vector<Curve::Point> Line(double a, double b, std::initializer_list<double> xs) {
  std::vector<Curve::Point> points;
  for (const double x : xs) points.push_back({x, a + b * x, 10});
  return points;
}

TEST(AffineFit, RecoversALineExactly) {
  const AffineFit fit = FitAffine(Line(12.6, 0.349, {1, 2, 4, 8, 64, 256}));
  EXPECT_NEAR(fit.intercept, 12.6, 1e-9);
  EXPECT_NEAR(fit.slope, 0.349, 1e-12);
  EXPECT_EQ(fit.points, 6);
  EXPECT_LT(fit.max_error, 1e-12);
}

TEST(AffineFit, FollowsTheLargeBatchesWhereSmallOnesAreBoundByLaunches) {
  // A floor of 20 below x = 32, the line 4 + 0.5 x above.
  std::vector<Curve::Point> points;
  for (const double x : {1, 2, 4, 8, 16, 32, 64, 128, 256}) points.push_back({x, std::max(20.0, 4 + 0.5 * x), 10});
  const AffineFit fit = FitAffine(points);
  EXPECT_NEAR(fit.At(512), 4 + 0.5 * 512, 0.02 * 260);
  EXPECT_GT(fit.max_error, 0.1) << "the error of the small batches is reported";
  EXPECT_LT(FitAffine(points, 32).max_error, 1e-9);
  EXPECT_EQ(FitAffine(points, 32).points, 4);
}

TEST(AffineFit, CountsAPointByItsRepeats) {
  const AffineFit fit = FitAffine({{1, 10, 1}, {2, 20, 1'000'000}, {3, 30, 1'000'000}, {4, 80, 1}});
  EXPECT_NEAR(fit.slope, 10, 0.01);
}

TEST(AffineFit, NeverGivesLessTimeForMoreWork) {
  const AffineFit fit = FitAffine({{1, 30, 1}, {2, 20, 1}, {3, 10, 1}});
  EXPECT_EQ(fit.slope, 0);
  EXPECT_GT(fit.intercept, 10);
}

TEST(AffineFit, OfFewerThanTwoPointsIsNoFit) {
  EXPECT_EQ(FitAffine({}).points, 0);
  EXPECT_EQ(FitAffine({{1, 2, 3}}).points, 1);
  EXPECT_EQ(FitAffine({{1, 2, 3}}).slope, 0);
}

TEST(Curve, AnswersExactlyBetweenAndBeyond) {
  const Curve curve({{64, 130, 10}, {16, 40, 10}, {32, 70, 10}});
  EXPECT_EQ(curve.At(32).y, 70);
  EXPECT_EQ(curve.At(32).method, Curve::Method::kExact);
  const Curve::Answer between = curve.At(48);
  EXPECT_EQ(between.method, Curve::Method::kNeighbours);
  EXPECT_DOUBLE_EQ(between.y, 100);
  EXPECT_EQ(between.left, 1);
  EXPECT_DOUBLE_EQ(between.share, 0.5);
  const Curve::Answer beyond = curve.At(128);
  EXPECT_EQ(beyond.method, Curve::Method::kAffine);
  EXPECT_NEAR(beyond.y, 130 + 64 * curve.fit().slope, 1e-9);
}

TEST(Curve, HasNoStepAtItsEnds) {
  const Curve curve({{8, 33, 10}, {16, 40, 10}, {32, 75, 10}, {64, 128, 10}});
  EXPECT_NEAR(curve.At(64 + 1e-9).y, 128, 1e-6);
  EXPECT_NEAR(curve.At(8 - 1e-9).y, 33, 1e-6);
}

TEST(Curve, BelowItsFirstPointLiesBetweenTheOriginAndThatPoint) {
  // A negative intercept would give nonsense at small x.
  const Curve steep({{10, 10, 10}, {20, 40, 10}, {30, 70, 10}});
  EXPECT_DOUBLE_EQ(steep.At(1).y, 1);
  const Curve flat({{10, 10, 10}, {20, 10, 10}});
  EXPECT_DOUBLE_EQ(flat.At(1).y, 10);
}

TEST(Curve, OfOnePointSaysSo) {
  const Curve curve({{10, 7, 1}});
  EXPECT_EQ(curve.At(10).method, Curve::Method::kExact);
  EXPECT_EQ(curve.At(20).method, Curve::Method::kOnePoint);
  EXPECT_EQ(curve.At(20).y, 7);
}

TEST(Curve, KeepsTheFirstOfEqualPoints) {
  const Curve curve({{10, 7, 1}, {10, 9, 1}, {20, 14, 1}});
  EXPECT_EQ(curve.points().size(), 2u);
  EXPECT_EQ(curve.At(10).y, 7);
}

}  // namespace
}  // namespace tidepool::profile
