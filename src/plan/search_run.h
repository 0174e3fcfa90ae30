// What the published search and the baselines share: the safety stop, progress, tasks on threads, and the best plan of each
// stage count.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "plan/search.h"

namespace tidepool::plan {

inline constexpr double kNoPlanMs = std::numeric_limits<double>::infinity();

// From the start of one search to its end. Thread-safe.
class SearchRun {
 public:
  explicit SearchRun(const SearchRequest& request);

  double seconds() const;
  // Whether the safety stop was reached. Looks at the clock in every 64th call of a thread; once true it stays true.
  bool Expired();
  bool hit_wall_limit() const { return expired_.load(std::memory_order_relaxed); }
  void CountEvaluations(int64_t more) { evaluations_.fetch_add(more, std::memory_order_relaxed); }
  int64_t evaluations() const { return evaluations_.load(std::memory_order_relaxed); }
  // A plan that fits was found. Tells on_progress now and then.
  void Report(double best_ms);

 private:
  const SearchRequest& request_;
  absl::Time start_, deadline_;
  std::atomic<bool> expired_{false};
  std::atomic<int64_t> evaluations_{0};
  absl::Mutex mutex_;
  double best_ms_ ABSL_GUARDED_BY(mutex_) = kNoPlanMs;
  double reported_ms_ ABSL_GUARDED_BY(mutex_) = kNoPlanMs;
  absl::Time next_report_ ABSL_GUARDED_BY(mutex_);
};

// Calls task(0) ... task(count - 1), each once, on up to `threads` threads (0: one per core), and waits for all. What a task
// does must not depend on others, so that the outcome does not depend on the number of threads.
void RunTasks(int32_t count, int32_t threads, const std::function<void(int32_t)>& task);

// Stage counts that the request asks for, at most as many as there are devices and ops.
int32_t LargestStageCount(const SearchRequest& request, const CostModel& model);
// The micro-batches of the request that divide the global batch, ascending.
std::vector<int32_t> UsableMicroBatches(const SearchRequest& request);

// Whether `a` is to be preferred: one that fits; then by iteration, or by memory if neither fits; then by fewer stages; then by
// key. A total order, so that ties are broken alike on every machine.
bool IsBetter(const RankedPlan& a, const RankedPlan& b);

// The best plan of each stage count, and the least memory that was seen. Not thread-safe.
class BestPlans {
 public:
  // Plans that do not fit are remembered for their memory only.
  void Add(const RankedPlan& candidate);
  void Add(const BestPlans& other);
  bool empty() const { return best_.empty(); }
  double best_ms() const;  // infinite: none
  // The result, with the `top_k` best. RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED if there is none.
  StatusOr<SearchResult> Take(const SearchRun& run, const SearchRequest& request, const CostModel& model,
                              std::string_view what) const;

 private:
  std::map<size_t, RankedPlan> best_;  // by stage count
  double least_memory_mib_ = std::numeric_limits<double>::infinity();
};

}  // namespace tidepool::plan
