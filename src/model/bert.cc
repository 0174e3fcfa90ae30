// BERT (Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019), with the parameter names of its
// Hugging Face checkpoints, without the prefix "bert.".
#include "model/family.h"
#include "model/graph_builder.h"

namespace tidepool::model {
namespace {

constexpr double kEpsilon = 1e-12;
constexpr double kDeviation = 0.02;
constexpr int64_t kTokenTypes = 2;

struct Sizes {
  int64_t layers, width, heads, vocab, context, sequence, intermediate, classes;
  double dropout;
};

ValueId Drop(GraphBuilder& b, const Sizes& sizes, const std::string& name, ValueId x) {
  return sizes.dropout > 0 ? b.Dropout(name, x, sizes.dropout) : x;
}

ValueId Dense(GraphBuilder& b, const std::string& name, ValueId x, int64_t out_features, PartitionAxis axis) {
  return b.Linear(name, x, {.out_features = out_features, .weight_init = NormalInit(kDeviation), .axis = axis});
}

ValueId Embeddings(GraphBuilder& b, const Sizes& sizes, ValueId tokens, ValueId types) {
  const Shape hidden{kBatchDim, sizes.sequence, sizes.width};
  const auto lookup = [&](ParamId table, ValueId indices) {
    return b.Call("aten::embedding", {ParamArg{table}, ValueArg{indices}, int64_t{-1}, false, false}, hidden);
  };
  const auto add = [&](ValueId x, ValueId y) {
    return b.Call("aten::add.Tensor", {ValueArg{x}, ValueArg{y}, int64_t{1}}, hidden);
  };
  b.BeginOp("embeddings", "embedding", PartitionAxis::kColumn);
  const ParamId words = b.AddParam("word_embeddings.weight", {sizes.vocab, sizes.width}, NormalInit(kDeviation));
  const ParamId positions = b.AddParam("position_embeddings.weight", {sizes.context, sizes.width}, NormalInit(kDeviation));
  const ParamId kinds = b.AddParam("token_type_embeddings.weight", {kTokenTypes, sizes.width}, NormalInit(kDeviation));
  const ValueId sum = add(lookup(words, tokens), lookup(kinds, types));
  const ValueId position = b.Call("aten::slice.Tensor", {ParamArg{positions}, int64_t{0}, int64_t{0}, sizes.sequence, int64_t{1}},
                                  {sizes.sequence, sizes.width});
  const ValueId x = b.EndOp(add(sum, position));
  return Drop(b, sizes, "embeddings.dropout", b.LayerNorm("embeddings.LayerNorm", x, kEpsilon));
}

ValueId Layer(GraphBuilder& b, const Sizes& sizes, int64_t index, ValueId x, ValueId mask) {
  const std::string name = fmt::format("encoder.layer.{}", index);
  const std::string self = name + ".attention.self";
  std::vector<ValueId> qkv;
  for (const char* part : {".query", ".key", ".value"})
    qkv.push_back(Dense(b, self + part, x, sizes.width, PartitionAxis::kColumn));
  ValueId y = b.Attention(self, qkv, {.heads = sizes.heads, .mask = mask, .dropout = sizes.dropout});
  y = Dense(b, name + ".attention.output.dense", y, sizes.width, PartitionAxis::kRow);
  y = Drop(b, sizes, name + ".attention.output.dropout", y);
  x = b.LayerNorm(name + ".attention.output.LayerNorm", b.Add(name + ".attention.output.add", y, x), kEpsilon);
  y = Dense(b, name + ".intermediate.dense", x, sizes.intermediate, PartitionAxis::kColumn);
  y = b.Gelu(name + ".intermediate.act", y, false);
  y = Dense(b, name + ".output.dense", y, sizes.width, PartitionAxis::kRow);
  y = Drop(b, sizes, name + ".output.dropout", y);
  return b.LayerNorm(name + ".output.LayerNorm", b.Add(name + ".output.add", y, x), kEpsilon);
}

StatusOr<Graph> Build(const Spec& spec) {
  const Sizes sizes{IntegerOf(spec, "layers"),       IntegerOf(spec, "width"),   IntegerOf(spec, "heads"),
                    IntegerOf(spec, "vocab"),        IntegerOf(spec, "context"), IntegerOf(spec, "sequence"),
                    IntegerOf(spec, "intermediate"), IntegerOf(spec, "classes"), FractionOf(spec, "dropout")};
  GraphBuilder b("bert", "bert", spec.config);
  const Shape indices{kBatchDim, sizes.sequence};
  const ValueId tokens = b.Input("input_ids", DType::kI64, indices);
  const ValueId types = b.Input("token_type_ids", DType::kI64, indices);
  const ValueId mask = b.Input("attention_mask", DType::kI64, indices);
  ValueId x = Embeddings(b, sizes, tokens, types);
  for (int64_t i = 0; i < sizes.layers; ++i) x = Layer(b, sizes, i, x, mask);

  b.BeginOp("pooler.first_token", "select", PartitionAxis::kBatchOnly);
  ValueId pooled = b.EndOp(b.Call("aten::select.int", {ValueArg{x}, int64_t{1}, int64_t{0}}, {kBatchDim, sizes.width}));
  pooled = Dense(b, "pooler.dense", pooled, sizes.width, PartitionAxis::kColumn);
  pooled = b.Tanh("pooler.activation", pooled);
  if (sizes.classes == 0) {
    b.Rename(x, "last_hidden_state");
    b.Rename(pooled, "pooler_output");
    return b.Finish({x, pooled});
  }
  const ValueId logits = Dense(b, "classifier", Drop(b, sizes, "dropout", pooled), sizes.classes, PartitionAxis::kColumn);
  b.Rename(logits, "logits");
  return b.Finish({logits});
}

Status Resolve(Spec* spec) {
  const int64_t width = IntegerOf(*spec, "width"), heads = IntegerOf(*spec, "heads");
  if (width % heads != 0) {
    return InvalidArgument("option 'heads' of bert is {}; allowed: a divisor of the width, {}", heads, width);
  }
  const int64_t context = IntegerOf(*spec, "context"), sequence = IntegerOf(*spec, "sequence");
  if (sequence > context) {
    return InvalidArgument("option 'sequence' of bert is {}; allowed: at most the context, {}", sequence, context);
  }
  if (sequence == 0) spec->config["sequence"] = spec->config["context"];
  if (IntegerOf(*spec, "intermediate") == 0) spec->config["intermediate"] = fmt::format("{}", 4 * width);
  return {};
}

}  // namespace

const Family& BertFamily() {
  using Kind = OptionRule::Kind;
  static const auto* const kFamily = new Family{
      .name = "bert",
      .help = "BERT encoders, with the parameter names of their Hugging Face checkpoints",
      .options =
          {{Kind::kInteger, "layers", "12", "transformer layers", 1, 1024, {}},
           {Kind::kInteger, "width", "768", "size of the residual stream", 1, 65536, {}},
           {Kind::kInteger, "heads", "12", "attention heads; a divisor of the width", 1, 1024, {}},
           {Kind::kInteger, "intermediate", "0", "width of the feed-forward layer; 0: four times the width", 0, 1 << 20, {}},
           {Kind::kInteger, "vocab", "30522", "size of the vocabulary", 1, 1 << 24, {}},
           {Kind::kInteger, "context", "512", "positions that have an embedding", 1, 1 << 20, {}},
           {Kind::kInteger, "sequence", "0", "tokens of a sample; 0: the context", 0, 1 << 20, {}},
           {Kind::kInteger, "classes", "0", "width of a classifier on the pooled output; 0: none", 0, 1 << 20, {}},
           {Kind::kFraction, "dropout", "0.1", "dropout while training", 0, 0, {}}},
      .presets = {{"bert-base", {}}, {"bert-large", {{"layers", "24"}, {"width", "1024"}, {"heads", "16"}}}},
      .resolve = Resolve,
      .build = Build};
  return *kFamily;
}

}  // namespace tidepool::model
