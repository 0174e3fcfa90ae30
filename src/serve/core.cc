#include "serve/core.h"

#include <algorithm>
#include <utility>

#include "base/units.h"

namespace tidepool::serve {

Core::Core(const CoreOptions& options)
    : options_(options),
      batcher_(&estimator_, options.starvation_limit),
      residency_(options.residency),
      task_switch_(options.task_switch_idle) {}

void Core::AddModel(ModelId id, const ModelTraits& traits) {
  Model& model = models_[id];
  model.traits = traits;
  model.slo = SloAccount(traits.slo, traits.slo_factor);
  batcher_.SetQueue(id, traits.queue);
  residency_.AddModel(id, traits.name, traits.pages, traits.workspace_pages, traits.least_workspace_pages);
}

void Core::RetireModel(ModelId id, const Status& reason) {
  Model& model = models_.at(id);
  model.retired = true;
  model.retired_reason = reason;
  model.unload_wanted = true;
  residency_.OnUnwanted(id);
  const Residency::State state = residency_.state(id);
  if (state == Residency::State::kReady || state == Residency::State::kDraining) return;  // what is queued still runs
  AnswerQueue(id, reason);
  FinishLoadWaiters(&model, reason);
  if (state == Residency::State::kLoading) pending_.cancels.push_back(model.instance);
}

Status Core::Submit(QueuedRequest request, absl::Time now) {
  const auto found = models_.find(request.model);
  if (found == models_.end()) return NotFound("the model is no longer served");
  Model& model = found->second;
  ++model.counters.requests;
  request.target = model.slo.Target(request.received, request.deadline);
  Status status = model.retired ? model.retired_reason : residency_.broken(request.model, now);
  if (status.ok() && request.deadline <= now) {
    status = DeadlineExceeded("the deadline passed before the request to model '{}' was queued", model.traits.name);
  }
  if (status.ok()) status = batcher_.Add(request);
  if (!status.ok()) {
    ++model.counters.rejected;
    ++model.counters.failures;
    return status;
  }
  residency_.OnUse(request.model, 1, now);
  return {};
}

Status Core::Cancel(ModelId id, RequestId request) {
  if (batcher_.Remove(id, request)) {
    ++models_.at(id).counters.failures;
    return {};
  }
  for (auto& [job, running] : running_) {
    if (running.batch.model != id) continue;
    for (const QueuedRequest& member : running.batch.requests) {
      if (member.id != request) continue;
      running.cancelled.insert(request);
      if (running.cancelled.size() == running.batch.requests.size() && !running.cancel_sent) {
        running.cancel_sent = true;
        pending_.cancels.push_back(job);
      }
      return FailedPrecondition("the request runs already");
    }
  }
  return FailedPrecondition("the request has been answered already");
}

void Core::LoadModel(ModelId id, WaiterId waiter, absl::Time deadline, absl::Time now) {
  const auto found = models_.find(id);
  if (found == models_.end() || found->second.retired) {
    pending_.waiters.push_back({waiter, NotFound("the model is no longer served")});
    return;
  }
  residency_.OnUse(id, 1, now);
  if (residency_.state(id) == Residency::State::kReady && !found->second.unload_wanted) {
    pending_.waiters.push_back({waiter, int64_t{0}});
    return;
  }
  residency_.ClearFailure(id);
  found->second.load_waiters.push_back({waiter, deadline});
}

void Core::UnloadModel(ModelId id, WaiterId waiter, absl::Time deadline) {
  const auto found = models_.find(id);
  if (found != models_.end()) residency_.OnUnwanted(id);
  if (found == models_.end() || residency_.state(id) == Residency::State::kAbsent) {
    pending_.waiters.push_back({waiter, int64_t{0}});
    return;
  }
  found->second.unload_wanted = true;
  found->second.unload_waiters.push_back({waiter, deadline});
}

void Core::OnWorkerUp() {
  worker_up_ = true;
  kill_asked_ = false;
  workspace_held_pages_ = 0;
}

void Core::OnWorkerLost(const std::string& how, absl::Time now) {
  worker_up_ = false;
  kill_asked_ = false;
  workspace_held_pages_ = 0;
  const Status lost = Unavailable("the device worker was lost: it {}", how);
  for (auto& [id, model] : models_) {
    const Residency::State state = residency_.state(id);
    if (state == Residency::State::kLoading) residency_.OnLoadFailed(id, Annotate(lost, "while loading"), now);
    if (state == Residency::State::kUnloading || state == Residency::State::kDraining || state == Residency::State::kReady) {
      FinishUnloadWaiters(&model, Unavailable("{} before the unload; the pool takes its memory back", MessageOf(lost)));
    }
    model.unload_wanted = model.retired;
  }
  residency_.OnWorkerLost();
  const auto running = std::exchange(running_, {});
  for (const auto& [job, execution] : running) {
    for (QueuedRequest request : execution.batch.requests) {
      if (execution.cancelled.contains(request.id)) {
        Answer(request, Cancelled("the request was cancelled"));
        continue;
      }
      ++request.attempts;
      if (request.attempts >= options_.attempts || request.deadline <= now) {
        Answer(request, Unavailable("the device worker was lost ({}) while it ran the request, in {} of {} attempts", how,
                                    request.attempts, options_.attempts));
        continue;
      }
      request.alone = true;  // if this request is what kills workers, it takes no other with it next time
      batcher_.PutBack(request);
    }
  }
  for (auto& [id, model] : models_) {
    if (model.retired) AnswerQueue(id, model.retired_reason);
  }
}

void Core::OnLoadDone(JobId job, const Status& status, int64_t pages, absl::Duration took, absl::Time now) {
  for (auto& [id, model] : models_) {
    if (model.instance != job || residency_.state(id) != Residency::State::kLoading) continue;
    if (status.ok()) {
      residency_.OnLoaded(id, pages, now);
      estimator_.RecordLoad(id, took);
      ++model.counters.loads;
      model.counters.load_time += took;
      model.ready_since = now;
      FinishLoadWaiters(&model, status);
      return;
    }
    residency_.OnLoadFailed(id, status, now);
    if (model.unload_wanted) {
      FinishUnloadWaiters(&model, int64_t{0});
      model.unload_wanted = model.retired;
    }
    if (model.retired) AnswerQueue(id, model.retired_reason);
    if (IsMemoryShortage(status)) return;
    AnswerQueue(id, Annotate(status, fmt::format("model '{}' could not be loaded", model.traits.name)));
    FinishLoadWaiters(&model, Annotate(status, fmt::format("model '{}' could not be loaded", model.traits.name)));
    return;
  }
}

void Core::OnUnloadDone(JobId job, const Status& status, int64_t freed_bytes) {
  for (auto& [id, model] : models_) {
    if (model.unload_job != job || residency_.state(id) != Residency::State::kUnloading) continue;
    residency_.OnUnloaded(id);
    model.unload_wanted = model.retired;
    FinishUnloadWaiters(&model, status.ok() ? StatusOr<int64_t>(freed_bytes) : StatusOr<int64_t>(status));
    return;
  }
}

void Core::Requeue(const Running& running, ExecutionResult* result, bool alone) {
  for (QueuedRequest request : running.batch.requests) {
    if (running.cancelled.contains(request.id)) {
      ++models_.at(request.model).counters.failures;
      result->failed.push_back({request.id, Cancelled("the request was cancelled")});
    } else {
      request.alone = request.alone || alone;
      batcher_.PutBack(request);
      ++result->requeued;
    }
  }
}

StatusOr<ExecutionResult> Core::OnExecuteDone(JobId job, const Status& status, absl::Duration compute,
                                              int64_t workspace_held_pages, int64_t workspace_peak_pages, absl::Time now) {
  const auto found = running_.find(job);
  if (found == running_.end()) return InvalidArgument("the worker answered execution {} that was not ordered", job.value());
  Running running = std::move(found->second);
  running_.erase(found);
  workspace_held_pages_ = workspace_held_pages;
  const ModelId id = running.batch.model;
  Model& model = models_.at(id);
  residency_.OnUse(id, 0, now);
  residency_.OnWorkspace(id, workspace_peak_pages);

  ExecutionResult result{.model = id, .batch = running.batch.size};
  if (status.ok()) {
    estimator_.Record(id, running.batch.size, compute);
    ++model.counters.executions;
    model.counters.batched_requests += static_cast<int64_t>(running.batch.requests.size());
    for (const QueuedRequest& request : running.batch.requests) {
      const absl::Duration waited = running.dispatched - request.received;
      const absl::Duration load = std::clamp(model.ready_since - request.received, absl::ZeroDuration(), waited);
      model.counters.queue_time += waited - load;
      model.counters.compute_time += compute;
      result.done.push_back({request, running.dispatched, load});
    }
    return result;
  }
  if (status.code() == StatusCode::kResourceExhausted) {
    // No room for the activations. One cold model less, and once more.
    std::set<ModelId> busy = {id};
    for (const QueueDemand& demand : batcher_.Demands()) busy.insert(demand.model);
    const bool tried = std::any_of(running.batch.requests.begin(), running.batch.requests.end(),
                                   [&](const QueuedRequest& request) { return request.attempts + 1 >= options_.attempts; });
    const auto victim = residency_.Victim(now, busy);
    if (victim && !tried && worker_up_) {
      StartUnload(*victim, true);
      for (QueuedRequest& request : running.batch.requests) ++request.attempts;
      Requeue(running, &result, false);
      return result;
    }
  } else if (running.batch.requests.size() > 1 && status.code() != StatusCode::kUnavailable) {
    // One member's data may be at fault; alone, each gets the answer that is its own.
    Requeue(running, &result, true);
    return result;
  }
  for (const QueuedRequest& request : running.batch.requests) {
    ++model.counters.failures;
    result.failed.push_back({request.id, status});
  }
  return result;
}

void Core::OnExecuteRefused(JobId job) {
  const auto found = running_.find(job);
  if (found == running_.end()) return;
  for (const QueuedRequest& request : found->second.batch.requests) batcher_.PutBack(request);
  running_.erase(found);
}

std::vector<Actions::Answer> Core::FailAll(const Status& status) {
  for (auto& [id, model] : models_) {
    AnswerQueue(id, status);
    FinishLoadWaiters(&model, status);
    FinishUnloadWaiters(&model, status);
  }
  for (const auto& [job, running] : std::exchange(running_, {})) {
    for (const QueuedRequest& request : running.batch.requests) Answer(request, status);
  }
  return std::exchange(pending_.answers, {});
}

void Core::SetSolo(ModelId id, absl::Duration solo) {
  const auto found = models_.find(id);
  if (found != models_.end()) found->second.slo.SetSolo(solo);
}

void Core::OnAnswered(ModelId id, absl::Duration latency) {
  const auto found = models_.find(id);
  if (found != models_.end() && found->second.slo.Within(latency)) ++found->second.counters.within_slo;
}

void Core::Answer(const QueuedRequest& request, Status status) {
  ++models_.at(request.model).counters.failures;
  pending_.answers.push_back({request.id, std::move(status)});
}

void Core::AnswerQueue(ModelId id, const Status& status) {
  for (const QueuedRequest& request : batcher_.RemoveAll(id)) Answer(request, status);
}

void Core::FinishLoadWaiters(Model* model, const Status& status) {
  for (const Waiter& waiter : std::exchange(model->load_waiters, {})) {
    pending_.waiters.push_back({waiter.id, status.ok() ? StatusOr<int64_t>(int64_t{0}) : StatusOr<int64_t>(status)});
  }
}

void Core::FinishUnloadWaiters(Model* model, StatusOr<int64_t> result) {
  for (const Waiter& waiter : std::exchange(model->unload_waiters, {})) {
    pending_.waiters.push_back({waiter.id, result});
    if (result.ok()) result = int64_t{0};  // the first one is told of the bytes
  }
}

bool Core::Executing(ModelId id) const {
  return std::any_of(running_.begin(), running_.end(), [&](const auto& entry) { return entry.second.batch.model == id; });
}

bool Core::HasWork() const {
  if (!running_.empty() || batcher_.total_queued() > 0) return true;
  return std::any_of(models_.begin(), models_.end(), [](const auto& entry) { return !entry.second.load_waiters.empty(); });
}

Batcher::Cutoff Core::CutoffFunction() const {
  return [this](ModelId id) { return residency_.cutoff(id); };
}

ModelState Core::state(ModelId id) const {
  switch (residency_.state(id)) {
    case Residency::State::kAbsent: return ModelState::kAbsent;
    case Residency::State::kLoading: return ModelState::kLoading;
    case Residency::State::kReady: return ModelState::kReady;
    case Residency::State::kDraining:
    case Residency::State::kUnloading: return ModelState::kDraining;
  }
  return ModelState::kAbsent;
}

const ModelCounters& Core::counters(ModelId id) const { return models_.at(id).counters; }
const SloAccount& Core::slo(ModelId id) const { return models_.at(id).slo; }
Status Core::last_failure(ModelId id) const { return residency_.last_failure(id); }

int64_t Core::resident_pages(ModelId id) const {
  return residency_.state(id) == Residency::State::kAbsent ? 0 : residency_.pages(id);
}

int Core::outstanding() const {
  int count = batcher_.total_queued();
  for (const auto& [job, running] : running_) count += static_cast<int>(running.batch.requests.size());
  return count;
}

}  // namespace tidepool::serve
