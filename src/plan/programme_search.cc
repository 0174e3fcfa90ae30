#include "plan/programme_search.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/clock.h"

namespace tidepool::plan {

double EffectiveUs(const StageCost& cost, int64_t micro_batches) {
  const double once = cost.sync_us + cost.optimizer_us;
  return once > 0 ? cost.time_us + once / static_cast<double>(micro_batches) : cost.time_us;
}

SearchLimits::SearchLimits(const SearchRequest& request) : start_(Clock::Real()->Now()), end_(start_ + request.wall_limit) {}
double SearchLimits::seconds() const { return absl::ToDoubleSeconds(Clock::Real()->Now() - start_); }
bool SearchLimits::wall_is_over() const { return Clock::Real()->Now() >= end_; }

namespace {

// Smaller is better; equal plans are equal.
bool Better(const RankedPlan& a, const RankedPlan& b) {
  if (a.cost.iteration_ms != b.cost.iteration_ms) return a.cost.iteration_ms < b.cost.iteration_ms;
  return a.plan.Key() < b.plan.Key();
}

}  // namespace

StatusOr<SearchResult> SearchByProgramme(const CostModel& model, const SearchRequest& request, const MakeStagePlanner& make) {
  const SearchLimits limits(request);
  Workers workers(request.threads);
  SearchResult result;
  StageBounds bounds{.min_stages = request.min_stages, .max_stages = request.max_stages};
  bool over = false;
  const auto stop = [&](int64_t evaluations) {
    if (limits.wall_is_over()) result.hit_wall_limit = true;
    if (request.budget > 0 && result.evaluations + evaluations >= request.budget) result.hit_budget = true;
    over = result.hit_wall_limit || result.hit_budget;
    return over;
  };
  for (int32_t k = 0; k < request.top_k && !over; ++k) {
    std::vector<std::unique_ptr<StageProgramme>> programmes;
    for (const int32_t micro_batch : request.micro_batches) {
      programmes.push_back(std::make_unique<StageProgramme>(model, micro_batch, request.global_batch / micro_batch, bounds));
    }
    std::sort(programmes.begin(), programmes.end(), [](const auto& a, const auto& b) {
      return std::pair(a->FloorUs(), a->micro_batch()) < std::pair(b->FloorUs(), b->micro_batch());
    });
    std::optional<RankedPlan> best;
    double best_us = kNever;
    for (const auto& programme : programmes) {
      if (over) break;
      const std::unique_ptr<StagePlanner> planner = make(*programme);
      const std::optional<CutSolution> cuts =
          programme->Solve(planner->oracle(), best_us, &workers, [&] { return stop(programme->evaluations()); });
      result.evaluations += programme->evaluations();
      if (!cuts) continue;
      RankedPlan found;
      found.plan.global_batch = request.global_batch;
      found.plan.micro_batch = programme->micro_batch();
      for (const CutStage& cut : cuts->stages) found.plan.stages.push_back(planner->StageOf(*programme, cut));
      TIDEPOOL_ASSIGN_OR_RETURN(found.cost, model.Price(found.plan));
      best_us = std::min(best_us, cuts->objective_us);
      if (!best || Better(found, *best)) best = std::move(found);
      if (request.on_progress) {
        request.on_progress({limits.seconds(), result.evaluations, best->cost.iteration_ms, 0});
      }
    }
    if (!best) break;
    const size_t stages = best->plan.stages.size();
    bounds.forbidden.resize(std::max(bounds.forbidden.size(), stages + 1), 0);
    bounds.forbidden[stages] = 1;
    result.plans.push_back(*std::move(best));
  }
  result.seconds = limits.seconds();
  if (!result.plans.empty()) return result;
  if (over) {
    return DeadlineExceeded("the {} came before any plan was found",
                            result.hit_budget ? fmt::format("budget of {} evaluations", request.budget)
                                              : fmt::format("wall limit of {:.1f} s", absl::ToDoubleSeconds(request.wall_limit)));
  }
  return NothingFits(model, request);
}

}  // namespace tidepool::plan
