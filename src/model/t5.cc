// Encoder-decoder transformers after T5 (Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text
// Transformer, JMLR 2020) in the form in which Megatron-LM trains them: learned positions, layer norms with bias, GELU, one
// token embedding for encoder, decoder and head. Heads may be wider or narrower than width / heads. Parameter names are ours.
#include <cmath>

#include "model/family.h"
#include "model/graph_builder.h"

namespace tidepool::model {
namespace {

constexpr double kEpsilon = 1e-5;
constexpr double kDeviation = 0.02;

struct Sizes {
  int64_t layers, width, heads, channels, ffn, vocab, sequence, target;
  double dropout;
  int64_t inner() const { return heads * channels; }
};

class Builder {
 public:
  Builder(GraphBuilder* b, const Sizes& sizes) : b_(*b), sizes_(sizes) {}

  ValueId Drop(const std::string& name, ValueId x) { return sizes_.dropout > 0 ? b_.Dropout(name, x, sizes_.dropout) : x; }

  ValueId Project(const std::string& name, ValueId x, int64_t out_features, PartitionAxis axis) {
    // Projections back into the residual stream start smaller, so that its variance does not grow with depth.
    const double deviation =
        axis == PartitionAxis::kRow ? kDeviation / std::sqrt(2.0 * static_cast<double>(sizes_.layers)) : kDeviation;
    return b_.Linear(name, x, {.out_features = out_features, .weight_init = NormalInit(deviation), .axis = axis});
  }

  // Token and position embedding. `words` is made by the first call and shared by the second.
  ValueId Embed(const std::string& name, ValueId tokens, int64_t time, ParamId* words) {
    const Shape hidden{kBatchDim, time, sizes_.width};
    b_.BeginOp(name, "embedding", PartitionAxis::kColumn);
    if (*words < 0) *words = b_.AddParamAs("shared.weight", {sizes_.vocab, sizes_.width}, NormalInit(kDeviation));
    const ParamId positions = b_.AddParam("positions.weight", {time, sizes_.width}, NormalInit(kDeviation));
    const ValueId word = b_.Call("aten::embedding", {ParamArg{*words}, ValueArg{tokens}, int64_t{-1}, false, false}, hidden);
    const ValueId x = b_.EndOp(b_.Call("aten::add.Tensor", {ValueArg{word}, ParamArg{positions}, int64_t{1}}, hidden));
    return Drop(name + ".dropout", x);
  }

  ValueId SelfAttention(const std::string& name, ValueId x, bool causal) {
    ValueId y = b_.LayerNorm(name + ".ln", x, kEpsilon);
    y = Project(name + ".qkv", y, 3 * sizes_.inner(), PartitionAxis::kColumn);
    return Finish(name, x, b_.Attention(name, {y}, {.heads = sizes_.heads, .causal = causal, .dropout = sizes_.dropout}));
  }

  ValueId CrossAttention(const std::string& name, ValueId x, ValueId memory) {
    const ValueId y = b_.LayerNorm(name + ".ln", x, kEpsilon);
    const ValueId query = Project(name + ".q", y, sizes_.inner(), PartitionAxis::kColumn);
    const ValueId key = Project(name + ".k", memory, sizes_.inner(), PartitionAxis::kColumn);
    const ValueId value = Project(name + ".v", memory, sizes_.inner(), PartitionAxis::kColumn);
    return Finish(name, x, b_.Attention(name, {query, key, value}, {.heads = sizes_.heads, .dropout = sizes_.dropout}));
  }

  ValueId FeedForward(const std::string& name, ValueId x) {
    ValueId y = b_.LayerNorm(name + ".ln", x, kEpsilon);
    y = Project(name + ".fc", y, sizes_.ffn, PartitionAxis::kColumn);
    y = b_.Gelu(name + ".act", y, true);
    y = Project(name + ".proj", y, sizes_.width, PartitionAxis::kRow);
    return b_.Add(name + ".add", x, Drop(name + ".dropout", y));
  }

 private:
  ValueId Finish(const std::string& name, ValueId x, ValueId attended) {
    const ValueId y = Project(name + ".proj", attended, sizes_.width, PartitionAxis::kRow);
    return b_.Add(name + ".add", x, Drop(name + ".resid_dropout", y));
  }

  GraphBuilder& b_;
  const Sizes& sizes_;
};

StatusOr<Graph> Build(const Spec& spec) {
  const Sizes sizes{IntegerOf(spec, "layers"),   IntegerOf(spec, "width"),  IntegerOf(spec, "heads"),
                    IntegerOf(spec, "channels"), IntegerOf(spec, "ffn"),    IntegerOf(spec, "vocab"),
                    IntegerOf(spec, "sequence"), IntegerOf(spec, "target"), FractionOf(spec, "dropout")};
  GraphBuilder b("t5", "t5", spec.config);
  Builder t(&b, sizes);
  const ValueId source = b.Input("input_ids", DType::kI64, {kBatchDim, sizes.sequence});
  const ValueId target = b.Input("decoder_input_ids", DType::kI64, {kBatchDim, sizes.target});
  ParamId words = -1;
  ValueId x = t.Embed("encoder.embedding", source, sizes.sequence, &words);
  for (int64_t i = 0; i < sizes.layers; ++i) {
    const std::string name = fmt::format("encoder.{}", i);
    x = t.SelfAttention(name + ".attn", x, false);
    x = t.FeedForward(name + ".mlp", x);
  }
  const ValueId memory = b.LayerNorm("encoder.ln_f", x, kEpsilon);
  x = t.Embed("decoder.embedding", target, sizes.target, &words);
  for (int64_t i = 0; i < sizes.layers; ++i) {
    const std::string name = fmt::format("decoder.{}", i);
    x = t.SelfAttention(name + ".attn", x, true);
    x = t.CrossAttention(name + ".cross", x, memory);
    x = t.FeedForward(name + ".mlp", x);
  }
  x = b.LayerNorm("decoder.ln_f", x, kEpsilon);
  x = b.TiedLinear("lm_head", x, words);
  b.Rename(x, "logits");
  return b.Finish({x});
}

Status Resolve(Spec* spec) {
  const int64_t width = IntegerOf(*spec, "width"), heads = IntegerOf(*spec, "heads");
  if (IntegerOf(*spec, "channels") == 0) {
    if (width % heads != 0) {
      return InvalidArgument("option 'heads' of t5 is {}; allowed: a divisor of the width, {}, or any with channels", heads,
                             width);
    }
    spec->config["channels"] = fmt::format("{}", width / heads);
  }
  if (IntegerOf(*spec, "ffn") == 0) spec->config["ffn"] = fmt::format("{}", 4 * width);
  return {};
}

// A size of which plans were published: 24 or 48 layers of width 1024, sources of 2048 and targets of 512 tokens.
std::map<std::string, std::string> PublishedSize(const char* layers, const char* heads, const char* channels, const char* ffn) {
  return {{"layers", layers}, {"width", "1024"},  {"heads", heads},     {"channels", channels},
          {"ffn", ffn},       {"vocab", "30592"}, {"sequence", "2048"}, {"target", "512"}};
}

}  // namespace

const Family& T5Family() {
  using Kind = OptionRule::Kind;
  static const auto* const kFamily = new Family{
      .name = "t5",
      .help = "T5 encoder-decoder models as Megatron-LM trains them",
      .options = {{Kind::kInteger, "layers", "6", "layers of the encoder, and of the decoder", 1, 1024, {}},
                  {Kind::kInteger, "width", "512", "size of the residual stream", 1, 65536, {}},
                  {Kind::kInteger, "heads", "8", "attention heads", 1, 1024, {}},
                  {Kind::kInteger, "channels", "0", "channels of a head; 0: the width divided by the heads", 0, 4096, {}},
                  {Kind::kInteger, "ffn", "0", "width of the feed-forward layer; 0: four times the width", 0, 1 << 20, {}},
                  {Kind::kInteger, "vocab", "32128", "size of the vocabulary", 1, 1 << 24, {}},
                  {Kind::kInteger, "sequence", "512", "tokens of a source", 1, 1 << 20, {}},
                  {Kind::kInteger, "target", "128", "tokens of a target", 1, 1 << 20, {}},
                  {Kind::kFraction, "dropout", "0.1", "dropout while training", 0, 0, {}}},
      .presets = {{"t5-770m", PublishedSize("24", "16", "64", "4096")},
                  {"t5-3b", PublishedSize("24", "32", "128", "16384")},
                  {"t5-6b", PublishedSize("24", "64", "128", "32768")},
                  {"t5-11b", PublishedSize("24", "128", "128", "65536")},
                  {"t5-22b", PublishedSize("48", "128", "128", "65536")}},
      .resolve = Resolve,
      .build = Build};
  return *kFamily;
}

}  // namespace tidepool::model
