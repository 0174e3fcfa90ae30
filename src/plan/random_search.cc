// The baseline "random restart": random plans, improved by primitives chosen at random. A move is kept if the plan is not worse;
// after a number of moves that did not help a new random plan is drawn. It knows neither the bottleneck nor which resource is
// scarce, so what the published search gains over it is what those two ideas are worth.
#include <algorithm>
#include <memory>
#include <random>
#include <utility>

#include "plan/initial_plans.h"
#include "plan/primitives.h"
#include "plan/search_run.h"

namespace tidepool::plan {
namespace {

constexpr int64_t kDefaultBudget = 400'000;
constexpr int32_t kTasks = 16;     // independent walks, whatever the number of threads
constexpr int32_t kPatience = 60;  // moves in a row that do not help

class RandomWalks {
 public:
  RandomWalks(const CostModel& model, const SearchRequest& request, int32_t task, SearchRun* run)
      : request_(request), run_(run), editor_(model, UsableMicroBatches(request)) {
    std::seed_seq seeds{static_cast<uint32_t>(request.seed), static_cast<uint32_t>(request.seed >> 32),
                        static_cast<uint32_t>(task)};
    random_.seed(seeds);
  }

  const BestPlans& best() const { return best_; }

  // `start`: a plan to begin with, or null.
  void Run(const Plan* start, int64_t budget) {
    if (editor_.micro_batches().empty()) return;
    if (start != nullptr) {
      if (std::optional<RankedPlan> plan = editor_.MakeAsIs(*start)) Improve(*std::move(plan), budget);
    }
    const int32_t smallest = std::max(1, request_.min_stages), largest = LargestStageCount(request_, editor_.model());
    if (smallest > largest) return;
    // Attempts are bounded too: a problem without any plan makes no evaluations.
    for (int64_t attempt = 0; attempt < budget && editor_.evaluations() < budget && !run_->Expired(); ++attempt) {
      const int32_t stages = smallest + static_cast<int32_t>(random_() % static_cast<uint64_t>(largest - smallest + 1));
      if (std::optional<RankedPlan> drawn = RandomStart(&editor_, request_.global_batch, stages, &random_)) {
        Improve(*std::move(drawn), budget);
      }
    }
    run_->CountEvaluations(editor_.evaluations());
  }

 private:
  void Improve(RankedPlan now, int64_t budget) {
    Offer(now);
    for (int32_t idle = 0; idle < kPatience && editor_.evaluations() < budget && !run_->Expired(); ++idle) {
      const auto primitive = static_cast<Primitive>(random_() % kPrimitives);
      const auto stage = static_cast<int32_t>(random_() % now.plan.stages.size());
      std::vector<RankedPlan> next = Apply(&editor_, primitive, now, stage, {.partners = 1, .migrations = 1});
      if (next.empty()) continue;
      RankedPlan& chosen = next[random_() % next.size()];
      if (!IsBetter(chosen, now)) continue;
      Offer(chosen);
      now = std::move(chosen);
      idle = -1;
    }
  }

  void Offer(const RankedPlan& plan) {
    best_.Add(plan);
    if (plan.cost.fits) run_->Report(plan.cost.iteration_ms);
  }

  const SearchRequest& request_;
  SearchRun* run_;
  PlanEditor editor_;
  std::mt19937_64 random_;
  BestPlans best_;
};

}  // namespace

StatusOr<SearchResult> SearchRandom(const CostModel& model, const SearchRequest& request) {
  SearchRun run(request);
  const int64_t budget = request.budget > 0 ? request.budget : kDefaultBudget;
  std::vector<std::unique_ptr<RandomWalks>> walks(kTasks);
  RunTasks(kTasks, request.threads, [&](int32_t i) {
    walks[i] = std::make_unique<RandomWalks>(model, request, i, &run);
    walks[i]->Run(i == 0 && request.start ? &*request.start : nullptr, std::max<int64_t>(1, budget / kTasks));
  });
  BestPlans best;
  for (const auto& walk : walks) best.Add(walk->best());
  TIDEPOOL_ASSIGN_OR_RETURN(SearchResult result, best.Take(run, request, model, "the random search"));
  result.hit_budget = !result.hit_wall_limit;
  return result;
}

}  // namespace tidepool::plan
