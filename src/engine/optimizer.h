// SGD and AdamW in place. Internal to engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/training.h"

namespace tidepool::engine {

// INVALID_ARGUMENT names every option that is out of range.
Status Validate(const OptimizerOptions& options);

struct OptimizedParam {
  std::string name;
  at::Tensor tensor;
  bool decay = true;
};

// The arithmetic is torch.optim's, operation by operation. A step allocates no memory that grows with the parameters: temporaries
// are computed in the gradients, which a step uses up. Thread-compatible.
class Optimizer {
 public:
  // Allocates the state in the current MemoryScope, zeroed. `options` is valid.
  static std::unique_ptr<Optimizer> Create(const OptimizerOptions& options, std::vector<OptimizedParam> params);
  virtual ~Optimizer() = default;

  // gradients[i] belongs to the i-th parameter; an undefined one leaves its parameter as it is. `step` counts from 1. Throws what
  // torch throws.
  virtual void Step(std::span<at::Tensor> gradients, double learning_rate, int64_t step) = 0;
  // "optimizer.<parameter>.<state>".
  virtual std::vector<NamedTensor> State() const = 0;
};

}  // namespace tidepool::engine
