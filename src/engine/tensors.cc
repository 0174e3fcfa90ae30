#include "engine/tensors.h"

#include <ATen/ops/from_blob.h>
#include <fmt/ranges.h>

namespace tidepool::engine {
namespace {

struct TypePair {
  DType ours;
  at::ScalarType torchs;
};
constexpr TypePair kTypes[] = {
    {DType::kBool, at::ScalarType::Bool},  {DType::kU8, at::ScalarType::Byte},       {DType::kI8, at::ScalarType::Char},
    {DType::kI16, at::ScalarType::Short},  {DType::kI32, at::ScalarType::Int},       {DType::kI64, at::ScalarType::Long},
    {DType::kF16, at::ScalarType::Half},   {DType::kBF16, at::ScalarType::BFloat16}, {DType::kF32, at::ScalarType::Float},
    {DType::kF64, at::ScalarType::Double},
};

bool ShapeFits(const std::vector<int64_t>& seen, const model::Shape& allowed) {
  if (seen.size() != allowed.size()) return false;
  for (size_t i = 0; i < seen.size(); ++i) {
    if (allowed[i] < 0 ? seen[i] < 1 : seen[i] != allowed[i]) return false;
  }
  return true;
}

}  // namespace

StatusOr<at::ScalarType> ScalarTypeOf(DType dtype) {
  for (const TypePair& pair : kTypes) {
    if (pair.ours == dtype) return pair.torchs;
  }
  return InvalidArgument("element type {} cannot be computed with; allowed: BOOL U8 I8 I16 I32 I64 F16 BF16 F32 F64",
                         SafetensorsName(dtype));
}

StatusOr<DType> DTypeOf(at::ScalarType type) {
  for (const TypePair& pair : kTypes) {
    if (pair.torchs == type) return pair.ours;
  }
  return InvalidArgument("a tensor has torch's element type {}, which has no name here", c10::toString(type));
}

std::optional<std::string> FaultOf(const TensorView& view, DType dtype, const model::Shape& shape, int64_t alignment) {
  if (view.dtype != dtype) {
    return fmt::format("type {}; allowed: {}", SafetensorsName(view.dtype), SafetensorsName(dtype));
  }
  if (!ScalarTypeOf(dtype).ok()) return MessageOf(ScalarTypeOf(dtype).status());
  if (!ShapeFits(view.shape, shape)) {
    return fmt::format("shape [{}]; allowed: [{}]", fmt::join(view.shape, ","), fmt::join(shape, ","));
  }
  if (view.data == nullptr) return std::string("no data (null)");
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(alignment) != 0) {
    return fmt::format("address {}; allowed: multiples of {}", static_cast<const void*>(view.data), alignment);
  }
  return std::nullopt;
}

Status CheckParams(const model::Graph& graph, std::span<const TensorView> params, int64_t alignment) {
  if (params.size() != graph.params.size()) {
    return InvalidArgument("graph '{}' got {} parameters; allowed: {}", graph.name, params.size(), graph.params.size());
  }
  std::vector<std::string> faults;
  for (size_t i = 0; i < params.size(); ++i) {
    const model::Param& param = graph.params[i];
    if (const auto fault = FaultOf(params[i], param.dtype, param.shape, alignment)) {
      faults.push_back(fmt::format("'{}' has {}", param.name, *fault));
    }
  }
  if (!faults.empty()) {
    return InvalidArgument("graph '{}' has {} wrong parameter{}: {}", graph.name, faults.size(), faults.size() == 1 ? "" : "s",
                           fmt::join(faults, "; "));
  }
  return {};
}

at::Tensor Borrow(const TensorView& view) {
  return at::from_blob(view.data, view.shape, at::TensorOptions().dtype(*ScalarTypeOf(view.dtype)));
}

// Blocks of the pool allocator have themselves as their context; borrowed memory has none.
bool IsBorrowed(const at::Tensor& tensor) { return tensor.numel() > 0 && tensor.storage().data_ptr().get_context() == nullptr; }

TensorView ViewOf(const at::Tensor& tensor) {
  return {
      .data = static_cast<std::byte*>(tensor.data_ptr()), .dtype = *DTypeOf(tensor.scalar_type()), .shape = tensor.sizes().vec()};
}

StatusOr<std::vector<at::Tensor>> BorrowInputs(const model::Graph& graph, std::span<const TensorView> inputs) {
  if (inputs.size() != graph.inputs.size()) {
    return InvalidArgument("graph '{}' got {} inputs; allowed: {}", graph.name, inputs.size(), graph.inputs.size());
  }
  std::vector<at::Tensor> tensors;
  tensors.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const model::Value& value = graph.values[graph.inputs[i]];
    const TensorView& view = inputs[i];
    if (const auto fault = FaultOf(view, value.dtype, value.shape, SizeOf(value.dtype))) {
      return InvalidArgument("input '{}' of graph '{}' has {}", value.name, graph.name, *fault);
    }
    if (view.shape[0] != inputs[0].shape[0]) {
      return InvalidArgument("input '{}' of graph '{}' has batch {}; allowed: {}, as input '{}' has", value.name, graph.name,
                             view.shape[0], inputs[0].shape[0], graph.values[graph.inputs[0]].name);
    }
    tensors.push_back(Borrow(view));
  }
  return tensors;
}

}  // namespace tidepool::engine
