#include "plan/programme_search.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/clock.h"

namespace tidepool::plan {

double EffectiveUs(const StageCost& cost, int64_t micro_batches) {
  const double once = cost.sync_us + cost.optimizer_us;
  return once > 0 ? cost.time_us + once / static_cast<double>(micro_batches) : cost.time_us;
}

SearchLimits::SearchLimits(const SearchRequest& request)
    : start_(Clock::Real()->Now()), end_(start_ + request.wall_limit), stopped_(request.stopped) {}
double SearchLimits::seconds() const { return absl::ToDoubleSeconds(Clock::Real()->Now() - start_); }
bool SearchLimits::wall_is_over() const { return Clock::Real()->Now() >= end_ || (stopped_ && stopped_()); }

namespace {

// What estimates promise may be this much too good.
constexpr double kPromise = 1.05;

struct Attempt {
  std::unique_ptr<StageProgramme> programme;
  std::unique_ptr<StagePlanner> planner;
  double objective_us = kNever;  // of a good plan
};

// Micro-batches, most promising first.
std::vector<int32_t> ByFloor(const CostModel& model, const SearchRequest& request, const StageBounds& bounds) {
  std::vector<std::pair<double, int32_t>> order;
  for (const int32_t micro_batch : request.micro_batches) {
    order.emplace_back(StageProgramme(model, micro_batch, request.global_batch / micro_batch, bounds).FloorUs(), micro_batch);
  }
  std::sort(order.begin(), order.end());
  std::vector<int32_t> result;
  for (const auto& [ignored, micro_batch] : order) result.push_back(micro_batch);
  return result;
}

// Smaller is better; equal plans are equal.
bool Better(const RankedPlan& a, const RankedPlan& b) {
  if (a.cost.iteration_ms != b.cost.iteration_ms) return a.cost.iteration_ms < b.cost.iteration_ms;
  return a.plan.Key() < b.plan.Key();
}

}  // namespace

StatusOr<SearchResult> SearchByProgramme(const CostModel& model, const SearchRequest& request, const MakeStagePlanner& make,
                                         const StageBounds& where) {
  const SearchLimits limits(request);
  Workers workers(request.threads);
  SearchResult result;
  StageBounds bounds = where;
  bounds.min_stages = request.min_stages;
  bounds.max_stages = request.max_stages;
  bool over = false;
  const auto stop = [&](int64_t evaluations) {
    if (limits.wall_is_over()) result.hit_wall_limit = true;
    if (request.budget > 0 && result.evaluations + evaluations >= request.budget) result.hit_budget = true;
    over = result.hit_wall_limit || result.hit_budget;
    return over;
  };
  for (int32_t k = 0; k < request.top_k && !over; ++k) {
    // First a good plan of each micro-batch, then the best of each that may still be better than what was found.
    std::vector<Attempt> attempts;
    double promised_us = kNever;
    for (const int32_t micro_batch : ByFloor(model, request, bounds)) {
      if (over) break;
      Attempt attempt;
      attempt.programme = std::make_unique<StageProgramme>(model, micro_batch, request.global_batch / micro_batch, bounds);
      if (!(attempt.programme->FloorUs() <= promised_us * kPromise)) continue;
      attempt.planner = make(*attempt.programme);
      attempt.objective_us = attempt.programme->Prepare(attempt.planner->oracle(), attempt.programme->Cap(promised_us * kPromise),
                                                        &workers, [&] { return stop(attempt.programme->evaluations()); });
      promised_us = std::min(promised_us, attempt.objective_us);
      if (attempt.objective_us < kNever) attempts.push_back(std::move(attempt));
    }
    std::stable_sort(attempts.begin(), attempts.end(),
                     [](const Attempt& a, const Attempt& b) { return a.objective_us < b.objective_us; });
    std::optional<RankedPlan> best;
    double best_us = kNever;
    for (Attempt& attempt : attempts) {
      if (over) break;
      StageProgramme* const programme = attempt.programme.get();
      StagePlanner* const planner = attempt.planner.get();
      std::function<double(const CutStage&)> actual;
      if (planner->rounds() > 0) {
        actual = [&](const CutStage& cut) {
          const StagePtr stage = planner->StageOf(*programme, cut);
          if (stage == nullptr) return kNever;
          const StageTotals totals = model.TotalsOf(*stage, programme->micro_batch());
          return EffectiveUs(model.CostAt(totals, cut.place), programme->micro_batches());
        };
      }
      const auto interrupted = [&] { return stop(programme->evaluations()); };
      const std::optional<CutSolution> cuts =
          programme->Solve(planner->oracle(), best_us, &workers, interrupted, actual, planner->rounds(), planner->tolerance());
      result.evaluations += programme->evaluations();
      if (!cuts) continue;
      RankedPlan found;
      found.plan.global_batch = request.global_batch;
      found.plan.micro_batch = programme->micro_batch();
      bool whole = true;
      for (const CutStage& cut : cuts->stages) {
        found.plan.stages.push_back(planner->StageOf(*programme, cut));
        whole = whole && found.plan.stages.back() != nullptr;
      }
      if (!whole) {  // under a model whose stages at a place differ from those that the table was made of
        result.notes.push_back(
            fmt::format("micro-batch {}: a stage of the best cut did not fit after all", found.plan.micro_batch));
        continue;
      }
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
  if (!where.cuts.empty() || !where.corridor.empty())
    return ResourceExhausted("no plan fits with stages that begin where they may");
  return NothingFits(model, request);
}

}  // namespace tidepool::plan
