// GPT-2 (Radford et al., Language Models are Unsupervised Multitask Learners, 2019), with the parameter names and layouts of its
// Hugging Face checkpoints: projections are [in, out], and the head shares the token embedding.
#include <cmath>

#include "model/family.h"
#include "model/graph_builder.h"

namespace tidepool::model {
namespace {

constexpr double kEpsilon = 1e-5;
constexpr double kDeviation = 0.02;

struct Sizes {
  int64_t layers, width, heads, vocab, context, sequence;
  double dropout;
};

// Adds dropout where the model has any.
ValueId Drop(GraphBuilder& b, const Sizes& sizes, const std::string& name, ValueId x) {
  return sizes.dropout > 0 ? b.Dropout(name, x, sizes.dropout) : x;
}

ValueId Project(GraphBuilder& b, const std::string& name, ValueId x, int64_t out_features, double deviation, PartitionAxis axis) {
  return b.Linear(name, x,
                  {.out_features = out_features, .in_out_layout = true, .weight_init = NormalInit(deviation), .axis = axis});
}

ValueId Layer(GraphBuilder& b, const Sizes& sizes, int64_t index, ValueId x) {
  const std::string name = fmt::format("h.{}", index);
  // Projections back into the residual stream start smaller, so that its variance does not grow with depth.
  const double residual_deviation = kDeviation / std::sqrt(2.0 * static_cast<double>(sizes.layers));
  ValueId y = b.LayerNorm(name + ".ln_1", x, kEpsilon);
  y = Project(b, name + ".attn.c_attn", y, 3 * sizes.width, kDeviation, PartitionAxis::kColumn);
  y = b.Attention(name + ".attn", {y}, {.heads = sizes.heads, .causal = true, .dropout = sizes.dropout});
  y = Project(b, name + ".attn.c_proj", y, sizes.width, residual_deviation, PartitionAxis::kRow);
  y = Drop(b, sizes, name + ".attn.resid_dropout", y);
  x = b.Add(name + ".attn.add", x, y);
  y = b.LayerNorm(name + ".ln_2", x, kEpsilon);
  y = Project(b, name + ".mlp.c_fc", y, 4 * sizes.width, kDeviation, PartitionAxis::kColumn);
  y = b.Gelu(name + ".mlp.act", y, true);
  y = Project(b, name + ".mlp.c_proj", y, sizes.width, residual_deviation, PartitionAxis::kRow);
  y = Drop(b, sizes, name + ".mlp.dropout", y);
  return b.Add(name + ".mlp.add", x, y);
}

StatusOr<Graph> Build(const Spec& spec) {
  const Sizes sizes{IntegerOf(spec, "layers"),  IntegerOf(spec, "width"),    IntegerOf(spec, "heads"),   IntegerOf(spec, "vocab"),
                    IntegerOf(spec, "context"), IntegerOf(spec, "sequence"), FractionOf(spec, "dropout")};
  const Shape hidden{kBatchDim, sizes.sequence, sizes.width};
  GraphBuilder b("gpt2", "gpt2", spec.config);
  const ValueId tokens = b.Input("input_ids", DType::kI64, {kBatchDim, sizes.sequence});

  b.BeginOp("embedding", "embedding", PartitionAxis::kColumn);
  const ParamId words = b.AddParamAs("wte.weight", {sizes.vocab, sizes.width}, NormalInit(kDeviation));
  const ParamId positions = b.AddParamAs("wpe.weight", {sizes.context, sizes.width}, NormalInit(kDeviation));
  const ValueId word = b.Call("aten::embedding", {ParamArg{words}, ValueArg{tokens}, int64_t{-1}, false, false}, hidden);
  const ValueId position = b.Call("aten::slice.Tensor", {ParamArg{positions}, int64_t{0}, int64_t{0}, sizes.sequence, int64_t{1}},
                                  {sizes.sequence, sizes.width});
  ValueId x = b.EndOp(b.Call("aten::add.Tensor", {ValueArg{word}, ValueArg{position}, int64_t{1}}, hidden));
  x = Drop(b, sizes, "drop", x);
  for (int64_t i = 0; i < sizes.layers; ++i) x = Layer(b, sizes, i, x);
  x = b.LayerNorm("ln_f", x, kEpsilon);
  x = b.TiedLinear("lm_head", x, words);
  b.Rename(x, "logits");
  return b.Finish({x});
}

Status Resolve(Spec* spec) {
  const int64_t width = IntegerOf(*spec, "width"), heads = IntegerOf(*spec, "heads");
  if (width % heads != 0) {
    return InvalidArgument("option 'heads' of gpt2 is {}; allowed: a divisor of the width, {}", heads, width);
  }
  const int64_t context = IntegerOf(*spec, "context"), sequence = IntegerOf(*spec, "sequence");
  if (sequence > context) {
    return InvalidArgument("option 'sequence' of gpt2 is {}; allowed: at most the context, {}", sequence, context);
  }
  if (sequence == 0) spec->config["sequence"] = spec->config["context"];
  return {};
}

}  // namespace

const Family& Gpt2Family() {
  using Kind = OptionRule::Kind;
  static const auto* const kFamily =
      new Family{.name = "gpt2",
                 .help = "GPT-2 language models, with the parameter names of their Hugging Face checkpoints",
                 .options = {{Kind::kInteger, "layers", "12", "transformer layers", 1, 1024, {}},
                             {Kind::kInteger, "width", "768", "size of the residual stream", 1, 65536, {}},
                             {Kind::kInteger, "heads", "12", "attention heads; a divisor of the width", 1, 1024, {}},
                             {Kind::kInteger, "vocab", "50257", "size of the vocabulary", 1, 1 << 24, {}},
                             {Kind::kInteger, "context", "1024", "positions that have an embedding", 1, 1 << 20, {}},
                             {Kind::kInteger, "sequence", "0", "tokens of a sample; 0: the context", 0, 1 << 20, {}},
                             {Kind::kFraction, "dropout", "0.1", "dropout while training", 0, 0, {}}},
                 .presets = {{"gpt2", {}},
                             {"gpt2-medium", {{"layers", "24"}, {"width", "1024"}, {"heads", "16"}}},
                             {"gpt2-large", {{"layers", "36"}, {"width", "1280"}, {"heads", "20"}}},
                             {"gpt2-xl", {{"layers", "48"}, {"width", "1600"}, {"heads", "25"}}}},
                 .resolve = Resolve,
                 .build = Build};
  return *kFamily;
}

}  // namespace tidepool::model
