// Puts a Graph together op by op. Families are written against this class.
//
// A method makes one named op and returns its result, a value of the same name. The builder derives what can be derived: the op's
// input and parameter lists from its body, FLOPs from the shapes of its matrix products and convolutions, and kept activation
// bytes from AtenRule::keeps. Parameter names follow torch's modules: op "fc" has "fc.weight" and "fc.bias".
//
// Shapes that do not fit are bugs of a family and abort; families check what the user gave before they build. Thread-compatible.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/graph.h"

namespace tidepool::model {

Init ZerosInit();
Init OnesInit();
Init NormalInit(double standard_deviation);
Init UniformInit(double half_width);

class GraphBuilder {
 public:
  GraphBuilder(std::string name, std::string family, std::map<std::string, std::string> config);

  ValueId Input(const std::string& name, DType dtype, Shape shape);

  struct Conv2dOptions {
    int64_t out_channels = 0;
    int64_t kernel = 1;
    int64_t stride = 1;
    int64_t padding = 0;
    int64_t groups = 1;
    bool bias = false;
  };
  // Weights are drawn as He et al. do for a ReLU after it, by fan-out.
  ValueId Conv2d(const std::string& name, ValueId x, const Conv2dOptions& options);
  ValueId BatchNorm2d(const std::string& name, ValueId x, const Init& weight_init = OnesInit());
  ValueId Relu(const std::string& name, ValueId x);
  ValueId Add(const std::string& name, ValueId a, ValueId b, PartitionAxis axis = PartitionAxis::kBatchOnly);
  ValueId MaxPool2d(const std::string& name, ValueId x, int64_t kernel, int64_t stride, int64_t padding);
  // Mean over each channel: [B, C, H, W] to [B, C, 1, 1].
  ValueId GlobalAvgPool(const std::string& name, ValueId x);
  ValueId Flatten(const std::string& name, ValueId x);

  struct LinearOptions {
    int64_t out_features = 0;
    bool bias = true;
    bool in_out_layout = false;  // the weight is [in, out], as GPT-2's checkpoints have it, not [out, in]
    Init weight_init;
    Init bias_init;
    PartitionAxis axis = PartitionAxis::kColumn;
  };
  ValueId Linear(const std::string& name, ValueId x, const LinearOptions& options);
  // A bias-free product with the transpose of a parameter that another op owns too, [out, in].
  ValueId TiedLinear(const std::string& name, ValueId x, ParamId weight);
  ValueId LayerNorm(const std::string& name, ValueId x, double epsilon);
  ValueId Gelu(const std::string& name, ValueId x, bool tanh_approximation);
  ValueId Tanh(const std::string& name, ValueId x);
  ValueId Dropout(const std::string& name, ValueId x, double probability);

  struct AttentionOptions {
    int64_t heads = 1;
    bool causal = false;
    ValueId mask = kNoValue;  // int64 [B, T]: positions with 0 are not attended to
    double dropout = 0;
  };
  // Scaled dot-product attention: `qkv` is one value [B, T, 3W] or three: [B, T, W], and keys and values of [B, S, W] each (S = T
  // if `causal`; `mask` is [B, S] then). The result is [B, T, W].
  ValueId Attention(const std::string& name, const std::vector<ValueId>& qkv, const AttentionOptions& options);

  // --- Ops that the methods above do not cover ---
  // BeginOp, any number of AddParam and Call, then EndOp with what later ops read.
  void BeginOp(const std::string& name, const std::string& kind, PartitionAxis axis);
  // A parameter of the op in progress called "<op>.<suffix>", or `suffix` alone after AddParamAs.
  ParamId AddParam(const std::string& suffix, Shape shape, Init init, bool decay = true);
  ParamId AddBuffer(const std::string& suffix, DType dtype, Shape shape, Init init);
  ParamId AddParamAs(const std::string& full_name, Shape shape, Init init, bool decay = true);
  // One call with one result of the given shape. `call` is "aten::relu" or "aten::add.Tensor".
  ValueId Call(std::string_view call, std::vector<Arg> args, Shape shape, DType dtype = DType::kF32);
  // One call that returns a list with one element per shape.
  std::vector<ValueId> CallList(std::string_view call, std::vector<Arg> args, const std::vector<Shape>& shapes);
  // Ends the op: `result` takes its name.
  ValueId EndOp(ValueId result);
  void EndOp(const std::vector<ValueId>& results);

  const Shape& shape(ValueId id) const { return graph_.values[id].shape; }
  void Rename(ValueId id, const std::string& name) { graph_.values[id].name = name; }

  // The finished graph, validated.
  StatusOr<Graph> Finish(const std::vector<ValueId>& outputs);

 private:
  ValueId NewValue(std::string name, DType dtype, Shape shape);
  ParamId NewParam(Param param);
  void AppendCall(std::string_view call, std::vector<Arg> args, std::vector<ValueId> outputs);

  Graph graph_;
  Op op_;  // in progress
  bool in_op_ = false;
};

// Fills activation_bytes_per_sample of every op (kept_bytes.cc).
void ComputeKeptBytes(Graph* graph);
// Multiply-adds of one call, counted as two each: convolutions and matrix products; 0 for every other call.
int64_t FlopsOf(const Graph& graph, const AtenCall& call);

}  // namespace tidepool::model
