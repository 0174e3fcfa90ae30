#include "plan/aceso_search.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "plan/initial_plans.h"
#include "plan/multi_hop.h"
#include "plan/search_run.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

// Evaluations of lists of up to a thousand ops; longer ones cost more each, and get fewer.
constexpr int64_t kDefaultBudget = 1'500'000;
constexpr int64_t kUsualOps = 1000;
constexpr int kRounds = 4;
constexpr int32_t kMostStageCounts = 64;

// Stage counts that are searched: all, or as many as there is time for, the small ones and some of the others.
std::vector<int32_t> StageCounts(int32_t smallest, int32_t largest) {
  std::vector<int32_t> counts;
  for (int32_t stages = smallest; stages <= largest; ++stages) counts.push_back(stages);
  if (counts.size() <= kMostStageCounts) return counts;
  std::vector<int32_t> chosen(counts.begin(), counts.begin() + kMostStageCounts / 2);
  const int32_t rest = largest - chosen.back();
  for (int32_t i = 1; i <= kMostStageCounts / 2; ++i) {
    chosen.push_back(chosen[kMostStageCounts / 2 - 1] + static_cast<int32_t>(int64_t{rest} * i / (kMostStageCounts / 2)));
  }
  return chosen;
}

void AddStarts(const SearchRequest& request, int32_t stages, MultiHopSearch* search) {
  if (request.start && static_cast<int32_t>(request.start->stages.size()) == stages) {
    if (std::optional<RankedPlan> start = search->editor().MakeAsIs(*request.start)) search->AddStart(*start);
  }
  for (const RankedPlan& plan : InitialPlans(&search->editor(), request.global_batch, stages)) search->AddStart(plan);
}

}  // namespace

StatusOr<SearchResult> SearchAceso(const CostModel& model, const SearchRequest& request) {
  SearchRun run(request);
  const std::vector<int32_t> micro_batches = UsableMicroBatches(request);
  const int32_t smallest = std::max(1, request.min_stages), largest = LargestStageCount(request, model);
  const std::vector<int32_t> counts = StageCounts(smallest, largest);
  std::vector<std::unique_ptr<MultiHopSearch>> searches(counts.size());
  RunTasks(static_cast<int32_t>(counts.size()), request.threads, [&](int32_t i) {
    searches[i] = std::make_unique<MultiHopSearch>(model, micro_batches, MultiHopOptions{}, &run);
    AddStarts(request, counts[i], searches[i].get());
    run.CountEvaluations(searches[i]->editor().evaluations());
  });
  std::vector<MultiHopSearch*> active;
  for (const auto& search : searches) {
    if (search->best()) active.push_back(search.get());
  }
  const int64_t own_budget = kDefaultBudget * kUsualOps / std::max<int64_t>(kUsualOps, model.ops().size());
  const int64_t budget = request.budget > 0 ? request.budget : own_budget;
  bool all_exhausted = true;
  for (int round = 0; round < kRounds && !active.empty() && !run.Expired(); ++round) {
    const int64_t each = std::max<int64_t>(1, budget / kRounds / static_cast<int64_t>(active.size()));
    RunTasks(static_cast<int32_t>(active.size()), request.threads, [&](int32_t i) { active[i]->Run(each); });
    for (const MultiHopSearch* search : active) all_exhausted = all_exhausted && search->exhausted();
    std::stable_sort(active.begin(), active.end(),
                     [](const MultiHopSearch* a, const MultiHopSearch* b) { return IsBetter(*a->best(), *b->best()); });
    active.resize(std::max<size_t>(std::min<size_t>(2, active.size()), (active.size() + 1) / 2));
  }
  BestPlans best;
  for (const auto& search : searches) best.Add(search->best_plans());
  TIDEPOOL_ASSIGN_OR_RETURN(SearchResult result, best.Take(run, request, model, "the search"));
  result.hit_budget = !all_exhausted && !result.hit_wall_limit;
  if (static_cast<int32_t>(counts.size()) < largest - smallest + 1) {
    result.notes.push_back(fmt::format("searched {} of the {} possible stage counts", counts.size(), largest - smallest + 1));
  }
  return result;
}

StatusOr<PolishResult> Polish(const CostModel& model, const Plan& plan, int64_t budget, const PolishOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(Verify(model, plan, {.check_memory = false}));
  SearchRequest request{
      .global_batch = plan.global_batch, .micro_batches = options.micro_batches, .wall_limit = options.wall_limit};
  if (request.micro_batches.empty()) request.micro_batches = {plan.micro_batch};
  SearchRun run(request);
  MultiHopOptions hops;
  hops.fine_tune_options.recompute = options.recompute;
  MultiHopSearch search(model, UsableMicroBatches(request), hops, &run);
  const std::optional<RankedPlan> start = search.editor().MakeAsIs(plan);
  if (!start) return InvalidArgument("the plan cannot be priced");
  search.AddStart(*start);
  FineTuneOptions first = hops.fine_tune_options;
  first.budget = std::max<int64_t>(1, budget / 4);
  if (const std::optional<RankedPlan> tuned = FineTune(&search.editor(), *start, first)) search.AddStart(*tuned);
  search.Run(std::max<int64_t>(1, budget - search.work()));
  return PolishResult{*search.best(), search.editor().evaluations(), run.hit_wall_limit()};
}

}  // namespace tidepool::plan
