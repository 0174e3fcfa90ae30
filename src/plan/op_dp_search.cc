// Plans whose ops have a split and a recompute flag each: paths through the ops of every stage for several prices of memory,
// inside of the stage programme; then every stage of the best cut is made as good as its place allows.
//
// Long lists are cut at some ops of each repeat first. What comes out is the middle of a corridor in which all cuts are tried.
#include <algorithm>

#include "plan/path_planner.h"
#include "plan/programme_search.h"

namespace tidepool::plan {
namespace {

constexpr int32_t kMostCuts = 14000;  // lists up to this long are cut anywhere at once
constexpr int32_t kReach = 26;        // ops to both sides of a cut that are tried next
constexpr int32_t kMostTries = 4;

StatusOr<SearchResult> SearchWith(const CostModel& model, const SearchRequest& request, const StageBounds& where = {}) {
  return SearchByProgramme(
      model, request, [](const StageProgramme& programme) { return std::make_unique<PathPlanner>(programme); }, where);
}

// Around the cuts of a plan; between them, where the same share of the stage's ops would lie.
std::vector<std::pair<int32_t, int32_t>> CorridorOf(const OpList& ops, const Plan& plan, int32_t gpus) {
  std::vector<std::pair<int32_t, int32_t>> corridor(gpus + 1);
  int32_t behind = gpus;
  for (const StagePtr& stage : plan.stages) {
    for (int32_t g = 0; g <= stage->gpus(); ++g) {
      const auto middle = stage->first() + static_cast<int32_t>(int64_t{stage->count()} * g / stage->gpus());
      corridor[behind - g] = {std::max(0, middle - kReach), std::min(ops.size(), middle + kReach)};
    }
    behind -= stage->gpus();
  }
  corridor[gpus] = {0, 0};
  corridor[0] = {ops.size(), ops.size()};
  return corridor;
}

// The plan with its cuts moved as far as that makes it faster; stages and micro-batch stay as many and as large.
RankedPlan WithBestCuts(const CostModel& model, const SearchRequest& request, RankedPlan plan, SearchResult* result) {
  SearchRequest near = request;
  near.top_k = 1;
  near.on_progress = nullptr;
  near.min_stages = near.max_stages = static_cast<int32_t>(plan.plan.stages.size());
  near.micro_batches = {plan.plan.micro_batch};
  for (int32_t i = 0; i < kMostTries; ++i) {
    StageBounds where;
    where.expected_us = plan.cost.iteration_ms * 1000;
    where.corridor = CorridorOf(model.ops(), plan.plan, model.cluster().gpus());
    StatusOr<SearchResult> found = SearchWith(model, near, where);
    if (!found.ok()) break;
    result->evaluations += found->evaluations;
    result->hit_wall_limit = result->hit_wall_limit || found->hit_wall_limit;
    if (found->best_ms() >= plan.cost.iteration_ms) break;
    plan = std::move(found->plans[0]);
  }
  return plan;
}

// Stages of so many devices that there are not too many of them; of fewer if that gives nothing.
StatusOr<SearchResult> SearchManyGpus(const CostModel& model, const SearchRequest& request) {
  StageBounds where;
  where.least_gpus = model.cluster().gpus() / kManyGpus;
  if (request.max_stages == 0 && request.min_stages > kManyGpus) where.least_gpus = 1;
  for (;; where.least_gpus /= 2) {
    StatusOr<SearchResult> result = SearchWith(model, request, where);
    if (result.status().code() == StatusCode::kResourceExhausted && where.least_gpus > 1) continue;
    if (result.ok() && where.least_gpus > 1) {
      result->notes.push_back(fmt::format("only stages of {} devices or more were tried", where.least_gpus));
    }
    return result;
  }
}

}  // namespace

StatusOr<SearchResult> SearchOpDp(const CostModel& model, const SearchRequest& request) {
  const SearchLimits limits(request);
  if (model.cluster().gpus() > kManyGpus) return SearchManyGpus(model, request);
  StageBounds where;
  if (model.ops().size() > kMostCuts) where.cuts = SomeCuts(model.ops(), kMostCuts);
  StatusOr<SearchResult> result = SearchWith(model, request, where);
  // Its table is made of estimates. Where all that they promise falls through, the exact search has the word.
  if (result.status().code() == StatusCode::kResourceExhausted) return SearchExact(model, request);
  if (!result.ok() || where.cuts.empty() || result->hit_wall_limit || result->hit_budget) return result;
  for (RankedPlan& plan : result->plans) {
    SearchRequest rest = request;
    rest.wall_limit = std::max(absl::Milliseconds(1), request.wall_limit - absl::Seconds(limits.seconds()));
    plan = WithBestCuts(model, rest, std::move(plan), &*result);
  }
  std::stable_sort(result->plans.begin(), result->plans.end(),
                   [](const RankedPlan& a, const RankedPlan& b) { return a.cost.iteration_ms < b.cost.iteration_ms; });
  result->notes.push_back(fmt::format("stages were first cut at {} of {} ops, then moved to the best ops near those",
                                      where.cuts.size(), model.ops().size()));
  result->seconds = limits.seconds();
  return result;
}

}  // namespace tidepool::plan
