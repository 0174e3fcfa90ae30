#include "model/cost.h"

#include <algorithm>

namespace tidepool::model {
namespace {

// How often a phase goes over the network, counted in forward passes.
double PassesOf(profile::Phase phase) {
  switch (phase) {
    case profile::Phase::kForward: return 1;
    case profile::Phase::kBackward: return 2;
    case profile::Phase::kStep: return 3;
    case profile::Phase::kOptimizer: return 0;
  }
  return 0;
}

}  // namespace

profile::OpCost CostOf(const Graph& graph, profile::Phase phase, int optimizer_states) {
  const double passes = PassesOf(phase);
  double calls = 0;
  for (const Op& op : graph.ops) calls += static_cast<double>(op.body.size());
  profile::OpCost cost;
  cost.flops_per_sample = passes * static_cast<double>(graph.forward_flops_per_sample());
  cost.bytes_per_sample = passes * 2 * static_cast<double>(graph.activation_bytes_per_sample());
  cost.fixed_bytes = passes * static_cast<double>(graph.parameter_bytes());
  cost.launches = passes * calls;
  if (phase == profile::Phase::kStep || phase == profile::Phase::kOptimizer) {
    const double numbers = static_cast<double>(graph.trainable_parameters());
    cost.fixed_bytes += (3 + 2 * optimizer_states) * numbers * static_cast<double>(SizeOf(DType::kF32));
    const auto trained = [](const Param& param) { return param.kind == ParamKind::kWeight; };
    cost.launches += static_cast<double>(std::count_if(graph.params.begin(), graph.params.end(), trained));
  }
  cost.launches = std::max(1.0, cost.launches);
  return cost;
}

}  // namespace tidepool::model
