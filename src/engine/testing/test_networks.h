// Small networks, weights and batches for the engine's tests and benchmarks.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/training.h"
#include "model/graph.h"

namespace tidepool::engine {

// Aligned memory for some tensors, and views of it.
class TensorSet {
 public:
  TensorView& Add(DType dtype, std::vector<int64_t> shape);
  std::span<const TensorView> views() const { return views_; }
  TensorView& operator[](size_t index) { return views_[index]; }

 private:
  struct Free {
    void operator()(std::byte* block) const;
  };
  std::vector<std::unique_ptr<std::byte, Free>> blocks_;
  std::vector<TensorView> views_;
};

// A text that model::BuildGraph reads; or "mlp:WIDTH" (two linear layers with dropout between them), "convnet" (two residual
// convolutions with batch norm). Aborts if it is none.
std::shared_ptr<const model::Graph> TestGraph(const std::string& spec);

// Seeded weights for every parameter: variances positive, the rest small.
TensorSet TestWeights(const model::Graph& graph, uint64_t seed);

// Seeded inputs and target of `samples` samples; the same numbers for the same seed.
class TestBatch {
 public:
  TestBatch(const model::Graph& graph, int64_t samples, uint64_t seed);
  std::span<const TensorView> inputs() const { return inputs_.views(); }
  // Samples [first, first + count) of this batch, as a micro-batch of a global batch of all of them.
  MicroBatch Slice(int64_t first, int64_t count, uint64_t rng_key) const;
  MicroBatch All(uint64_t rng_key) const { return Slice(0, samples_, rng_key); }

 private:
  int64_t samples_;
  TensorSet inputs_;
  TensorSet target_;
};

}  // namespace tidepool::engine
