// The same networks by direct calls of at:: functions, as one would write them by hand: what the engine's results and times are
// compared with. Knows the families' parameter names, and nothing of a graph's bodies.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/inference.h"
#include "engine/training.h"

namespace tidepool::engine {

// Thread-compatible.
class DirectNetwork {
 public:
  // Networks: resnet (18 and 34 layers), gpt2, bert with a classifier, mlp and convnet of TestGraph. Aborts on any other.
  static std::unique_ptr<DirectNetwork> ForInference(const model::Graph& graph, std::span<const TensorView> weights);
  // Trains with torch.optim's SGD or AdamW, on copies of the weights. No parameter is exempt from weight decay.
  static std::unique_ptr<DirectNetwork> ForTraining(const model::Graph& graph, std::span<const TensorView> weights,
                                                    const TrainingOptions& options);
  virtual ~DirectNetwork() = default;

  // Evaluation mode.
  virtual std::unique_ptr<Outputs> Run(std::span<const TensorView> inputs) = 0;
  // Forward, backward and one optimizer step. Returns the sum of the losses.
  virtual double Train(const MicroBatch& batch) = 0;
  // graph.params.
  virtual std::vector<TensorView> params() const = 0;
};

}  // namespace tidepool::engine
