// The published search: iterative bottleneck alleviation. A plan's bottleneck is relieved by the primitives (primitives.h), in an
// order that follows the resource of which it uses most; if no single one makes the plan better, up to seven in a row are tried
// (multi-hop), depth first. Source: Lin et al., Aceso: Efficient Parallel DNN Training through Iterative Bottleneck Alleviation,
// EuroSys 2024.
//
// Beyond the source: evaluations are budgeted, not seconds, so results do not depend on the machine or on the number of threads;
// stage counts compete in rounds, of which each keeps the better half; several starts per stage count; several partners per move;
// plans whose skip tensors would cross two edges are not made.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "plan/search.h"

namespace tidepool::plan {

struct PolishOptions {
  std::vector<int32_t> micro_batches;  // that the plan may change to; empty: its own only
  // Choose what is recomputed op by op too (fine_tune.h).
  bool recompute = true;
  absl::Duration wall_limit = absl::Seconds(300);  // a safety stop
};
struct PolishResult {
  RankedPlan best;
  int64_t evaluations = 0;
  bool hit_wall_limit = false;
};
// The plan, improved by the primitives and by fine-tuning under any cost model, with as many stages as it has. Never worse than
// `plan` as it was given, recompute flags included. `budget`: evaluations. One thread; deterministic. INVALID_ARGUMENT if the
// plan is not valid, memory apart.
StatusOr<PolishResult> Polish(const CostModel& model, const Plan& plan, int64_t budget, const PolishOptions& options = {});

}  // namespace tidepool::plan
