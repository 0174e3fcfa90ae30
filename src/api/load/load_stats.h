// From single requests to the figures of a load. Pure.
#pragma once

#include <absl/time/time.h>

#include <vector>

#include "api/load/load.h"

namespace tidepool::api {

// Exact order statistics: pXX is the smallest value that at least XX % of the values do not exceed.
LatencySummary Summarize(std::vector<absl::Duration> values);

// Fills within_slo of the samples, and the counts, latencies and seconds of `result` from result->samples and the objectives in
// result->models. A dropped or failed request is outside its objective.
void Aggregate(LoadResult* result);

}  // namespace tidepool::api
