#include "engine/inference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "base/units.h"
#include "engine/testing/direct_network.h"
#include "engine/testing/test_networks.h"
#include "engine/testing/test_pool.h"

namespace tidepool::engine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kResNet = "resnet18:classes=10,image=64,width=8";
constexpr const char* kGpt2 = "gpt2:layers=2,width=32,heads=4,vocab=40,context=24,sequence=16";
constexpr const char* kBert = "bert:layers=2,width=32,heads=4,vocab=40,context=24,sequence=12,classes=3";

bool SameBits(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.data, b.data, static_cast<size_t>(a.size_bytes())) == 0;
}

std::unique_ptr<InferenceModule> BindOrDie(std::shared_ptr<const model::Graph> graph, const TensorSet& weights) {
  auto module = InferenceModule::Bind(std::move(graph), weights.views());
  TIDEPOOL_CHECK(module.ok(), "{}", ToString(module.status()));
  return *std::move(module);
}

class ForwardParity : public ::testing::TestWithParam<const char*> {};

TEST_P(ForwardParity, EqualsDirectAtenCallsBitForBit) {
  const auto graph = TestGraph(GetParam());
  const TensorSet weights = TestWeights(*graph, 1);
  const auto module = BindOrDie(graph, weights);
  const auto direct = DirectNetwork::ForInference(*graph, weights.views());
  for (const int64_t samples : {1, 3}) {
    const TestBatch batch(*graph, samples, 2);
    const auto outputs = module->Run(batch.inputs(), {});
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    const auto expected = direct->Run(batch.inputs());
    ASSERT_EQ((*outputs)->views().size(), 1u);
    EXPECT_EQ((*outputs)->views()[0].shape[0], samples);
    EXPECT_TRUE(SameBits((*outputs)->views()[0], expected->views()[0]));
  }
}

INSTANTIATE_TEST_SUITE_P(Networks, ForwardParity, ::testing::Values(kResNet, kGpt2, kBert, "mlp:16", "convnet"));

TEST(Inference, CopiesNoByteOfTheWeights) {
  const auto graph = TestGraph(kResNet);
  const TensorSet weights = TestWeights(*graph, 1);
  const auto pool = TestPool::Make(32 * kMiB);
  const auto arena = pool->MakeArena(32 * kMiB);
  ProbeArena probe(arena.get());
  MemoryScope memory(&probe);
  const auto module = BindOrDie(graph, weights);
  EXPECT_EQ(probe.allocated_bytes(), 0);
  // What is written to the given memory is what the module computes with.
  const TestBatch batch(*graph, 1, 2);
  const model::ParamId bias = graph->FindParam("fc.bias").value();
  auto* numbers = reinterpret_cast<float*>(weights.views()[bias].data);
  const auto before = module->Run(batch.inputs(), {});
  ASSERT_TRUE(before.ok()) << before.status();
  numbers[3] += 1;
  const auto after = module->Run(batch.inputs(), {});
  ASSERT_TRUE(after.ok()) << after.status();
  const auto* old_logits = reinterpret_cast<const float*>((*before)->views()[0].data);
  const auto* new_logits = reinterpret_cast<const float*>((*after)->views()[0].data);
  EXPECT_NEAR(new_logits[3] - old_logits[3], 1, 1e-5);
  EXPECT_EQ(new_logits[2], old_logits[2]);
}

TEST(Inference, RunsInTheCurrentArenaAndLeavesOnlyItsOutputs) {
  const auto graph = TestGraph(kGpt2);
  const TensorSet weights = TestWeights(*graph, 1);
  const auto pool = TestPool::Make(32 * kMiB);
  const auto arena = pool->MakeArena(32 * kMiB);
  const auto module = BindOrDie(graph, weights);
  const TestBatch batch(*graph, 2, 2);
  {
    MemoryScope memory(arena.get());
    const auto outputs = module->Run(batch.inputs(), {});
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_EQ(arena->stats().blocks, 1);
    EXPECT_EQ(pool::Arena::Owner((*outputs)->views()[0].data) != nullptr, true);
  }
  EXPECT_EQ(arena->stats().live_bytes, 0);
  EXPECT_GT(arena->stats().peak_live_bytes, 0);
}

TEST(Inference, DropsValuesAfterTheirLastUse) {
  // 2 and 12 layers have the same peak if nothing outlives its use.
  const auto peak_of = [](const std::string& spec) {
    const auto graph = TestGraph(spec);
    const TensorSet weights = TestWeights(*graph, 1);
    const auto pool = TestPool::Make(32 * kMiB);
    const auto arena = pool->MakeArena(32 * kMiB);
    const auto module = BindOrDie(graph, weights);
    const TestBatch batch(*graph, 2, 2);
    MemoryScope memory(arena.get());
    TIDEPOOL_CHECK(module->Run(batch.inputs(), {}).ok(), "the run failed");
    return arena->stats().peak_live_bytes;
  };
  EXPECT_EQ(peak_of("gpt2:layers=2,width=32,heads=4,vocab=40,context=16"),
            peak_of("gpt2:layers=12,width=32,heads=4,vocab=40,context=16"));
}

TEST(Inference, NamesTheOpWhenThePoolHasNoRoom) {
  const auto graph = TestGraph(kResNet);
  const TensorSet weights = TestWeights(*graph, 1);
  const auto pool = TestPool::Make(16 * kMiB);
  const auto arena = pool->MakeArena(64 * kKiB);
  const auto module = BindOrDie(graph, weights);
  const TestBatch batch(*graph, 2, 2);
  MemoryScope memory(arena.get());
  const auto outputs = module->Run(batch.inputs(), {});
  EXPECT_EQ(outputs.status().code(), StatusCode::kResourceExhausted) << outputs.status();
  EXPECT_THAT(MessageOf(outputs.status()), HasSubstr("op 'conv1': aten::conv2d: "));
  EXPECT_EQ(arena->stats().live_bytes, 0);
}

TEST(Inference, CallsTheHooksAroundEachOpAndStopsAtTheirError) {
  const auto graph = TestGraph("mlp:8");
  const TensorSet weights = TestWeights(*graph, 1);
  const auto module = BindOrDie(graph, weights);
  const TestBatch batch(*graph, 1, 2);
  std::vector<std::string> events;
  RunOptions options;
  options.before_op = [&](int op) {
    events.push_back(fmt::format("+{}", op));
    return op == 2 ? Unavailable("weights of op {} did not come", op) : Status();
  };
  options.after_op = [&](int op) { events.push_back(fmt::format("-{}", op)); };
  const auto outputs = module->Run(batch.inputs(), options);
  EXPECT_EQ(outputs.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(outputs.status()), HasSubstr("op 'dropout': weights of op 2 did not come"));
  EXPECT_THAT(events, ElementsAre("+0", "-0", "+1", "-1", "+2"));
}

TEST(Inference, OutputsThatAreViewsOfInputsOutliveThem) {
  model::Graph graph{.name = "identity", .family = "test"};
  graph.values = {{"x", DType::kF32, {model::kBatchDim, 4}}, {"y", DType::kF32, {model::kBatchDim, 2, 2}}};
  graph.ops = {{.name = "view", .kind = "view", .inputs = {0}, .outputs = {1}}};
  graph.ops[0].body = {{"aten::view", "", {model::ValueArg{0}, std::vector<int64_t>{-1, 2, 2}}, {1}}};
  graph.inputs = {0};
  graph.outputs = {1};
  const auto module = BindOrDie(std::make_shared<model::Graph>(graph), {});
  TensorSet input;
  auto* numbers = reinterpret_cast<float*>(input.Add(DType::kF32, {1, 4}).data);
  numbers[2] = 7;
  const auto outputs = module->Run(input.views(), {});
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  numbers[2] = 8;
  EXPECT_EQ(reinterpret_cast<const float*>((*outputs)->views()[0].data)[2], 7);
}

TEST(Inference, RefusesInputsThatDoNotFit) {
  const auto graph = TestGraph(kBert);
  const TensorSet weights = TestWeights(*graph, 1);
  const auto module = BindOrDie(graph, weights);
  const TestBatch batch(*graph, 2, 2);
  std::vector<TensorView> inputs(batch.inputs().begin(), batch.inputs().end());
  const auto message = [&] { return MessageOf(module->Run(inputs, {}).status()); };

  inputs.pop_back();
  EXPECT_THAT(message(), HasSubstr("got 2 inputs; allowed: 3"));
  inputs.push_back(batch.inputs()[2]);
  inputs[0].shape[1] = 11;
  EXPECT_THAT(message(), HasSubstr("input 'input_ids' of graph 'bert' has shape [2,11]; allowed: [-1,12]"));
  inputs[0] = batch.inputs()[0];
  inputs[1].shape[0] = 1;
  EXPECT_THAT(message(), HasSubstr("input 'token_type_ids' of graph 'bert' has batch 1; allowed: 2, as input 'input_ids' has"));
  inputs[1] = batch.inputs()[1];
  inputs[2].dtype = DType::kF32;
  EXPECT_THAT(message(), HasSubstr("input 'attention_mask' of graph 'bert' has type F32; allowed: I64"));
  inputs[2] = batch.inputs()[2];
  inputs[2].data = nullptr;
  EXPECT_THAT(message(), HasSubstr("has no data (null)"));
}

TEST(Inference, ReportsWhatTorchRefusesAndRunsOn) {
  const auto graph = TestGraph(kGpt2);
  const TensorSet weights = TestWeights(*graph, 1);
  const auto module = BindOrDie(graph, weights);
  const TestBatch batch(*graph, 1, 2);
  auto* tokens = reinterpret_cast<int64_t*>(batch.inputs()[0].data);
  const int64_t good = tokens[5];
  tokens[5] = 4000;
  const auto outputs = module->Run(batch.inputs(), {});
  EXPECT_EQ(outputs.status().code(), StatusCode::kInvalidArgument) << outputs.status();
  EXPECT_THAT(MessageOf(outputs.status()), AllOf(HasSubstr("op 'embedding': aten::embedding"), HasSubstr("out of range")));
  tokens[5] = good;
  EXPECT_TRUE(module->Run(batch.inputs(), {}).ok());
}

TEST(Bind, ListsEveryParameterThatDoesNotFit) {
  const auto graph = TestGraph("mlp:16");
  const TensorSet weights = TestWeights(*graph, 1);
  std::vector<TensorView> params(weights.views().begin(), weights.views().end());
  params[0].shape = {16, 15};
  params[1].dtype = DType::kF64;
  params[2].data += 4;
  const Status status = InferenceModule::Bind(graph, params).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status),
              AllOf(HasSubstr("3 wrong parameters"), HasSubstr("'fc1.weight' has shape [16,15]; allowed: [16,16]"),
                    HasSubstr("'fc1.bias' has type F64; allowed: F32"), HasSubstr("'fc2.weight' has address"),
                    HasSubstr("allowed: multiples of 64")));
  params.pop_back();
  EXPECT_THAT(MessageOf(InferenceModule::Bind(graph, params).status()), HasSubstr("got 3 parameters; allowed: 4"));
}

// A graph of one call on one input, to bind with something wrong.
model::Graph OneCall(model::AtenCall call) {
  model::Graph graph{.name = "one", .family = "test"};
  graph.values = {{"x", DType::kF32, {model::kBatchDim, 4}}, {"y", DType::kF32, {model::kBatchDim, 4}}};
  graph.ops = {{.name = "the_op", .kind = "test", .inputs = {0}, .outputs = {1}}};
  graph.ops[0].body = {std::move(call)};
  graph.inputs = {0};
  graph.outputs = {1};
  return graph;
}

TEST(Bind, RefusesMalformedGraphs) {
  const auto message = [](model::AtenCall call) {
    return MessageOf(InferenceModule::Bind(std::make_shared<model::Graph>(OneCall(std::move(call))), {}).status());
  };
  EXPECT_EQ(message({"aten::relu", "", {model::ValueArg{0}}, {1}}), "");
  EXPECT_THAT(message({"aten::relu", "", {model::ValueArg{0}, true}, {1}}),
              AllOf(HasSubstr("the_op"), HasSubstr("2 arguments; allowed: 1")));
  EXPECT_THAT(message({"aten::from_file", "", {model::ValueArg{0}}, {1}}), HasSubstr("aten::from_file"));
  EXPECT_THAT(message({"aten::softmax", "int", {model::ValueArg{0}, 1.5, model::NoneArg{}}, {1}}), HasSubstr("aten::softmax"));
  EXPECT_THAT(message({"aten::relu", "", {model::ValueArg{9}}, {1}}), HasSubstr("value 9"));
}

TEST(Inference, ThreadsWithArenasOfTheirOwnDoNotMix) {
  const auto graph = TestGraph("resnet18:classes=10,image=32,width=8,small_stem=true");
  const TensorSet weights = TestWeights(*graph, 1);
  const TestBatch batch(*graph, 2, 2);
  const auto pool = TestPool::Make(32 * kMiB);
  const auto expected = DirectNetwork::ForInference(*graph, weights.views())->Run(batch.inputs());
  constexpr int kThreads = 3;
  std::vector<std::unique_ptr<pool::Arena>> arenas;
  for (int i = 0; i < kThreads; ++i) arenas.push_back(pool->MakeArena(8 * kMiB));
  std::vector<int> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const auto module = BindOrDie(graph, weights);
      MemoryScope memory(arenas[i].get());
      for (int run = 0; run < 5; ++run) {
        const auto outputs = module->Run(batch.inputs(), {});
        if (!outputs.ok() || !SameBits((*outputs)->views()[0], expected->views()[0])) ++wrong[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kThreads; ++i) {
    EXPECT_EQ(wrong[i], 0);
    EXPECT_EQ(arenas[i]->stats().live_bytes, 0);
    EXPECT_GT(arenas[i]->stats().allocations, 0);
  }
}

}  // namespace
}  // namespace tidepool::engine
