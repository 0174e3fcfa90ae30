// Moving ops from a stage to a partner, over the stages between them: the primitive that the published search needs most.
#pragma once

#include <vector>

#include "plan/primitives.h"

namespace tidepool::plan {

// Appends plans in which `stage` has fewer ops. For each of the best partners and each of three goals (the bottleneck's time less
// 40 %, 20 % and none of the gap to the partner; memory instead of time if the plan does not fit): at every hop the fewest ops
// that bring the giving stage below the goal move to its neighbour, and take its width. Then the same from the stage that is the
// bottleneck now, a few times.
void MigrateOps(PlanEditor* editor, const RankedPlan& from, int32_t stage, const PrimitiveOptions& options,
                std::vector<RankedPlan>* plans);

// `count` ops from the end of `giver` that touches `taker`; they take the width of the op that they come to stand beside, and
// keep their algorithm where that was profiled. The giver must keep at least one.
struct Moved {
  StagePtr giver, taker;
};
Moved MoveOps(const CostModel& model, const StagePtr& giver, const StagePtr& taker, int32_t count, int32_t micro_batch);

}  // namespace tidepool::plan
