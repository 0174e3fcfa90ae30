#include "profile/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/testing.h"
#include "profile/builtin.h"
#include "profile/bundle_io.h"
#include "profile/open.h"

namespace tidepool::profile {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TempDir;

OpRow Step(const std::string& model, int64_t batch, double median_us) {
  return {.key = {.model = model, .phase = Phase::kStep, .batch = batch}, .repeats = 55, .median_us = median_us};
}

// A measured bundle on the hardware of a built-in card, without faults.
Bundle Good(std::string_view card = "p100") {
  Bundle bundle = *FindBuiltin(card);
  bundle.manifest.measured = true;
  bundle.manifest.source = "this test";
  bundle.manifest.date = "2025-01-31";
  bundle.ops = {Step("resnet50", 32, 166e3), Step("resnet50", 64, 302e3), Step("resnet50", 128, 575e3)};
  return bundle;
}

std::string FaultsOf(const Bundle& bundle) { return MessageOf(ToStatus(Check(bundle), "x")); }

std::string NotesOf(const Bundle& bundle) {
  std::string text;
  for (const Finding& finding : Check(bundle)) {
    if (finding.level == Finding::Level::kNote) text += finding.where + ": " + finding.text + "\n";
  }
  return text;
}

TEST(Check, AcceptsWhatCanBeTrue) {
  EXPECT_EQ(FaultsOf(Good()), "");
  EXPECT_EQ(NotesOf(Good()), "");
  for (const Bundle& bundle : BuiltinBundles()) EXPECT_EQ(FaultsOf(bundle), "") << bundle.manifest.name;
}

TEST(Check, RefusesRowsFasterThanThePeak) {
  Bundle bundle = Good();
  bundle.ops.push_back(Step("resnet50", 256, 400e3));
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("flops: resnet50 step B=256 F32: 400000 us imply at least 12.3 TFLOP/s; the peak of "
                                          "'p100' for F32 is 9.3 TFLOP/s"));
}

TEST(Check, AllowsForFastConvolutions) {
  // VGG-16 on a V100 with cuDNN: 21 TFLOP/s as it is usually counted, by Winograd's algorithm.
  Bundle bundle = Good("v100");
  bundle.ops = {Step("vgg16", 64, 277e3)};
  EXPECT_EQ(FaultsOf(bundle), "");
  bundle.ops[0].median_us = 150e3;
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("flops: vgg16"));
}

TEST(Check, CountsTensorUnitsThatSinglePrecisionMayUse) {
  Bundle bundle = Good("a100");
  bundle.ops = {Step("resnet50", 400, 200e3)};  // 49 TFLOP/s; 19.5 without TF32, 156 with it
  EXPECT_EQ(FaultsOf(bundle), "");
}

TEST(Check, SuspectsTheDeviceIfManyRowsAreTooFast) {
  Bundle bundle = Good("k80");
  bundle.ops = {Step("resnet50", 64, 179e3), Step("vgg16", 64, 273e3), Step("shufflenet_v2_x0_5", 64, 25e3)};
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("device: bundle: 2 of the 3 rows whose FLOPs are known are faster than 'k80' can be: "
                                          "the rows are of another device, for example one like v100, a100, h100, h200"));
}

TEST(Check, SuspectsTheUnit) {
  Bundle bundle = Good();
  for (OpRow& row : bundle.ops) row.median_us *= 1e3;
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("% of the peak; allowed: 0.1 % or more. Are the times in microseconds?"));
  for (OpRow& row : bundle.ops) row.median_us /= 1e6;
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("flops: resnet50"));
}

TEST(Check, RefusesALargerBatchThatTakesLess) {
  Bundle bundle = Good();
  bundle.ops[1].median_us = 590e3;  // of batch 64
  bundle.ops[2].median_us = 450e3;  // of batch 128
  EXPECT_THAT(FaultsOf(bundle),
              HasSubstr("monotone: resnet50 step B=128 F32: takes 450000 us, less than the 590000 us of batch 64"));
  bundle.ops[1].p10_us = 300e3;
  bundle.ops[1].p90_us = 600e3;
  EXPECT_THAT(FaultsOf(bundle), Not(HasSubstr("monotone"))) << "within the spread";
}

TEST(Check, RefusesAJumpOfTheTimePerSample) {
  Bundle bundle = Good();
  bundle.ops[2].median_us = 302e3 * 4.5;
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("growth: resnet50 step B=128 F32: takes 1.062e+04 us per sample, 2.25 times as much as "
                                          "batch 64; allowed: 2 times"));
  for (OpRow& row : bundle.ops) row.key.op = "relu";
  EXPECT_EQ(FaultsOf(bundle), "") << "single ops may fall out of a cache";
}

TEST(Check, RefusesFewRepeatsAndASpreadOutOfOrder) {
  Bundle bundle = Good();
  bundle.ops[0].repeats = 9;
  bundle.ops[1].p10_us = 400e3;
  bundle.ops[2].repeats = 0;
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("repeats: resnet50 step B=32 F32: was measured 9 times; allowed: 10 or more"));
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("spread: resnet50 step B=64 F32: p10 400000 us, median 302000 us"));
  EXPECT_THAT(NotesOf(bundle), HasSubstr("1 rows do not say how often they were measured"));
}

TEST(Check, RefusesMemoryThatTheDeviceDoesNotHave) {
  Bundle bundle = Good();
  bundle.ops[2].memory.peak_bytes = 20e9;
  EXPECT_THAT(FaultsOf(bundle), HasSubstr("memory: resnet50 step B=128 F32: holds 18.6 GiB; the device has 14.9 GiB"));
}

TEST(Check, RefusesTransfersAndCollectivesFasterThanTheLink) {
  Bundle bundle = Good("v100");
  bundle.ops.clear();
  bundle.links = {{LinkKind::kHostToDevice, true, 1e9, 81e3}, {LinkKind::kDeviceToHost, true, 1e9, 50e3}};
  bundle.collectives = {{"", CollectiveKind::kAllReduce, 4, 1e9, 10e3}, {"", CollectiveKind::kAllReduce, 4, 1e9, 4e3}};
  const std::string faults = FaultsOf(bundle);
  EXPECT_THAT(faults,
              HasSubstr("link: device-to-host 1000000000 bytes: 50000 us imply 20 GB/s; the link of 'v100' has 15.8 GB/s"));
  EXPECT_THAT(faults, Not(HasSubstr("host-to-device")));
  EXPECT_THAT(faults, HasSubstr("collective: all-reduce of 4 ranks, 1000000000 bytes: 4000 us imply 188 GB/s"));
  EXPECT_THAT(faults, HasSubstr("duplicate: all-reduce of 4 ranks"));
}

TEST(Check, RefusesDuplicatesAndAManifestWithoutSource) {
  Bundle bundle = Good();
  bundle.ops.push_back(bundle.ops[0]);
  bundle.manifest.source.clear();
  bundle.manifest.date = "31.1.2025";
  const std::string faults = FaultsOf(bundle);
  EXPECT_THAT(faults, AllOf(HasSubstr("x' has 3 faults"), HasSubstr("duplicate: resnet50 step B=32 F32: stands twice"),
                            HasSubstr("source: bundle: measured times name no source"),
                            HasSubstr("date: bundle: date is '31.1.2025'; allowed: YYYY-MM-DD")));
}

TEST(Check, ShowsTwentyFaultsAndCountsTheRest) {
  Bundle bundle = Good();
  for (int i = 0; i < 100; ++i) bundle.ops.push_back(Step("net" + std::to_string(i), 1, 10));
  for (OpRow& row : bundle.ops) row.repeats = 1;
  EXPECT_THAT(FaultsOf(bundle), AllOf(HasSubstr("103 faults"), HasSubstr("and 83 more; 'tidepool profile check' lists all")));
}

TEST(OpenBundle, FindsADirectoryFirstThenABuiltIn) {
  const TempDir directory;
  Bundle mine = Good();
  mine.manifest.name = "p100";
  ASSERT_TRUE(WriteBundle(mine, directory.File("p100")).ok());
  const auto own = OpenBundle("p100", directory.path());
  ASSERT_TRUE(own.ok()) << ToString(own.status());
  EXPECT_TRUE((*own)->manifest.measured);
  EXPECT_FALSE((*OpenBundle("h200", directory.path()))->manifest.measured);
  EXPECT_TRUE((*OpenBundle(directory.File("p100"), "elsewhere"))->manifest.measured);

  const auto places = ListBundles(directory.path());
  ASSERT_TRUE(places.ok());
  EXPECT_EQ(places->size(), BuiltinBundles().size());
  EXPECT_EQ(places->front().path, directory.File("p100"));
  EXPECT_EQ(ListBundles(directory.File("absent"))->size(), BuiltinBundles().size());
}

TEST(OpenBundle, RefusesWhatIsAbsentDamagedOrImpossible) {
  const TempDir directory;
  EXPECT_THAT(MessageOf(OpenBundle("h20", directory.path()).status()), HasSubstr("there is no profile 'h20'"));
  EXPECT_THAT(MessageOf(OpenBundle("h20", directory.path()).status()), HasSubstr("did you mean 'h200'?"));
  EXPECT_EQ(OpenBundle("./h200", directory.path()).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(OpenBundle("..", directory.path()).status().code(), StatusCode::kInvalidArgument);
  Bundle fast = Good();
  fast.ops[0].median_us = 1;
  ASSERT_TRUE(WriteBundle(fast, directory.File("fast")).ok());
  EXPECT_EQ(OpenBundle("fast", directory.path()).status().code(), StatusCode::kFailedPrecondition);
  directory.Write("fast/ops.tsv", "nonsense\n");
  EXPECT_EQ(OpenBundle("fast", directory.path()).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tidepool::profile
