#include "plan/search.h"

namespace tidepool::plan {

StatusOr<double> LowerBound(const CostModel& model, const SearchRequest& request) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(request, model));
  return 0.0;  // none is known
}

}  // namespace tidepool::plan
