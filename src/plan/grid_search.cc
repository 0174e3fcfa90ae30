// The grid over (stages, width, replicas, micro-batch, recompute) is small enough to be tried completely; each plan is priced as
// any other.
#include "plan/grid_search.h"

#include <algorithm>
#include <vector>

#include "plan/search_run.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

bool IsRecomputed(const OpList& ops, int32_t position) {
  if (position == 0 && ops.at(0).kind == "embedding") return false;
  return position + 1 < ops.size() || ops.at(position).kind != "loss";
}

// Ends of the stages; empty if there is not enough for each.
std::vector<int32_t> EqualLayers(const OpList& ops, int32_t stages) {
  const auto layers = static_cast<int32_t>(ops.layer_starts.size());
  const int32_t units = layers > 0 ? layers : ops.size(), each = units / stages;
  if (each < 1) return {};
  std::vector<int32_t> ends;
  for (int32_t i = 1; i < stages; ++i) {
    int32_t end = layers > 0 ? ops.layer_starts[each * i] : each * i;
    if (layers > 0 && ops.at(end - 1).kind == "embedding") --end;
    ends.push_back(end);
  }
  ends.push_back(ops.size());
  return ends;
}

}  // namespace

std::optional<Plan> GridPlan(const OpList& ops, int64_t global_batch, const GridPoint& point) {
  const std::vector<int32_t> ends = EqualLayers(ops, point.stages);
  if (ends.empty()) return std::nullopt;
  Plan plan{.global_batch = global_batch, .micro_batch = point.micro_batch};
  int32_t first = 0;
  for (const int32_t end : ends) {
    if (end <= first) return std::nullopt;
    std::vector<OpChoice> choices(end - first, point.split);
    for (int32_t i = first; i < end; ++i) choices[i - first].recompute = point.recompute && IsRecomputed(ops, i);
    plan.stages.push_back(Stage::Make(first, choices));
    first = end;
  }
  return plan;
}

StatusOr<SearchResult> SearchGrid(const CostModel& model, const SearchRequest& request) {
  SearchRun run(request);
  BestPlans best;
  const int32_t gpus = model.cluster().gpus(), largest = LargestStageCount(request, model);
  for (int32_t stages = std::max(1, request.min_stages); stages <= largest && !run.Expired(); ++stages) {
    if (gpus % stages != 0) continue;
    for (const int32_t micro_batch : UsableMicroBatches(request)) {
      for (const OpChoice& split : model.SplitsOf(gpus / stages, micro_batch)) {
        if (split.algorithm != 0) continue;
        for (const bool recompute : {false, true}) {
          std::optional<Plan> plan = GridPlan(model.ops(), request.global_batch, {stages, micro_batch, split, recompute});
          if (!plan || !FindFaults(model, *plan, {.check_memory = false}).empty()) continue;
          TIDEPOOL_ASSIGN_OR_RETURN(PlanCost cost, model.Price(*plan));
          run.CountEvaluations(stages);
          best.Add({*std::move(plan), std::move(cost)});
          run.Report(best.best_ms());
        }
      }
    }
  }
  return best.Take(run, request, model, "the grid");
}

}  // namespace tidepool::plan
