// Prices plans and remembers what their stages cost, so that a plan that shares stages with earlier ones costs little more than
// what is new in it. Results are those of CostModel::Price, in every bit.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <unordered_map>

#include "plan/cost_model.h"

namespace tidepool::plan {

// Thread-safe. The model must outlive it.
class Pricer {
 public:
  struct Options {
    // Totals that are kept. A shard that is full is emptied.
    size_t limit = size_t{1} << 20;
  };
  explicit Pricer(const CostModel& model) : Pricer(model, Options{}) {}
  Pricer(const CostModel& model, Options options) : model_(model), options_(options) {}

  const CostModel& model() const { return model_; }
  StageTotals TotalsOf(const Stage& stage, int32_t micro_batch);
  // Errors as CostModel::Price.
  StatusOr<PlanCost> Price(const Plan& plan);

  // Stages that were priced and plans that were put together, since it was made.
  int64_t stage_evaluations() const { return stage_evaluations_.load(std::memory_order_relaxed); }
  int64_t plan_evaluations() const { return plan_evaluations_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kShards = 64;
  struct Shard {
    absl::Mutex mutex;
    std::unordered_map<Key128, StageTotals, Key128Hash> totals ABSL_GUARDED_BY(mutex);
  };
  const CostModel& model_;
  Options options_;
  std::array<Shard, kShards> shards_;
  std::atomic<int64_t> stage_evaluations_{0}, plan_evaluations_{0};
};

}  // namespace tidepool::plan
