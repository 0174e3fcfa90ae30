// The default: op-dp, and a bound below every plan of its space.
#include "plan/lower_bound.h"
#include "plan/programme_search.h"

namespace tidepool::plan {

StatusOr<SearchResult> SearchAuto(const CostModel& model, const SearchRequest& request) {
  const SearchLimits limits(request);
  TIDEPOOL_ASSIGN_OR_RETURN(SearchResult result, SearchOpDp(model, request));
  Workers workers(request.threads);
  result.lower_bound_ms = LowerBoundBelow(model, request, result.best_ms(), &workers, [&] { return limits.wall_is_over(); });
  if (limits.wall_is_over()) result.hit_wall_limit = true;
  result.seconds = limits.seconds();
  if (result.lower_bound_ms == 0) {
    result.notes.emplace_back(result.hit_wall_limit ? "the wall limit came before a bound was found"
                                                    : "no bound is known for this cost model");
  }
  if (request.on_progress) {
    request.on_progress({result.seconds, result.evaluations, result.best_ms(), result.lower_bound_ms});
  }
  return result;
}

}  // namespace tidepool::plan
