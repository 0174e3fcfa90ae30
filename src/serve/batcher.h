// The queues in front of the device: one per model, with a limit. Decides what runs next, in which company, and what is refused.
//
// Order: requests that can still meet their target come before those that cannot, then the earliest target first; the same rule
// orders requests inside a queue and the queues among each other. A request that has waited for `starvation_limit` counts as one
// that can still meet its target, so nothing waits for ever. A batch grows while every member that could meet its target alone
// still does. Pure: `now` comes in, decisions go out.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "serve/slo.h"
#include "serve/types.h"

namespace tidepool::serve {

struct QueuedRequest {
  RequestId id;
  ModelId model;
  absl::Time received;
  absl::Time deadline = absl::InfiniteFuture();  // hard: refused when it cannot be met
  absl::Time target = absl::InfiniteFuture();    // soft: orders the work
  int batch = 1;                                 // samples
  uint64_t shape_class = 0;                      // requests of different non-batch shapes never share a batch
  int64_t slab_bytes = 0;                        // its inputs and results in shared memory
  bool alone = false;                            // must not share a batch
  int attempts = 0;                              // executions that ended without a result
};

struct QueueOptions {
  std::string name;  // of the model, for messages
  int limit = 256;
  int max_batch_size = 8;                       // samples
  absl::Duration delay = absl::ZeroDuration();  // the longest a request waits for company while the device is free
};

struct Batch {
  ModelId model;
  int size = 0;  // samples
  std::vector<QueuedRequest> requests;
};

struct Refusal {
  QueuedRequest request;
  Status status;
};

// What one model's queue asks for.
struct QueueDemand {
  ModelId model;
  int queued = 0;
  absl::Time target;         // the earliest
  absl::Time waiting_since;  // the earliest receipt
};

// Thread-compatible.
class Batcher {
 public:
  // For each model: only requests received before this time may run. InfinitePast: none, InfiniteFuture: all.
  using Cutoff = std::function<absl::Time(ModelId)>;

  // `estimator` outlives the batcher.
  Batcher(const ComputeEstimator* estimator, absl::Duration starvation_limit)
      : estimator_(estimator), starvation_limit_(starvation_limit) {}

  void SetQueue(ModelId model, QueueOptions options);
  // RESOURCE_EXHAUSTED if the queue is full.
  Status Add(const QueuedRequest& request);
  // Queues again what was taken out by Next. Not bound by the limit: it was accepted before.
  void PutBack(const QueuedRequest& request);
  // Takes one request out; empty if it is not queued.
  std::optional<QueuedRequest> Remove(ModelId model, RequestId id);
  std::vector<QueuedRequest> RemoveAll(ModelId model);
  void DropQueue(ModelId model);

  // Takes out and returns the requests whose deadline has passed or cannot be met any more.
  std::vector<Refusal> Expire(absl::Time now, const std::function<void(ModelId)>& doubted);
  // Takes out the batch to run now, at most `slab_free_bytes` large, or nothing.
  std::optional<Batch> Next(absl::Time now, const Cutoff& cutoff, int64_t slab_free_bytes);
  // The next time at which Expire or Next may do something, if nothing is added before. `device_free`: whether Next would be
  // called.
  absl::Time NextWake(absl::Time now, const Cutoff& cutoff, bool device_free) const;

  std::vector<QueueDemand> Demands() const;  // of non-empty queues
  int queued(ModelId model) const;
  // The number of queued requests of `model` that were received before `time`.
  int queued_before(ModelId model, absl::Time time) const;
  int total_queued() const;
  const std::string& name(ModelId model) const;

 private:
  struct Queue {
    QueueOptions options;
    std::vector<QueuedRequest> requests;  // sorted by target, then id
  };
  struct Plan {
    Batch batch;
    std::vector<size_t> members;
    absl::Time due;  // when it should go: later than now only while it waits for company
    int lost = 0;
    absl::Time target;
  };
  bool Lost(const QueuedRequest& request, absl::Time now) const;
  std::optional<Plan> PlanBatch(ModelId model, const Queue& queue, absl::Time now, absl::Time cutoff,
                                int64_t slab_free_bytes) const;
  absl::Time RefuseAt(const QueuedRequest& request) const;

  const ComputeEstimator* estimator_;
  const absl::Duration starvation_limit_;
  std::map<ModelId, Queue> queues_;
};

}  // namespace tidepool::serve
