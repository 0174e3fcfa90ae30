#include "train/replica_time.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/testing.h"
#include "model/families.h"
#include "model/weights.h"
#include "profile/planted.h"

namespace tidepool::train {
namespace {

using profile::Phase;
using ::testing::HasSubstr;

constexpr char kModel[] = "resnet18:image=32,small_stem=true,width=8,classes=4";
constexpr Phase kPasses[] = {Phase::kForward, Phase::kBackward};

// Links as WritePlantedBundle has them: 1 ns per byte, latency 100 us; none between devices, so they go over the host.
constexpr absl::Duration kLatency = absl::Microseconds(100);

class ReplicaTimeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::vector<profile::OpRow> rows = {
        {.key = {.model = kModel, .phase = Phase::kForward, .batch = 1}, .median_us = 400},
        {.key = {.model = kModel, .phase = Phase::kBackward, .batch = 1}, .median_us = 600},
        {.key = {.model = kModel, .phase = Phase::kForward, .batch = 4}, .median_us = 1000},
        {.key = {.model = kModel, .phase = Phase::kBackward, .batch = 4}, .median_us = 1500},
        {.key = {.model = kModel, .phase = Phase::kOptimizer}, .median_us = 300}};
    device_ = profile::testing::WritePlantedBundle(folder_.path(), rows);
  }
  // `suffix` follows the profile's name: "x4,collective=tree".
  std::unique_ptr<DeviceTime> Make(const std::string& suffix) {
    const auto devices = CheckReplicas({.name = device_ + suffix}, int64_t{4} << 20);
    EXPECT_TRUE(devices.ok()) << ToString(devices.status());
    auto made = CreateReplicaTime(*devices, graph_,
                                  {.pass = {.model = kModel}, .clock = &clock_, .stopped = [this] { return stopped_; }});
    EXPECT_TRUE(made.ok()) << ToString(made.status());
    return std::move(*made);
  }
  // The arithmetic of a micro-batch takes `arithmetic` of this machine.
  void MicroBatch(DeviceTime* time, int64_t batch, absl::Duration arithmetic = absl::ZeroDuration()) {
    ASSERT_TRUE(time->Begin(kPasses, batch).ok());
    clock_.SleepFor(arithmetic);
    ASSERT_TRUE(time->End(nullptr).ok());
  }
  void Update(DeviceTime* time) {
    ASSERT_TRUE(time->BeginUpdate().ok());
    ASSERT_TRUE(time->End(nullptr).ok());
  }
  absl::Duration Gradients() const {
    int64_t bytes = 0;
    for (const model::Param& param : graph_.params) bytes += param.kind == model::ParamKind::kWeight ? model::BytesOf(param) : 0;
    return absl::Nanoseconds(bytes);
  }

  testing::TempDir folder_;
  std::string device_;
  const model::Graph graph_ = model::BuildGraph(kModel).value();
  VirtualClock clock_;
  const VirtualClock::Actor actor_{&clock_};
  bool stopped_ = false;
};

TEST_F(ReplicaTimeTest, PassesOfReplicasRunSideBySide) {
  const auto time = Make("x3");
  EXPECT_EQ(time->devices(), 3);
  for (int i = 0; i < 3; ++i) MicroBatch(time.get(), 1);
  EXPECT_EQ(time->total(), absl::Milliseconds(1));
  MicroBatch(time.get(), 1);
  EXPECT_EQ(time->total(), absl::Milliseconds(2));
}

TEST_F(ReplicaTimeTest, AMicroBatchGoesToTheReplicaThatIsFreeFirst) {
  const auto time = Make("x2");
  MicroBatch(time.get(), 4);                              // 2.5 ms on the first
  for (int i = 0; i < 3; ++i) MicroBatch(time.get(), 1);  // to 3 ms on the second: it is free at 0, 1 and 2 ms
  EXPECT_EQ(time->total(), absl::Milliseconds(3));
  MicroBatch(time.get(), 1);  // from 2.5 ms on the first
  EXPECT_EQ(time->total(), absl::Microseconds(3500));
}

TEST_F(ReplicaTimeTest, AnUpdateIsARingAllReduceOfTheGradientsAndTheOptimizerOnEachDevice) {
  const auto time = Make("x4,collective=ring");
  for (int step = 1; step <= 3; ++step) {
    for (int i = 0; i < 4; ++i) MicroBatch(time.get(), i == 2 ? 4 : 1);
    Update(time.get());
    const absl::Duration ring = 2 * 3 * (Gradients() / 4 + kLatency);
    EXPECT_EQ(time->communication(), step * ring);
    EXPECT_EQ(time->total(), step * (absl::Microseconds(2500) + ring + absl::Microseconds(300)));
  }
}

TEST_F(ReplicaTimeTest, TheAllReduceIsTheOneThatTheDevicesNameAsks) {
  const auto tree = Make("x4,collective=tree"), either = Make("x4");
  Update(tree.get());
  EXPECT_EQ(tree->communication(), 2 * 2 * (Gradients() + kLatency));
  Update(either.get());
  EXPECT_EQ(either->communication(), std::min(tree->communication(), 2 * 3 * (Gradients() / 4 + kLatency)));
}

TEST_F(ReplicaTimeTest, WhatIsBrokenOffIsNotCharged) {
  const auto time = Make("x2");
  ASSERT_TRUE(time->Begin(kPasses, 4).ok());
  time->BreakOff();
  EXPECT_EQ(time->total(), absl::ZeroDuration());
  MicroBatch(time.get(), 1);
  EXPECT_EQ(time->total(), absl::Milliseconds(1));
}

TEST_F(ReplicaTimeTest, NothingBeginsBeforeWhatWasSettledHasEnded) {
  const auto time = Make("x2");
  MicroBatch(time.get(), 4);
  time->Settle();
  MicroBatch(time.get(), 1);
  MicroBatch(time.get(), 1);
  EXPECT_EQ(time->total(), absl::Microseconds(3500));
}

TEST_F(ReplicaTimeTest, AStepTakesAsLongAsTheSlowerOfThisMachineAndTheDevices) {
  const auto time = Make("x2");
  const absl::Time begin = clock_.Now();
  MicroBatch(time.get(), 4, absl::Microseconds(700));
  MicroBatch(time.get(), 4, absl::Microseconds(700));
  Update(time.get());
  EXPECT_EQ(clock_.Now() - begin, time->total()) << "the devices are slower";
  EXPECT_EQ(time->host_limited(), "");
  const absl::Time next = clock_.Now();
  for (int i = 0; i < 2; ++i) MicroBatch(time.get(), 4, absl::Milliseconds(40));
  const absl::Duration devices_took = time->total();
  Update(time.get());
  EXPECT_EQ(clock_.Now() - next, absl::Milliseconds(80)) << "this machine is slower";
  EXPECT_LT(time->total() - devices_took, absl::Milliseconds(10));
  EXPECT_THAT(time->host_limited(), HasSubstr("took longer to compute on this machine than on 2 emulated devices"));
}

TEST_F(ReplicaTimeTest, AStopEndsTheWaitForRealTime) {
  const auto time = Make("x2");
  stopped_ = true;
  const absl::Time begin = clock_.Now();
  MicroBatch(time.get(), 4);
  Update(time.get());
  EXPECT_EQ(clock_.Now(), begin);
}

TEST_F(ReplicaTimeTest, RunsGiveTheSameTimesWithTheSameSeed) {
  const auto train = [this](const std::string& suffix) {
    const auto time = Make(suffix);
    for (int i = 0; i < 20; ++i) MicroBatch(time.get(), i % 3 == 0 ? 4 : 1);
    Update(time.get());
    return time->total();
  };
  const absl::Duration once = train("x4,jitter=lognormal,seed=5");
  EXPECT_EQ(train("x4,jitter=lognormal,seed=5"), once);
  EXPECT_NE(train("x4,jitter=lognormal,seed=6"), once);
}

TEST(CheckReplicas, AsksForTheMemoryOfOneDeviceOnly) {
  // Together they have more than any machine.
  const int64_t each = int64_t{64} << 30;
  EXPECT_EQ(device::CheckNodeDevices({.name = "emulated:h200x16", .capacity_bytes = each}, each).status().code(),
            StatusCode::kResourceExhausted);
  const auto devices = CheckReplicas({.name = "emulated:h200x16", .capacity_bytes = each}, each);
  ASSERT_TRUE(devices.ok()) << ToString(devices.status());
  EXPECT_EQ(devices->count, 16);
  EXPECT_EQ(devices->options.name, "emulated:h200");
  EXPECT_EQ(devices->options.capacity_bytes, each);
  EXPECT_EQ(CheckReplicas({.name = "host"}, each)->count, 1);
  EXPECT_FALSE(CheckReplicas({.name = "emulated:h200x2", .capacity_bytes = -1}, each).ok());
}

}  // namespace
}  // namespace tidepool::train
