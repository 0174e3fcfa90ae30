// Plans whose ops have a split and a recompute flag each: paths through the ops of every stage for several prices of memory,
// inside of the stage programme; then every stage of the best cut is made as good as its place allows.
#include "plan/path_planner.h"
#include "plan/programme_search.h"

namespace tidepool::plan {

StatusOr<SearchResult> SearchOpDp(const CostModel& model, const SearchRequest& request) {
  StatusOr<SearchResult> result =
      SearchByProgramme(model, request, [](const StageProgramme& programme) { return std::make_unique<PathPlanner>(programme); });
  // Its table is made of estimates. Where all that they promise falls through, the exact search has the word.
  if (result.status().code() == StatusCode::kResourceExhausted) return SearchExact(model, request);
  return result;
}

}  // namespace tidepool::plan
