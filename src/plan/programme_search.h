// What the searches that stand on the stage programme have in common: micro-batches in turn, several best plans, budgets.
#pragma once

#include <functional>
#include <memory>

#include "plan/search.h"
#include "plan/stage_programme.h"

namespace tidepool::plan {

// One kind of stage table with the way back from cuts to a plan.
class StagePlanner {
 public:
  virtual ~StagePlanner() = default;
  virtual const StageOracle& oracle() const = 0;
  // The stage that a solution of the programme means; null: it does not fit after all.
  virtual StagePtr StageOf(const StageProgramme& programme, const CutStage& cut) = 0;
  // Whether the oracle's times are estimates, and how often solutions are looked at closely.
  virtual int32_t rounds() const { return 0; }
  virtual double tolerance() const { return 0; }  // as StageProgramme::Solve
  // From a planner of the same micro-batch whose table was filled at few cuts: what is worth to be tried at all of them.
  virtual void Learn(const StagePlanner& quick) { (void)quick; }
};
using MakeStagePlanner = std::function<std::unique_ptr<StagePlanner>(const StageProgramme& programme)>;

// What one micro-batch through a stage counts for in the programme: its time, and its part of what is once per iteration.
double EffectiveUs(const StageCost& cost, int64_t micro_batches);

// When a search must end. Thread-safe.
class SearchLimits {
 public:
  explicit SearchLimits(const SearchRequest& request);
  double seconds() const;     // since it was made
  bool wall_is_over() const;  // or it was stopped

 private:
  absl::Time start_, end_;
  std::function<bool()> stopped_;
};

inline constexpr int32_t kManyGpus = 64;  // above, not every number of devices is tried for a stage

// About `most` ops at which stages may begin: the same of every repeat, the first of a repeat among them; layer starts where
// nothing repeats.
std::vector<int32_t> SomeCuts(const OpList& ops, int32_t most);

// `where`: where stages may begin; its numbers of stages are the request's. RESOURCE_EXHAUSTED says why only if they may begin
// anywhere.
StatusOr<SearchResult> SearchByProgramme(const CostModel& model, const SearchRequest& request, const MakeStagePlanner& make,
                                         const StageBounds& where = {});

// RESOURCE_EXHAUSTED: why no plan fits, and what would: the smallest memory per device, the smallest number of devices. Found
// with cuts at layer starts if the list is long, and everything recomputed that the rule may recompute.
Status NothingFits(const CostModel& model, const SearchRequest& request);

}  // namespace tidepool::plan
