// Runs a graph's bodies by boxed calls of torch's dispatcher. Everything that can be looked up or converted ahead is: a run
// pushes ready values, calls, and drops each value after its last use. Internal to engine.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/inference.h"
#include "model/graph.h"

namespace tidepool::engine {

// Thread-compatible.
class OpRunner {
 public:
  // params[i] is graph.params[i]; the runner keeps handles to the same tensors. INVALID_ARGUMENT names the op, the call and the
  // argument that does not fit the call's schema.
  static StatusOr<std::unique_ptr<OpRunner>> Create(std::shared_ptr<const model::Graph> graph, std::vector<at::Tensor> params);

  // One forward pass; inputs[i] is graph.inputs[i], the result has one tensor per graph.outputs. Throws what torch throws: call
  // it inside Guard. `training` is what TrainingArg means.
  StatusOr<std::vector<at::Tensor>> Run(std::vector<at::Tensor> inputs, bool training, const RunOptions& options);

  // "op 'layer1.0.conv1': aten::conv2d": the call that ran last (or only the op, before its first call), for the text of an error
  // that Guard caught.
  std::string Where() const;

 private:
  struct Slot {
    enum class Kind : uint8_t { kConstant, kParam, kTraining, kValue, kLastUse, kValueList } kind = Kind::kConstant;
    int32_t index = 0;  // into constants_, params_, values or lists_
  };
  struct Call {
    c10::OperatorHandle handle;
    const model::AtenCall* source = nullptr;
    std::vector<Slot> slots;
    std::vector<model::ValueId> drop_after;  // values whose last use is in a list here, or that nothing uses
    bool returns_list = false;
  };

  explicit OpRunner(std::shared_ptr<const model::Graph> graph) : graph_(std::move(graph)) {}
  Status Prepare(const model::Op& op, const model::AtenCall& source);
  Status PrepareArg(const c10::Argument& argument, const model::Arg& value, Slot* slot);
  void ComputeLiveness();
  void Push(const Call& call, bool training, std::vector<at::Tensor>* values);
  Status Store(const Call& call, std::vector<at::Tensor>* values);

  std::shared_ptr<const model::Graph> graph_;
  std::vector<c10::IValue> params_;
  std::vector<c10::IValue> constants_;
  std::vector<std::vector<model::ValueId>> lists_;
  std::vector<Call> calls_;
  std::vector<size_t> calls_end_;  // per op: one past its last call
  std::vector<c10::IValue> stack_;
  int current_op_ = -1;
  const Call* current_call_ = nullptr;
};

}  // namespace tidepool::engine
