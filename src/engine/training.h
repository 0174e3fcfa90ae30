// A network in training: parameters, accumulated gradients and optimizer state in pool memory, and micro-batches as transactions.
//
// A global batch is: BeginGlobalBatch, any number of micro-batches (each RunMicroBatch then CommitMicroBatch or AbortMicroBatch),
// then OptimizerStep. An aborted micro-batch leaves no trace: staged gradients are dropped, BatchNorm buffers and the random
// generator are what they were.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/runtime.h"
#include "model/graph.h"

namespace tidepool::engine {

struct OptimizerOptions {
  enum class Kind : uint8_t { kSgd, kAdamW } kind = Kind::kSgd;
  double learning_rate = 0.1;
  double momentum = 0.9;                              // SGD
  double weight_decay = 0;                            // decoupled for AdamW, added to the gradient for SGD
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // AdamW
};

struct TrainingOptions {
  OptimizerOptions optimizer;
  uint64_t seed = 0;
};

struct MicroBatch {
  std::vector<TensorView> inputs;  // graph.inputs with the batch filled in
  TensorView target;
  int64_t global_batch_size = 0;  // true number of samples in this global batch: the loss is the mean over it
  uint64_t rng_key = 0;           // seeds dropout, so that the same micro-batch draws the same numbers again
  bool abortable = true;
};

struct MicroBatchResult {
  double loss_sum = 0;                               // over the micro-batch's samples (or tokens)
  int64_t loss_count = 0;                            // how many losses loss_sum adds up
  int64_t correct = 0;                               // predictions that equal the target
  int64_t peak_bytes = 0;                            // live bytes of the arena at the highest point of this micro-batch
  double forward_seconds = 0, backward_seconds = 0;  // set by RunMicroBatch; the loss is part of the forward pass
};

struct NamedTensor {
  std::string name;
  TensorView view;
};

// Owned by the trainer's main thread; only the AbortToken may be used from others.
class TrainingModule {
 public:
  // Allocates everything in `arena` (which outlives the module) and loads initial weights: weights[i] is graph.params[i].
  static StatusOr<std::unique_ptr<TrainingModule>> Create(std::shared_ptr<const model::Graph> graph,
                                                          std::span<const TensorView> weights, pool::Arena* arena,
                                                          const TrainingOptions& options);
  virtual ~TrainingModule() = default;

  virtual AbortToken& abort_token() = 0;

  virtual Status BeginGlobalBatch() = 0;
  // Forward and backward into staged gradients. ABORTED if the token unwound it, RESOURCE_EXHAUSTED if the pool had no room;
  // after any error call AbortMicroBatch.
  virtual StatusOr<MicroBatchResult> RunMicroBatch(const MicroBatch& batch) = 0;
  virtual Status CommitMicroBatch() = 0;  // short; never aborted
  virtual Status AbortMicroBatch() = 0;   // restores buffers and generator, drops what was staged
  virtual Status OptimizerStep(double learning_rate) = 0;
  virtual int64_t steps() const = 0;  // optimizer steps taken

  // Forward only in evaluation mode; changes nothing. ABORTED and RESOURCE_EXHAUSTED as above, without AbortMicroBatch.
  virtual StatusOr<MicroBatchResult> Evaluate(const MicroBatch& batch) = 0;

  // Parameters and buffers under the graph's names; optimizer state as "optimizer.<parameter>.<state>". Views into the arena.
  virtual std::vector<NamedTensor> State() = 0;
  virtual void SetSteps(int64_t steps) = 0;
};

}  // namespace tidepool::engine
