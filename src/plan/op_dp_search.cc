// Plans whose ops have a split and a recompute flag each: paths through the ops of every stage for several prices of memory,
// inside of the stage programme; then every stage of the best cut is made as good as its place allows.
#include "plan/path_planner.h"
#include "plan/programme_search.h"

namespace tidepool::plan {

StatusOr<SearchResult> SearchOpDp(const CostModel& model, const SearchRequest& request) {
  return SearchByProgramme(model, request,
                           [](const StageProgramme& programme) { return std::make_unique<PathPlanner>(programme); });
}

}  // namespace tidepool::plan
