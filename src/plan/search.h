// What every search takes and gives. A search is a pure function of a cost model and a request: the same answer for any number
// of threads, on a machine of any speed. Budgets are counted in stage evaluations; the wall limit is a safety stop, and a result
// that it cut short says so.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "plan/cost_model.h"

namespace tidepool::plan {

enum class SearchKind : uint8_t {
  kAuto,        // op-dp, polished by the primitives under the same cost model
  kOpDp,        // per-op splits by a Viterbi with multipliers, inside of the stage programme
  kExact,       // the stage programme over stages whose ops have one split; exact
  kAceso,       // the published search: bottleneck, primitives, relays, several hops
  kGrid,        // baseline: equal layers per stage, one split for all, recompute for all or none
  kRandom,      // baseline: random plans, improved by primitives at random
  kInterIntra,  // baseline: stages chosen apart from splits, as in Alpa
};
std::string_view NameOf(SearchKind kind);                    // "auto", "op-dp", "exact", "aceso", "grid", "random", "inter-intra"
StatusOr<SearchKind> SearchKindFrom(std::string_view name);  // INVALID_ARGUMENT lists what is allowed

struct SearchProgress {
  double seconds = 0;  // since the start
  int64_t evaluations = 0;
  double best_ms = 0;         // infinite: none that fits yet
  double lower_bound_ms = 0;  // 0: not known yet
};

struct SearchRequest {
  int64_t global_batch = 0;
  std::vector<int32_t> micro_batches;      // to choose from; none twice
  int32_t threads = 0;                     // 0: one per core
  int32_t top_k = 1;                       // plans to keep, best first, no two with equally many stages
  int32_t min_stages = 1, max_stages = 0;  // 0: as many as there are devices and ops
  uint64_t seed = 0;
  int64_t budget = 0;                                      // evaluations; 0: the search's own
  absl::Duration wall_limit = absl::Seconds(300);          // a safety stop
  std::function<bool()> stopped;                           // asked now and then by any thread; true: end as at the wall limit
  std::optional<Plan> start;                               // searches that improve a plan begin here
  std::function<void(const SearchProgress&)> on_progress;  // called by one thread at a time, a few times a second
};
// INVALID_ARGUMENT names the field, its value and what is allowed.
Status Validate(const SearchRequest& request, const CostModel& model);

struct RankedPlan {
  Plan plan;
  PlanCost cost;
};

struct SearchResult {
  std::vector<RankedPlan> plans;  // best first, at least one, all valid and within memory
  double seconds = 0;
  int64_t evaluations = 0;    // stages that were priced
  double lower_bound_ms = 0;  // no plan of the whole space is faster; 0: not computed
  bool hit_wall_limit = false;
  bool hit_budget = false;
  std::vector<std::string> notes;  // what a reader should know: cuts that were restricted, bounds that are weak

  double best_ms() const { return plans.front().cost.iteration_ms; }
};

// Any of them. Errors of all: INVALID_ARGUMENT as Validate; RESOURCE_EXHAUSTED if no plan fits, with the smallest memory that
// was seen to work or would; DEADLINE_EXCEEDED if the wall limit came before any plan.
StatusOr<SearchResult> Search(SearchKind kind, const CostModel& model, const SearchRequest& request);

// One per file; Search calls them with a request that is valid.
StatusOr<SearchResult> SearchExact(const CostModel& model, const SearchRequest& request);
StatusOr<SearchResult> SearchOpDp(const CostModel& model, const SearchRequest& request);
StatusOr<SearchResult> SearchAuto(const CostModel& model, const SearchRequest& request);
StatusOr<SearchResult> SearchAceso(const CostModel& model, const SearchRequest& request);
StatusOr<SearchResult> SearchGrid(const CostModel& model, const SearchRequest& request);
StatusOr<SearchResult> SearchRandom(const CostModel& model, const SearchRequest& request);
StatusOr<SearchResult> SearchInterIntra(const CostModel& model, const SearchRequest& request);

// A bound below every plan of the per-op space, for any micro-batch of the request, in ms. Rigorous under `model`. 0 if none is
// known.
StatusOr<double> LowerBound(const CostModel& model, const SearchRequest& request);

}  // namespace tidepool::plan
