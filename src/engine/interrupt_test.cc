// A training step is stopped, or refused memory, at each of its allocations in turn. Whatever was under way, nothing stays
// behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "engine/testing/training_fixture.h"

namespace tidepool::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kSamples = 3;
constexpr double kLearningRate = 0.05;

struct Sweep {
  int64_t points = 0;  // allocations that were hit
  int64_t in_forward = 0, in_backward = 0;
};

// Before each step the trainee's micro-batch is hit at one point more than before; then it is run again and committed. A second
// one trains beside it undisturbed and must have the same bits after each step.
class Interruption : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    TrainingOptions options{.optimizer = {.kind = OptimizerOptions::Kind::kAdamW, .learning_rate = kLearningRate}, .seed = 5};
    hit_ = std::make_unique<Trainee>(GetParam(), options);
    undisturbed_ = std::make_unique<Trainee>(GetParam(), options);
    // The first pass through torch sets up things of its own; it is not what is swept.
    const TestBatch batch(*hit_->graph, kSamples, 1);
    ASSERT_TRUE(hit_->Step(batch.All(0), kLearningRate).ok());
    ASSERT_TRUE(undisturbed_->Step(batch.All(0), kLearningRate).ok());
  }

  // False once `arm(n)` has hit nothing, or after a failure.
  template <typename Arm, typename Disarm>
  bool HitOnce(int64_t n, StatusCode code, const char* text, Arm arm, Disarm disarm, Sweep* sweep) {
    TrainingModule& module = *hit_->module;
    const TestBatch batch(*hit_->graph, kSamples, 1000 + static_cast<uint64_t>(n));
    const uint64_t key = static_cast<uint64_t>(n);
    // The first half of the global batch is committed before, so that there is something to lose.
    EXPECT_TRUE(module.BeginGlobalBatch().ok());
    EXPECT_TRUE(module.RunMicroBatch(batch.Slice(0, 1, key)).ok());
    EXPECT_TRUE(module.CommitMicroBatch().ok());
    const pool::ArenaStats before = hit_->arena->stats();

    arm(n);
    const StatusOr<MicroBatchResult> result = module.RunMicroBatch(batch.Slice(1, 2, key));
    disarm();
    EXPECT_TRUE(module.AbortMicroBatch().ok());
    EXPECT_EQ(hit_->arena->stats().live_bytes, before.live_bytes) << "point " << n;
    EXPECT_EQ(hit_->arena->stats().blocks, before.blocks) << "point " << n;
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), code) << result.status();
      EXPECT_THAT(MessageOf(result.status()), HasSubstr(text));
      ++sweep->points;
      ++(MessageOf(result.status()).starts_with("backward") ? sweep->in_backward : sweep->in_forward);
    }

    EXPECT_TRUE(module.RunMicroBatch(batch.Slice(1, 2, key)).ok());
    EXPECT_TRUE(module.CommitMicroBatch().ok());
    EXPECT_TRUE(module.OptimizerStep(kLearningRate).ok());
    TrainingModule& other = *undisturbed_->module;
    EXPECT_TRUE(other.BeginGlobalBatch().ok());
    for (const auto& [first, count] : {std::pair{0, 1}, std::pair{1, 2}}) {
      EXPECT_TRUE(other.RunMicroBatch(batch.Slice(first, count, key)).ok());
      EXPECT_TRUE(other.CommitMicroBatch().ok());
    }
    EXPECT_TRUE(other.OptimizerStep(kLearningRate).ok());
    EXPECT_THAT(hit_->Differences(*undisturbed_), IsEmpty()) << "point " << n;
    return !result.ok() && !HasFailure();
  }

  std::unique_ptr<Trainee> hit_, undisturbed_;
};

TEST_P(Interruption, AtEveryAllocationUnwindsAndLeavesNoTrace) {
  AbortToken& token = hit_->module->abort_token();
  Sweep sweep;
  const int64_t checks = token.checks();
  for (int64_t n = 0; HitOnce(
           n, StatusCode::kAborted, "asked to stop", [&](int64_t at) { token.RequestAtCheck(at); },
           [&] { token.RequestAtCheck(-1); }, &sweep);
       ++n) {
  }
  EXPECT_GT(sweep.in_forward, 10);
  EXPECT_GT(sweep.in_backward, 10);
  EXPECT_GT(token.checks(), checks);
  RecordProperty("allocations", static_cast<int>(sweep.points));
}

TEST_P(Interruption, ByARefusalAtEveryAllocationGivesThePoolsErrorAndLeavesNoTrace) {
  Sweep sweep;
  for (int64_t n = 0; HitOnce(
           n, StatusCode::kResourceExhausted, "the probe refuses", [&](int64_t at) { hit_->probe.FailAt(at); },
           [&] { hit_->probe.FailAt(-1); }, &sweep);
       ++n) {
  }
  EXPECT_GT(sweep.in_forward, 10);
  EXPECT_GT(sweep.in_backward, 10);
}

TEST_P(Interruption, TrainingAllocatesOnTheCallingThreadOnly) {
  // Backward too: autograd runs it on the caller's thread for CPU tensors, which is why the checks reach it.
  const TestBatch batch(*hit_->graph, kSamples, 1);
  hit_->probe.Reset();
  ASSERT_TRUE(hit_->Step(batch.All(1), kLearningRate).ok());
  EXPECT_THAT(hit_->probe.threads(), ::testing::ElementsAre(std::this_thread::get_id()));
}

INSTANTIATE_TEST_SUITE_P(Networks, Interruption,
                         ::testing::Values("convnet", "mlp:8", "gpt2:layers=1,width=8,heads=2,vocab=40,context=6,dropout=0.2",
                                           "bert:layers=1,width=8,heads=2,vocab=40,context=6,classes=3,dropout=0.2"),
                         [](const auto& info) {
                           const std::string spec = info.param;
                           return spec.substr(0, spec.find(':'));
                         });

TEST(AbortToken, StopsAComputationFromAnotherThread) {
  Trainee trainee("convnet");
  const TestBatch batch(*trainee.graph, 8, 1);
  AbortToken& token = trainee.module->abort_token();
  std::thread other([&] {
    // Once the computation is under way.
    while (token.checks() == 0) std::this_thread::yield();
    token.Request();
  });
  ASSERT_TRUE(trainee.module->BeginGlobalBatch().ok());
  Status status;
  while (status.ok()) {
    status = trainee.module->RunMicroBatch(batch.All(1)).status();
    ASSERT_TRUE(trainee.module->AbortMicroBatch().ok());
  }
  other.join();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_EQ(trainee.module->RunMicroBatch(batch.All(1)).status().code(), StatusCode::kAborted) << "it stays requested";
  ASSERT_TRUE(trainee.module->AbortMicroBatch().ok());
  token.Clear();
  EXPECT_TRUE(trainee.module->RunMicroBatch(batch.All(1)).ok());
}

TEST(AbortToken, DoesNotReachWhatIsNotAbortable) {
  Trainee trainee("convnet");
  const TestBatch batch(*trainee.graph, 4, 1);
  trainee.module->abort_token().Request();
  ASSERT_TRUE(trainee.module->BeginGlobalBatch().ok());
  MicroBatch must_run = batch.All(1);
  must_run.abortable = false;
  EXPECT_TRUE(trainee.module->RunMicroBatch(must_run).ok());
  EXPECT_TRUE(trainee.module->CommitMicroBatch().ok());
  EXPECT_TRUE(trainee.module->OptimizerStep(0.1).ok());
}

TEST(AbortToken, MeasuresTheLongestStretchWithoutACheck) {
  AbortToken token;
  token.BeginScope();
  EXPECT_FALSE(token.Check());
  EXPECT_FALSE(token.Check());
  token.EndScope();
  EXPECT_EQ(token.checks(), 2);
  EXPECT_GT(token.longest_gap_ns(), 0);
  token.ResetLongest();
  EXPECT_EQ(token.longest_gap_ns(), 0);
  token.RequestAtCheck(1);
  EXPECT_FALSE(token.Check());
  EXPECT_TRUE(token.Check());
  EXPECT_FALSE(token.Check());
}

}  // namespace
}  // namespace tidepool::engine
