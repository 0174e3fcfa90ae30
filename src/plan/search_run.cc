#include "plan/search_run.h"

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "plan/workers.h"

namespace tidepool::plan {
namespace {

constexpr absl::Duration kReportEvery = absl::Milliseconds(250);

}  // namespace

SearchRun::SearchRun(const SearchRequest& request)
    : request_(request), start_(Clock::Real()->Now()), deadline_(start_ + request.wall_limit), next_report_(start_) {}

double SearchRun::seconds() const { return absl::ToDoubleSeconds(Clock::Real()->Now() - start_); }

bool SearchRun::Expired() {
  if (hit_wall_limit()) return true;
  thread_local uint32_t calls = 0;
  if (++calls % 64 != 0) return false;
  if (Clock::Real()->Now() < deadline_ && !(request_.stopped && request_.stopped())) return false;
  expired_.store(true, std::memory_order_relaxed);
  return true;
}

void SearchRun::Report(double best_ms) {
  if (!request_.on_progress) return;
  // on_progress is called under the lock: it is our caller's, and must be called by one thread at a time.
  absl::MutexLock lock(&mutex_);
  best_ms_ = std::min(best_ms_, best_ms);
  const absl::Time now = Clock::Real()->Now();
  if (now < next_report_ || best_ms_ == reported_ms_) return;
  next_report_ = now + kReportEvery;
  reported_ms_ = best_ms_;
  request_.on_progress({.seconds = seconds(), .evaluations = evaluations(), .best_ms = best_ms_});
}

void RunTasks(int32_t count, int32_t threads, const std::function<void(int32_t)>& task) {
  if (threads != 0) threads = std::max(1, std::min(threads, count));
  Workers(threads).Run(count, task);
}

int32_t LargestStageCount(const SearchRequest& request, const CostModel& model) {
  const int32_t possible = std::min(model.cluster().gpus(), model.ops().size());
  return request.max_stages > 0 ? std::min(request.max_stages, possible) : possible;
}

std::vector<int32_t> UsableMicroBatches(const SearchRequest& request) {
  std::vector<int32_t> usable;
  for (const int32_t micro_batch : request.micro_batches) {
    if (micro_batch >= 1 && micro_batch <= request.global_batch && request.global_batch % micro_batch == 0) {
      usable.push_back(micro_batch);
    }
  }
  std::sort(usable.begin(), usable.end());
  return usable;
}

bool IsBetter(const RankedPlan& a, const RankedPlan& b) {
  if (a.cost.fits != b.cost.fits) return a.cost.fits;
  if (!a.cost.fits && a.cost.max_memory_mib != b.cost.max_memory_mib) return a.cost.max_memory_mib < b.cost.max_memory_mib;
  if (a.cost.iteration_ms != b.cost.iteration_ms) return a.cost.iteration_ms < b.cost.iteration_ms;
  if (a.plan.stages.size() != b.plan.stages.size()) return a.plan.stages.size() < b.plan.stages.size();
  return a.plan.Key() < b.plan.Key();
}

void BestPlans::Add(const RankedPlan& candidate) {
  least_memory_mib_ = std::min(least_memory_mib_, candidate.cost.max_memory_mib);
  if (!candidate.cost.fits || !std::isfinite(candidate.cost.iteration_ms)) return;
  const auto [entry, fresh] = best_.try_emplace(candidate.plan.stages.size(), candidate);
  if (!fresh && IsBetter(candidate, entry->second)) entry->second = candidate;
}

void BestPlans::Add(const BestPlans& other) {
  for (const auto& [stages, plan] : other.best_) Add(plan);
  least_memory_mib_ = std::min(least_memory_mib_, other.least_memory_mib_);
}

double BestPlans::best_ms() const {
  double best = kNoPlanMs;
  for (const auto& [stages, plan] : best_) best = std::min(best, plan.cost.iteration_ms);
  return best;
}

StatusOr<SearchResult> BestPlans::Take(const SearchRun& run, const SearchRequest& request, const CostModel& model,
                                       std::string_view what) const {
  if (best_.empty() && run.hit_wall_limit()) {
    return DeadlineExceeded("the wall limit of {:.1f} s came before {} found a plan that fits",
                            absl::ToDoubleSeconds(request.wall_limit), what);
  }
  if (best_.empty() && std::isfinite(least_memory_mib_)) {
    return ResourceExhausted(
        "{} found no plan of {} on {} devices within {:.0f} MiB; the least that was seen to work is {:.0f} MiB", what,
        model.ops().name, model.cluster().gpus(), model.cluster().memory_limit_mib, std::ceil(least_memory_mib_));
  }
  if (best_.empty()) {
    return ResourceExhausted(
        "{} found no plan of {} on {} devices: no split of the profile and the micro-batches uses all of them", what,
        model.ops().name, model.cluster().gpus());
  }
  SearchResult result;
  for (const auto& [stages, plan] : best_) result.plans.push_back(plan);
  std::sort(result.plans.begin(), result.plans.end(), IsBetter);
  if (result.plans.size() > static_cast<size_t>(std::max(1, request.top_k))) result.plans.resize(std::max(1, request.top_k));
  result.seconds = run.seconds();
  result.evaluations = run.evaluations();
  result.hit_wall_limit = run.hit_wall_limit();
  return result;
}

}  // namespace tidepool::plan
