#include "model/families.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "model/cost.h"
#include "model/graph_json.h"
#include "profile/networks.h"

namespace tidepool::model {
namespace {

using ::testing::HasSubstr;

Graph Build(std::string_view spec) {
  StatusOr<Graph> graph = BuildGraph(spec);
  EXPECT_TRUE(graph.ok()) << spec << ": " << ToString(graph.status());
  return graph.ok() ? *std::move(graph) : Graph{};
}

TEST(Families, EveryPresetAndFamilyBuildsAValidGraph) {
  ASSERT_EQ(Families().size(), 5u);
  for (const FamilyInfo& family : Families()) {
    EXPECT_TRUE(Validate(Build(family.name)).ok());
    for (const std::string& preset : family.presets) {
      const Graph graph = Build(preset);
      EXPECT_TRUE(Validate(graph).ok()) << preset;
      EXPECT_EQ(graph.family, family.name);
      EXPECT_EQ(graph.config.size(), family.options.size()) << preset;
    }
  }
}

TEST(Families, HaveThePublishedNumbersOfParameters) {
  const std::vector<std::pair<std::string, int64_t>> published = {
      {"resnet18", 11'689'512},   {"resnet34", 21'797'672},   {"resnet50", 25'557'032},     {"resnet101", 44'549'160},
      {"resnet152", 60'192'808},  {"gpt2", 124'439'808},      {"gpt2-medium", 354'823'168}, {"gpt2-large", 774'030'080},
      {"gpt2-xl", 1'557'611'200}, {"bert-base", 109'482'240}, {"bert-large", 335'141'888}};
  for (const auto& [preset, parameters] : published) EXPECT_EQ(Build(preset).trainable_parameters(), parameters) << preset;
}

TEST(Families, HaveThePublishedNumbersOfMultiplyAdds) {
  // Multiply-adds in millions, of convolutions and matrix products only.
  EXPECT_NEAR(Build("resnet18").forward_flops_per_sample() / 2e6, 1814, 1);
  EXPECT_NEAR(Build("resnet50").forward_flops_per_sample() / 2e6, 4089, 1);
  EXPECT_NEAR(Build("resnet152").forward_flops_per_sample() / 2e6, 11514, 1);
  // 12 layers of 12 W^2 T + 2 W T^2, and the head.
  const double t = 1024, w = 768;
  EXPECT_EQ(Build("gpt2").forward_flops_per_sample(), 2 * (12 * (12 * w * w * t + 2 * w * t * t) + w * t * 50257));
}

TEST(Cost, OfAKnownNetworkIsWhatItsTableSays) {
  const Graph graph = BuildGraph("resnet50").value();
  const profile::KnownNetwork* known = profile::FindNetwork("resnet50");
  ASSERT_NE(known, nullptr);
  for (const auto phase :
       {profile::Phase::kForward, profile::Phase::kBackward, profile::Phase::kStep, profile::Phase::kOptimizer}) {
    const profile::OpCost counted = CostOf(graph, phase), table = profile::CostOf(*known, phase, DType::kF32);
    // The table leaves the gradient of the first convolution's input out, and counts layers instead of calls.
    EXPECT_NEAR(counted.flops_per_sample, table.flops_per_sample, 0.03 * table.flops_per_sample);
    EXPECT_NEAR(counted.fixed_bytes, table.fixed_bytes, 0.03 * table.fixed_bytes);
    EXPECT_NEAR(counted.bytes_per_sample, table.bytes_per_sample, 0.4 * table.bytes_per_sample);
    if (phase == profile::Phase::kStep || phase == profile::Phase::kOptimizer) continue;  // the table's optimizer is one kernel
    EXPECT_NEAR(counted.launches, table.launches, 0.2 * table.launches);
  }
  EXPECT_GT(CostOf(graph, profile::Phase::kOptimizer, 2).fixed_bytes, CostOf(graph, profile::Phase::kOptimizer, 1).fixed_bytes);
}

TEST(Families, NameParametersAsThePublicCheckpointsDo) {
  const auto names = [](std::string_view spec) {
    std::set<std::string> result;
    for (const Param& param : Build(spec).params) result.insert(param.name);
    return result;
  };
  EXPECT_THAT(names("resnet18"),
              ::testing::IsSupersetOf({"conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked",
                                       "layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "fc.bias"}));
  EXPECT_EQ(names("resnet18").size(), 122u);
  EXPECT_THAT(names("gpt2"),
              ::testing::IsSupersetOf({"wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.11.attn.c_attn.bias",
                                       "h.3.attn.c_proj.weight", "h.3.mlp.c_fc.weight", "h.3.mlp.c_proj.bias", "ln_f.weight"}));
  EXPECT_EQ(names("gpt2").size(), 148u);
  EXPECT_THAT(
      names("bert-base"),
      ::testing::IsSupersetOf({"embeddings.word_embeddings.weight", "embeddings.LayerNorm.bias",
                               "encoder.layer.11.attention.self.query.weight", "encoder.layer.0.attention.output.dense.bias",
                               "encoder.layer.0.attention.output.LayerNorm.weight", "encoder.layer.0.intermediate.dense.weight",
                               "encoder.layer.0.output.LayerNorm.bias", "pooler.dense.weight"}));
  EXPECT_EQ(names("bert-base").size(), 199u);
  EXPECT_TRUE(names("bert:layers=1,classes=3").contains("classifier.weight"));
}

TEST(Families, LayOutGpt2ProjectionsAsItsCheckpointsDo) {
  const Graph graph = Build("gpt2:layers=1,width=32,heads=4");
  EXPECT_EQ(graph.params[*graph.FindParam("h.0.attn.c_attn.weight")].shape, (Shape{32, 96}));
  EXPECT_EQ(graph.params[*graph.FindParam("h.0.mlp.c_proj.weight")].shape, (Shape{128, 32}));
}

TEST(Families, ShareTheTokenEmbeddingWithTheHead) {
  const Graph graph = Build("gpt2:layers=1,width=32,heads=4,vocab=100,context=16");
  const ParamId words = *graph.FindParam("wte.weight");
  EXPECT_EQ(graph.ops.back().params, std::vector<ParamId>{words});
  EXPECT_EQ(graph.ops.front().params.front(), words);
  EXPECT_EQ(graph.values[graph.outputs[0]].shape, (Shape{kBatchDim, 16, 100}));
}

TEST(Families, BuildTheSmallStemWithoutPooling) {
  const Graph graph = Build("resnet18:image=32,small_stem=true,width=16,classes=10");
  EXPECT_EQ(graph.params[*graph.FindParam("conv1.weight")].shape, (Shape{16, 3, 3, 3}));
  for (const Op& op : graph.ops) EXPECT_NE(op.kind, "max_pool2d");
  EXPECT_EQ(graph.values[graph.outputs[0]].name, "logits");
  EXPECT_EQ(graph.values[graph.outputs[0]].shape, (Shape{kBatchDim, 10}));
}

TEST(Families, BeginResidualBlocksAsTheIdentityIfAsked) {
  for (const int depth : {18, 50}) {
    const std::string spec = fmt::format("resnet{}:image=32,width=8,classes=10", depth);
    const Graph plain = Build(spec), zero = Build(spec + ",zero_init_residual=true");
    ASSERT_EQ(plain.params.size(), zero.params.size());
    const std::string last = depth == 18 ? ".bn2.weight" : ".bn3.weight";
    int changed = 0;
    for (size_t i = 0; i < plain.params.size(); ++i) {
      EXPECT_EQ(plain.params[i].name, zero.params[i].name);
      if (plain.params[i].init.rule == zero.params[i].init.rule) continue;
      ++changed;
      EXPECT_TRUE(zero.params[i].name.starts_with("layer") && zero.params[i].name.ends_with(last)) << zero.params[i].name;
      EXPECT_EQ(zero.params[i].init.rule, Init::Rule::kZeros);
    }
    EXPECT_EQ(changed, depth == 18 ? 8 : 16) << "one in each block";
  }
}

TEST(Families, LetTheDecoderOfT5AttendToTheEncoder) {
  const Graph graph = Build("t5:layers=2,width=32,heads=4,channels=16,vocab=100,sequence=24,target=8,dropout=0");
  ASSERT_EQ(graph.inputs.size(), 2u);
  EXPECT_EQ(graph.values[graph.outputs[0]].shape, (Shape{kBatchDim, 8, 100}));
  EXPECT_EQ(graph.params[*graph.FindParam("encoder.0.attn.qkv.weight")].shape, (Shape{3 * 64, 32}));
  EXPECT_EQ(graph.params[*graph.FindParam("decoder.1.cross.k.weight")].shape, (Shape{64, 32}));
  int shared = 0;
  const ParamId words = *graph.FindParam("shared.weight");
  for (const Op& op : graph.ops) {
    shared += std::find(op.params.begin(), op.params.end(), words) != op.params.end();
    if (op.name == "decoder.0.cross") {
      // Copies of queries, keys and values, the probabilities of 8 x 24 pairs, and the result, which the projection after it
      // keeps.
      EXPECT_EQ(op.activation_bytes_per_sample, 4 * (8 * 64 + 2 * 24 * 64 + 4 * 8 * 24 + 8 * 64));
    }
  }
  EXPECT_EQ(shared, 3) << "both embeddings and the head";
  EXPECT_EQ(DefaultLoss(graph), LossKind::kNextTokenCrossEntropy);
}

TEST(Families, WidenTheMiddleOfAWideResNetsBlocks) {
  const Graph graph = Build("wresnet:channels=8,widen=4,image=64,classes=10");
  EXPECT_EQ(graph.params[*graph.FindParam("layer2.0.conv1.weight")].shape, (Shape{16, 32, 1, 1}));
  EXPECT_EQ(graph.params[*graph.FindParam("layer2.0.conv2.weight")].shape, (Shape{64, 16, 3, 3}));
  EXPECT_EQ(graph.params[*graph.FindParam("layer2.0.conv3.weight")].shape, (Shape{64, 64, 1, 1}));
  // Bottlenecks of width 1 are those of ResNet-50.
  EXPECT_EQ(Build("wresnet:channels=64,widen=1").trainable_parameters(), Build("resnet50").trainable_parameters());
}

TEST(Families, GiveBertItsOutputsByClasses) {
  const Graph encoder = Build("bert:layers=1,width=32,heads=4,context=16");
  ASSERT_EQ(encoder.outputs.size(), 2u);
  EXPECT_EQ(encoder.values[encoder.outputs[0]].name, "last_hidden_state");
  EXPECT_EQ(encoder.values[encoder.outputs[1]].name, "pooler_output");
  const Graph classifier = Build("bert:layers=1,width=32,heads=4,context=16,classes=5");
  ASSERT_EQ(classifier.outputs.size(), 1u);
  EXPECT_EQ(classifier.values[classifier.outputs[0]].shape, (Shape{kBatchDim, 5}));
  EXPECT_EQ(classifier.inputs.size(), 3u);
}

TEST(Families, MakeDropoutOpsOnlyWhereThereIsDropout) {
  const auto dropouts = [](const Graph& graph) {
    int count = 0;
    for (const Op& op : graph.ops) {
      for (const AtenCall& call : op.body) count += call.op == "aten::dropout";
    }
    return count;
  };
  EXPECT_EQ(dropouts(Build("gpt2:layers=2,dropout=0")), 0);
  EXPECT_EQ(dropouts(Build("gpt2:layers=2,dropout=0.1")), 1 + 2 * 3);
  EXPECT_EQ(dropouts(Build("bert:layers=2,dropout=0.1,classes=2")), 1 + 2 * 3 + 1);
}

TEST(Families, ReadBackTheConfigurationOfAGraph) {
  for (const char* text :
       {"resnet50:classes=100,image=64", "gpt2:layers=3,width=48,heads=6,vocab=300,context=64,sequence=32,dropout=0.25",
        "bert:layers=1,width=32,heads=2,classes=7"}) {
    const Graph graph = Build(text);
    const Spec spec{graph.family, graph.config};
    StatusOr<Spec> parsed = ParseSpec(ToText(spec));
    ASSERT_TRUE(parsed.ok()) << ToString(parsed.status());
    EXPECT_EQ(parsed->config, graph.config);
    EXPECT_EQ(ToJson(*BuildGraph(*parsed)), ToJson(graph));
  }
}

TEST(Families, CountEachKeptTensorOnce) {
  // conv1 keeps the image; bn keeps conv1's result; relu's result is kept by relu, pool or the block, once.
  const Graph graph = Build("resnet18:image=32,small_stem=true,width=8,classes=10");
  const int64_t plane = 4 * 8 * 32 * 32;
  EXPECT_EQ(graph.ops[0].name, "conv1");
  EXPECT_EQ(graph.ops[0].activation_bytes_per_sample, plane + 4 * 3 * 32 * 32);
  EXPECT_EQ(graph.ops[1].activation_bytes_per_sample, 0);
  EXPECT_EQ(graph.ops[2].activation_bytes_per_sample, plane);
  EXPECT_EQ(graph.ops.back().activation_bytes_per_sample, 0);
}

TEST(Families, CountWhatAttentionKeeps) {
  const Graph graph = Build("gpt2:layers=1,width=8,heads=2,vocab=10,context=4,dropout=0");
  for (const Op& op : graph.ops) {
    if (op.kind != "attention") continue;
    // Copies of queries, keys and values, the probabilities, and the result, which the projection after it keeps.
    EXPECT_EQ(op.activation_bytes_per_sample, 4 * (3 * 4 * 8 + 2 * 4 * 4 + 4 * 8));
  }
}

TEST(Families, SurviveRandomSpecs) {
  std::mt19937 random(11);
  const std::string letters = "resnet18gpt2bert:=,0.-e+layerswidthheads";
  for (int round = 0; round < 20'000; ++round) {
    std::string text = random() % 2 ? "gpt2:layers=2,width=64,heads=4" : "resnet18:classes=10";
    for (uint32_t change = 0; change < 1 + random() % 3; ++change) {
      const size_t at = random() % (text.size() + 1);
      text.replace(at, random() % 3, 1, letters[random() % letters.size()]);
    }
    const StatusOr<Spec> spec = ParseSpec(text);
    if (!spec.ok()) {
      EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument) << text;
      continue;
    }
    const StatusOr<Spec> again = ParseSpec(ToText(*spec));
    ASSERT_TRUE(again.ok()) << text;
    EXPECT_EQ(again->config, spec->config) << text;
  }
}

struct Refusal {
  std::string spec, text;
};

class RefusedSpecs : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusedSpecs, NameTheFault) {
  const StatusOr<Spec> spec = ParseSpec(GetParam().spec);
  ASSERT_FALSE(spec.ok());
  EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(spec.status()), HasSubstr(GetParam().text));
}

INSTANTIATE_TEST_SUITE_P(
    Families, RefusedSpecs,
    ::testing::Values(Refusal{"", "model '' is unknown; allowed: resnet, resnet101"},
                      Refusal{"vgg16", "model 'vgg16' is unknown"}, Refusal{"resnet18:", "ends after ':'"},
                      Refusal{"resnet18:classes", "'classes' in spec 'resnet18:classes' is not option=value"},
                      Refusal{"resnet18:=3", "is not option=value"}, Refusal{"resnet18:classes=10,", "ends with ','"},
                      Refusal{"resnet18:classes=10,classes=11", "option 'classes' appears twice"},
                      Refusal{
                          "resnet18:colour=1",
                          "resnet has no option 'colour'; allowed: depth, classes, image, width, small_stem, zero_init_residual"},
                      Refusal{"resnet:depth=19", "option 'depth' of resnet is '19'; allowed: 18, 34, 50, 101, 152"},
                      Refusal{"resnet18:classes=ten", "option 'classes' of resnet is 'ten'; allowed: 1 to 1048576"},
                      Refusal{"resnet18:classes=0", "'0'; allowed: 1 to 1048576"},
                      Refusal{"resnet18:image=99999999999999999999", "allowed: 8 to 4096"},
                      Refusal{"resnet18:small_stem=yes", "allowed: true, false"},
                      Refusal{"gpt2:heads=7", "'heads' of gpt2 is 7; allowed: a divisor of the width, 768"},
                      Refusal{"gpt2:context=8,sequence=9", "'sequence' of gpt2 is 9; allowed: at most the context, 8"},
                      Refusal{"gpt2:dropout=1", "'dropout' of gpt2 is '1'; allowed: a number from 0"},
                      Refusal{"gpt2:dropout=nan", "allowed: a number from 0"}, Refusal{"bert:heads=5", "'heads' of bert is 5"},
                      Refusal{"t5:heads=7", "'heads' of t5 is 7; allowed: a divisor of the width, 512, or any with channels"},
                      Refusal{"wresnet:depth=18", "'depth' of wresnet is '18'; allowed: 50, 101"},
                      Refusal{"bert:sequence=513", "allowed: at most the context, 512"}));

}  // namespace
}  // namespace tidepool::model
