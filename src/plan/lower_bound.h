// A bound below every plan of the per-op space, under the parity and the calibrated model (but not with device groups). The proof
// is in calibrated_bound.cc and docs/plan.md.
#pragma once

#include <functional>

#include "plan/search.h"
#include "plan/workers.h"

namespace tidepool::plan {

// As LowerBound, but no more work than is needed to show that nothing is faster than `upper_ms`; the result is at most that.
// `interrupted`: true ends it with 0.
double LowerBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                       const std::function<bool()>& interrupted);

}  // namespace tidepool::plan
