#include "model/graph_json.h"

#include "base/json.h"

namespace tidepool::model {
namespace {

using Json = nlohmann::ordered_json;

template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;  // clang 14 needs it

// Plain JSON for constants; an object with one key for what refers to the graph.
Json ArgJson(const Arg& arg) {
  return std::visit(Overloaded{[](NoneArg) { return Json(nullptr); },
                               [](const ValueArg& value) {
                                 return Json{{"value", value.value}};
                               },
                               [](const ParamArg& param) {
                                 return Json{{"param", param.param}};
                               },
                               [](TrainingArg) {
                                 return Json{{"training", true}};
                               },
                               [](const ValueListArg& list) {
                                 return Json{{"values", list.values}};
                               },
                               [](DType dtype) {
                                 return Json{{"dtype", SafetensorsName(dtype)}};
                               },
                               [](const auto& constant) { return Json(constant); }},
                    arg);
}

Json OpJson(const Op& op) {
  Json body = Json::array();
  for (const AtenCall& call : op.body) {
    Json args = Json::array();
    for (const Arg& arg : call.args) args.push_back(ArgJson(arg));
    body.push_back({{"op", call.op}, {"overload", call.overload}, {"args", std::move(args)}, {"outputs", call.outputs}});
  }
  return {{"name", op.name},
          {"kind", op.kind},
          {"inputs", op.inputs},
          {"outputs", op.outputs},
          {"params", op.params},
          {"forward_flops_per_sample", op.forward_flops_per_sample},
          {"activation_bytes_per_sample", op.activation_bytes_per_sample},
          {"partition_axis", Name(op.partition_axis)},
          {"body", std::move(body)}};
}

}  // namespace

std::string_view Name(PartitionAxis axis) {
  switch (axis) {
    case PartitionAxis::kNone: return "none";
    case PartitionAxis::kBatchOnly: return "batch";
    case PartitionAxis::kColumn: return "column";
    case PartitionAxis::kRow: return "row";
    case PartitionAxis::kHead: return "head";
    case PartitionAxis::kChannel: return "channel";
  }
  return "none";
}

std::string_view Name(ParamKind kind) { return kind == ParamKind::kWeight ? "weight" : "buffer"; }

std::string_view Name(Init::Rule rule) {
  switch (rule) {
    case Init::Rule::kZeros: return "zeros";
    case Init::Rule::kOnes: return "ones";
    case Init::Rule::kNormal: return "normal";
    case Init::Rule::kUniform: return "uniform";
  }
  return "zeros";
}

std::string ToJson(const Graph& graph, int indent) {
  Json values = Json::array(), params = Json::array(), ops = Json::array();
  for (const Value& value : graph.values) {
    values.push_back({{"name", value.name}, {"dtype", SafetensorsName(value.dtype)}, {"shape", value.shape}});
  }
  for (const Param& param : graph.params) {
    params.push_back({{"name", param.name},
                      {"dtype", SafetensorsName(param.dtype)},
                      {"shape", param.shape},
                      {"kind", Name(param.kind)},
                      {"init", {{"rule", Name(param.init.rule)}, {"scale", param.init.scale}}},
                      {"decay", param.decay}});
  }
  for (const Op& op : graph.ops) ops.push_back(OpJson(op));
  const Json json{{"name", graph.name},
                  {"family", graph.family},
                  {"config", graph.config},
                  {"inputs", graph.inputs},
                  {"outputs", graph.outputs},
                  {"trainable_parameters", graph.trainable_parameters()},
                  {"parameter_bytes", graph.parameter_bytes()},
                  {"forward_flops_per_sample", graph.forward_flops_per_sample()},
                  {"activation_bytes_per_sample", graph.activation_bytes_per_sample()},
                  {"values", std::move(values)},
                  {"params", std::move(params)},
                  {"ops", std::move(ops)}};
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace tidepool::model
