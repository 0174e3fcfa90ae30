#include "train/reclaim_decision.h"

#include <gtest/gtest.h>

namespace tidepool::train {
namespace {

ReclaimSituation Running(absl::Duration elapsed, std::optional<absl::Duration> expected) {
  return {.held_pages = 10,
          .limit_pages = 5,
          .phase = Phase::kMicroBatch,
          .phase_elapsed = elapsed,
          .phase_expected = expected,
          .slack = absl::Milliseconds(200)};
}

TEST(ReclaimDecision, IsDoneWhenCachedPagesWereEnough) {
  ReclaimSituation situation = Running(absl::ZeroDuration(), absl::Seconds(10));
  situation.held_pages = 5;
  EXPECT_EQ(DecideReclaim(situation, {}).action, ReclaimAction::kDone);
}

TEST(ReclaimDecision, WaitsForABoundaryThatIsNearAndAbortsOtherwise) {
  const ReclaimOptions options{.slack_fraction = 0.25};  // 50 ms
  const ReclaimDecision near = DecideReclaim(Running(absl::Milliseconds(960), absl::Seconds(1)), options);
  EXPECT_EQ(near.action, ReclaimAction::kWaitBoundary);
  EXPECT_EQ(near.patience, absl::Milliseconds(50));
  EXPECT_EQ(DecideReclaim(Running(absl::Milliseconds(940), absl::Seconds(1)), options).action, ReclaimAction::kAbort);
}

TEST(ReclaimDecision, WaitsNoLongerForABoundaryThanAnAbortWouldTake) {
  ReclaimSituation situation = Running(absl::Milliseconds(960), absl::Seconds(1));
  situation.longest_operator = absl::Milliseconds(100);
  EXPECT_EQ(DecideReclaim(situation, {}).action, ReclaimAction::kWaitBoundary);
  situation.longest_operator = absl::Milliseconds(60);
  EXPECT_EQ(DecideReclaim(situation, {}).action, ReclaimAction::kAbort);
  situation.phase_elapsed = absl::Milliseconds(975);
  EXPECT_EQ(DecideReclaim(situation, {}).action, ReclaimAction::kWaitBoundary);
  EXPECT_EQ(DecideReclaim(situation, {}).patience, absl::Milliseconds(30));
}

TEST(ReclaimDecision, AbortsWhatIsLateOrUnknown) {
  EXPECT_EQ(DecideReclaim(Running(absl::Milliseconds(1100), absl::Seconds(1)), {}).action, ReclaimAction::kAbort);
  EXPECT_EQ(DecideReclaim(Running(absl::Milliseconds(1), std::nullopt), {}).action, ReclaimAction::kAbort);
}

TEST(ReclaimDecision, NeverAbortsCommitOptimizerOrAProtectedRun) {
  for (const Phase phase : {Phase::kCommit, Phase::kOptimizer}) {
    ReclaimSituation situation = Running(absl::ZeroDuration(), absl::Seconds(100));
    situation.phase = phase;
    const ReclaimDecision decision = DecideReclaim(situation, {});
    EXPECT_EQ(decision.action, ReclaimAction::kWaitBoundary) << Name(phase);
    EXPECT_EQ(decision.patience, absl::InfiniteDuration());
  }
  ReclaimSituation situation = Running(absl::ZeroDuration(), absl::Seconds(100));
  situation.protected_run = true;
  EXPECT_EQ(DecideReclaim(situation, {}).action, ReclaimAction::kWaitBoundary);
}

TEST(ReclaimDecision, SaysWhenNothingMoreCanBeGiven) {
  ReclaimSituation situation = Running(absl::ZeroDuration(), std::nullopt);
  situation.phase = Phase::kIdle;
  EXPECT_EQ(DecideReclaim(situation, {}).action, ReclaimAction::kCannot);
  EXPECT_EQ(Name(ReclaimAction::kCannot), "cannot");
}

TEST(DurationModel, LearnsFixedAndPerSampleCost) {
  DurationModel model;
  EXPECT_FALSE(model.Predict(4).has_value());
  model.Observe(4, absl::Milliseconds(48));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(*model.Predict(8)), 96, 1e-6);  // proportional until it knows better
  for (int i = 0; i < 20; ++i) {
    for (const int64_t batch : {2, 4, 8}) model.Observe(batch, absl::Milliseconds(40 + 2 * batch));
  }
  EXPECT_NEAR(absl::ToDoubleMilliseconds(*model.Predict(16)), 72, 1);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(*model.Predict(1)), 42, 1);
}

TEST(AbortRate, CountsAbortsPerSecondOfComputing) {
  AbortRate rate;
  for (int i = 0; i < 400; ++i) rate.Observe(absl::Milliseconds(100), i % 5 == 0);
  EXPECT_NEAR(rate.per_second(), 2, 0.3);
  for (int i = 0; i < 400; ++i) rate.Observe(absl::Milliseconds(100), false);
  EXPECT_LT(rate.per_second(), 0.01);
}

TEST(BestSize, ShrinksAsAbortsGetMoreFrequent) {
  DurationModel durations;
  EXPECT_EQ(BestSize(durations, 1, 32), 32) << "nothing is known";
  for (int i = 0; i < 20; ++i) {
    for (const int64_t batch : {1, 4, 16, 32}) durations.Observe(batch, absl::Milliseconds(20 + 10 * batch));
  }
  EXPECT_EQ(BestSize(durations, 0, 32), 32);
  int64_t last = 32;
  for (const double rate : {0.5, 2.0, 8.0, 30.0}) {
    const int64_t size = BestSize(durations, rate, 32);
    EXPECT_LE(size, last) << rate;
    EXPECT_GE(size, 1);
    last = size;
  }
  EXPECT_LT(last, 8);
  // By hand at 2 aborts/s: 14 samples take 160 ms, 14 * 2 / (e^0.32 - 1) = 74.2/s; 9 give 71.9/s, 24 give 72.0/s.
  const int64_t size = BestSize(durations, 2, 32);
  EXPECT_GT(size, 9);
  EXPECT_LT(size, 24);
}

TEST(DurationModel, FindsTheSmallestSizeThatIsFastEnough) {
  DurationModel model;
  EXPECT_FALSE(model.SmallestAtSpeed(0.8, 32).has_value());
  for (int i = 0; i < 20; ++i) model.Observe(8, absl::Milliseconds(100));
  EXPECT_FALSE(model.SmallestAtSpeed(0.8, 32).has_value()) << "one size tells nothing of the fixed cost";
  for (int i = 0; i < 20; ++i) {
    for (const int64_t batch : {1, 4, 16, 32}) model.Observe(batch, absl::Milliseconds(20 + 10 * batch));
  }
  // 32 samples take 340 ms; 80 % of that speed are 75.3 samples/s: 7 samples make 77.8, 6 make 75.0.
  EXPECT_EQ(model.SmallestAtSpeed(0.8, 32), 7);
  EXPECT_EQ(model.SmallestAtSpeed(1.0, 32), 32);
  EXPECT_EQ(model.SmallestAtSpeed(0.1, 32), 1);
}

}  // namespace
}  // namespace tidepool::train
