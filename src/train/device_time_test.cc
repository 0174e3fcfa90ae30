#include "train/device_time.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/testing.h"
#include "model/families.h"
#include "profile/planted.h"

namespace tidepool::train {
namespace {

using profile::Phase;
using ::testing::HasSubstr;

constexpr char kModel[] = "resnet18:image=32,small_stem=true,width=8,classes=4";

class DeviceTimeTest : public ::testing::Test {
 protected:
  void Open(const std::string& options = "") {
    const std::vector<profile::OpRow> rows = {{.key = {.model = kModel, .phase = Phase::kForward}, .median_us = 400},
                                              {.key = {.model = kModel, .phase = Phase::kStep}, .median_us = 200'000},
                                              {.key = {.model = kModel, .phase = Phase::kBackward}, .median_us = 3'000'000'000},
                                              {.key = {.model = kModel, .phase = Phase::kOptimizer}, .median_us = 500}};
    const std::string name = profile::testing::WritePlantedBundle(folder_.path(), rows) + options;
    auto device = device::OpenDevice({.name = name, .capacity_bytes = 2 << 20});
    ASSERT_TRUE(device.ok()) << ToString(device.status());
    device_ = std::move(*device);
  }
  std::unique_ptr<DeviceTime> Make() {
    auto made = DeviceTime::Create(device_.get(), graph_, {.model = kModel});
    EXPECT_TRUE(made.ok()) << ToString(made.status());
    return made.ok() ? std::move(*made) : nullptr;
  }

  testing::TempDir folder_;
  const model::Graph graph_ = model::BuildGraph(kModel).value();
  std::unique_ptr<device::Device> device_;
};

TEST_F(DeviceTimeTest, IsNoneOnADeviceThatIsNotEmulated) {
  device_ = device::OpenDevice({.name = "host", .capacity_bytes = 2 << 20}).value();
  EXPECT_EQ(Make(), nullptr);
}

TEST_F(DeviceTimeTest, RefusesADeviceThatComputesNothing) {
  ASSERT_NO_FATAL_FAILURE(Open(",mode=timing"));
  EXPECT_THAT(MessageOf(DeviceTime::Create(device_.get(), graph_, {.model = kModel}).status()),
              HasSubstr("only keeps time, and training computes its results; allowed: mode=functional"));
}

TEST_F(DeviceTimeTest, ChargesWhatTheProfileSays) {
  ASSERT_NO_FATAL_FAILURE(Open());
  const auto time = Make();
  ASSERT_NE(time, nullptr);
  const Phase passes[] = {Phase::kForward};
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(time->Begin(passes, 1).ok());
    ASSERT_TRUE(time->End(nullptr).ok());
    ASSERT_TRUE(time->BeginUpdate().ok());
    ASSERT_TRUE(time->End(nullptr).ok());
  }
  EXPECT_EQ(time->total(), 3 * absl::Microseconds(900));
  EXPECT_EQ(device_->timeline()->operations, 6);
}

TEST_F(DeviceTimeTest, WhatIsBrokenOffNeverBegins) {
  ASSERT_NO_FATAL_FAILURE(Open());
  const auto time = Make();
  ASSERT_NE(time, nullptr);
  const Phase passes[] = {Phase::kStep, Phase::kBackward};
  ASSERT_TRUE(time->Begin(passes, 1).ok());
  const Status ended = time->End([] { return true; });
  EXPECT_EQ(ended.code(), StatusCode::kAborted) << ToString(ended);
  time->BreakOff();
  // The first pass runs to its end, the backward pass of an hour does not happen.
  const Phase next[] = {Phase::kOptimizer};
  ASSERT_TRUE(time->Begin(next, 1).ok());
  ASSERT_TRUE(time->End(nullptr).ok());
  EXPECT_EQ(time->total(), absl::Microseconds(200'500));
}

TEST_F(DeviceTimeTest, EndsWhileItsArithmeticIsStillUnderWay) {
  ASSERT_NO_FATAL_FAILURE(Open());
  const auto time = Make();
  ASSERT_NE(time, nullptr);
  const Phase passes[] = {Phase::kOptimizer};
  ASSERT_TRUE(time->Begin(passes, 1).ok());
}

}  // namespace
}  // namespace tidepool::train
