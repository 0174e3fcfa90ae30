// A bound below every plan of the calibrated model; LowerBound and LowerBoundBelow (lower_bound.h) call it. The proof is in the
// source and in docs/plan.md.
#pragma once

#include <functional>

#include "plan/search.h"
#include "plan/workers.h"

namespace tidepool::plan {

// As LowerBoundBelow. 0: device groups, or interrupted.
double CalibratedBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                            const std::function<bool()>& interrupted);

}  // namespace tidepool::plan
