// Which ops of a stage are recomputed: the published planner's rule, a function of the stage and its place.
//
// Nothing is recomputed at first. While the stage needs more memory than the limit, take the op NAME whose measured activations
// sum up to most over the stage (ties: the one that comes first; never one with DistinctOp::recompute_seed == false), and
// recompute its occurrences, each with the op after it; all of them, or only the first few if their activations, times the
// micro-batches that wait, already exceed what is missing. The name and that of the op after its first occurrence are then done.
// It ends when the stage fits, when no name is left, or when the chosen name first occurs as the stage's last op. Source: Lin et
// al., Aceso, EuroSys 2024.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/cost_model.h"

namespace tidepool::plan {

struct RecomputeResult {
  std::vector<uint8_t> flags;  // one per op of the stage
  StageTotals totals;          // with them
  double memory_mib = 0;       // at the place
  bool fits = false;
};

// `stage`: flags that it has already are ignored. Cost: O(ops), and O(runs) for the pricing.
RecomputeResult ChooseRecompute(const CostModel& model, const Stage& stage, int32_t micro_batch, const StagePlace& place,
                                double limit_mib);
// The same for a stage whose ops all have one split. O(1) if it fits as it is; `flags` is empty then.
RecomputeResult ChooseRecomputeUniform(const CostModel& model, int32_t first, int32_t count, const OpChoice& split,
                                       int32_t micro_batch, const StagePlace& place, double limit_mib);

// `stage` with the rule's flags.
StagePtr WithChosenRecompute(const CostModel& model, const StagePtr& stage, int32_t micro_batch, const StagePlace& place,
                             double limit_mib);

}  // namespace tidepool::plan
