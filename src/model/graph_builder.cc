#include "model/graph_builder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/aten_rules.h"

namespace tidepool::model {
namespace {

using Ints = std::vector<int64_t>;

Arg V(ValueId id) { return ValueArg{id}; }
Arg P(ParamId id) { return ParamArg{id}; }
Arg I(int64_t value) { return value; }
Arg Pair(int64_t value) { return Ints{value, value}; }
const NoneArg kNone;

}  // namespace

Init ZerosInit() { return {Init::Rule::kZeros, 0}; }
Init OnesInit() { return {Init::Rule::kOnes, 0}; }
Init NormalInit(double standard_deviation) { return {Init::Rule::kNormal, standard_deviation}; }
Init UniformInit(double half_width) { return {Init::Rule::kUniform, half_width}; }

GraphBuilder::GraphBuilder(std::string name, std::string family, std::map<std::string, std::string> config) {
  graph_.name = std::move(name);
  graph_.family = std::move(family);
  graph_.config = std::move(config);
}

ValueId GraphBuilder::NewValue(std::string name, DType dtype, Shape shape) {
  graph_.values.push_back({std::move(name), dtype, std::move(shape)});
  return static_cast<ValueId>(graph_.values.size()) - 1;
}

ValueId GraphBuilder::Input(const std::string& name, DType dtype, Shape shape) {
  const ValueId id = NewValue(name, dtype, std::move(shape));
  graph_.inputs.push_back(id);
  return id;
}

void GraphBuilder::BeginOp(const std::string& name, const std::string& kind, PartitionAxis axis) {
  TIDEPOOL_CHECK(!in_op_, "op '{}' begins inside of '{}'", name, op_.name);
  in_op_ = true;
  op_ = Op{.name = name, .kind = kind, .partition_axis = axis};
}

ParamId GraphBuilder::NewParam(Param param) {
  TIDEPOOL_CHECK(in_op_, "parameter '{}' outside of an op", param.name);
  graph_.params.push_back(std::move(param));
  const ParamId id = static_cast<ParamId>(graph_.params.size()) - 1;
  op_.params.push_back(id);
  return id;
}

ParamId GraphBuilder::AddParamAs(const std::string& full_name, Shape shape, Init init, bool decay) {
  return NewParam({full_name, DType::kF32, std::move(shape), ParamKind::kWeight, init, decay});
}

ParamId GraphBuilder::AddParam(const std::string& suffix, Shape shape, Init init, bool decay) {
  return AddParamAs(op_.name + "." + suffix, std::move(shape), init, decay);
}

ParamId GraphBuilder::AddBuffer(const std::string& suffix, DType dtype, Shape shape, Init init) {
  return NewParam({op_.name + "." + suffix, dtype, std::move(shape), ParamKind::kBuffer, init, false});
}

void GraphBuilder::AppendCall(std::string_view call, std::vector<Arg> args, std::vector<ValueId> outputs) {
  TIDEPOOL_CHECK(in_op_, "call {} outside of an op", call);
  const size_t dot = call.find('.');
  AtenCall entry{std::string(call.substr(0, dot)), dot == std::string_view::npos ? "" : std::string(call.substr(dot + 1)),
                 std::move(args), std::move(outputs)};
  TIDEPOOL_CHECK(IsAllowedAtenCall(entry.op, entry.overload), "{} is not on the allow-list", call);
  op_.forward_flops_per_sample += FlopsOf(graph_, entry);
  op_.body.push_back(std::move(entry));
}

ValueId GraphBuilder::Call(std::string_view call, std::vector<Arg> args, Shape shape, DType dtype) {
  const ValueId id = NewValue(fmt::format("{}#{}", op_.name, op_.body.size()), dtype, std::move(shape));
  AppendCall(call, std::move(args), {id});
  return id;
}

std::vector<ValueId> GraphBuilder::CallList(std::string_view call, std::vector<Arg> args, const std::vector<Shape>& shapes) {
  std::vector<ValueId> ids;
  for (const Shape& shape : shapes) {
    ids.push_back(NewValue(fmt::format("{}#{}.{}", op_.name, op_.body.size(), ids.size()), DType::kF32, shape));
  }
  AppendCall(call, std::move(args), ids);
  return ids;
}

ValueId GraphBuilder::EndOp(ValueId result) {
  graph_.values[result].name = op_.name;
  EndOp(std::vector<ValueId>{result});
  return result;
}

void GraphBuilder::EndOp(const std::vector<ValueId>& results) {
  std::vector<ValueId> made;
  const auto add_once = [](auto* list, auto id) {
    if (std::find(list->begin(), list->end(), id) == list->end()) list->push_back(id);
  };
  const auto read = [&](ValueId id) {
    if (std::find(made.begin(), made.end(), id) == made.end()) add_once(&op_.inputs, id);
  };
  for (const AtenCall& call : op_.body) {
    for (const Arg& arg : call.args) {
      if (const auto* value = std::get_if<ValueArg>(&arg)) read(value->value);
      if (const auto* list = std::get_if<ValueListArg>(&arg)) std::for_each(list->values.begin(), list->values.end(), read);
      if (const auto* param = std::get_if<ParamArg>(&arg)) add_once(&op_.params, param->param);
    }
    made.insert(made.end(), call.outputs.begin(), call.outputs.end());
  }
  op_.outputs = results;
  graph_.ops.push_back(std::move(op_));
  in_op_ = false;
}

StatusOr<Graph> GraphBuilder::Finish(const std::vector<ValueId>& outputs) {
  TIDEPOOL_CHECK(!in_op_, "op '{}' was not ended", op_.name);
  graph_.outputs = outputs;
  TIDEPOOL_RETURN_IF_ERROR(Validate(graph_));
  ComputeKeptBytes(&graph_);
  return std::move(graph_);
}

// --- Convolutional networks ---

ValueId GraphBuilder::Conv2d(const std::string& name, ValueId x, const Conv2dOptions& options) {
  const Shape in = shape(x);
  TIDEPOOL_CHECK(in.size() == 4 && in[1] % options.groups == 0, "conv '{}' on a wrong shape", name);
  const auto out = [&](int64_t size) { return (size + 2 * options.padding - options.kernel) / options.stride + 1; };
  BeginOp(name, "conv2d", PartitionAxis::kChannel);
  const double fan_out =
      static_cast<double>(options.out_channels * options.kernel * options.kernel) / static_cast<double>(options.groups);
  const ParamId weight = AddParam("weight", {options.out_channels, in[1] / options.groups, options.kernel, options.kernel},
                                  NormalInit(std::sqrt(2.0 / fan_out)));
  const Arg bias = options.bias ? P(AddParam("bias", {options.out_channels}, ZerosInit(), false)) : Arg(kNone);
  return EndOp(Call("aten::conv2d",
                    {V(x), P(weight), bias, Pair(options.stride), Pair(options.padding), Pair(1), I(options.groups)},
                    {in[0], options.out_channels, out(in[2]), out(in[3])}));
}

ValueId GraphBuilder::BatchNorm2d(const std::string& name, ValueId x, const Init& weight_init) {
  const int64_t channels = shape(x)[1];
  BeginOp(name, "batch_norm", PartitionAxis::kChannel);
  const ParamId weight = AddParam("weight", {channels}, weight_init, false);
  const ParamId bias = AddParam("bias", {channels}, ZerosInit(), false);
  const ParamId mean = AddBuffer("running_mean", DType::kF32, {channels}, ZerosInit());
  const ParamId variance = AddBuffer("running_var", DType::kF32, {channels}, OnesInit());
  AddBuffer("num_batches_tracked", DType::kI64, {}, ZerosInit());
  return EndOp(Call("aten::batch_norm",
                    {V(x), P(weight), P(bias), P(mean), P(variance), TrainingArg{}, Arg(0.1), Arg(1e-5), Arg(true)}, shape(x)));
}

ValueId GraphBuilder::Relu(const std::string& name, ValueId x) {
  BeginOp(name, "relu", PartitionAxis::kChannel);
  return EndOp(Call("aten::relu", {V(x)}, shape(x)));
}

ValueId GraphBuilder::Add(const std::string& name, ValueId a, ValueId b, PartitionAxis axis) {
  TIDEPOOL_CHECK(shape(a) == shape(b), "add '{}' of two shapes", name);
  BeginOp(name, "add", axis);
  return EndOp(Call("aten::add.Tensor", {V(a), V(b), I(1)}, shape(a)));
}

ValueId GraphBuilder::MaxPool2d(const std::string& name, ValueId x, int64_t kernel, int64_t stride, int64_t padding) {
  const Shape in = shape(x);
  const auto out = [&](int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
  BeginOp(name, "max_pool2d", PartitionAxis::kChannel);
  return EndOp(Call("aten::max_pool2d", {V(x), Pair(kernel), Pair(stride), Pair(padding), Pair(1), Arg(false)},
                    {in[0], in[1], out(in[2]), out(in[3])}));
}

ValueId GraphBuilder::GlobalAvgPool(const std::string& name, ValueId x) {
  BeginOp(name, "avg_pool2d", PartitionAxis::kChannel);
  return EndOp(Call("aten::adaptive_avg_pool2d", {V(x), Pair(1)}, {shape(x)[0], shape(x)[1], 1, 1}));
}

ValueId GraphBuilder::Flatten(const std::string& name, ValueId x) {
  const Shape in = shape(x);
  int64_t features = 1;
  for (size_t i = 1; i < in.size(); ++i) features *= in[i];
  BeginOp(name, "flatten", PartitionAxis::kBatchOnly);
  return EndOp(Call("aten::flatten.using_ints", {V(x), I(1), I(-1)}, {in[0], features}));
}

// --- Transformers ---

ValueId GraphBuilder::Linear(const std::string& name, ValueId x, const LinearOptions& options) {
  Shape out = shape(x);
  const int64_t in_features = out.back();
  out.back() = options.out_features;
  BeginOp(name, "linear", options.axis);
  const Shape weight_shape =
      options.in_out_layout ? Shape{in_features, options.out_features} : Shape{options.out_features, in_features};
  const ParamId weight = AddParam("weight", weight_shape, options.weight_init);
  const Arg bias = options.bias ? P(AddParam("bias", {options.out_features}, options.bias_init, false)) : Arg(kNone);
  // A transposed view of an [in, out] weight: linear transposes it back, so the product reads the weight as it lies.
  const Arg matrix = options.in_out_layout ? V(Call("aten::t", {P(weight)}, {options.out_features, in_features})) : P(weight);
  return EndOp(Call("aten::linear", {V(x), matrix, bias}, std::move(out)));
}

ValueId GraphBuilder::TiedLinear(const std::string& name, ValueId x, ParamId weight) {
  Shape out = shape(x);
  out.back() = graph_.params[weight].shape[0];
  BeginOp(name, "linear", PartitionAxis::kColumn);
  return EndOp(Call("aten::linear", {V(x), P(weight), kNone}, std::move(out)));
}

ValueId GraphBuilder::LayerNorm(const std::string& name, ValueId x, double epsilon) {
  const int64_t width = shape(x).back();
  BeginOp(name, "layer_norm", PartitionAxis::kBatchOnly);
  const ParamId weight = AddParam("weight", {width}, OnesInit(), false);
  const ParamId bias = AddParam("bias", {width}, ZerosInit(), false);
  return EndOp(Call("aten::layer_norm", {V(x), Ints{width}, P(weight), P(bias), Arg(epsilon), Arg(true)}, shape(x)));
}

ValueId GraphBuilder::Gelu(const std::string& name, ValueId x, bool tanh_approximation) {
  BeginOp(name, "gelu", PartitionAxis::kColumn);
  return EndOp(Call("aten::gelu", {V(x), Arg(std::string(tanh_approximation ? "tanh" : "none"))}, shape(x)));
}

ValueId GraphBuilder::Tanh(const std::string& name, ValueId x) {
  BeginOp(name, "tanh", PartitionAxis::kColumn);
  return EndOp(Call("aten::tanh", {V(x)}, shape(x)));
}

ValueId GraphBuilder::Dropout(const std::string& name, ValueId x, double probability) {
  BeginOp(name, "dropout", PartitionAxis::kBatchOnly);
  return EndOp(Call("aten::dropout", {V(x), Arg(probability), TrainingArg{}}, shape(x)));
}

ValueId GraphBuilder::Attention(const std::string& name, const std::vector<ValueId>& qkv, const AttentionOptions& options) {
  // The lowest finite number, not minus infinity: a sample whose mask is all zero then attends evenly instead of giving NaN.
  constexpr double kMasked = -3.4028234663852886e38;
  Shape in = shape(qkv[0]);
  const int64_t time = in[1];
  const int64_t width = qkv.size() == 1 ? in[2] / 3 : in[2];
  const int64_t head_width = width / options.heads;
  in.back() = width;
  const int64_t keys_time = qkv.size() == 1 ? time : shape(qkv[1])[1];
  TIDEPOOL_CHECK(!options.causal || keys_time == time, "causal attention '{}' over another sequence", name);
  const Shape heads{kBatchDim, options.heads, time, head_width};
  const Shape square{kBatchDim, options.heads, time, keys_time};

  BeginOp(name, "attention", PartitionAxis::kHead);
  std::vector<ValueId> parts = qkv;
  if (qkv.size() == 1) parts = CallList("aten::split.Tensor", {V(qkv[0]), I(width), I(2)}, {in, in, in});
  for (ValueId& part : parts) {
    const int64_t length = shape(part)[1];
    const Shape split{kBatchDim, length, options.heads, head_width};
    part = Call("aten::view", {V(part), Ints(split)}, split);
    part = Call("aten::transpose.int", {V(part), I(1), I(2)}, {kBatchDim, options.heads, length, head_width});
  }
  const ValueId keys =
      Call("aten::transpose.int", {V(parts[1]), I(-1), I(-2)}, {kBatchDim, options.heads, head_width, keys_time});
  ValueId scores = Call("aten::matmul", {V(parts[0]), V(keys)}, square);
  scores = Call("aten::div.Scalar", {V(scores), Arg(std::sqrt(static_cast<double>(head_width)))}, square);
  if (options.causal) {
    const ValueId ones =
        Call("aten::new_ones", {V(scores), Ints{time, time}, DType::kBool, kNone, kNone, kNone}, {time, time}, DType::kBool);
    const ValueId future = Call("aten::triu", {V(ones), I(1)}, {time, time}, DType::kBool);
    scores = Call("aten::masked_fill.Scalar", {V(scores), V(future), Arg(kMasked)}, square);
  }
  if (options.mask != kNoValue) {
    ValueId hidden = Call("aten::eq.Scalar", {V(options.mask), I(0)}, {kBatchDim, keys_time}, DType::kBool);
    hidden = Call("aten::view", {V(hidden), Ints{-1, 1, 1, keys_time}}, {kBatchDim, 1, 1, keys_time}, DType::kBool);
    scores = Call("aten::masked_fill.Scalar", {V(scores), V(hidden), Arg(kMasked)}, square);
  }
  ValueId weights = Call("aten::softmax.int", {V(scores), I(-1), kNone}, square);
  if (options.dropout > 0) weights = Call("aten::dropout", {V(weights), Arg(options.dropout), TrainingArg{}}, square);
  ValueId mixed = Call("aten::matmul", {V(weights), V(parts[2])}, heads);
  mixed = Call("aten::transpose.int", {V(mixed), I(1), I(2)}, {kBatchDim, time, options.heads, head_width});
  return EndOp(Call("aten::reshape", {V(mixed), Ints{-1, time, width}}, in));
}

}  // namespace tidepool::model
