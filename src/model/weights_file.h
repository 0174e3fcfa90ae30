// The weights file of one graph: which tensors it has, in which order. Inside model only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/graph.h"
#include "model/safetensors.h"

namespace tidepool::model {

// The order of parameters in a file: that of the graph, but wider elements first, so that every tensor is aligned to its
// elements.
std::vector<ParamId> FileOrder(const Graph& graph);

// A writer for all parameters of `graph` in FileOrder.
StatusOr<std::unique_ptr<SafetensorsWriter>> CreateWeightsFile(const std::string& path, const Graph& graph);

// How a tensor differs from its parameter in type or shape, in words; empty if it does not.
std::string Difference(const Param& param, const TensorEntry& tensor);

// "[64,3,7,7]".
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace tidepool::model
