#include "engine/training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "engine/inference.h"
#include "engine/testing/direct_network.h"
#include "engine/testing/training_fixture.h"

namespace tidepool::engine {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Kind = OptimizerOptions::Kind;

// Weight decay on everything, as torch.optim has it without parameter groups.
std::shared_ptr<const model::Graph> WithDecayEverywhere(const std::string& spec) {
  auto graph = std::make_shared<model::Graph>(*TestGraph(spec));
  for (model::Param& param : graph->params) param.decay = true;
  return graph;
}

struct ParityCase {
  const char* name;
  const char* spec;
  OptimizerOptions optimizer;
};

class TrainingParity : public ::testing::TestWithParam<ParityCase> {};

TEST_P(TrainingParity, EqualsPlainTorchBitForBit) {
  const TrainingOptions options{.optimizer = GetParam().optimizer, .seed = 7};
  Trainee trainee(WithDecayEverywhere(GetParam().spec), options);
  const auto direct = DirectNetwork::ForTraining(*trainee.graph, trainee.weights.views(), options);
  for (uint64_t step = 0; step < 4; ++step) {
    const TestBatch batch(*trainee.graph, 4, 100 + step);
    const auto result = trainee.Step(batch.All(step), options.optimizer.learning_rate);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->loss_sum, direct->Train(batch.All(step)));
  }
  EXPECT_EQ(trainee.module->steps(), 4);
  const std::vector<TensorView> expected = direct->params();
  const std::vector<NamedTensor> state = trainee.module->State();
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(std::memcmp(state[i].view.data, expected[i].data, static_cast<size_t>(expected[i].size_bytes())), 0)
        << state[i].name;
  }
}

constexpr OptimizerOptions kSgd{.kind = Kind::kSgd, .learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.01};
constexpr OptimizerOptions kPlainSgd{.kind = Kind::kSgd, .learning_rate = 0.1, .momentum = 0};
constexpr OptimizerOptions kAdamW{.kind = Kind::kAdamW, .learning_rate = 0.01, .weight_decay = 0.1};
constexpr const char* kGpt2 = "gpt2:layers=2,width=16,heads=2,vocab=40,context=12,sequence=8,dropout=0.2";
constexpr const char* kBert = "bert:layers=1,width=16,heads=2,vocab=40,context=12,sequence=8,classes=3,dropout=0.2";

INSTANTIATE_TEST_SUITE_P(Networks, TrainingParity,
                         ::testing::Values(ParityCase{"MlpSgd", "mlp:16", kSgd}, ParityCase{"MlpPlainSgd", "mlp:16", kPlainSgd},
                                           ParityCase{"MlpAdamW", "mlp:16", kAdamW}, ParityCase{"ConvNetSgd", "convnet", kSgd},
                                           ParityCase{"ConvNetAdamW", "convnet", kAdamW},
                                           ParityCase{"ResNetSgd", "resnet18:classes=5,image=32,width=8,small_stem=true", kSgd},
                                           ParityCase{"Gpt2AdamW", kGpt2, kAdamW}, ParityCase{"BertAdamW", kBert, kAdamW}),
                         [](const auto& info) { return info.param.name; });

TEST(Training, EverythingLivesInTheArenaAndLeavesIt) {
  Trainee trainee("convnet", {.optimizer = kAdamW});
  const int64_t at_rest = trainee.arena->stats().live_bytes;
  for (const NamedTensor& tensor : trainee.module->State()) {
    EXPECT_NE(pool::Arena::Owner(tensor.view.data), nullptr) << tensor.name;
  }
  const TestBatch batch(*trainee.graph, 4, 3);
  const auto result = trainee.Step(batch.All(1), 0.1);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->peak_bytes, at_rest);
  EXPECT_EQ(trainee.arena->stats().live_bytes, at_rest);
  trainee.module.reset();
  EXPECT_EQ(trainee.arena->stats().live_bytes, 0);
}

TEST(Training, NamesItsStateAsTheGraphDoes) {
  Trainee sgd("convnet", {.optimizer = kSgd});
  std::vector<std::string> names;
  for (const NamedTensor& tensor : sgd.module->State()) names.push_back(tensor.name);
  EXPECT_THAT(names, Contains("conv1.weight"));
  EXPECT_THAT(names, Contains("bn1.running_mean"));
  EXPECT_THAT(names, Contains("optimizer.conv1.weight.momentum_buffer"));
  EXPECT_THAT(names, Not(Contains("optimizer.bn1.running_mean.momentum_buffer")));
  Trainee adamw("mlp:4", {.optimizer = kAdamW});
  names.clear();
  for (const NamedTensor& tensor : adamw.module->State()) names.push_back(tensor.name);
  EXPECT_THAT(names, AllOf(Contains("optimizer.fc1.bias.exp_avg"), Contains("optimizer.fc1.bias.exp_avg_sq")));
}

TEST(Training, StateCopiedToAnotherModuleContinuesBitForBit) {
  Trainee first("convnet", {.optimizer = kAdamW}), second("convnet", {.optimizer = kAdamW});
  const TestBatch batch(*first.graph, 4, 3);
  ASSERT_TRUE(first.Step(batch.All(1), 0.01).ok());
  const std::vector<NamedTensor> from = first.module->State(), to = second.module->State();
  for (size_t i = 0; i < from.size(); ++i) {
    ASSERT_EQ(from[i].name, to[i].name);
    std::memcpy(to[i].view.data, from[i].view.data, static_cast<size_t>(from[i].view.size_bytes()));
  }
  second.module->SetSteps(first.module->steps());
  ASSERT_TRUE(first.Step(batch.All(2), 0.01).ok());
  ASSERT_TRUE(second.Step(batch.All(2), 0.01).ok());
  EXPECT_THAT(first.Differences(second), IsEmpty());
}

// Trains one global batch of `batch` cut into micro-batches of these sizes.
void StepInParts(Trainee& trainee, const TestBatch& batch, const std::vector<int64_t>& parts) {
  ASSERT_TRUE(trainee.module->BeginGlobalBatch().ok());
  int64_t first = 0;
  for (const int64_t count : parts) {
    const auto result = trainee.module->RunMicroBatch(batch.Slice(first, count, 1));
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(trainee.module->CommitMicroBatch().ok());
    first += count;
  }
  ASSERT_TRUE(trainee.module->OptimizerStep(0.1).ok());
}

float LargestDifference(Trainee& a, Trainee& b) {
  float largest = 0;
  const std::vector<NamedTensor> mine = a.module->State(), theirs = b.module->State();
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i].view.dtype != DType::kF32) continue;
    const auto* x = reinterpret_cast<const float*>(mine[i].view.data);
    const auto* y = reinterpret_cast<const float*>(theirs[i].view.data);
    for (int64_t j = 0; j < mine[i].view.elements(); ++j) largest = std::max(largest, std::abs(x[j] - y[j]));
  }
  return largest;
}

// Without batch norm and dropout the mean over a global batch does not depend on how it is cut, and a short last micro-batch
// weighs as much as it has samples.
TEST(Training, MicroBatchPartitionsAgree) {
  const std::string spec = "gpt2:layers=1,width=16,heads=2,vocab=40,context=8,dropout=0";
  for (const std::vector<int64_t>& parts : std::vector<std::vector<int64_t>>{{4, 4, 2}, {1, 2, 7}, {9, 1}}) {
    Trainee whole(spec, {.optimizer = kSgd}), cut(spec, {.optimizer = kSgd});
    const TestBatch batch(*whole.graph, 10, 3);
    StepInParts(whole, batch, {10});
    StepInParts(cut, batch, parts);
    EXPECT_LT(LargestDifference(whole, cut), 1e-6f);
    EXPECT_GT(LargestDifference(whole, cut), 0.0f) << "the cut was not there";
  }
}

TEST(Training, AddsLossesAndHitsOverMicroBatches) {
  Trainee trainee("mlp:16");
  const TestBatch batch(*trainee.graph, 6, 3);
  const auto all = trainee.module->Evaluate(batch.All(0));
  const auto first = trainee.module->Evaluate(batch.Slice(0, 4, 0));
  const auto second = trainee.module->Evaluate(batch.Slice(4, 2, 0));
  ASSERT_TRUE(all.ok() && first.ok() && second.ok());
  EXPECT_EQ(all->loss_count, 6);
  EXPECT_EQ(first->loss_count + second->loss_count, 6);
  EXPECT_NEAR(all->loss_sum, first->loss_sum + second->loss_sum, 1e-5);
  EXPECT_EQ(all->correct, first->correct + second->correct);
  Trainee language("gpt2:layers=1,width=16,heads=2,vocab=40,context=8");
  const TestBatch text(*language.graph, 3, 3);
  EXPECT_EQ(language.module->Evaluate(text.All(0))->loss_count, 24);
}

TEST(Training, LearnsASmallBatchByHeart) {
  Trainee trainee("convnet", {.optimizer = kSgd});
  const TestBatch batch(*trainee.graph, 8, 3);
  const double before = trainee.module->Evaluate(batch.All(0))->loss_sum;
  for (uint64_t step = 0; step < 60; ++step) ASSERT_TRUE(trainee.Step(batch.All(step), 0.1).ok());
  const auto after = trainee.module->Evaluate(batch.All(0));
  EXPECT_LT(after->loss_sum, before / 4);
  EXPECT_GE(after->correct, 7);
}

TEST(Training, DrawsTheSameDropoutForTheSameKey) {
  Trainee trainee("mlp:64");
  const TestBatch batch(*trainee.graph, 8, 3);
  ASSERT_TRUE(trainee.module->BeginGlobalBatch().ok());
  const auto loss_of = [&](uint64_t key) {
    const auto result = trainee.module->RunMicroBatch(batch.All(key));
    TIDEPOOL_CHECK(result.ok() && trainee.module->AbortMicroBatch().ok(), "the micro-batch failed");
    return result->loss_sum;
  };
  const double first = loss_of(1);
  EXPECT_NE(loss_of(2), first);
  EXPECT_NE(loss_of(1ull << 40), first);
  EXPECT_EQ(loss_of(1), first);
}

TEST(Training, EvaluationChangesNothing) {
  Trainee trainee("convnet"), other("convnet");
  const TestBatch batch(*trainee.graph, 4, 3);
  const int64_t live_bytes = trainee.arena->stats().live_bytes;
  const auto once = trainee.module->Evaluate(batch.All(0));
  const auto twice = trainee.module->Evaluate(batch.All(9));
  ASSERT_TRUE(once.ok() && twice.ok());
  EXPECT_EQ(once->loss_sum, twice->loss_sum);
  EXPECT_THAT(trainee.Differences(other), IsEmpty());
  EXPECT_EQ(trainee.arena->stats().live_bytes, live_bytes);
}

TEST(Training, WeightDecaySparesWhatTheGraphSaysItShould) {
  OptimizerOptions decaying = kPlainSgd;
  decaying.weight_decay = 0.5;
  Trainee with("mlp:16", {.optimizer = decaying}), without("mlp:16", {.optimizer = kPlainSgd});
  const TestBatch batch(*with.graph, 4, 3);
  ASSERT_TRUE(with.Step(batch.All(1), 0.1).ok());
  ASSERT_TRUE(without.Step(batch.All(1), 0.1).ok());
  EXPECT_THAT(with.Differences(without), ::testing::ElementsAre("fc1.weight", "fc2.weight"));
}

TEST(Training, RefusesCallsInTheWrongOrder) {
  Trainee trainee("mlp:16");
  TrainingModule& module = *trainee.module;
  const TestBatch batch(*trainee.graph, 4, 3);
  const auto expect_refusal = [](const Status& status, const char* text) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(MessageOf(status), HasSubstr(text));
  };
  expect_refusal(module.RunMicroBatch(batch.All(0)).status(), "RunMicroBatch: no global batch is open");
  expect_refusal(module.OptimizerStep(0.1), "OptimizerStep: no global batch is open");
  ASSERT_TRUE(module.BeginGlobalBatch().ok());
  expect_refusal(module.CommitMicroBatch(), "CommitMicroBatch: no micro-batch is staged");
  expect_refusal(module.OptimizerStep(0.1), "no micro-batch was committed");
  ASSERT_TRUE(module.RunMicroBatch(batch.All(0)).ok());
  expect_refusal(module.RunMicroBatch(batch.All(0)).status(), "a micro-batch waits for commit or abort");
  expect_refusal(module.BeginGlobalBatch(), "a micro-batch waits for commit or abort");
  ASSERT_TRUE(module.CommitMicroBatch().ok());
  module.abort_token().Request();
  EXPECT_EQ(module.RunMicroBatch(batch.All(0)).status().code(), StatusCode::kAborted);
  module.abort_token().Clear();
  expect_refusal(module.RunMicroBatch(batch.All(0)).status(), "a failed micro-batch waits for abort");
  ASSERT_TRUE(module.AbortMicroBatch().ok());
  EXPECT_EQ(module.OptimizerStep(-1).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(module.OptimizerStep(0.1).ok());
}

TEST(Training, RefusesBatchesThatDoNotFit) {
  Trainee trainee("mlp:16");
  const TestBatch batch(*trainee.graph, 4, 3);
  ASSERT_TRUE(trainee.module->BeginGlobalBatch().ok());
  const auto message = [&](const MicroBatch& wrong) { return MessageOf(trainee.module->RunMicroBatch(wrong).status()); };
  MicroBatch wrong = batch.All(0);
  wrong.inputs[0].shape = {4, 15};
  EXPECT_THAT(message(wrong), HasSubstr("input 'x' of graph 'mlp' has shape [4,15]; allowed: [-1,16]"));
  wrong = batch.All(0);
  wrong.target.shape = {3};
  EXPECT_THAT(message(wrong), HasSubstr("the target has shape [3]; allowed: [4]"));
  wrong = batch.All(0);
  wrong.global_batch_size = 3;
  EXPECT_THAT(message(wrong), HasSubstr("a micro-batch of 4 samples has global_batch_size 3; allowed: 4 or more"));
  wrong = batch.All(0);
  TensorSet target;
  wrong.target = target.Add(DType::kI64, {4});
  for (const int64_t outside : {int64_t{-100}, int64_t{5}}) {
    std::fill_n(reinterpret_cast<int64_t*>(wrong.target.data), 4, int64_t{0});
    reinterpret_cast<int64_t*>(wrong.target.data)[2] = outside;
    EXPECT_THAT(message(wrong), HasSubstr(fmt::format("element 2 of the target is {}; allowed: 0 to 4", outside)));
  }
  EXPECT_TRUE(trainee.module->RunMicroBatch(batch.All(0)).ok());
}

TEST(Training, RefusesOptionsAndNetworksItCannotTrain) {
  const auto pool = TestPool::Make(4 * kMiB);
  const auto arena = pool->MakeArena(4 * kMiB);
  const auto create = [&](const std::string& spec, const OptimizerOptions& optimizer) {
    const auto graph = TestGraph(spec);
    const TensorSet weights = TestWeights(*graph, 1);
    return MessageOf(TrainingModule::Create(graph, weights.views(), arena.get(), {.optimizer = optimizer}).status());
  };
  EXPECT_THAT(create("mlp:4", {.learning_rate = -1, .momentum = 1}),
              AllOf(HasSubstr("learning_rate is -1; allowed: 0 or more"), HasSubstr("momentum is 1; allowed: 0 to below 1")));
  EXPECT_THAT(create("mlp:4", {.kind = Kind::kAdamW, .beta2 = 1.5, .epsilon = 0}),
              AllOf(HasSubstr("beta2 is 1.5"), HasSubstr("epsilon is 0; allowed: above 0")));
  EXPECT_THAT(create("bert:layers=1,width=16,heads=2,vocab=40,context=8,classes=0", {}), HasSubstr("which has no loss"));
  const auto graph = TestGraph("mlp:4");
  EXPECT_THAT(MessageOf(TrainingModule::Create(graph, {}, arena.get(), {}).status()), HasSubstr("got 0 parameters; allowed: 4"));
  EXPECT_EQ(arena->stats().live_bytes, 0);
}

TEST(Training, ALimitTooSmallForTheParametersIsAnError) {
  const auto pool = TestPool::Make(4 * kMiB);
  const auto arena = pool->MakeArena(64 * kKiB);
  const auto graph = TestGraph("mlp:256");
  const TensorSet weights = TestWeights(*graph, 1);
  const Status status = TrainingModule::Create(graph, weights.views(), arena.get(), {}).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(arena->stats().live_bytes, 0);
}

TEST(Training, RunsBesideInferenceOnAnotherThread) {
  Trainee trainee("convnet", {.optimizer = kSgd}), alone("convnet", {.optimizer = kSgd});
  const TestBatch batch(*trainee.graph, 4, 3);
  for (uint64_t step = 0; step < 20; ++step) ASSERT_TRUE(alone.Step(batch.All(step), 0.1).ok());
  const auto arena = trainee.pool->MakeArena(4 * kMiB);
  int failures = 0;
  std::thread server([&] {
    const auto graph = TestGraph("resnet18:classes=10,image=32,width=8,small_stem=true");
    const TensorSet weights = TestWeights(*graph, 1);
    auto module = InferenceModule::Bind(graph, weights.views());
    const TestBatch requests(*graph, 1, 3);
    MemoryScope memory(arena.get());
    for (int i = 0; i < 20; ++i) failures += !module.ok() || !(*module)->Run(requests.inputs(), {}).ok();
  });
  for (uint64_t step = 0; step < 20; ++step) EXPECT_TRUE(trainee.Step(batch.All(step), 0.1).ok());
  server.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(arena->stats().live_bytes, 0);
  EXPECT_THAT(trainee.Differences(alone), IsEmpty());
}

}  // namespace
}  // namespace tidepool::engine
