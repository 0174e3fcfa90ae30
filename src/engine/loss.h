// What training compares a network's result with. Internal to engine.
#pragma once

#include <ATen/core/Tensor.h>

#include "engine/runtime.h"
#include "model/graph.h"

namespace tidepool::engine {

// Whether `graph` has a result that its loss can be taken of: INVALID_ARGUMENT names the output and the shape it needs.
Status CheckLossFits(const model::Graph& graph);

// Checks type, shape and the range of every number: torch would read a class that is out of range as "ignore this sample".
Status CheckTarget(const model::Graph& graph, const TensorView& target, int64_t batch);

// Losses that one sample has: 1, or its tokens.
int64_t LossesPerSample(const model::Graph& graph);

// The sum of all losses, a scalar. Throws what torch throws.
at::Tensor LossSum(const model::Graph& graph, const at::Tensor& result, const at::Tensor& target);
// How many predictions equal the target.
int64_t CountCorrect(const at::Tensor& result, const at::Tensor& target);

}  // namespace tidepool::engine
