// The search of one stage count: dives from a plan over up to seven primitives, and restarts. Used by SearchAceso, Polish and
// SearchRandom.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <unordered_set>
#include <vector>

#include "plan/fine_tune.h"
#include "plan/plan_editor.h"
#include "plan/primitives.h"
#include "plan/search_run.h"

namespace tidepool::plan {

struct MultiHopOptions {
  int32_t depth = 7;            // primitives in a row
  int32_t breadth = 4;          // children of a plan that a dive goes on from, best first
  int32_t expansions = 48;      // plans that one dive may take apart
  double restart_within = 1.2;  // of the best plan's time: what is worth a restart
  size_t pool_limit = 4096;     // plans kept for restarts
  double tune_within = 1.1;     // of the best plan's time: restarts that are fine-tuned first
  bool fine_tune = true;        // after every step forward
  FineTuneOptions fine_tune_options;
  PrimitiveOptions primitives;
};

// Owned by one thread at a time.
class MultiHopSearch {
 public:
  MultiHopSearch(const CostModel& model, std::vector<int32_t> micro_batches, const MultiHopOptions& options, SearchRun* run)
      : editor_(model, std::move(micro_batches)), options_(options), run_(run) {}

  PlanEditor& editor() { return editor_; }
  void AddStart(const RankedPlan& plan);
  // Goes on until `evaluations` more were made, or nothing is left to try. May be called again.
  void Run(int64_t evaluations);

  const BestPlans& best_plans() const { return best_plans_; }
  const std::optional<RankedPlan>& best() const { return best_; }
  bool exhausted() const { return pool_.empty() && !current_; }
  // What was done, in evaluations; each plan that was taken apart counts as one more.
  int64_t work() const { return editor_.evaluations() + expansions_; }

 private:
  struct Better {
    bool operator()(const RankedPlan& a, const RankedPlan& b) const { return IsBetter(a, b); }
  };
  // One trial per stage, the bottleneck first. None: nothing better than `start` was found.
  std::optional<RankedPlan> TryTargets(const RankedPlan& start);
  std::optional<RankedPlan> Dive(const RankedPlan& plan, int32_t target, int32_t depth, const RankedPlan& start);
  // Children of the primitives that nobody saw before, best first.
  std::vector<RankedPlan> Expand(const RankedPlan& plan, int32_t target, const std::vector<Primitive>& group);
  RankedPlan Tuned(RankedPlan plan);
  void Offer(const RankedPlan& plan);
  void KeepForRestart(RankedPlan plan);
  bool Stop() { return work() >= work_limit_ || run_->Expired(); }

  PlanEditor editor_;
  MultiHopOptions options_;
  SearchRun* run_;
  BestPlans best_plans_;
  std::optional<RankedPlan> best_, current_;
  std::unordered_set<Key128, Key128Hash> seen_;  // made at some time
  std::set<RankedPlan, Better> pool_;            // made, better than none, not yet a start
  TunedStages tuned_stages_;
  int64_t work_limit_ = 0, expansions_ = 0;
  int32_t dive_expansions_ = 0;
};

}  // namespace tidepool::plan
