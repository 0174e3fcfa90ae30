#include "serve/batcher.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "base/units.h"

namespace tidepool::serve {

void Batcher::SetQueue(ModelId model, QueueOptions options) { queues_[model].options = std::move(options); }

Status Batcher::Add(const QueuedRequest& request) {
  Queue& queue = queues_[request.model];
  if (static_cast<int>(queue.requests.size()) >= queue.options.limit) {
    return ResourceExhausted("the queue of model '{}' is full: {} requests wait; allowed: {}", queue.options.name,
                             queue.requests.size(), queue.options.limit);
  }
  PutBack(request);
  return {};
}

void Batcher::PutBack(const QueuedRequest& request) {
  std::vector<QueuedRequest>& requests = queues_[request.model].requests;
  const auto before = [](const QueuedRequest& a, const QueuedRequest& b) {
    return std::tie(a.target, a.id) < std::tie(b.target, b.id);
  };
  requests.insert(std::upper_bound(requests.begin(), requests.end(), request, before), request);
}

std::optional<QueuedRequest> Batcher::Remove(ModelId model, RequestId id) {
  const auto queue = queues_.find(model);
  if (queue == queues_.end()) return std::nullopt;
  auto& requests = queue->second.requests;
  const auto found = std::find_if(requests.begin(), requests.end(), [&](const auto& request) { return request.id == id; });
  if (found == requests.end()) return std::nullopt;
  QueuedRequest request = *found;
  requests.erase(found);
  return request;
}

std::vector<QueuedRequest> Batcher::RemoveAll(ModelId model) {
  const auto queue = queues_.find(model);
  return queue == queues_.end() ? std::vector<QueuedRequest>{} : std::exchange(queue->second.requests, {});
}

void Batcher::DropQueue(ModelId model) { queues_.erase(model); }

absl::Time Batcher::RefuseAt(const QueuedRequest& request) const {
  if (request.deadline == absl::InfiniteFuture()) return request.deadline;
  return request.deadline - estimator_->Least(request.model, request.batch);
}

std::vector<Refusal> Batcher::Expire(absl::Time now, const std::function<void(ModelId)>& doubted) {
  std::vector<Refusal> refused;
  for (auto& [id, queue] : queues_) {
    const ModelId model = id;
    const std::string& name = queue.options.name;
    std::erase_if(queue.requests, [&](const QueuedRequest& request) {
      if (now < RefuseAt(request)) return false;
      const std::string waited = tidepool::FormatDuration(now - request.received);
      if (now >= request.deadline) {
        refused.push_back({request, DeadlineExceeded("the deadline passed after {} in the queue of model '{}'", waited, name)});
      } else {
        refused.push_back({request, DeadlineExceeded("the deadline cannot be met any more: model '{}' computes for at least {}, "
                                                     "{} are left after {} in its queue",
                                                     name, tidepool::FormatDuration(estimator_->Least(model, request.batch)),
                                                     tidepool::FormatDuration(request.deadline - now), waited)});
        doubted(model);
      }
      return true;
    });
  }
  return refused;
}

bool Batcher::Lost(const QueuedRequest& request, absl::Time now) const {
  if (now - request.received >= starvation_limit_) return false;
  return now + estimator_->Expected(request.model, request.batch) > request.target;
}

std::optional<Batcher::Plan> Batcher::PlanBatch(ModelId model, const Queue& queue, absl::Time now, absl::Time cutoff,
                                                int64_t slab_free_bytes) const {
  std::vector<size_t> order;
  for (size_t i = 0; i < queue.requests.size(); ++i) {
    if (queue.requests[i].received < cutoff) order.push_back(i);
  }
  // The queue is sorted by target already; only the split into attainable and lost is missing.
  std::stable_partition(order.begin(), order.end(), [&](size_t i) { return !Lost(queue.requests[i], now); });

  Plan plan;
  plan.batch.model = model;
  int64_t bytes = 0;
  absl::Time oldest = absl::InfiniteFuture();
  absl::Time must_end_by = absl::InfiniteFuture();  // of the members that can still make it
  for (size_t i : order) {
    const QueuedRequest& request = queue.requests[i];
    const int size = plan.batch.size + request.batch;
    if (bytes + request.slab_bytes > slab_free_bytes) continue;
    const bool lost = Lost(request, now);
    if (plan.members.empty()) {
      plan.lost = lost ? 1 : 0;
      plan.target = request.target;
    } else {
      const QueuedRequest& head = queue.requests[plan.members.front()];
      if (request.alone || head.alone || request.shape_class != head.shape_class) continue;
      if (size > queue.options.max_batch_size) continue;
      const absl::Time end = now + estimator_->Expected(model, size);
      if (end > must_end_by || end > request.deadline || (!lost && plan.lost == 0 && end > request.target)) continue;
    }
    plan.members.push_back(i);
    plan.batch.size = size;
    bytes += request.slab_bytes;
    oldest = std::min(oldest, request.received);
    must_end_by = std::min(must_end_by, request.deadline);
    // A starving request is exempt: its target is long gone, and it must not shrink the batch it finally gets into.
    if (!lost && request.target > now) must_end_by = std::min(must_end_by, request.target);
  }
  if (plan.members.empty()) return std::nullopt;
  for (size_t i : plan.members) plan.batch.requests.push_back(queue.requests[i]);

  plan.due = now;
  const bool can_grow = plan.batch.size < queue.options.max_batch_size && !plan.batch.requests.front().alone;
  if (can_grow && queue.options.delay > absl::ZeroDuration() && plan.lost == 0) {
    // Waiting for company ends in time for a batch that is one sample larger.
    const absl::Time latest =
        must_end_by == absl::InfiniteFuture() ? must_end_by : must_end_by - estimator_->Expected(model, plan.batch.size + 1);
    plan.due = std::max(now, std::min(oldest + queue.options.delay, latest));
  }
  return plan;
}

std::optional<Batch> Batcher::Next(absl::Time now, const Cutoff& cutoff, int64_t slab_free_bytes) {
  std::optional<Plan> best;
  for (const auto& [model, queue] : queues_) {
    if (queue.requests.empty()) continue;
    const absl::Time limit = cutoff(model);
    if (limit == absl::InfinitePast()) continue;
    std::optional<Plan> plan = PlanBatch(model, queue, now, limit, slab_free_bytes);
    if (!plan || plan->due > now) continue;
    if (!best || std::tie(plan->lost, plan->target) < std::tie(best->lost, best->target)) best = std::move(plan);
  }
  if (!best) return std::nullopt;
  std::vector<QueuedRequest>& requests = queues_[best->batch.model].requests;
  std::sort(best->members.begin(), best->members.end(), std::greater<>());
  for (size_t i : best->members) requests.erase(requests.begin() + static_cast<ptrdiff_t>(i));
  return std::move(best->batch);
}

absl::Time Batcher::NextWake(absl::Time now, const Cutoff& cutoff, bool device_free) const {
  absl::Time wake = absl::InfiniteFuture();
  for (const auto& [model, queue] : queues_) {
    for (const QueuedRequest& request : queue.requests) wake = std::min(wake, RefuseAt(request));
    if (!device_free || queue.requests.empty()) continue;
    const absl::Time limit = cutoff(model);
    if (limit == absl::InfinitePast()) continue;
    const auto plan = PlanBatch(model, queue, now, limit, std::numeric_limits<int64_t>::max() / 2);
    if (plan && plan->due > now) wake = std::min(wake, plan->due);
  }
  return wake;
}

std::vector<QueueDemand> Batcher::Demands() const {
  std::vector<QueueDemand> demands;
  for (const auto& [model, queue] : queues_) {
    if (queue.requests.empty()) continue;
    QueueDemand demand{model, static_cast<int>(queue.requests.size()), absl::InfiniteFuture(), absl::InfiniteFuture()};
    for (const QueuedRequest& request : queue.requests) {
      demand.target = std::min(demand.target, request.target);
      demand.waiting_since = std::min(demand.waiting_since, request.received);
    }
    demands.push_back(demand);
  }
  return demands;
}

int Batcher::queued(ModelId model) const {
  const auto queue = queues_.find(model);
  return queue == queues_.end() ? 0 : static_cast<int>(queue->second.requests.size());
}

int Batcher::queued_before(ModelId model, absl::Time time) const {
  const auto queue = queues_.find(model);
  if (queue == queues_.end()) return 0;
  const auto& requests = queue->second.requests;
  return static_cast<int>(std::count_if(requests.begin(), requests.end(), [&](const auto& r) { return r.received < time; }));
}

int Batcher::total_queued() const {
  int total = 0;
  for (const auto& [model, queue] : queues_) total += static_cast<int>(queue.requests.size());
  return total;
}

const std::string& Batcher::name(ModelId model) const {
  static const std::string unknown = "?";
  const auto queue = queues_.find(model);
  return queue == queues_.end() ? unknown : queue->second.options.name;
}

}  // namespace tidepool::serve
