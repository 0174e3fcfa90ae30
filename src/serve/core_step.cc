// Core::Step: what to do now. The handling of events is in core.cc.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/units.h"
#include "serve/core.h"

namespace tidepool::serve {
namespace {

// The broker gives a tenant 200 ms to hand memory over; giving up before would waste a handover that is under way.
constexpr absl::Duration kLeastGrowSlack = absl::Milliseconds(250);
constexpr absl::Duration kLookAtRoomEvery = absl::Milliseconds(100), kLookAheadEvery = absl::Milliseconds(20);

}  // namespace

Actions Core::Step(absl::Time now, int64_t slab_free_bytes, const std::function<pool::PinnedRoom()>& room_for_pinned) {
  pending_.wake = absl::InfiniteFuture();
  UpdateBusyShare(now);
  for (const Refusal& refusal : batcher_.Expire(now, [this](ModelId id) { estimator_.Doubt(id); })) {
    Answer(refusal.request, refusal.status);
  }
  ExpireWaitingForLoads(now);
  ExpireWaiters(now);
  bool device_free = false;
  if (worker_up_) {
    CheckJobs(now);
    if (options_.mode == Mode::kTaskSwitch) StepTaskSwitch(now);
    StepUnloads(now);
    StepResidency(now, room_for_pinned);
    if (options_.mode != Mode::kTaskSwitch || task_switch_.may_serve()) {
      StepExecutions(now, slab_free_bytes);
      device_free = running_.empty();
    }
  }
  for (auto it = models_.begin(); it != models_.end();) {
    const bool gone = it->second.retired && residency_.state(it->first) == Residency::State::kAbsent &&
                      batcher_.queued(it->first) == 0 && !Executing(it->first);
    if (!gone) {
      ++it;
      continue;
    }
    FinishUnloadWaiters(&it->second, int64_t{0});
    pending_.retired.push_back(it->first);
    residency_.RemoveModel(it->first);
    batcher_.DropQueue(it->first);
    estimator_.Forget(it->first);
    it = models_.erase(it);
  }
  was_busy_ = !running_.empty();
  pending_.wake = std::min(pending_.wake, batcher_.NextWake(now, CutoffFunction(), device_free));
  return std::exchange(pending_, {});
}

// A request waits for its model at most `load_deadline`, also if it has no deadline of its own.
void Core::ExpireWaitingForLoads(absl::Time now) {
  for (const QueueDemand& demand : batcher_.Demands()) {
    if (residency_.cutoff(demand.model) != absl::InfinitePast()) continue;
    const absl::Time ends = demand.waiting_since + options_.load_deadline;
    if (now < ends) {
      pending_.wake = std::min(pending_.wake, ends);
      continue;
    }
    const Model& model = models_.at(demand.model);
    const Status& failure = residency_.last_failure(demand.model);
    const std::string reason = !worker_up_     ? "the device worker is not running"
                               : !failure.ok() ? ToString(failure)
                                               : "the device had no room or time for it";
    for (const QueuedRequest& request : batcher_.RemoveAll(demand.model)) {
      if (request.received + options_.load_deadline > now) {
        batcher_.PutBack(request);
        pending_.wake = std::min(pending_.wake, request.received + options_.load_deadline);
      } else {
        Answer(request, Unavailable("model '{}' was not resident within {}: {}", model.traits.name,
                                    tidepool::FormatDuration(options_.load_deadline), reason));
      }
    }
  }
}

void Core::ExpireWaiters(absl::Time now) {
  const auto expire = [&](std::vector<Waiter>* waiters, const std::string& text) {
    std::erase_if(*waiters, [&](const Waiter& waiter) {
      if (waiter.deadline > now) {
        pending_.wake = std::min(pending_.wake, waiter.deadline);
        return false;
      }
      pending_.waiters.push_back({waiter.id, DeadlineExceeded("{}", text)});
      return true;
    });
  };
  for (auto& [id, model] : models_) {
    if (!model.load_waiters.empty()) {
      const Status& failure = residency_.last_failure(id);
      expire(&model.load_waiters, fmt::format("model '{}' is not loaded yet{}", model.traits.name,
                                              failure.ok() ? "" : "; the last attempt: " + ToString(failure)));
    }
    if (!model.unload_waiters.empty()) {
      expire(&model.unload_waiters,
             fmt::format("model '{}' is not unloaded yet; {} requests wait for it", model.traits.name, batcher_.queued(id)));
    }
  }
}

// The worker limits its own work; one that is silent far beyond that hangs.
void Core::CheckJobs(absl::Time now) {
  if (kill_asked_) return;
  const auto check = [&](absl::Time limit, const std::string& what) {
    if (now < limit) {
      pending_.wake = std::min(pending_.wake, limit);
    } else if (!kill_asked_) {
      kill_asked_ = true;
      pending_.kill_worker = what;
    }
  };
  for (const auto& [job, running] : running_) {
    check(running.dispatched + options_.execution_limit,
          fmt::format("execution of model '{}' gave no answer for {}", batcher_.name(running.batch.model),
                      tidepool::FormatDuration(options_.execution_limit)));
  }
  for (const auto& [id, model] : models_) {
    if (residency_.state(id) != Residency::State::kLoading) continue;
    check(model.load_started + options_.load_deadline + options_.execution_limit,
          fmt::format("load of model '{}' gave no answer for {}", model.traits.name,
                      tidepool::FormatDuration(options_.load_deadline + options_.execution_limit)));
  }
}

void Core::StepTaskSwitch(absl::Time now) {
  const TaskSwitch::Action action = task_switch_.Step(now, HasWork(), residency_.anything_resident());
  if (action == TaskSwitch::Action::kEvictAll) {
    for (const auto& [id, model] : models_) {
      if (residency_.state(id) == Residency::State::kReady) StartUnload(id, true);
    }
  } else {
    pending_.task_switch = action;
  }
  pending_.wake = std::min(pending_.wake, task_switch_.wake() > now ? task_switch_.wake() : absl::InfiniteFuture());
}

void Core::StartUnload(ModelId id, bool eviction) {
  Model& model = models_.at(id);
  model.unload_job = NextJob();
  residency_.OnUnloadStarted(id);
  if (eviction) ++model.counters.evictions;
  pending_.unloads.push_back({model.unload_job, model.instance, id});
}

// Drained models go when the last request that they had accepted is done.
void Core::StepUnloads(absl::Time now) {
  for (auto& [id, model] : models_) {
    Residency::State state = residency_.state(id);
    if (model.unload_wanted && state == Residency::State::kReady) {
      residency_.OnDrain(id, now);
      state = Residency::State::kDraining;
    }
    if (state != Residency::State::kDraining || Executing(id)) continue;
    if (batcher_.queued_before(id, residency_.cutoff(id)) == 0) StartUnload(id, !model.unload_wanted);
  }
}

void Core::UpdateBusyShare(absl::Time now) {
  const double keep = busy_at_ == absl::InfinitePast() ? 0 : std::exp(-absl::ToDoubleSeconds(now - busy_at_));
  busy_share_ = busy_share_ * keep + (was_busy_ ? 1 - keep : 0);
  busy_at_ = now;
}

// Whether a request that finds the model absent can still be answered within the model's objective: loading, the execution, and
// the wait that 95 % of requests stay below in an M/M/1 queue that is busy for `busy_share_` of the time.
bool Core::CheapToReload(ModelId id) const {
  constexpr double kMostBusy = 0.95, kMiss = 0.05;
  const absl::Duration load = estimator_.ExpectedLoad(id), slo = models_.at(id).slo.slo(), run = estimator_.Expected(id, 1);
  if (load == absl::ZeroDuration() || slo == absl::ZeroDuration()) return false;
  const double busy = std::clamp(busy_share_, kMiss, kMostBusy);
  return load + run + run / (1 - busy) * std::log(busy / kMiss) <= slo;
}

void Core::StepResidency(absl::Time now, const std::function<pool::PinnedRoom()>& room_for_pinned) {
  Situation situation{.now = now, .workspace_held_pages = workspace_held_pages_};
  bool absent = false, loading = false;
  for (const auto& [id, model] : models_) loading = loading || residency_.state(id) == Residency::State::kLoading;
  for (const QueueDemand& demand : batcher_.Demands()) {
    situation.demands.push_back({demand.model, demand.target, demand.waiting_since, demand.queued});
    absent = absent || residency_.state(demand.model) == Residency::State::kAbsent;
  }
  for (const auto& [id, model] : models_) {
    if (model.load_waiters.empty() || batcher_.queued(id) > 0) continue;
    situation.demands.push_back({id, now, now - options_.residency.starvation_limit, 0});
    absent = absent || residency_.state(id) == Residency::State::kAbsent;
  }
  for (const auto& [job, running] : running_) situation.executing.insert(running.batch.model);
  situation.may_load = options_.mode != Mode::kTaskSwitch || task_switch_.may_serve();
  // Also now and then while models are there: training may miss what an idle one of them holds.
  const bool look = options_.mode == Mode::kColocate && residency_.anything_resident();
  const bool due = look && now >= next_look_at_room_;
  const bool ahead = !absent && !loading && now >= next_load_ahead_ && residency_.WantsAhead(now);
  if (now >= next_load_ahead_) next_load_ahead_ = now + kLookAheadEvery;
  if (((absent || ahead) && !loading && situation.may_load) || due) {
    next_look_at_room_ = now + kLookAtRoomEvery;
    const pool::PinnedRoom room = room_for_pinned();
    situation.available_pages = room.pages;
    situation.spare_pages = room.spare_pages;
    for (const auto& [id, model] : models_) {
      if (CheapToReload(id)) situation.cheap_to_reload.insert(id);
    }
  }
  if (look) pending_.wake = std::min(pending_.wake, next_look_at_room_);

  ResidencyDecision decision = residency_.Decide(situation);
  pending_.wake = std::min(pending_.wake, decision.wake);
  for (const auto& impossible : decision.impossible) {
    AnswerQueue(impossible.model, impossible.status);
    FinishLoadWaiters(&models_.at(impossible.model), impossible.status);
  }
  for (ModelId id : decision.unload) StartUnload(id, true);
  for (ModelId id : decision.drain) residency_.OnDrain(id, now);
  if (!decision.drain.empty()) StepUnloads(now);
  if (!decision.load) return;
  next_load_ahead_ = now;  // the next one follows as soon as this one is there

  const ModelId id = *decision.load;
  Model& model = models_.at(id);
  absl::Time target = absl::InfiniteFuture();
  for (const ResidencyDemand& demand : situation.demands) {
    if (demand.model == id) target = std::min(target, demand.target);
  }
  // One that is loaded ahead is as urgent as they come: requests are expected, and no other load runs meanwhile.
  if (target == absl::InfiniteFuture()) target = now;
  const absl::Duration slack = target - now - estimator_.ExpectedLoad(id) - estimator_.Expected(id, 1);
  model.instance = NextJob();
  model.load_started = now;
  residency_.OnLoadStarted(id);
  pending_.loads.push_back(
      {model.instance, id, std::clamp(slack, kLeastGrowSlack, options_.load_deadline), options_.load_deadline});
}

void Core::StepExecutions(absl::Time now, int64_t slab_free_bytes) {
  if (!running_.empty() || kill_asked_) return;  // the device runs one batch at a time
  std::optional<Batch> batch = batcher_.Next(now, CutoffFunction(), slab_free_bytes);
  if (!batch) return;
  const JobId job = NextJob();
  pending_.executions.push_back({job, models_.at(batch->model).instance, *batch});
  running_.emplace(job, Running{.batch = std::move(*batch), .dispatched = now});
}

}  // namespace tidepool::serve
