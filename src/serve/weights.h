// The tensors of a weights file in the order of a graph's parameters, checked. Torch-free: the front end uses it to refuse broken
// models early, the worker to load.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "model/graph.h"
#include "model/safetensors.h"

namespace tidepool::serve {

struct WeightList {
  std::vector<model::TensorEntry> tensors;  // by parameter id
  std::vector<int64_t> sizes_bytes;
  int64_t total_bytes = 0;
};

// INVALID_ARGUMENT lists every missing, unexpected and mismatched tensor (the first few of each kind, and how many there are).
StatusOr<WeightList> MatchWeights(const model::Graph& graph, const model::SafetensorsFile& file);

// Bytes that a forward pass over `batch` samples holds at its highest point, from the lifetimes of the graph's values, with an
// allowance for the scratch space of operators. An estimate.
int64_t EstimateWorkspaceBytes(const model::Graph& graph, int batch);

// Bytes of one sample of `value`; INVALID_ARGUMENT if a dimension other than the batch is open, or the product is absurd.
StatusOr<int64_t> BytesPerSample(const model::Value& value);

}  // namespace tidepool::serve
