// The one description of a network. A Graph is the ordered list of its ops: what the planner costs, the store shards, the
// loader streams, the emulator times and the engine runs.
//
// Shapes are per sample: the batch is dimension 0 of every activation and is written kBatchDim. A body is a list of
// allow-listed ATen calls over the values, parameters and constants of the graph; there is no code in it and none is loaded from
// files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"

namespace tidepool::model {

// Stands for the batch in shapes, and for "what is left" in the integer lists of view-like calls.
inline constexpr int64_t kBatchDim = -1;

using Shape = std::vector<int64_t>;
using ValueId = int32_t;  // an activation: index into Graph::values
using ParamId = int32_t;  // a parameter or buffer: index into Graph::params

struct Value {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;  // shape[0] == kBatchDim for activations; constants made by a body may have none
};

enum class ParamKind : uint8_t {
  kWeight,  // trained
  kBuffer,  // state that is not trained but saved: running statistics of BatchNorm
};

// How a weight is drawn when a model is created from a seed.
struct Init {
  enum class Rule : uint8_t { kZeros, kOnes, kNormal, kUniform } rule = Rule::kZeros;
  double scale = 0;  // standard deviation, or half width
};

struct Param {
  std::string name;  // as the family's public checkpoints name it, for example "layer1.0.conv1.weight"
  DType dtype = DType::kF32;
  Shape shape;
  ParamKind kind = ParamKind::kWeight;
  Init init;
  bool decay = true;  // whether weight decay applies (not to biases and norms)
};

// Arguments of an ATen call, in the order of its schema.
struct NoneArg {};
struct ValueArg {
  ValueId value;
};
struct ParamArg {
  ParamId param;
};
struct TrainingArg {};  // true while training, else false (batch_norm, dropout)
struct ValueListArg {
  std::vector<ValueId> values;
};
using Arg = std::variant<NoneArg, ValueArg, ParamArg, TrainingArg, ValueListArg, bool, int64_t, double, std::vector<int64_t>,
                         DType, std::string>;

// One call of the dispatcher: "aten::conv2d" with overload "" and so on. Output i of the call becomes value outputs[i];
// kNoValue drops that output. Where the call returns one list of tensors (split), its element i is output i.
inline constexpr ValueId kNoValue = -1;
struct AtenCall {
  std::string op;
  std::string overload;
  std::vector<Arg> args;
  std::vector<ValueId> outputs;
};

// The axis along which a tensor-parallel split of the op is possible.
enum class PartitionAxis : uint8_t { kNone, kBatchOnly, kColumn, kRow, kHead, kChannel };

// A named unit of the network: what is costed, grouped, streamed and recomputed as one.
struct Op {
  std::string name;              // "layer1.0.conv1"
  std::string kind;              // "conv2d", "linear", "attention", ...
  std::vector<ValueId> inputs;   // values of earlier ops that the body reads
  std::vector<ValueId> outputs;  // values that later ops read, or results of the network
  std::vector<ParamId> params;   // all that belong to it: what the body reads, and buffers that are only saved with it
  std::vector<AtenCall> body;
  int64_t forward_flops_per_sample = 0;     // multiply and add counted as two
  int64_t activation_bytes_per_sample = 0;  // what the forward pass keeps for the backward pass
  PartitionAxis partition_axis = PartitionAxis::kNone;
};

struct Graph {
  std::string name;
  std::string family;                         // "resnet", "gpt2", "bert"
  std::map<std::string, std::string> config;  // what the family was built with; ParseSpec of it gives the same graph
  std::vector<Value> values;
  std::vector<Param> params;
  std::vector<Op> ops;  // in execution order: an op reads only values of earlier ops and inputs
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;

  int64_t parameter_bytes() const;       // weights and buffers
  int64_t trainable_parameters() const;  // count of trained numbers
  int64_t forward_flops_per_sample() const;
  int64_t activation_bytes_per_sample() const;
  // The index of the parameter called `name`, or NOT_FOUND.
  StatusOr<ParamId> FindParam(std::string_view name) const;
};

// Reports every fault at once: unknown or later values, unlisted ATen calls, wrong parameter ids, duplicate names, empty shapes.
Status Validate(const Graph& graph);

// Whether a body may call this op. The list is in aten_allow_list.cc.
bool IsAllowedAtenCall(std::string_view op, std::string_view overload);

// What a body's result is compared with in training.
enum class LossKind : uint8_t {
  kCrossEntropy,           // outputs[0] is [batch, classes], the target int64 [batch]
  kNextTokenCrossEntropy,  // outputs[0] is [batch, time, vocabulary], the target int64 [batch, time]
};
LossKind DefaultLoss(const Graph& graph);

}  // namespace tidepool::model
