#include "plan/multi_hop.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace tidepool::plan {

void MultiHopSearch::Offer(const RankedPlan& plan) {
  best_plans_.Add(plan);
  if (best_ && !IsBetter(plan, *best_)) return;
  best_ = plan;
  if (plan.cost.fits) run_->Report(plan.cost.iteration_ms);
}

void MultiHopSearch::KeepForRestart(RankedPlan plan) {
  if (best_ && best_->cost.fits &&
      (!plan.cost.fits || plan.cost.iteration_ms > options_.restart_within * best_->cost.iteration_ms)) {
    return;
  }
  pool_.insert(std::move(plan));
  if (pool_.size() > options_.pool_limit) pool_.erase(std::prev(pool_.end()));
}

void MultiHopSearch::AddStart(const RankedPlan& plan) {
  if (!seen_.insert(plan.plan.Key()).second) return;
  Offer(plan);
  pool_.insert(plan);
}

RankedPlan MultiHopSearch::Tuned(RankedPlan plan) {
  FineTuneOptions tuning = options_.fine_tune_options;
  tuning.budget = std::max<int64_t>(1, work_limit_ - work());
  std::optional<RankedPlan> tuned = FineTune(&editor_, plan, tuning, &tuned_stages_);
  if (!tuned || !IsBetter(*tuned, plan)) return plan;
  seen_.insert(tuned->plan.Key());
  Offer(*tuned);
  return *std::move(tuned);
}

void MultiHopSearch::Run(int64_t evaluations) {
  const int64_t before = editor_.evaluations();
  work_limit_ = work() + evaluations;
  while (!Stop()) {
    if (!current_) {
      if (pool_.empty()) break;
      current_ = std::move(pool_.extract(pool_.begin()).value());
      const bool near = current_->cost.iteration_ms <= options_.tune_within * best_->cost.iteration_ms;
      if (options_.fine_tune && current_->cost.fits && near) current_ = Tuned(*std::move(current_));
    }
    std::optional<RankedPlan> next = TryTargets(*current_);
    if (next && options_.fine_tune) next = Tuned(*std::move(next));
    if (!next && Stop()) break;  // cut short: the same plan is tried again, should there be another call
    current_ = std::move(next);
  }
  run_->CountEvaluations(editor_.evaluations() - before);
}

std::optional<RankedPlan> MultiHopSearch::TryTargets(const RankedPlan& start) {
  for (const int32_t target : BottlenecksOf(editor_.model(), start)) {
    dive_expansions_ = 0;
    if (std::optional<RankedPlan> better = Dive(start, target, options_.depth, start)) return better;
    if (Stop()) return std::nullopt;
  }
  return std::nullopt;
}

std::vector<RankedPlan> MultiHopSearch::Expand(const RankedPlan& plan, int32_t target, const std::vector<Primitive>& group) {
  std::vector<RankedPlan> children;
  for (const Primitive primitive : group) {
    for (RankedPlan& child : Apply(&editor_, primitive, plan, target, options_.primitives)) {
      if (!seen_.insert(child.plan.Key()).second) continue;
      Offer(child);
      children.push_back(std::move(child));
    }
  }
  std::sort(children.begin(), children.end(), IsBetter);
  return children;
}

std::optional<RankedPlan> MultiHopSearch::Dive(const RankedPlan& plan, int32_t target, int32_t depth, const RankedPlan& start) {
  for (const std::vector<Primitive>& group : OrderedPrimitives(editor_.model(), plan, target)) {
    if (Stop() || dive_expansions_ >= options_.expansions) return std::nullopt;
    ++expansions_;
    ++dive_expansions_;
    std::vector<RankedPlan> children = Expand(plan, target, group);
    if (!children.empty() && IsBetter(children.front(), start)) {
      RankedPlan better = std::move(children.front());
      for (size_t i = 1; i < children.size(); ++i) KeepForRestart(std::move(children[i]));
      return better;
    }
    int32_t gone_on = 0;
    for (RankedPlan& child : children) {
      if (depth > 1 && gone_on < options_.breadth) {
        ++gone_on;
        std::optional<RankedPlan> better = Dive(child, BottleneckOf(editor_.model(), child), depth - 1, start);
        if (better) return better;
      }
      KeepForRestart(std::move(child));
    }
  }
  return std::nullopt;
}

}  // namespace tidepool::plan
