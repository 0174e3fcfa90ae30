// Which primitives to try first. The published search compares three resources of the bottleneck with those of the other stages:
// the work itself, what parallel execution loses of it, and recomputation.
#include <algorithm>
#include <array>
#include <utility>

#include "plan/primitives.h"

namespace tidepool::plan {
namespace {

enum Resource { kWork, kLoss, kRecompute, kResources };
constexpr std::array<Primitive, kPrimitives> kAll = {
    Primitive::kDecOps,        Primitive::kIncData,          Primitive::kIncTensor,
    Primitive::kDecData,       Primitive::kDecTensor,        Primitive::kIncMicroBatch,
    Primitive::kDecMicroBatch, Primitive::kIncTensorDecData, Primitive::kIncDataDecTensor};

struct Shares {
  std::array<double, kResources> of_stage = {};  // of the sum over all stages
  double average = 0;
};

Shares SharesOf(const CostModel& model, const RankedPlan& plan, int32_t stage) {
  std::array<double, kResources> sums = {}, own = {};
  for (size_t i = 0; i < plan.plan.stages.size(); ++i) {
    const Stage& s = *plan.plan.stages[i];
    const StageCost& cost = plan.cost.stages[i];
    const double compute = cost.forward_us + cost.backward_us;
    // As if one device did it alone, without splits; what was not profiled so loses nothing.
    const StageTotals alone = model.UniformTotals(s.first(), s.count(), {}, plan.plan.micro_batch);
    const double ideal = alone.priced() ? std::min(compute, (alone.forward_us + alone.backward_us) / s.gpus()) : compute;
    const std::array<double, kResources> used = {ideal, compute - ideal, cost.recompute_us};
    for (int r = 0; r < kResources; ++r) sums[r] += used[r];
    if (static_cast<int32_t>(i) == stage) own = used;
  }
  Shares shares;
  shares.average = 1.0 / static_cast<double>(plan.plan.stages.size());
  for (int r = 0; r < kResources; ++r) shares.of_stage[r] = sums[r] > 0 ? own[r] / sums[r] : 0;
  return shares;
}

bool Reduces(Primitive primitive, int resource) {
  const PrimitiveEffect effect = EffectOf(primitive);
  switch (resource) {
    case kWork: return effect.work < 0 || effect.devices > 0;
    case kLoss: return effect.efficiency > 0;
    default: return effect.memory < 0;
  }
}

bool Worsens(Primitive primitive, int resource) {
  const PrimitiveEffect effect = EffectOf(primitive);
  switch (resource) {
    case kWork: return effect.devices < 0;
    case kLoss: return effect.efficiency < 0;
    default: return effect.memory > 0;
  }
}

}  // namespace

std::vector<std::vector<Primitive>> OrderedPrimitives(const CostModel& model, const RankedPlan& plan, int32_t stage) {
  std::vector<std::vector<Primitive>> groups;
  std::array<bool, kPrimitives> taken = {};
  const auto add = [&](auto&& wanted) {
    std::vector<Primitive> group;
    for (const Primitive primitive : kAll) {
      bool& used = taken[static_cast<size_t>(primitive)];
      if (used || !wanted(primitive)) continue;
      used = true;
      group.push_back(primitive);
    }
    if (!group.empty()) groups.push_back(std::move(group));
  };
  if (!plan.cost.fits) {
    add([](Primitive primitive) { return EffectOf(primitive).memory < 0; });
  } else {
    const Shares shares = SharesOf(model, plan, stage);
    std::array<int, kResources> order = {kWork, kLoss, kRecompute};
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return shares.of_stage[a] > shares.of_stage[b]; });
    const auto is_harmless = [&](Primitive primitive) {
      for (int r = 0; r < kResources; ++r) {
        const bool scarce = r == kRecompute ? plan.cost.stages[stage].recompute_us > 0 : shares.of_stage[r] > shares.average;
        if (scarce && Worsens(primitive, r)) return false;
      }
      return true;
    };
    for (const int resource : order) {
      add([&](Primitive primitive) { return Reduces(primitive, resource) && is_harmless(primitive); });
    }
    for (const int resource : order) {
      add([&](Primitive primitive) { return Reduces(primitive, resource); });
    }
  }
  add([](Primitive) { return true; });
  return groups;
}

}  // namespace tidepool::plan
