#include "plan/pricer.h"

#include <utility>
#include <vector>

namespace tidepool::plan {

StageTotals Pricer::TotalsOf(const Stage& stage, int32_t micro_batch) {
  Key128 key = stage.key();
  key.high ^= static_cast<uint64_t>(micro_batch) * 0x9E3779B97F4A7C15ull;
  Shard& shard = shards_[key.low % kShards];
  {
    absl::MutexLock lock(&shard.mutex);
    const auto found = shard.totals.find(key);
    if (found != shard.totals.end()) return found->second;
  }
  const StageTotals totals = model_.TotalsOf(stage, micro_batch);
  stage_evaluations_.fetch_add(1, std::memory_order_relaxed);
  absl::MutexLock lock(&shard.mutex);
  if (shard.totals.size() >= options_.limit / kShards + 1) shard.totals.clear();
  shard.totals.emplace(key, totals);
  return totals;
}

StatusOr<PlanCost> Pricer::Price(const Plan& plan) {
  TIDEPOOL_RETURN_IF_ERROR(model_.CheckShape(plan));
  plan_evaluations_.fetch_add(1, std::memory_order_relaxed);
  const std::vector<StagePlace> places = model_.PlacesOf(plan);
  std::vector<StageCost> costs;
  costs.reserve(places.size());
  for (size_t i = 0; i < places.size(); ++i) {
    costs.push_back(model_.CostAt(TotalsOf(*plan.stages[i], plan.micro_batch), places[i]));
  }
  return model_.Combine(plan, std::move(costs));
}

}  // namespace tidepool::plan
