// A network bound to weights that lie in memory already, run forward by boxed dispatcher calls.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/runtime.h"
#include "model/graph.h"

namespace tidepool::engine {

// Results of one run; the views stay valid while this object lives.
class Outputs {
 public:
  virtual ~Outputs() = default;
  virtual std::span<const TensorView> views() const = 0;
};

struct RunOptions {
  // Called before each op with its index: where a loader that streams weights waits for what the op needs. An error ends the run.
  std::function<Status(int op_index)> before_op;
  // Called after each op (traces, profiles).
  std::function<void(int op_index)> after_op;
};

// Thread-compatible: one Run at a time. The weights are read, never written, and outlive the module.
class InferenceModule {
 public:
  // params[i] is graph.params[i]; no byte of it is copied. INVALID_ARGUMENT lists every view whose shape, type or alignment is
  // wrong.
  static StatusOr<std::unique_ptr<InferenceModule>> Bind(std::shared_ptr<const model::Graph> graph,
                                                         std::span<const TensorView> params);
  virtual ~InferenceModule() = default;
  // inputs[i] is graph.inputs[i] with the batch filled in. Values are dropped after their last use. Activations come from the
  // current MemoryScope. RESOURCE_EXHAUSTED if the pool has no room.
  virtual StatusOr<std::unique_ptr<Outputs>> Run(std::span<const TensorView> inputs, const RunOptions& options) = 0;
  const model::Graph& graph() const { return *graph_; }

 protected:
  explicit InferenceModule(std::shared_ptr<const model::Graph> graph) : graph_(std::move(graph)) {}
  std::shared_ptr<const model::Graph> graph_;
};

}  // namespace tidepool::engine
