#include "train/reclaim_decision.h"

#include <gtest/gtest.h>

namespace tidepool::train {
namespace {

ReclaimSituation Running(absl::Duration elapsed, std::optional<absl::Duration> expected) {
  return {.held_pages = 10, .limit_pages = 5, .phase = Phase::kMicroBatch, .phase_elapsed = elapsed, .phase_expected = expected,
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

}  // namespace
}  // namespace tidepool::train
