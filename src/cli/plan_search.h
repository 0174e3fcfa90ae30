// A search as a user asks for it: its options, its run with progress, and its result as text and JSON.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "cli/plan_output.h"
#include "cli/verb.h"
#include "plan/search.h"

namespace tidepool::cli {

struct PlanSearchOptions {
  std::string model;
  int64_t global_batch = 0;
  std::vector<std::string> micro_batches = {"1", "2", "4", "8"};
  std::string search = "auto";
  int64_t budget = 0;
  int threads = 0, top = 1, min_stages = 1, max_stages = 0;
  uint64_t seed = 0;
  absl::Duration wall_limit = absl::Seconds(300);

  void Register(OptionTable* table);
  StatusOr<std::vector<int32_t>> MicroBatches() const;
  // The search that is meant; `schedule` is the cost model's. Searches on the stage programme know 1F1B only: auto is aceso for
  // other schedules, INVALID_ARGUMENT if one of them was asked for by name.
  StatusOr<plan::SearchKind> Kind(plan::PipelineSchedule schedule) const;
  // Everything but what watches it.
  StatusOr<plan::SearchRequest> Request() const;
};

// "1,2,4" as words: INVALID_ARGUMENT names the flag and the word.
StatusOr<std::vector<int32_t>> ParseIntegers(const std::vector<std::string>& words, const std::string& flag, int32_t min,
                                             int32_t max);
plan::Cluster ClusterOf(const PlanSettingOptions& options);

// Runs with a progress line; Ctrl-C ends it with the best plan so far.
StatusOr<plan::SearchResult> RunSearch(plan::SearchKind kind, const PlanSetting& setting, plan::SearchRequest request,
                                       const VerbContext& context);
std::string ProgressText(const plan::SearchProgress& progress);

struct Baseline {
  plan::SearchKind kind = plan::SearchKind::kGrid;
  Status status;
  plan::SearchResult result;
};
// The baselines that are not `chosen` itself.
std::vector<Baseline> RunBaselines(plan::SearchKind chosen, const PlanSetting& setting, const plan::SearchRequest& request,
                                   const VerbContext& context);

// (upper - lower) / lower; negative: no bound is known.
double GapOf(const plan::SearchResult& result);
// The keys that a result has everywhere: search_seconds, evaluations, iteration_seconds, lower_bound_seconds, gap, ...
nlohmann::ordered_json ResultJson(plan::SearchKind kind, const plan::SearchResult& result);
nlohmann::ordered_json BaselinesJson(const std::vector<Baseline>& baselines, double best_ms);
void PrintResult(plan::SearchKind kind, const plan::SearchResult& result);
void PrintBaselines(const std::vector<Baseline>& baselines, plan::SearchKind kind, const plan::SearchResult& best);
void PrintTop(const plan::SearchResult& result);

}  // namespace tidepool::cli
