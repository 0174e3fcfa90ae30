#include "engine/loss.h"

#include <ATen/core/Reduction.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/sum.h>
#include <fmt/ranges.h>

#include "engine/tensors.h"

namespace tidepool::engine {
namespace {

constexpr int64_t kIgnoreIndex = -100;  // torch's default; CheckTarget refuses it

const model::Value& ResultOf(const model::Graph& graph) { return graph.values[graph.outputs[0]]; }

size_t RankOf(model::LossKind kind) { return kind == model::LossKind::kCrossEntropy ? 2 : 3; }

}  // namespace

Status CheckLossFits(const model::Graph& graph) {
  const model::Value& result = ResultOf(graph);
  const size_t rank = RankOf(model::DefaultLoss(graph));
  if (result.dtype == DType::kF32 && result.shape.size() == rank) return {};
  return InvalidArgument("output '{}' of graph '{}' is {} [{}], which has no loss; allowed: F32 {}", result.name, graph.name,
                         SafetensorsName(result.dtype), fmt::join(result.shape, ","),
                         rank == 2 ? "[batch,classes]" : "[batch,time,vocabulary]");
}

Status CheckTarget(const model::Graph& graph, const TensorView& target, int64_t batch) {
  const model::Shape& result = ResultOf(graph).shape;
  model::Shape shape(result.begin(), result.end() - 1);
  shape[0] = batch;
  if (const auto fault = FaultOf(target, DType::kI64, shape, alignof(int64_t)))
    return InvalidArgument("the target has {}", *fault);
  const auto* classes = reinterpret_cast<const int64_t*>(target.data);
  for (int64_t i = 0; i < target.elements(); ++i) {
    if (classes[i] < 0 || classes[i] >= result.back()) {
      return InvalidArgument("element {} of the target is {}; allowed: 0 to {}", i, classes[i], result.back() - 1);
    }
  }
  return {};
}

int64_t LossesPerSample(const model::Graph& graph) {
  return model::DefaultLoss(graph) == model::LossKind::kCrossEntropy ? 1 : ResultOf(graph).shape[1];
}

at::Tensor LossSum(const model::Graph& graph, const at::Tensor& result, const at::Tensor& target) {
  const int64_t classes = ResultOf(graph).shape.back();
  return at::cross_entropy_loss(result.reshape({-1, classes}), target.reshape({-1}), {}, at::Reduction::Sum, kIgnoreIndex);
}

int64_t CountCorrect(const at::Tensor& result, const at::Tensor& target) {
  at::NoGradGuard no_grad;
  return at::sum(at::eq(at::argmax(result, -1), target)).item<int64_t>();
}

}  // namespace tidepool::engine
