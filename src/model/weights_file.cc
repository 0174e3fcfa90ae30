#include "model/weights_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "model/families.h"

namespace tidepool::model {

std::vector<ParamId> FileOrder(const Graph& graph) {
  std::vector<ParamId> order(graph.params.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](ParamId a, ParamId b) { return SizeOf(graph.params[a].dtype) > SizeOf(graph.params[b].dtype); });
  return order;
}

StatusOr<std::unique_ptr<SafetensorsWriter>> CreateWeightsFile(const std::string& path, const Graph& graph) {
  std::vector<TensorPlan> plans;
  for (const ParamId id : FileOrder(graph))
    plans.push_back({graph.params[id].name, graph.params[id].dtype, graph.params[id].shape});
  // Hugging Face's readers want "format".
  return SafetensorsWriter::Create(path, plans, {{"format", "pt"}, {"tidepool.spec", ToText(Spec{graph.family, graph.config})}});
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ",")); }

std::string Difference(const Param& param, const TensorEntry& tensor) {
  if (param.dtype == tensor.dtype && param.shape == tensor.shape) return {};
  return fmt::format("tensor '{}' is {} {} in the file but {} {} in the network", param.name, SafetensorsName(tensor.dtype),
                     ShapeText(tensor.shape), SafetensorsName(param.dtype), ShapeText(param.shape));
}

}  // namespace tidepool::model
