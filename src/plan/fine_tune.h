// Improving the stages of a plan one by one, where each op may have its own split: the fine-tuning of the published search (Lin
// et al., Aceso, EuroSys 2024), and a choice of recomputation op by op, which that search has not.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>

#include "plan/plan_editor.h"

namespace tidepool::plan {

struct FineTuneOptions {
  bool splits = true;      // a run of ops from a tunable op to the left or right gets a step more width, or replicas
  bool algorithms = true;  // an op is split along another axis
  bool uniform = true;     // another split for all ops of the stage
  // Which ops are recomputed, chosen by time per memory instead of by name. For stages of at most `recompute_ops` ops: the cost
  // grows with the square.
  bool recompute = false;
  int32_t recompute_ops = 512;
  int64_t budget = 0;  // evaluations; 0: no limit
};

// What stages became when they were tuned, so that no stage is tuned twice at one place; for one editor and one set of options.
using TunedStages = std::unordered_map<Key128, StagePtr, Key128Hash>;

// The same plan with faster stages, each tuned until nothing helps; none if nothing helped. Cuts and devices stay. A stage that
// does not fit is made smaller first.
std::optional<RankedPlan> FineTune(PlanEditor* editor, const RankedPlan& from, const FineTuneOptions& options = {},
                                   TunedStages* tuned = nullptr);

}  // namespace tidepool::plan
