#include "plan/cost_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace tidepool::plan {

bool StageTotals::priced() const { return std::isfinite(forward_us); }

StageTotals UnpricedTotals() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  StageTotals totals;
  totals.forward_us = totals.state_mib = kInfinity;
  return totals;
}

std::vector<OpChoice> CostModel::SplitsOf(int32_t gpus, int32_t micro_batch) const {
  std::vector<OpChoice> splits;
  for (const int32_t width : table_.widths()) {
    if (width > gpus || gpus % width != 0) continue;
    for (int32_t algorithm = 0; algorithm < table_.algorithms(); ++algorithm) {
      const OpChoice choice{width, gpus / width, static_cast<uint8_t>(algorithm), false};
      if (RowOf(choice, micro_batch) >= 0) splits.push_back(choice);
    }
  }
  return splits;
}

std::vector<int32_t> CostModel::StageSizes(int32_t micro_batch) const {
  std::set<int32_t> sizes;
  for (const int32_t batch : table_.batches()) {
    if (micro_batch % batch != 0) continue;
    for (const int32_t width : table_.widths()) {
      const int64_t gpus = static_cast<int64_t>(micro_batch / batch) * width;
      if (gpus > cluster_.gpus()) continue;
      if (gpus > cluster_.gpus_per_node && gpus % cluster_.gpus_per_node != 0) continue;
      if (!SplitsOf(static_cast<int32_t>(gpus), micro_batch).empty()) sizes.insert(static_cast<int32_t>(gpus));
    }
  }
  return {sizes.begin(), sizes.end()};
}

std::vector<StagePlace> CostModel::PlacesOf(const Plan& plan) const {
  std::vector<StagePlace> places;
  const auto stages = static_cast<int32_t>(plan.stages.size());
  StagePlace place{.stages_behind = stages - 1, .stages = stages, .micro_batches = plan.micro_batches()};
  for (const StagePtr& stage : plan.stages) {
    const int32_t next_gpu = place.first_gpu + stage->gpus();
    place.in_link = cluster_.LinkAt(place.first_gpu);
    place.out_link = cluster_.LinkAt(next_gpu);
    places.push_back(place);
    place.first_gpu = next_gpu;
    --place.stages_behind;
  }
  return places;
}

PipelineSpec CostModel::PipelineOf(const Plan& plan, std::span<const StageCost> costs) const {
  const PipelineOptions options = pipeline();
  PipelineSpec spec{.schedule = options.schedule,
                    .chunks = options.chunks,
                    .micro_batches = plan.micro_batches(),
                    .transfer_overlap = options.transfer_overlap};
  spec.stages.reserve(costs.size());
  spec.edges.reserve(costs.size());
  for (size_t i = 0; i < costs.size(); ++i) {
    const StageCost& cost = costs[i];
    spec.stages.push_back({.forward_us = cost.forward_us + cost.reshard_forward_us,
                           .recompute_us = cost.recompute_us,
                           .backward_us = cost.backward_us + cost.reshard_backward_us,
                           .weight_gradient_us = cost.weight_gradient_us,
                           .sync_us = cost.sync_us,
                           .optimizer_us = cost.optimizer_us});
    // Costs hold both ways of all messages of a micro-batch; the side that takes longer is how long one takes. Behind the last
    // stage of an interleaved pipeline comes the first, with one message less.
    const bool last = i + 1 == costs.size();
    const double messages = std::max(last ? options.chunks - 1 : options.chunks, 1);
    const double us = std::max(cost.out_us, costs[last ? 0 : i + 1].in_us) / (2 * messages);
    spec.edges.push_back({us, us});
  }
  return spec;
}

Status CostModel::CheckShape(const Plan& plan) const {
  if (plan.stages.empty()) return InvalidArgument("the plan has no stages");
  if (plan.micro_batches() < 1) {
    return InvalidArgument("micro-batch {} and global batch {}; allowed: at least one micro-batch per iteration",
                           plan.micro_batch, plan.global_batch);
  }
  for (const StagePtr& stage : plan.stages) {
    if (stage->first() < 0 || stage->end() > ops_.size()) {
      return InvalidArgument("a stage has ops {} to {}; allowed: 0 to {}", stage->first(), stage->end() - 1, ops_.size() - 1);
    }
  }
  return {};
}

StatusOr<PlanCost> CostModel::Price(const Plan& plan) const {
  TIDEPOOL_RETURN_IF_ERROR(CheckShape(plan));
  const std::vector<StagePlace> places = PlacesOf(plan);
  std::vector<StageCost> costs;
  for (size_t i = 0; i < places.size(); ++i) costs.push_back(CostAt(TotalsOf(*plan.stages[i], plan.micro_batch), places[i]));
  return Combine(plan, std::move(costs));
}

}  // namespace tidepool::plan
