#include "model/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "model/aten_rules.h"
#include "model/families.h"
#include "model/graph_json.h"

namespace tidepool::model {
namespace {

using ::testing::HasSubstr;

Graph Small() { return *BuildGraph("resnet18:image=8,width=2,classes=3,small_stem=true"); }

struct Fault {
  std::string name;
  std::function<void(Graph&)> make;
  std::string text;
};

class FaultyGraphs : public ::testing::TestWithParam<Fault> {};

TEST_P(FaultyGraphs, AreRefusedWithTheReason) {
  Graph graph = Small();
  ASSERT_TRUE(Validate(graph).ok());
  GetParam().make(graph);
  const Status status = Validate(graph);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr(GetParam().text));
}

// ops: 0 conv1, 1 bn1, 2 relu, 3 layer1.0.conv1 ...
INSTANTIATE_TEST_SUITE_P(
    Graph, FaultyGraphs,
    ::testing::Values(
        Fault{"NoName", [](Graph& g) { g.name.clear(); }, "the graph has no name"},
        Fault{"NoOps", [](Graph& g) { g.ops.clear(); }, "there are no ops"},
        Fault{"NoInputs", [](Graph& g) { g.inputs.clear(); }, "there are no inputs"},
        Fault{"NoOutputs", [](Graph& g) { g.outputs.clear(); }, "there are no outputs"},
        Fault{"UnknownInput", [](Graph& g) { g.inputs = {9999}; }, "an input is value 9999; allowed: 0 to"},
        Fault{"UnknownOutput", [](Graph& g) { g.outputs = {-5}; }, "an output is value -5"},
        Fault{"InputTwice", [](Graph& g) { g.inputs.push_back(g.inputs[0]); }, "value 'image' is an input twice"},
        Fault{"UnbatchedInput", [](Graph& g) { g.values[g.inputs[0]].shape[0] = 4; }, "input 'image' has first dimension 4"},
        Fault{"EmptyShape", [](Graph& g) { g.values[g.inputs[0]].shape.clear(); }, "input 'image' has an empty shape"},
        Fault{"ZeroDimension", [](Graph& g) { g.values[0].shape[1] = 0; },
              "value 'image' has dimension 1 = 0; allowed: 1 or more"},
        Fault{"HugeShape",
              [](Graph& g) {
                g.params[0].shape = {int64_t{1} << 40, int64_t{1} << 40};
              },
              "is too large"},
        Fault{"NegativeParamShape", [](Graph& g) { g.params[0].shape = {-1}; }, "parameter 'conv1.weight' has dimension 0 = -1"},
        Fault{"NamelessParam", [](Graph& g) { g.params[0].name.clear(); }, "a parameter has no name"},
        Fault{"BytesParam", [](Graph& g) { g.params[0].dtype = DType::kBytes; }, "'conv1.weight' has no fixed element size"},
        Fault{"SameParamName", [](Graph& g) { g.params[1].name = g.params[0].name; }, "two parameters are called 'conv1.weight'"},
        Fault{"SameValueName", [](Graph& g) { g.values[1].name = "image"; }, "two values are called 'image'"},
        Fault{"SameOpName", [](Graph& g) { g.ops[1].name = "conv1"; }, "two ops are called 'conv1'"},
        Fault{"ReadBeforeMade", [](Graph& g) { std::swap(g.ops[0], g.ops[1]); },
              "op 'bn1' reads value 'conv1' before anything makes it"},
        Fault{"UnknownValue", [](Graph& g) { g.ops[0].body[0].args[0] = ValueArg{777}; },
              "op 'conv1' reads value 777; allowed: 0 to"},
        Fault{"UnlistedRead", [](Graph& g) { g.ops[0].inputs.clear(); }, "op 'conv1' reads value 'image' without listing it"},
        Fault{"UnreadInput", [](Graph& g) { g.ops[3].inputs.push_back(0); },
              "op 'layer1.0.conv1' lists input 0 but does not read it"},
        Fault{"UnlistedOutput", [](Graph& g) { g.ops[0].outputs.clear(); }, "which op 'conv1' does not list among its outputs"},
        Fault{"FalseOutput", [](Graph& g) { g.ops[0].outputs = {0}; }, "op 'conv1' lists output 0 but does not make it"},
        Fault{"MadeTwice", [](Graph& g) { g.ops[1].body[0].outputs = g.ops[0].body[0].outputs; },
              "op 'bn1' makes value 'conv1' again"},
        Fault{"MadeUnknown", [](Graph& g) { g.ops[0].body[0].outputs = {-2}; }, "op 'conv1' makes value -2"},
        Fault{"UnknownParam", [](Graph& g) { g.ops[0].body[0].args[1] = ParamArg{1 << 20}; },
              "op 'conv1' reads parameter 1048576"},
        Fault{"UnlistedParam", [](Graph& g) { g.ops[0].params.clear(); }, "reads parameter 'conv1.weight' without listing it"},
        Fault{"UnknownListedParam", [](Graph& g) { g.ops[0].params = {-1}; }, "op 'conv1' lists parameter -1"},
        Fault{"ParamTwice",
              [](Graph& g) {
                g.ops[0].params = {0, 0};
              },
              "op 'conv1' lists parameter 'conv1.weight' twice"},
        Fault{"UnusedParam", [](Graph& g) { g.params.push_back({.name = "extra", .shape = {1}}); },
              "parameter 'extra' belongs to no op"},
        Fault{"UnmadeValue", [](Graph& g) { g.values.push_back({.name = "extra", .shape = {1}}); },
              "value 'extra' is made by nothing"},
        Fault{"UnlistedCall", [](Graph& g) { g.ops[0].body[0].op = "aten::system"; },
              "calls aten::system, which is not on the list"},
        Fault{"UnlistedOverload", [](Graph& g) { g.ops[0].body[0].overload = "out"; },
              "calls aten::conv2d.out, which is not on the list"},
        Fault{"MissingArgument", [](Graph& g) { g.ops[0].body[0].args.pop_back(); },
              "calls aten::conv2d with 6 arguments; allowed: 7"},
        Fault{"WrongArgument", [](Graph& g) { g.ops[0].body[0].args[3] = true; },
              "argument 3 of aten::conv2d is a bool; allowed: integer list"},
        Fault{"NoResults", [](Graph& g) { g.ops[0].body[0].outputs.clear(); }, "takes 0 results of aten::conv2d; allowed: 1"},
        Fault{"EmptyBody", [](Graph& g) { g.ops[0].body.clear(); }, "op 'conv1' has an empty body"},
        Fault{"NegativeCosts", [](Graph& g) { g.ops[0].forward_flops_per_sample = -1; }, "op 'conv1' has negative costs"}),
    [](const auto& info) { return info.param.name; });

TEST(Graph, ReportsEveryFaultAtOnce) {
  Graph graph = Small();
  graph.name.clear();
  graph.ops[0].body[0].op = "aten::exec";
  graph.params[0].name = graph.params[1].name;
  const std::string text = MessageOf(Validate(graph));
  EXPECT_THAT(text, HasSubstr("3 faults"));
  EXPECT_THAT(text, HasSubstr("no name"));
  EXPECT_THAT(text, HasSubstr("aten::exec"));
  EXPECT_THAT(text, HasSubstr("two parameters"));
}

TEST(Graph, AnyMixOfWrongIdsIsRefusedWithoutHarm) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    Graph graph = Small();
    const auto any = [&] { return static_cast<int32_t>(random()); };
    Op& op = graph.ops[random() % graph.ops.size()];
    switch (random() % 5) {
      case 0: op.inputs.push_back(any()); break;
      case 1: op.outputs.push_back(any()); break;
      case 2: op.params.push_back(any()); break;
      case 3: op.body[0].args[0] = ValueArg{any()}; break;
      default: op.body[0].outputs[0] = any(); break;
    }
    EXPECT_FALSE(Validate(graph).ok());
  }
}

TEST(Graph, FindsParametersByName) {
  const Graph graph = Small();
  EXPECT_EQ(*graph.FindParam("conv1.weight"), 0);
  EXPECT_THAT(MessageOf(graph.FindParam("nothing").status()), HasSubstr("has no parameter 'nothing'"));
}

TEST(Graph, AllowsOnlyListedCalls) {
  EXPECT_TRUE(IsAllowedAtenCall("aten::conv2d", ""));
  EXPECT_FALSE(IsAllowedAtenCall("aten::conv2d", "padding"));
  EXPECT_FALSE(IsAllowedAtenCall("aten::from_file", ""));
  EXPECT_FALSE(IsAllowedAtenCall("prim::Print", ""));
}

TEST(Graph, LosesAreChosenByFamily) {
  EXPECT_EQ(DefaultLoss(Small()), LossKind::kCrossEntropy);
  EXPECT_EQ(DefaultLoss(*BuildGraph("gpt2:layers=1")), LossKind::kNextTokenCrossEntropy);
}

}  // namespace
}  // namespace tidepool::model
