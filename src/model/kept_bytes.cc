// What a forward pass keeps for the backward pass, and FLOPs: both derived from the bodies.
//
// Autograd keeps references to tensors, and one tensor may be kept by several calls (a ReLU's result is kept by the ReLU and by
// the convolution after it). Every kept tensor is therefore counted once, with the op that makes it, so that the sum over ops is
// what lies in memory. An input of the network counts with the first op that keeps it. Views count as the tensor they show.
// Parameters and what has no batch dimension (a causal mask) do not count: they do not grow with the batch.
#include <set>

#include "model/aten_rules.h"
#include "model/graph_builder.h"

namespace tidepool::model {
namespace {

// Elements per sample; 0 for what does not depend on the batch.
int64_t ElementsPerSample(const Shape& shape) {
  if (shape.empty() || shape[0] != kBatchDim) return 0;
  int64_t elements = 1;
  for (size_t i = 1; i < shape.size(); ++i) elements *= shape[i];
  return elements;
}

const Shape& ShapeOf(const Graph& graph, const Arg& arg) {
  static const Shape kNothing;
  if (const auto* value = std::get_if<ValueArg>(&arg)) return graph.values[value->value].shape;
  if (const auto* param = std::get_if<ParamArg>(&arg)) return graph.params[param->param].shape;
  return kNothing;
}

class Keeper {
 public:
  explicit Keeper(Graph* graph) : graph_(graph), storages_(graph->values.size()) {
    for (size_t i = 0; i < storages_.size(); ++i) storages_[i].root = static_cast<ValueId>(i);
  }

  void Run() {
    for (Op& op : graph_->ops) op.activation_bytes_per_sample = 0;
    for (size_t i = 0; i < graph_->ops.size(); ++i) {
      for (const AtenCall& call : graph_->ops[i].body) Visit(static_cast<int>(i), call);
    }
  }

 private:
  struct Storage {
    ValueId root = kNoValue;  // whose memory it is; kNoValue: a parameter's
    int op = -1;              // the op that made the root; -1: an input of the network
    bool transposed = false;  // a view that is not in row-major order
  };

  void Visit(int op, const AtenCall& call) {
    const AtenRule& rule = *FindAtenRule(call.op, call.overload);
    const ValueId result = call.outputs.empty() ? kNoValue : call.outputs[0];
    for (const ValueId id : call.outputs) {
      if (id == kNoValue) continue;
      if (rule.view) {
        const auto* source = std::get_if<ValueArg>(&call.args[0]);
        storages_[id] = source != nullptr ? storages_[source->value] : Storage{};
        storages_[id].transposed |= call.op == "aten::transpose" || call.op == "aten::permute" || call.op == "aten::t";
      } else {
        storages_[id].op = op;
      }
    }
    if (rule.keeps & AtenRule::kKeepsFirst) Keep(op, call, 0);
    if (rule.keeps & AtenRule::kKeepsSecond) Keep(op, call, 1);
    if (result == kNoValue) return;
    const Value& made = graph_->values[result];
    const int64_t elements = ElementsPerSample(made.shape);
    int64_t& bytes = graph_->ops[op].activation_bytes_per_sample;
    if (rule.keeps & AtenRule::kKeepsResult) KeepRoot(op, result);
    if (rule.keeps & AtenRule::kKeepsIndices) bytes += elements * SizeOf(DType::kI64);
    if (rule.keeps & AtenRule::kKeepsRowMoments) bytes += elements / made.shape.back() * 2 * SizeOf(DType::kF32);
    if (rule.keeps & AtenRule::kKeepsNoise) bytes += elements * SizeOf(made.dtype);
  }

  void Keep(int op, const AtenCall& call, size_t position) {
    const auto* value = std::get_if<ValueArg>(&call.args[position]);
    if (value == nullptr) return;
    // A batched product copies an operand whose rows do not lie in order, and keeps the copy.
    if (call.op == "aten::matmul" && storages_[value->value].transposed) {
      const Value& operand = graph_->values[value->value];
      graph_->ops[op].activation_bytes_per_sample += ElementsPerSample(operand.shape) * SizeOf(operand.dtype);
      return;
    }
    KeepRoot(op, value->value);
  }

  void KeepRoot(int op, ValueId id) {
    const Storage& storage = storages_[id];
    if (storage.root == kNoValue || !kept_.insert(storage.root).second) return;
    const Value& root = graph_->values[storage.root];
    const int owner = storage.op < 0 ? op : storage.op;
    graph_->ops[owner].activation_bytes_per_sample += ElementsPerSample(root.shape) * SizeOf(root.dtype);
  }

  Graph* graph_;
  std::vector<Storage> storages_;  // per value
  std::set<ValueId> kept_;         // roots
};

}  // namespace

void ComputeKeptBytes(Graph* graph) { Keeper(graph).Run(); }

int64_t FlopsOf(const Graph& graph, const AtenCall& call) {
  if (call.outputs.empty() || call.outputs[0] == kNoValue || call.args.size() < 2) return 0;
  const int64_t elements = ElementsPerSample(graph.values[call.outputs[0]].shape);
  const Shape& second = ShapeOf(graph, call.args[1]);
  if (call.op == "aten::conv2d") return 2 * elements * second[1] * second[2] * second[3];
  if (call.op == "aten::linear") return 2 * elements * second[1];
  if (call.op == "aten::matmul") return 2 * elements * ShapeOf(graph, call.args[0]).back();
  if (call.op == "aten::addmm") return 2 * elements * second.back();
  return 0;
}

}  // namespace tidepool::model
