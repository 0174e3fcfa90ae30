// Makes new plans out of priced ones for searches that change a plan step by step. A change re-prices the stages that it touches
// and chooses their recomputation again by the published rule (recompute_rule.h); other stages keep theirs. Prices are those of
// CostModel::Price in every bit.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "plan/cost_model.h"
#include "plan/search.h"

namespace tidepool::plan {

// A stage with the recomputation that the rule chose at its place, and what it costs there.
struct PlacedStage {
  StagePtr stage;
  StageCost cost;
  bool priced = false;  // all its splits are profiled; else the rest is infinite
  bool fits = false;
};

// Remembers every stage that it placed, so it is to be used by one search on one thread. Thread-compatible. The model must
// outlive it.
class PlanEditor {
 public:
  // `micro_batches`: those that plans may have, ascending.
  PlanEditor(const CostModel& model, std::vector<int32_t> micro_batches, size_t cache_limit = size_t{1} << 16)
      : model_(model), micro_batches_(std::move(micro_batches)), cache_limit_(cache_limit) {}

  const CostModel& model() const { return model_; }
  const std::vector<int32_t>& micro_batches() const { return micro_batches_; }
  // Stages that were priced, those that it remembered included.
  int64_t evaluations() const { return evaluations_; }
  // Of a stage on `gpus` devices.
  double LimitAt(const StagePlace& place, int32_t gpus) const { return model_.cluster().MemoryLimitOf(place.first_gpu, gpus); }

  // Recompute flags of `stage` are ignored.
  PlacedStage Place(const StagePtr& stage, int32_t micro_batch, const StagePlace& place);
  // With the flags that it has.
  PlacedStage PlaceAsIs(const StagePtr& stage, int32_t micro_batch, const StagePlace& place);

  // The plan with these stages. Stages that are the same objects as those of `from` keep their recompute flags, if the
  // micro-batch is the same and they fit where they are now; the others get those of the rule. None if the plan would not be
  // valid, memory apart: devices not all used, a stage over a node's edge, a skip tensor over two edges, a split that was not
  // profiled.
  std::optional<RankedPlan> Make(const RankedPlan& from, int32_t micro_batch, std::vector<StagePtr> stages);
  // A plan from nothing: recomputation of all stages by the rule.
  std::optional<RankedPlan> MakeNew(int64_t global_batch, int32_t micro_batch, std::vector<StagePtr> stages);
  // The plan as it is, with its recompute flags. None as Make.
  std::optional<RankedPlan> MakeAsIs(const Plan& plan);

 private:
  bool IsLegal(const Plan& plan) const;

  const CostModel& model_;
  std::vector<int32_t> micro_batches_;
  size_t cache_limit_;
  std::unordered_map<Key128, PlacedStage, Key128Hash> placed_;
  int64_t evaluations_ = 0;
};

// Stages that cost the same at the same place of plans with one micro-batch have one key; flags count.
Key128 PlacedKey(const CostModel& model, const Stage& stage, int32_t micro_batch, const StagePlace& place);

// The stage with other recompute flags: none.
StagePtr WithoutRecompute(const StagePtr& stage);
// The stage whose ops are split (`tensor_factor` / `tensor_divisor`) and so on as wide. Null if a width is no whole number or the
// split was not profiled; an algorithm that was not profiled becomes 0.
struct Rescale {
  int32_t tensor_times = 1, tensor_over = 1, data_times = 1, data_over = 1;
};
StagePtr Rescaled(const CostModel& model, const StagePtr& stage, int32_t micro_batch, const Rescale& rescale);

}  // namespace tidepool::plan
