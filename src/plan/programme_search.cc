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

// With few cuts, a micro-batch that is this much slower than another is not looked at closely.
constexpr double kClose = 1.01;
constexpr int32_t kFewCuts = 100, kFewCutsPerDevice = 6;
constexpr double kFewCutsPromise = 1.005;  // what few cuts promise is an estimate

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

// One search for the best plan.
class ProgrammeSearch {
 public:
  ProgrammeSearch(const CostModel& model, const SearchRequest& request, const MakeStagePlanner& make, Workers* workers)
      : model_(model), request_(request), make_(make), limits_(request), workers_(*workers) {}

  // The best plan within the bounds; none: nothing fits, or it was stopped.
  StatusOr<std::optional<RankedPlan>> Best(const StageBounds& bounds) {
    std::optional<RankedPlan> best;
    for (const bool quick : {true, false}) {
      std::vector<Attempt> attempts = quick ? QuickAttempts(bounds) : Attempts(bounds);
      if (attempts.empty()) continue;
      TIDEPOOL_ASSIGN_OR_RETURN(best, BestOf(std::move(attempts)));
      if (best || over()) break;
    }
    return best;
  }

  bool over() const { return result_.hit_wall_limit || result_.hit_budget; }
  SearchResult& result() { return result_; }
  double seconds() const { return limits_.seconds(); }

 private:
  bool Stop(int64_t evaluations) {
    if (limits_.wall_is_over()) result_.hit_wall_limit = true;
    if (request_.budget > 0 && result_.evaluations + evaluations >= request_.budget) result_.hit_budget = true;
    return over();
  }
  std::unique_ptr<StageProgramme> Programme(int32_t micro_batch, const StageBounds& bounds) const {
    return std::make_unique<StageProgramme>(model_, micro_batch, request_.global_batch / micro_batch, bounds);
  }

  // Micro-batches that promise most if stages begin at few ops only, with what they promise. Empty: there are few ops, or the
  // planner is exact, or nothing was found.
  std::vector<Attempt> QuickAttempts(const StageBounds& bounds) {
    std::vector<Attempt> attempts;
    StageBounds few = bounds;
    few.cuts = SomeCuts(model_.ops(), std::max(kFewCuts, kFewCutsPerDevice * std::min(model_.cluster().gpus(), kManyGpus)));
    const size_t all = bounds.cuts.empty() ? model_.ops().ops.size() : bounds.cuts.size();
    if (!bounds.corridor.empty() || 2 * few.cuts.size() > all) return attempts;
    double best_us = kNever;
    for (const int32_t micro_batch : request_.micro_batches) {
      const auto programme = Programme(micro_batch, few);
      if (!(programme->FloorUs() <= best_us * kClose)) continue;
      const std::unique_ptr<StagePlanner> planner = make_(*programme);
      if (planner->rounds() == 0) return {};
      const double us = programme->Prepare(planner->oracle(), programme->Cap(best_us * kClose), &workers_,
                                           [&] { return Stop(programme->evaluations()); });
      result_.evaluations += programme->evaluations();
      best_us = std::min(best_us, us);
      if (us == kNever) continue;
      Attempt attempt{Programme(micro_batch, bounds), nullptr, us};
      attempt.planner = make_(*attempt.programme);
      attempt.planner->Learn(*planner);
      attempts.push_back(std::move(attempt));
    }
    std::erase_if(attempts, [&](const Attempt& attempt) { return attempt.objective_us > best_us * kClose; });
    for (Attempt& attempt : attempts) attempt.programme->Expect(attempt.programme->Cap(best_us * kFewCutsPromise));
    return attempts;
  }

  // A good plan of each micro-batch.
  std::vector<Attempt> Attempts(const StageBounds& bounds) {
    std::vector<Attempt> attempts;
    double promised_us = bounds.expected_us > 0 ? bounds.expected_us : kNever;
    for (const int32_t micro_batch : ByFloor(model_, request_, bounds)) {
      if (over()) break;
      Attempt attempt{Programme(micro_batch, bounds), nullptr, kNever};
      if (!(attempt.programme->FloorUs() <= promised_us * kPromise)) continue;
      if (bounds.expected_us > 0) attempt.programme->Expect(attempt.programme->Cap(bounds.expected_us));
      attempt.planner = make_(*attempt.programme);
      attempt.objective_us = attempt.programme->Prepare(attempt.planner->oracle(), attempt.programme->Cap(promised_us * kPromise),
                                                        &workers_, [&] { return Stop(attempt.programme->evaluations()); });
      promised_us = std::min(promised_us, attempt.objective_us);
      if (attempt.objective_us < kNever) attempts.push_back(std::move(attempt));
    }
    return attempts;
  }

  // The best of each attempt that may still be better than what was found.
  StatusOr<std::optional<RankedPlan>> BestOf(std::vector<Attempt> attempts) {
    std::stable_sort(attempts.begin(), attempts.end(),
                     [](const Attempt& a, const Attempt& b) { return a.objective_us < b.objective_us; });
    std::optional<RankedPlan> best;
    double best_us = kNever;
    for (Attempt& attempt : attempts) {
      if (over()) break;
      const std::optional<CutSolution> cuts = Solve(attempt, best_us);
      result_.evaluations += attempt.programme->evaluations();
      if (!cuts) continue;
      RankedPlan found;
      found.plan.global_batch = request_.global_batch;
      found.plan.micro_batch = attempt.programme->micro_batch();
      bool whole = true;
      for (const CutStage& cut : cuts->stages) {
        found.plan.stages.push_back(attempt.planner->StageOf(*attempt.programme, cut));
        whole = whole && found.plan.stages.back() != nullptr;
      }
      attempt = Attempt();  // tables are large
      if (!whole) {         // under a model whose stages at a place differ from those that the table was made of
        result_.notes.push_back(
            fmt::format("micro-batch {}: a stage of the best cut did not fit after all", found.plan.micro_batch));
        continue;
      }
      TIDEPOOL_ASSIGN_OR_RETURN(found.cost, model_.Price(found.plan));
      best_us = std::min(best_us, cuts->objective_us);
      if (!best || Better(found, *best)) best = std::move(found);
      if (request_.on_progress) request_.on_progress({seconds(), result_.evaluations, best->cost.iteration_ms, 0});
    }
    return best;
  }

  std::optional<CutSolution> Solve(const Attempt& attempt, double bound_us) {
    StageProgramme* const programme = attempt.programme.get();
    StagePlanner* const planner = attempt.planner.get();
    std::function<double(const CutStage&)> actual;
    if (planner->rounds() > 0) {
      actual = [&](const CutStage& cut) {
        const StagePtr stage = planner->StageOf(*programme, cut);
        if (stage == nullptr) return kNever;
        const StageTotals totals = model_.TotalsOf(*stage, programme->micro_batch());
        return EffectiveUs(model_.CostAt(totals, cut.place), programme->micro_batches());
      };
    }
    return programme->Solve(
        planner->oracle(), bound_us, &workers_, [&] { return Stop(programme->evaluations()); }, actual, planner->rounds(),
        planner->tolerance());
  }

  const CostModel& model_;
  const SearchRequest& request_;
  const MakeStagePlanner& make_;
  const SearchLimits limits_;
  Workers& workers_;
  SearchResult result_;
};

}  // namespace

std::vector<int32_t> SomeCuts(const OpList& ops, int32_t most) {
  std::vector<int32_t> cuts = {0};
  if (ops.segments.empty() && !ops.layer_starts.empty()) {
    const size_t step = 1 + ops.layer_starts.size() / static_cast<size_t>(most);
    for (size_t i = 0; i < ops.layer_starts.size(); i += step) {
      if (ops.layer_starts[i] > 0) cuts.push_back(ops.layer_starts[i]);
    }
    return cuts;
  }
  int32_t single = ops.size(), repeats = 0;
  for (const Segment& segment : ops.segments) {
    single -= segment.end() - segment.first;
    repeats += segment.repeats;
  }
  const int32_t step = 1 + single / most;
  const int32_t per_repeat = std::max(1, (most - single / step) / std::max(1, repeats));
  const Segment* segment = nullptr;
  for (int32_t op = 0; op < ops.size(); ++op) {
    for (const Segment& other : ops.segments) {
      if (other.first == op) segment = &other;
    }
    if (segment != nullptr && op >= segment->end()) segment = nullptr;
    bool taken = op % step == 0;
    if (segment != nullptr) {
      // Equally many ops apart, from the period's first on.
      const int32_t phase = (op - segment->first) % segment->period, wanted = std::min(per_repeat, segment->period);
      taken = phase == 0 || phase * wanted / segment->period != (phase - 1) * wanted / segment->period;
    }
    if (taken && op > 0) cuts.push_back(op);
  }
  return cuts;
}

StatusOr<SearchResult> SearchByProgramme(const CostModel& model, const SearchRequest& request, const MakeStagePlanner& make,
                                         const StageBounds& where) {
  Workers workers(request.threads);
  ProgrammeSearch search(model, request, make, &workers);
  SearchResult& result = search.result();
  StageBounds bounds = where;
  bounds.min_stages = request.min_stages;
  bounds.max_stages = request.max_stages;
  for (int32_t k = 0; k < request.top_k && !search.over(); ++k) {
    TIDEPOOL_ASSIGN_OR_RETURN(std::optional<RankedPlan> best, search.Best(bounds));
    if (!best) break;
    const size_t stages = best->plan.stages.size();
    bounds.forbidden.resize(std::max(bounds.forbidden.size(), stages + 1), 0);
    bounds.forbidden[stages] = 1;
    result.plans.push_back(*std::move(best));
  }
  result.seconds = search.seconds();
  if (!result.plans.empty()) return std::move(result);
  if (search.over()) {
    return DeadlineExceeded("the {} came before any plan was found",
                            result.hit_budget ? fmt::format("budget of {} evaluations", request.budget)
                                              : fmt::format("wall limit of {:.1f} s", absl::ToDoubleSeconds(request.wall_limit)));
  }
  if (!where.cuts.empty() || !where.corridor.empty() || where.least_gpus > 1)
    return ResourceExhausted("no plan fits with stages that begin where they may");
  return NothingFits(model, request);
}

}  // namespace tidepool::plan
