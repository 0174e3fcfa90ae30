#include "train/micro_batch_policy.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "base/units.h"

namespace tidepool::train {
namespace {

constexpr int64_t kBase = 50 * kMiB, kSlope = 3 * kMiB;
int64_t Need(int64_t batch) { return kBase + kSlope * batch; }

TEST(MicroBatchPolicy, ProbesOneTwoFourBeforeItTrustsTheLine) {
  MicroBatchPolicy policy({.max_batch = 64, .persistent_bytes = kBase});
  std::vector<int64_t> sizes;
  for (int i = 0; i < 6; ++i) {
    const int64_t batch = policy.Choose(10 * kGiB, 0, 1024).batch;
    sizes.push_back(batch);
    policy.ObserveSuccess(batch, Need(batch));
  }
  EXPECT_EQ(sizes, (std::vector<int64_t>{1, 2, 4, 16, 64, 64}));
}

TEST(MicroBatchPolicy, StaysWithinLimitMaximumAndWhatIsLeft) {
  MicroBatchPolicy policy({.max_batch = 64, .persistent_bytes = kBase});
  for (const int64_t batch : {1, 2, 4, 16, 64}) policy.ObserveSuccess(batch, Need(batch));
  const int64_t fits = policy.Choose(Need(20), 0, 1024).batch;
  EXPECT_GE(fits, 16);  // the margin costs little
  EXPECT_LE(fits, 20);
  EXPECT_EQ(policy.Choose(Need(20), 0, 7).batch, 7);
  EXPECT_EQ(policy.Choose(10 * kGiB, 0, 1024).batch, 64);
  EXPECT_EQ(policy.Choose(kBase, 0, 1024).batch, 0);
  EXPECT_EQ(policy.Choose(10 * kGiB, 0, 0).batch, 0);
}

TEST(MicroBatchPolicy, CutsWhatIsLeftIntoEqualParts) {
  MicroBatchPolicy policy({.max_batch = 30, .persistent_bytes = kBase});
  for (const int64_t batch : {1, 2, 4, 16}) policy.ObserveSuccess(batch, Need(batch));
  EXPECT_EQ(policy.Choose(kGiB, 0, 64).batch, 22);
  EXPECT_EQ(policy.Choose(kGiB, 0, 42).batch, 21);
  EXPECT_EQ(policy.Choose(kGiB, 0, 21).batch, 21);
}

TEST(MicroBatchPolicy, DoesNotProbeWithoutRoomAboveThePersistentState) {
  MicroBatchPolicy policy({.persistent_bytes = kBase});
  EXPECT_EQ(policy.Choose(kBase, 0, 8).batch, 0);
  EXPECT_EQ(policy.Choose(kBase + 1, 0, 8).batch, 1);
}

TEST(MicroBatchPolicy, OverestimatesFromOneObservation) {
  MicroBatchPolicy policy({.persistent_bytes = kBase - 10 * kMiB});
  policy.ObserveSuccess(1, Need(1));
  EXPECT_GE(*policy.Predict(2), Need(2));
  EXPECT_GE(*policy.Predict(8), Need(8));
}

TEST(MicroBatchPolicy, CoversEveryMissOfTheLine) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    MicroBatchPolicy policy({.max_batch = 64, .persistent_bytes = kBase});
    std::vector<std::pair<int64_t, int64_t>> seen;
    for (int i = 0; i < 12; ++i) {
      const int64_t batch = 1 + random() % 64;
      const int64_t need = Need(batch) + static_cast<int64_t>(random() % (20 * kMiB));
      policy.ObserveSuccess(batch, need);
      std::erase_if(seen, [&](const auto& entry) { return entry.first == batch; });
      seen.emplace_back(batch, need);
    }
    for (const auto& [batch, need] : seen) EXPECT_GE(*policy.Predict(batch), need);
  }
}

TEST(MicroBatchPolicy, IsNotLedAstrayByOneOutlier) {
  MicroBatchPolicy policy({.max_batch = 64, .persistent_bytes = kBase, .margin = 0});
  for (const int64_t batch : {1, 2, 8, 16, 32, 64}) policy.ObserveSuccess(batch, Need(batch));
  policy.ObserveSuccess(4, Need(4) + 200 * kMiB);
  // The outlier raises the margin, not the slope.
  EXPECT_NEAR(*policy.Predict(64) - *policy.Predict(1), 63 * kSlope, kMiB);
}

TEST(MicroBatchPolicy, ShrinksAfterRunningOutOfMemoryAndGrowsBack) {
  MicroBatchPolicy policy({.max_batch = 32, .persistent_bytes = kBase});
  for (const int64_t batch : {1, 2, 4, 16, 32}) policy.ObserveSuccess(batch, Need(batch));
  ASSERT_EQ(policy.Choose(Need(40), 0, 128).batch, 32);
  policy.ObserveExhausted(32, Need(20));
  EXPECT_EQ(policy.Choose(Need(40), 0, 128).batch, 16);
  for (int i = 0; i < 4; ++i) policy.ObserveSuccess(16, Need(16));
  EXPECT_EQ(policy.Choose(Need(40), 0, 128).batch, 32);
  policy.ObserveExhausted(32, Need(20));
  policy.ObserveExhausted(1, Need(1));
  EXPECT_EQ(policy.Choose(Need(40), 0, 128).batch, 1);
  policy.LimitChanged();
  EXPECT_EQ(policy.Choose(Need(40), 0, 128).batch, 32);
}

TEST(MicroBatchPolicy, LearnsALowerBoundFromRunningOutOfMemory) {
  MicroBatchPolicy policy({.max_batch = 32, .persistent_bytes = kBase});
  for (const int64_t batch : {1, 2, 4, 8}) policy.ObserveSuccess(batch, Need(batch));
  policy.ObserveExhausted(16, Need(30));
  policy.LimitChanged();
  EXPECT_LT(policy.Choose(Need(30), 0, 128).batch, 16);
  EXPECT_GT(*policy.Predict(16), Need(30));
  policy.ObserveSuccess(16, Need(16));  // it was bad luck
  EXPECT_LT(*policy.Predict(16), Need(30));
}

TEST(MicroBatchPolicy, RunsProtectedWithinTheGuaranteeAfterAbortsInARow) {
  MicroBatchPolicy policy({.max_batch = 32, .persistent_bytes = kBase, .protected_after_aborts = 3});
  for (const int64_t batch : {1, 2, 4, 16, 32}) policy.ObserveSuccess(batch, Need(batch));
  const int64_t guaranteed = Need(3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(policy.Choose(10 * kGiB, guaranteed, 128).protected_run);
    policy.ObserveAbort();
  }
  const MicroBatchChoice choice = policy.Choose(10 * kGiB, guaranteed, 128);
  EXPECT_TRUE(choice.protected_run);
  EXPECT_GE(choice.batch, 1);
  EXPECT_LE(*policy.Predict(choice.batch), guaranteed);
  policy.ObserveSuccess(choice.batch, Need(choice.batch));
  EXPECT_FALSE(policy.Choose(10 * kGiB, guaranteed, 128).protected_run);
}

TEST(MicroBatchPolicy, ProtectsOneSampleWhereTheLineThinksTheGuaranteeTooSmall) {
  MicroBatchPolicy policy({.max_batch = 32, .persistent_bytes = kBase, .protected_after_aborts = 1});
  for (const int64_t batch : {1, 2, 4}) policy.ObserveSuccess(batch, Need(batch));
  policy.ObserveAbort();
  const MicroBatchChoice choice = policy.Choose(10 * kGiB, Need(1) - kMiB, 128);
  EXPECT_TRUE(choice.protected_run);
  EXPECT_EQ(choice.batch, 1);
}

TEST(MicroBatchPolicy, NeverParksWhileItHasItsGuarantee) {
  MicroBatchPolicy policy({.max_batch = 32, .persistent_bytes = kBase});
  for (const int64_t batch : {1, 2, 4, 16}) policy.ObserveSuccess(batch, Need(batch) + (batch == 16 ? 40 * kMiB : 0));
  const int64_t guaranteed = Need(1);  // as it was measured before the line was pulled up
  ASSERT_GT(*policy.Predict(1), guaranteed);
  EXPECT_EQ(policy.Choose(guaranteed, guaranteed, 32).batch, 1);
  EXPECT_TRUE(policy.Fits(1, guaranteed, guaranteed));
  EXPECT_FALSE(policy.Fits(2, guaranteed, guaranteed));
  EXPECT_EQ(policy.Choose(guaranteed - 1, guaranteed, 32).batch, 0);
}

// The sizes of micro-batches of a global batch of which at most `most` samples fit at once.
std::vector<int64_t> SizesOf(int64_t samples, int64_t devices, int64_t most) {
  Rounds rounds(devices);
  std::vector<int64_t> sizes;
  while (samples > 0) {
    const int64_t share = rounds.Share(static_cast<int64_t>(sizes.size()), samples);
    const int64_t parts = (share + most - 1) / most;  // as MicroBatchPolicy cuts
    sizes.push_back((share + parts - 1) / parts);
    samples -= sizes.back();
  }
  return sizes;
}

TEST(Rounds, GiveEveryDeviceAnEqualPart) {
  EXPECT_EQ(SizesOf(64, 4, 64), std::vector<int64_t>(4, 16));
  EXPECT_EQ(SizesOf(64, 4, 5), std::vector<int64_t>(16, 4)) << "four rounds, not thirteen micro-batches of 5";
  EXPECT_EQ(SizesOf(10, 4, 64), (std::vector<int64_t>{3, 3, 3, 1}));
  EXPECT_EQ(SizesOf(3, 8, 64), std::vector<int64_t>(3, 1)) << "five devices have nothing to do";
}

TEST(Rounds, LeaveEverythingToOneDevice) {
  EXPECT_EQ(SizesOf(64, 1, 64), std::vector<int64_t>{64});
  EXPECT_EQ(SizesOf(64, 1, 30), (std::vector<int64_t>{22, 21, 21}));
}

}  // namespace
}  // namespace tidepool::train
