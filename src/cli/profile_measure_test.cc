// `tidepool profile` with the real measuring process, on networks that are small enough for a test.
#include "cli/profile_measure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/json.h"
#include "base/process.h"
#include "base/testing.h"
#include "cli/command_line.h"
#include "cli/verb.h"
#include "profile/bundle_io.h"
#include "profile/lookup.h"

namespace tidepool::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

const char kWorker[] = TIDEPOOL_BINARY_DIR "/tidepool-worker";

class MeasuringAProfile : public ::testing::Test {
 protected:
  int Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--profiles", directory_.File("profiles"), "--worker-binary", kWorker});
    VerbList verbs;
    AddProfileVerbs(&verbs);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const int code = RunCommandLine(arguments, verbs);
    out_ = ::testing::internal::GetCapturedStdout();
    err_ = ::testing::internal::GetCapturedStderr();
    return code;
  }
  testing::TempDir directory_;
  std::string out_, err_;
};

TEST_F(MeasuringAProfile, GivesTimesAndMemoryOfEachPhaseAndOp) {
  const std::string resnet = "resnet18:width=8,image=32,classes=10", gpt = "gpt2:layers=1,width=32,heads=2,vocab=100,context=16";
  const int code = Run({"profile", "--device", "host", "--model", resnet, "--model", gpt, "--batch", "4,1,2", "--memory",
                        "256MiB", "--name", "small", "-o", "json"});
  // A noisy machine may give rows that the check refuses; they are written all the same.
  ASSERT_TRUE(code == 0 || err_.find("the bundle was written, but will not be used") != std::string::npos) << err_;
  const auto bundle = profile::ReadBundle(directory_.File("profiles/small"));
  ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
  EXPECT_EQ(bundle->manifest.name, "small");
  EXPECT_TRUE(bundle->manifest.measured);
  EXPECT_TRUE(bundle->manifest.software.contains("torch"));
  const profile::Hardware& hardware = bundle->manifest.hardware;
  EXPECT_EQ(hardware.memory_bytes, 256.0 * 1048576);
  EXPECT_GT(hardware.peak_flops.at(DType::kF32), 1e8);
  EXPECT_GT(hardware.memory_bytes_per_s, 1e8);
  EXPECT_GT(hardware.launch_us, 0);
  EXPECT_GE(bundle->links.size(), 10u);

  const profile::Lookup lookup(std::make_shared<profile::Bundle>(*bundle));
  for (const std::string& model : {resnet, gpt}) {
    for (const profile::Phase phase :
         {profile::Phase::kForward, profile::Phase::kBackward, profile::Phase::kStep, profile::Phase::kOptimizer}) {
      const auto times = lookup.Find({.model = model, .phase = phase});
      ASSERT_TRUE(times.ok()) << ToString(times.status());
      for (const int64_t batch : {1, 2, 4}) EXPECT_EQ(times->At(batch).method, profile::Method::kRow);
    }
    const auto step = lookup.Find({.model = model, .phase = profile::Phase::kStep});
    const auto forward = lookup.Find({.model = model, .phase = profile::Phase::kForward});
    // Exact, whatever the machine: weights, gradients and momentum are there, and activations grow with the batch.
    const double weights = forward->MemoryAt(1).memory.weight_bytes;
    EXPECT_GT(weights, 0);
    EXPECT_GT(forward->MemoryAt(1).memory.peak_bytes, weights);
    EXPECT_GT(step->MemoryAt(1).memory.peak_bytes, 2.5 * weights);
    EXPECT_GT(step->MemoryAt(4).memory.peak_bytes, step->MemoryAt(1).memory.peak_bytes);
    EXPECT_EQ(step->MemoryAt(4).memory.activation_bytes, 4 * step->MemoryAt(1).memory.activation_bytes);
  }
  const auto conv = lookup.Find({.model = resnet, .op = "conv1"});
  ASSERT_TRUE(conv.ok()) << ToString(conv.status());
  EXPECT_EQ(conv->MemoryAt(2).memory.input_bytes, 2 * 3 * 32 * 32 * 4);
  EXPECT_GE(conv->MemoryAt(2).memory.peak_bytes, conv->MemoryAt(2).memory.output_bytes);
  EXPECT_THAT(err_, HasSubstr("step batch 4: "));
  for (const auto& entry : fs::directory_iterator(directory_.File("profiles"))) EXPECT_EQ(entry.path().filename(), "small");
}

TEST_F(MeasuringAProfile, LeavesOutWhatDoesNotFitIntoMemory) {
  (void)Run({"profile", "--model", "resnet18:width=16,image=64,classes=10", "--phase", "forward", "--no-ops", "--batch", "1,4096",
             "--memory", "64MiB", "--name", "tight"});
  EXPECT_THAT(err_, HasSubstr("batches from 4096 on are left out"));
  const auto bundle = profile::ReadBundle(directory_.File("profiles/tight"));
  ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
  EXPECT_EQ(bundle->ops.size(), 1u);
}

TEST_F(MeasuringAProfile, OfAnUnknownModelWritesNothing) {
  EXPECT_EQ(Run({"profile", "--model", "resnet17"}), 2);
  EXPECT_THAT(err_, HasSubstr("resnet17"));
  EXPECT_FALSE(fs::exists(directory_.File("profiles/host")));
  EXPECT_TRUE(fs::is_empty(directory_.File("profiles")));
}

TEST_F(MeasuringAProfile, DoesNotTouchABundleThatIsThere) {
  fs::create_directories(directory_.File("profiles/host"));
  EXPECT_EQ(Run({"profile", "--model", "resnet18"}), 1);
  EXPECT_THAT(err_, HasSubstr("exists already; --replace replaces it"));
}

TEST(RunMeasurement, EndsAtOnceWhenItIsStopped) {
  const testing::TempDir directory;
  MeasureOptions options;
  options.models = {"resnet50"};
  options.memory_bytes = kGiB;
  options.output = directory.File("out");
  const Status stopped = RunMeasurement(
      options, kWorker, [](const std::string&) {}, [] { return true; });
  EXPECT_EQ(stopped.code(), StatusCode::kCancelled);
  EXPECT_FALSE(fs::exists(options.output));
}

TEST(RunMeasurement, ReportsAProcessThatIsNoMeasurement) {
  MeasureOptions options;
  options.models = {"resnet50"};
  options.output = "/nowhere";
  const auto never = [] { return false; };
  EXPECT_EQ(RunMeasurement(
                options, "/bin/false", [](const std::string&) {}, never)
                .code(),
            StatusCode::kInternal);
  EXPECT_THAT(MessageOf(RunMeasurement(
                  options, "/bin/echo", [](const std::string&) {}, never)),
              HasSubstr("is no progress: 'profile --options-fd=3'"));
}

}  // namespace
}  // namespace tidepool::cli
