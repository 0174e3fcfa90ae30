#include "data/stalls/workloads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "profile/open.h"

namespace tidepool::data::stalls {
namespace {

using ::testing::HasSubstr;

TEST(Workloads, AreFoundByName) {
  for (const Workload& workload : Workloads()) {
    const auto found = FindWorkload(workload.name);
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->step_seconds, workload.step_seconds);
    EXPECT_GT(workload.least_utilisation, 0.5);
  }
  EXPECT_THAT(MessageOf(FindWorkload("resnet51-h100").status()),
              HasSubstr("workload 'resnet51-h100'; allowed: resnet50-a100, resnet50-h100, unet3d-a100"));
}

TEST(Workloads, StepTimesComeFromABundleAndSayHow) {
  const auto bundle = profile::OpenBundle("h100");
  ASSERT_TRUE(bundle.ok());
  const profile::Lookup lookup(*bundle);
  const StepQuestion question{.model = "resnet50", .batch = 256, .sample_bytes = 602'112};
  const auto one = FindStepTimes(lookup, question);
  ASSERT_TRUE(one.ok()) << ToString(one.status());
  EXPECT_TRUE(one->estimated);
  EXPECT_GT(one->compute_seconds, 0.01);
  EXPECT_GT(one->copy_seconds, 0.001);
  EXPECT_THAT(one->source, HasSubstr("resnet50 step of F32 on h100, batch 256 a device (estimated)"));

  StepQuestion spread = question;
  spread.devices = 8;
  const auto eight = FindStepTimes(lookup, spread);
  ASSERT_TRUE(eight.ok());
  EXPECT_LT(eight->compute_seconds, one->compute_seconds / 4);
  EXPECT_NEAR(eight->copy_seconds, one->copy_seconds / 8, one->copy_seconds / 16);
  EXPECT_THAT(eight->source, HasSubstr("8 devices"));

  spread.devices = 257;
  EXPECT_THAT(MessageOf(FindStepTimes(lookup, spread).status()), HasSubstr("a batch of 256 on 257 devices"));
  EXPECT_EQ(FindStepTimes(lookup, {.model = "nonesuch"}).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace tidepool::data::stalls
