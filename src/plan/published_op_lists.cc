// The op lists of the published planning databases: Lin et al., Aceso, EuroSys 2024; sizes of GPT and T5 as trained with
// Megatron-LM, Wide-ResNet after Zagoruyko and Komodakis, Wide Residual Networks, 2016. docs/plan.md lists the ops.
#include <fmt/ranges.h>

#include <charconv>
#include <span>

#include "base/text.h"
#include "plan/op_list.h"

namespace tidepool::plan {
namespace {

constexpr Layout kReplicated3D{Split::kTensor, {Split::kNone, Split::kData, Split::kNone}};  // [time, batch / d, hidden]
constexpr Layout kHidden{Split::kNone, {Split::kNone, Split::kData, Split::kTensor}};        // [time, batch / d, hidden / t]
constexpr Layout kHeads{Split::kNone, {Split::kData, Split::kTensor, Split::kNone}};         // [batch / d, heads / t, .]
constexpr Layout kBatchFirst{Split::kTensor, {Split::kData, Split::kNone, Split::kNone}};    // [batch / d, ...]

struct GptSize {
  const char* name;
  const char* file_size;
  int64_t layers, hidden, heads;
};
constexpr GptSize kGptSizes[] = {{"350m", "350M", 24, 1024, 16},
                                 {"1.3b", "1_3B", 24, 2048, 32},
                                 {"2.6b", "2_6B", 32, 2560, 32},
                                 {"6.7b", "6_7B", 32, 4096, 32},
                                 {"13b", "13B", 40, 5120, 40}};
constexpr GptSize kScaledDepth = {"", "scale-layer", 0, 512, 8};
constexpr int64_t kMaxScaledLayers = 4096;

struct T5Size {
  const char* name;
  const char* file_size;
  const char* profile;  // the size whose rows it has
  int64_t layers, ffn, heads, kv_channels;
};
constexpr T5Size kT5Sizes[] = {{"770m", "770M", "770m", 24, 4096, 16, 64},
                               {"3b", "3B", "3b", 24, 16384, 32, 128},
                               {"6b", "6B", "6b", 24, 32768, 64, 128},
                               {"11b", "11B", "11b", 24, 65536, 128, 128},
                               {"22b", "22B", "11b", 48, 65536, 128, 128}};

struct ResNetSize {
  const char* name;
  const char* file_size;
  int64_t third_group, channels, width;
};
constexpr ResNetSize kResNetSizes[] = {{"500m", "500M", 6, 224, 2}, {"1b", "1B", 6, 320, 2},      {"2b", "2B", 6, 448, 2},
                                       {"4b", "4B", 6, 640, 2},     {"6.8b", "6_8B", 6, 320, 16}, {"13b", "13B", 23, 320, 16}};

// Numbers of one op for one sample, in elements.
struct Cost {
  int64_t parameters = 0, flops = 0, input = 0, output = 0, activation = 0;
};

// Collects distinct ops and their sequence.
class Builder {
 public:
  Builder(std::string name, DType dtype) {
    list_.name = std::move(name);
    list_.dtype = dtype;
  }
  OpList& list() { return list_; }
  int32_t position() const { return list_.size(); }

  DistinctOp& Add(const std::string& name, const std::string& kind, const Cost& cost) {
    const int64_t element = SizeOf(list_.dtype);
    DistinctOp op;
    op.name = name;
    op.kind = kind;
    op.parameters = cost.parameters;
    op.forward_flops_per_sample = cost.flops;
    op.input_bytes_per_sample = cost.input * element;
    op.output_bytes_per_sample = cost.output * element;
    op.activation_bytes_per_sample = cost.activation * element;
    list_.ops.push_back(static_cast<uint16_t>(list_.distinct.size()));
    list_.distinct.push_back(std::move(op));
    return list_.distinct.back();
  }
  // The ops from `first` on are a layer; it comes `layers` times. The skip tensors are offsets within the layer.
  void Repeat(int32_t first, int64_t layers, std::span<const SkipTensor> skips) {
    const int32_t period = position() - first;
    for (int64_t layer = 0; layer < layers; ++layer) {
      const int32_t start = first + period * static_cast<int32_t>(layer);
      for (const SkipTensor& skip : skips) list_.skips.push_back({start + skip.producer, start + skip.consumer});
      if (layer > 0) {
        for (int32_t i = 0; i < period; ++i) list_.ops.push_back(list_.ops[first + i]);
      }
    }
    list_.segments.push_back({first, period, static_cast<int32_t>(layers)});
  }

 private:
  OpList list_;
};

struct Transformer {
  int64_t hidden, heads, kv_channels, ffn, vocab;
  bool two_algorithms;
  int64_t inner() const { return heads * kv_channels; }
};

void Same(DistinctOp& op, const Layout& layout) { op.algorithms = {{layout, layout}}; }
void Column(DistinctOp& op, bool two) {
  op.tunable = true;
  op.algorithms = {{kReplicated3D, kHidden}};
  if (two) op.algorithms.push_back({kHidden, kReplicated3D});
}
void Row(DistinctOp& op, bool two) {
  op.tunable = true;
  op.algorithms = {{kHidden, kReplicated3D}};
  if (two) op.algorithms.push_back({kReplicated3D, kHidden});
}

void AddLayerNorm(Builder& b, const Transformer& t, const std::string& name, int64_t time, int64_t passing, bool first) {
  const int64_t x = time * t.hidden;
  DistinctOp& op = b.Add(name, "layer_norm", {0, 0, passing + x, passing + 2 * x, x});
  Same(op, kReplicated3D);
  op.starts_layer = first;
  op.recompute_seed = !first;
}

// The seven ops of attention after its layer norm. `keys` is the length that is attended to.
struct AttentionNames {
  std::string prefix, suffix;
};
void AddAttention(Builder& b, const Transformer& t, const AttentionNames& names, int64_t time, int64_t keys, int64_t passing) {
  const int64_t x = time * t.hidden, q = time * t.inner(), kv = keys * t.inner(), scores = t.heads * time * keys;
  const int64_t skip = passing + x;
  const bool corrected = names.prefix == "enc-";  // the original corrects the encoder's ops only
  const auto name = [&](const char* op) { return names.prefix + op + names.suffix; };
  const int64_t projection_flops = 2 * t.hidden * t.inner() * (time + 2 * keys);
  Column(b.Add(name("attention-qkv"), "linear",
               {3 * t.hidden * t.inner(), projection_flops, skip + x, skip + q + 2 * kv, q + 2 * kv}),
         t.two_algorithms);
  DistinctOp& score =
      b.Add(name("attention-score"), "attention_score", {0, 2 * q * keys, skip + q + 2 * kv, skip + kv + scores, scores});
  score.algorithms = {{kHidden, kHeads}};
  score.live_factor = 0;  // the softmax keeps its own output, and nothing reads the scores again
  DistinctOp& softmax = b.Add(name("attention-softmax"), "softmax", {0, 0, skip + kv + scores, skip + kv + scores, scores});
  Same(softmax, kHeads);
  if (corrected) softmax.activation_factor = 0;
  DistinctOp& dropout =
      b.Add(name("attention-dropout"), "dropout", {0, 0, skip + kv + scores, skip + kv + scores, scores + scores / 2});
  Same(dropout, kHeads);
  if (corrected) dropout.activation_factor = 1.5;
  DistinctOp& context = b.Add(name("attention-context"), "attention_context", {0, 2 * q * keys, skip + kv + scores, skip + q, q});
  context.algorithms = {{kHeads, kHidden}};
  Row(b.Add(name("attention-dense"), "linear", {t.hidden * t.inner(), 2 * t.inner() * x, skip + q, skip + x, x}),
      t.two_algorithms);
  Same(b.Add(names.prefix + "post-attention-dropout" + names.suffix, "dropout", {0, 0, skip + x, passing + x, x + x / 2}),
       kReplicated3D);
}

void AddMlp(Builder& b, const Transformer& t, const std::string& prefix, int64_t time, int64_t passing) {
  const int64_t x = time * t.hidden, wide = time * t.ffn, weights = t.hidden * t.ffn, flops = 2 * time * weights;
  Column(b.Add(prefix + "MLP-GEMM-1", "linear", {weights, flops, passing + 2 * x, passing + x + wide, wide}), t.two_algorithms);
  Same(b.Add(prefix + "MLP-gelu", "gelu", {0, 0, passing + x + wide, passing + x + wide, wide}), kHidden);
  Row(b.Add(prefix + "MLP-GEMM-2", "linear", {weights, flops, passing + x + wide, passing + 2 * x, x}), t.two_algorithms);
  Same(b.Add(prefix + "post-MLP-dropout", "dropout", {0, 0, passing + 2 * x, passing + x, x + x / 2}), kReplicated3D);
}

void AddEmbedding(Builder& b, const Transformer& t, const std::string& name, int64_t time, int64_t positions, int64_t passing) {
  const int64_t x = time * t.hidden;
  DistinctOp& op =
      b.Add(name, "embedding", {(t.vocab + positions) * t.hidden, 0, passing > 0 ? passing : 2 * time, passing + x, x + x / 2});
  Same(op, kReplicated3D);
  op.tunable = true;
  op.recompute_seed = false;
}

void AddFinalNorm(Builder& b, const Transformer& t, const std::string& name, int64_t time, int64_t passing) {
  const int64_t x = time * t.hidden;
  DistinctOp& op = b.Add(name, "layer_norm", {0, 0, passing + x, passing + x, x});
  Same(op, kReplicated3D);
}

void AddLoss(Builder& b, const Transformer& t, const std::string& name, int64_t time) {
  const int64_t x = time * t.hidden, logits = time * t.vocab;
  DistinctOp& op = b.Add(name, "loss", {t.vocab * t.hidden, 2 * x * t.vocab, x, 0, 2 * logits});
  Same(op, kBatchFirst);
  op.recompute_seed = false;
}

// From the layer norm to the dropout that adds its input back, and the values past the scores.
// Offsets within a layer: the first layer norm is 0, qkv 1, context 5, the dropout after attention 7, and so on.
constexpr SkipTensor kEncoderSkips[] = {{0, 7}, {1, 5}, {8, 12}};
constexpr SkipTensor kDecoderSkips[] = {{0, 7}, {1, 5}, {8, 15}, {9, 13}, {16, 20}};

StatusOr<OpList> Gpt(std::string name, const GptSize& size, int64_t layers) {
  constexpr int64_t kTime = 2048;
  const bool scaled = std::string_view(size.file_size) == kScaledDepth.file_size;
  const Transformer t{size.hidden, size.heads, size.hidden / size.heads, 4 * size.hidden, 51200, true};
  Builder b(std::move(name), DType::kF16);
  OpList& list = b.list();
  AddEmbedding(b, t, "encoder-embedding", kTime, kTime, 0);
  const int32_t layer = b.position();
  AddLayerNorm(b, t, "enc-1st-layernorm", kTime, 0, true);
  AddAttention(b, t, {"enc-", ""}, kTime, kTime, 0);
  AddLayerNorm(b, t, "enc-2nd-layernorm", kTime, 0, false);
  AddMlp(b, t, "enc-", kTime, 0);
  b.Repeat(layer, layers, kEncoderSkips);
  AddFinalNorm(b, t, "final-layernorm", kTime, 0);
  list.distinct.back().algorithms = {{kReplicated3D, kBatchFirst}};
  AddLoss(b, t, "gpt-post-process", kTime);
  list.tied = {{{0, b.position() - 1}, t.vocab * t.hidden}};
  list.profile_model = scaled ? "gpt-layers" : list.name;
  list.master_factor = 2;
  list.optimizer_factor = 4;
  list.file_model_name = "gpt";
  list.file_model_size = size.file_size;
  list.file_num_layers = {layers};
  list.file_numbers = {{"seq_length", kTime},
                       {"max_position_embeddings", kTime},
                       {"num_attention_heads", size.heads},
                       {"hidden_size", size.hidden}};
  TIDEPOOL_RETURN_IF_ERROR(list.Finish());
  return std::move(list);
}

StatusOr<OpList> T5(const T5Size& size) {
  constexpr int64_t kTime = 2048, kDecoderTime = 512, kHiddenSize = 1024;
  const Transformer t{kHiddenSize, size.heads, size.kv_channels, size.ffn, 30592, false};
  const int64_t passing = kTime * kHiddenSize;  // the encoder's result goes along with the decoder
  Builder b(std::string("t5:") + size.name, DType::kF16);
  OpList& list = b.list();
  AddEmbedding(b, t, "encoder-embedding", kTime, kTime, 0);
  const int32_t encoder = b.position();
  AddLayerNorm(b, t, "enc-1st-layernorm", kTime, 0, true);
  AddAttention(b, t, {"enc-", ""}, kTime, kTime, 0);
  AddLayerNorm(b, t, "enc-2nd-layernorm", kTime, 0, false);
  AddMlp(b, t, "enc-", kTime, 0);
  b.Repeat(encoder, size.layers, kEncoderSkips);
  AddFinalNorm(b, t, "enc-final-layernorm", kTime, 0);
  const int32_t decoder_embedding = b.position();
  AddEmbedding(b, t, "decoder-embedding", kDecoderTime, kTime, passing);
  const int32_t decoder = b.position();
  AddLayerNorm(b, t, "dec-1st-layernorm", kDecoderTime, passing, true);
  AddAttention(b, t, {"dec-", "-1"}, kDecoderTime, kDecoderTime, passing);
  AddLayerNorm(b, t, "dec-2nd-layernorm", kDecoderTime, passing, false);
  AddAttention(b, t, {"dec-", "-2"}, kDecoderTime, kTime, passing);
  AddLayerNorm(b, t, "dec-3rd-layernorm", kDecoderTime, passing, false);
  AddMlp(b, t, "dec-", kDecoderTime, passing);
  b.Repeat(decoder, size.layers, kDecoderSkips);
  AddFinalNorm(b, t, "dec-final-layernorm", kDecoderTime, passing);
  list.distinct.back().algorithms = {{kReplicated3D, kBatchFirst}};
  AddLoss(b, t, "t5-post-process", kDecoderTime);
  list.tied = {{{0, decoder_embedding, b.position() - 1}, t.vocab * t.hidden}};
  list.profile_model = std::string("t5:") + size.profile;
  list.master_factor = 2;
  list.optimizer_factor = 4;
  list.resharding_has_price = false;
  list.file_model_name = "t5";
  list.file_model_size = size.file_size;
  list.file_num_layers = {size.layers};
  list.file_numbers = {{"encoder_seq_length", kTime},      {"decoder_seq_length", kDecoderTime},
                       {"max_position_embeddings", kTime}, {"num_attention_heads", size.heads},
                       {"kv_channels", size.kv_channels},  {"hidden_size", kHiddenSize},
                       {"ffn_hidden_size", size.ffn}};
  TIDEPOOL_RETURN_IF_ERROR(list.Finish());
  return std::move(list);
}

// Everything about the picture while a Wide-ResNet is built; sizes are elements of one sample.
struct Picture {
  int64_t channels = 3, side = 224;
  int64_t size() const { return channels * side * side; }
};

class ResNetBuilder {
 public:
  explicit ResNetBuilder(Builder* b) : b_(*b) {}

  DistinctOp& Convolve(const std::string& name, Picture* x, int64_t channels, int64_t kernel, int64_t stride, int64_t passing) {
    const int64_t before = x->size(), weights = kernel * kernel * x->channels * channels;
    x->channels = channels;
    x->side /= stride;
    DistinctOp& op =
        b_.Add(name, "conv2d", {weights, 2 * weights * x->side * x->side, passing + before, passing + x->size(), x->size()});
    op.tunable = true;
    op.algorithms = {{kBatchFirst, kBatchFirst}, {kBatchFirst, kBatchFirst}};
    return op;
  }
  DistinctOp& Plain(const std::string& name, const std::string& kind, const Picture& x, int64_t passing, int64_t parameters = 0) {
    DistinctOp& op = b_.Add(name, kind, {parameters, 0, passing + x.size(), passing + x.size(), x.size()});
    Same(op, kBatchFirst);
    return op;
  }
  DistinctOp& Norm(const std::string& name, const Picture& x, int64_t passing) {
    return Plain(name, "batch_norm", x, passing, 2 * x.channels);
  }

  void Block(int group, int64_t index, Picture* x, const ResNetSize& size) {
    const std::string name = fmt::format("block-{}-{}-", group, index);
    const int64_t channels = size.channels << group, stride = group > 0 && index == 0 ? 2 : 1;
    const Picture in = *x;
    const int64_t skip = in.size();
    const int32_t first = b_.position();
    DistinctOp& conv1 = Convolve(name + "conv1", x, channels, 1, 1, skip);
    conv1.input_bytes_per_sample = skip * SizeOf(b_.list().dtype);  // what passes by is its own input
    conv1.starts_layer = true;
    conv1.recompute_seed = false;
    Norm(name + "bn1", *x, skip);
    Convolve(name + "conv2", x, channels * size.width, 3, stride, skip);
    Norm(name + "bn2", *x, skip);
    Convolve(name + "conv3", x, 4 * channels, 1, 1, skip);
    // The block's input is added to the norm's output in place, and the relu works in place too: one tensor, counted with the
    // relu.
    DistinctOp& bn3 = Norm(name + "bn3", *x, skip);
    bn3.activation_factor = bn3.live_factor = 0;
    Downsample(name + "downsample", in, *x, index == 0);
    DistinctOp& downsample = b_.list().distinct.back();
    if (group != 0 || index != 0) downsample.activation_factor = 0;
    downsample.live_factor = index == 0 ? 0.5 : 0;  // a projection's convolution is kept for its norm
    Plain(name + "relu", "relu", *x, 0).recompute_seed = false;
    b_.list().skips.push_back({first, first + 6});
  }

 private:
  // Adds the block's input; a 1x1 convolution and a norm bring it into the shape of the result in the first block of a group.
  void Downsample(const std::string& name, const Picture& in, const Picture& x, bool project) {
    const int64_t weights = project ? in.channels * x.channels : 0;
    DistinctOp& op = b_.Add(name, project ? "conv2d" : "add",
                            {weights + (project ? 2 * x.channels : 0), 2 * weights * x.side * x.side, in.size() + x.size(),
                             x.size(), project ? 2 * x.size() : x.size()});
    op.tunable = true;
    op.algorithms = {{kBatchFirst, kBatchFirst}, {kBatchFirst, kBatchFirst}};
  }

  Builder& b_;
};

StatusOr<OpList> WideResNet(const ResNetSize& size) {
  constexpr int64_t kClasses = 1024;
  Builder b(std::string("wresnet:") + size.name, DType::kF32);
  ResNetBuilder r(&b);
  OpList& list = b.list();
  Picture x;
  r.Convolve("conv1", &x, size.channels, 7, 2, 0).recompute_seed = false;
  DistinctOp& stem = r.Norm("bn1", x, 0);  // relu1 works in place
  stem.activation_factor = stem.live_factor = 0;
  r.Plain("relu1", "relu", x, 0);
  const int64_t before = x.size();
  x.side /= 2;
  Same(b.Add("maxpool", "max_pool2d", {0, 0, before, x.size(), 3 * x.size()}), kBatchFirst);
  const int64_t blocks[4] = {3, 4, size.third_group, 3};
  for (int group = 0; group < 4; ++group) {
    for (int64_t i = 0; i < blocks[group]; ++i) r.Block(group, i, &x, size);
  }
  Same(b.Add("avgpool", "avg_pool2d", {0, 0, x.size(), x.channels, x.channels}), kBatchFirst);
  Same(b.Add("fc", "linear", {x.channels * kClasses + kClasses, 2 * x.channels * kClasses, x.channels, kClasses, kClasses}),
       kBatchFirst);
  list.profile_model = list.name;
  list.optimizer_factor = 2;
  list.file_model_name = "resnet";
  list.file_model_size = size.file_size;
  list.file_num_layers.assign(blocks, blocks + 4);
  list.file_numbers = {{"in_channels", size.channels}, {"width_factor", size.width}};
  TIDEPOOL_RETURN_IF_ERROR(list.Finish());
  return std::move(list);
}

StatusOr<OpList> ScaledDepth(std::string_view text) {
  int64_t layers = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layers);
  if (error != std::errc() || end != text.data() + text.size() || layers < 1 || layers > kMaxScaledLayers) {
    return InvalidArgument("'{}' layers of gpt-layers; allowed: 1 to {}", text.substr(0, 40), kMaxScaledLayers);
  }
  return Gpt(fmt::format("gpt-layers:{}", layers), kScaledDepth, layers);
}

}  // namespace

std::vector<std::string> PublishedOpListNames() {
  std::vector<std::string> names;
  for (const GptSize& size : kGptSizes) names.push_back(std::string("gpt:") + size.name);
  names.push_back("gpt-layers:N");
  for (const T5Size& size : kT5Sizes) names.push_back(std::string("t5:") + size.name);
  for (const ResNetSize& size : kResNetSizes) names.push_back(std::string("wresnet:") + size.name);
  return names;
}

StatusOr<OpList> PublishedOpList(std::string_view name) {
  const size_t colon = name.find(':');
  const std::string_view family = name.substr(0, colon);
  const std::string_view size = colon == std::string_view::npos ? std::string_view() : name.substr(colon + 1);
  if (family == "gpt-layers") return ScaledDepth(size);
  if (family == "gpt") {
    for (const GptSize& entry : kGptSizes) {
      if (size == entry.name) return Gpt(std::string(name), entry, entry.layers);
    }
  } else if (family == "t5") {
    for (const T5Size& entry : kT5Sizes) {
      if (size == entry.name) return T5(entry);
    }
  } else if (family == "wresnet") {
    for (const ResNetSize& entry : kResNetSizes) {
      if (size == entry.name) return WideResNet(entry);
    }
  }
  return InvalidArgument("there is no published op list '{}'; allowed: {}", name.substr(0, 80),
                         JoinText(PublishedOpListNames(), ", "));
}

StatusOr<OpList> OpListOfFile(std::string_view model_name, std::string_view model_size, const std::vector<int64_t>& num_layers) {
  const auto named = [&](const auto& sizes, const char* family) -> std::string {
    for (const auto& size : sizes) {
      if (model_size == size.file_size) return std::string(family) + size.name;
    }
    return "";
  };
  std::string name;
  if (model_name == "gpt" && model_size == kScaledDepth.file_size) {
    if (num_layers.size() != 1)
      return InvalidArgument("num_layers has {} entries; allowed for scale-layer: 1", num_layers.size());
    name = fmt::format("gpt-layers:{}", num_layers[0]);
  } else if (model_name == "gpt") {
    name = named(kGptSizes, "gpt:");
  } else if (model_name == "t5") {
    name = named(kT5Sizes, "t5:");
  } else if (model_name == "resnet") {
    name = named(kResNetSizes, "wresnet:");
  }
  if (name.empty()) {
    return InvalidArgument("model_name '{}' with model_size '{}' is not known; known op lists: {}", model_name.substr(0, 80),
                           model_size.substr(0, 80), JoinText(PublishedOpListNames(), ", "));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(OpList list, PublishedOpList(name));
  if (list.file_num_layers != num_layers) {
    return InvalidArgument("num_layers is [{}]; allowed for {}: [{}]", fmt::join(num_layers, ", "), name,
                           fmt::join(list.file_num_layers, ", "));
  }
  return list;
}

}  // namespace tidepool::plan
