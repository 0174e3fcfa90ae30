// The default: op-dp, its plans polished by the primitives, and a bound below every plan of its space.
#include <algorithm>

#include "plan/aceso_search.h"
#include "plan/lower_bound.h"
#include "plan/programme_search.h"

namespace tidepool::plan {
namespace {

constexpr int64_t kPolish = 12'000;  // evaluations for all plans together

// Each plan keeps its number of stages, so no two become alike. Says what came of it.
Status PolishAll(const CostModel& model, const SearchRequest& request, const SearchLimits& limits, SearchResult* result) {
  const double before_ms = result->best_ms();
  const auto each = kPolish / static_cast<int64_t>(result->plans.size());
  for (RankedPlan& plan : result->plans) {
    PolishOptions options{.micro_batches = request.micro_batches};
    options.wall_limit = request.wall_limit - absl::Seconds(limits.seconds());
    if (limits.wall_is_over() || options.wall_limit <= absl::ZeroDuration()) break;
    TIDEPOOL_ASSIGN_OR_RETURN(PolishResult polished, Polish(model, plan.plan, each, options));
    result->evaluations += polished.evaluations;
    if (polished.best.cost.fits && polished.best.cost.iteration_ms < plan.cost.iteration_ms) plan = std::move(polished.best);
  }
  std::stable_sort(result->plans.begin(), result->plans.end(),
                   [](const RankedPlan& a, const RankedPlan& b) { return a.cost.iteration_ms < b.cost.iteration_ms; });
  if (result->best_ms() < before_ms) {
    result->notes.push_back(
        fmt::format("primitives made the plan of op-dp {:.3f} % faster", 100 * (1 - result->best_ms() / before_ms)));
  }
  return {};
}

}  // namespace

StatusOr<SearchResult> SearchAuto(const CostModel& model, const SearchRequest& request) {
  const SearchLimits limits(request);
  TIDEPOOL_ASSIGN_OR_RETURN(SearchResult result, SearchOpDp(model, request));
  if (!result.hit_wall_limit && !result.hit_budget) {
    TIDEPOOL_RETURN_IF_ERROR(PolishAll(model, request, limits, &result));
  }
  Workers workers(request.threads);
  result.lower_bound_ms = LowerBoundBelow(model, request, result.best_ms(), &workers, [&] { return limits.wall_is_over(); });
  if (limits.wall_is_over()) result.hit_wall_limit = true;
  result.seconds = limits.seconds();
  if (result.lower_bound_ms == 0) {
    result.notes.emplace_back(result.hit_wall_limit ? "the wall limit came before a bound was found"
                                                    : "no bound is known for this cost model");
  }
  if (result.lower_bound_ms > 0 && model.cluster().gpus() > kManyGpus) {
    result.notes.push_back(
        fmt::format("for more than {} devices the bound counts the work alone, so it is far below", kManyGpus));
  }
  if (request.on_progress) {
    request.on_progress({result.seconds, result.evaluations, result.best_ms(), result.lower_bound_ms});
  }
  return result;
}

}  // namespace tidepool::plan
