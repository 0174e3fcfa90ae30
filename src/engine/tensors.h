// Between plain views and torch's tensors. Internal to engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/runtime.h"
#include "model/graph.h"

namespace tidepool::engine {

inline constexpr int64_t kParamAlignment = 64;

// INVALID_ARGUMENT for a type that torch 1.13 has not (the wider unsigned ones).
StatusOr<at::ScalarType> ScalarTypeOf(DType dtype);
StatusOr<DType> DTypeOf(at::ScalarType type);

// What is wrong with `view` as the tensor of `dtype` and `shape`, if anything; a negative dimension in `shape` fits every size
// from 1.
std::optional<std::string> FaultOf(const TensorView& view, DType dtype, const model::Shape& shape, int64_t alignment);

// INVALID_ARGUMENT lists every view that is not as graph.params[i] says, or not aligned.
Status CheckParams(const model::Graph& graph, std::span<const TensorView> params, int64_t alignment);

// A tensor on the view's memory, which it does not own. The view has been checked.
at::Tensor Borrow(const TensorView& view);
// Whether the tensor's memory belongs to somebody else: it came from Borrow, or is a view of one that did.
bool IsBorrowed(const at::Tensor& tensor);

// The tensor is dense and of a type of ours.
TensorView ViewOf(const at::Tensor& tensor);

// Checks the inputs of one run against the graph and borrows them. The batch is the same for all.
StatusOr<std::vector<at::Tensor>> BorrowInputs(const model::Graph& graph, std::span<const TensorView> inputs);

}  // namespace tidepool::engine
