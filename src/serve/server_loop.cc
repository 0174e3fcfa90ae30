// The loop thread of the server.
#include <algorithm>
#include <cstring>
#include <limits>

#include "base/log.h"
#include "base/units.h"
#include "serve/server_impl.h"

namespace tidepool::serve {
namespace {

constexpr absl::Duration kRestartMin = absl::Milliseconds(100), kRestartMax = absl::Seconds(5);
constexpr absl::Duration kStableWorker = absl::Seconds(10);
constexpr absl::Duration kHandshakeLimit = absl::Seconds(100);
constexpr absl::Duration kLongestNap = absl::Seconds(1);

}  // namespace

void ServerImpl::Loop() {
  while (true) {
    const bool last = tasks_->closed();  // read first: what was posted before it was closed is still run
    for (const TaskQueue::Task& task : tasks_->Wait(std::min(wake_, clock_->Now() + kLongestNap))) task();
    if (last) break;
    StepCore(clock_->Now());
    Publish();
    RunCallbacks();
  }
  const Status stopping = Unavailable("the server is stopping");
  if (link_ != nullptr) link_->End(absl::Seconds(2));
  link_.reset();
  for (const Actions::Answer& answer : core_.FailAll(stopping)) Answer(answer.request, answer.status);
  while (!pending_.empty()) Answer(pending_.begin()->first, stopping);
  while (!replies_.empty()) Finish(replies_.begin()->first, stopping);
  RunCallbacks();
  absl::MutexLock lock(&mu_);
  worker_up_ = false;
  worker_pid_ = 0;
}

void ServerImpl::StepCore(absl::Time now) {
  if (link_ == nullptr && now >= worker_start_at_) StartWorker(now);
  if (link_ != nullptr && !greeted_ && now > worker_started_ + kHandshakeLimit) {
    LoseWorker(fmt::format("did not report within {}", tidepool::FormatDuration(kHandshakeLimit)), absl::ZeroDuration());
  }
  while (true) {
    Actions actions = core_.Step(now, allocator_.largest_free_bytes(), [this] { return broker_->RoomForPinned(); });
    wake_ = actions.wake;
    if (actions.empty()) break;
    Perform(std::move(actions), now);
    now = clock_->Now();
  }
  if (link_ == nullptr) wake_ = std::min(wake_, worker_start_at_);
}

void ServerImpl::Perform(Actions actions, absl::Time now) {
  for (const Actions::Answer& answer : actions.answers) Answer(answer.request, answer.status);
  for (Actions::WaiterDone& done : actions.waiters) Finish(done.waiter, std::move(done.result));
  if (link_ != nullptr) Order(actions, now);
  if (actions.task_switch == TaskSwitch::Action::kPause) Pause(true);
  if (actions.task_switch == TaskSwitch::Action::kResume) Pause(false);
  for (ModelId id : actions.retired) served_.erase(id);
  if (link_ != nullptr && !actions.kill_worker.empty()) LoseWorker("was killed: " + actions.kill_worker, absl::ZeroDuration());
}

// Sends the orders. If the worker is lost on the way, the core has taken everything back by then and the rest is void.
void ServerImpl::Order(const Actions& actions, absl::Time now) {
  for (JobId job : actions.cancels) Send(CancelMessage{job});
  for (const Actions::Unload& unload : actions.unloads) {
    if (link_ == nullptr) return;
    unloads_[unload.job] = {unload.model, now};
    Send(UnloadMessage{unload.job, unload.instance});
  }
  for (const Actions::Load& load : actions.loads) {
    if (link_ == nullptr) return;
    const CatalogModel& model = *served_.at(load.model);
    loads_[load.job] = {load.model, now};
    Send(LoadMessage{.job = load.job,
                     .name = model.lease_name,
                     .spec = model.spec,
                     .path = model.weights_path,
                     .grow_slack_ns = absl::ToInt64Nanoseconds(load.grow_slack),
                     .limit_ns = absl::ToInt64Nanoseconds(load.limit),
                     .direct_io = options_.direct_io});
  }
  for (const Actions::Execute& execute : actions.executions) {
    if (link_ != nullptr) PerformExecute(execute);
  }
}

void ServerImpl::Pause(bool pause) {
  paused_ = pause;
  absl::MutexLock lock(&pause_mu_);
  pauses_.push_back(pause);
}

void ServerImpl::PerformExecute(const Actions::Execute& execute) {
  const CatalogModel& model = *served_.at(execute.batch.model);
  const int64_t batch = execute.batch.size;
  int64_t total = 0;
  for (int64_t bytes : model.input_sample_bytes) total += RoundUp(bytes * batch, kSlabAlignment);
  for (int64_t bytes : model.output_sample_bytes) total += RoundUp(bytes * batch, kSlabAlignment);
  const auto block = allocator_.Allocate(total);
  if (!block) {
    core_.OnExecuteRefused(execute.job);
    return;
  }
  Slot slot{.offset = *block};
  int64_t offset = *block;
  for (size_t i = 0; i < model.inputs.size(); ++i) {
    slot.inputs.push_back({static_cast<uint64_t>(offset), static_cast<uint64_t>(model.input_sample_bytes[i] * batch)});
    int64_t at = offset;
    for (const QueuedRequest& member : execute.batch.requests) {
      const Pending& pending = *pending_.at(member.id);
      const std::string& data = pending.request.inputs[pending.checked.inputs[i]].data;
      std::memcpy(slab_->base() + at, data.data(), data.size());
      at += static_cast<int64_t>(data.size());
    }
    offset += RoundUp(model.input_sample_bytes[i] * batch, kSlabAlignment);
  }
  for (int64_t bytes : model.output_sample_bytes) {
    slot.outputs.push_back({static_cast<uint64_t>(offset), static_cast<uint64_t>(bytes * batch)});
    offset += RoundUp(bytes * batch, kSlabAlignment);
  }
  const ExecuteMessage message{.job = execute.job,
                               .instance = execute.instance,
                               .batch = static_cast<uint32_t>(batch),
                               .inputs = slot.inputs,
                               .outputs = slot.outputs};
  slots_.emplace(execute.job, std::move(slot));
  Send(message);
}

void ServerImpl::AddToCore(const CatalogModel& model) {
  ModelTraits traits{.name = model.lease_name,
                     .pages = model.pages,
                     .workspace_pages = model.workspace_pages,
                     .least_workspace_pages = model.least_workspace_pages};
  // A model.toml that says nothing leaves the default there.
  const bool given = model.serving.queue_limit > 0 && model.serving.queue_limit != model::ServingConfig().queue_limit;
  traits.queue = {.name = model.lease_name,
                  .limit = given ? model.serving.queue_limit : options_.queue_limit,
                  .max_batch_size = std::max(1, model.serving.max_batch_size),
                  .delay = model.serving.batch_delay};
  traits.slo = model.serving.slo;
  traits.slo_factor = options_.slo_factor;
  core_.AddModel(model.id, traits);
}

void ServerImpl::ApplyCatalog(std::shared_ptr<const Catalog> next) {
  std::map<ModelId, std::shared_ptr<const CatalogModel>> wanted;
  for (const auto& [name, entry] : next->entries()) {
    for (const auto& [version, model] : entry.versions) {
      if (model->status.ok()) wanted[model->id] = model;
    }
  }
  for (const auto& [id, model] : served_) {
    if (!wanted.contains(id)) {
      core_.RetireModel(id,
                        Unavailable("model '{}' was changed in the repository or taken out of it; try again", model->lease_name));
    }
  }
  for (const auto& [id, model] : wanted) {
    if (served_.emplace(id, model).second) AddToCore(*model);
  }
  absl::MutexLock lock(&mu_);
  catalog_ = std::move(next);
}

void ServerImpl::Accept(RequestId id, const std::shared_ptr<Pending>& pending) {
  QueuedRequest request{.id = id,
                        .model = pending->model->id,
                        .received = pending->received,
                        .deadline = pending->request.deadline,
                        .batch = pending->checked.batch,
                        .slab_bytes = pending->checked.slab_bytes};
  pending_.emplace(id, pending);
  if (Status status = core_.Submit(request, clock_->Now()); !status.ok()) Answer(id, status);
}

void ServerImpl::Answer(RequestId id, StatusOr<InferResponse> response) {
  const auto found = pending_.find(id);
  TIDEPOOL_CHECK(found != pending_.end(), "request {} was answered twice", id.value());
  const std::shared_ptr<Pending> pending = std::move(found->second);
  pending_.erase(found);
  if (response.ok()) {
    response->times.finished = clock_->Now();
    core_.OnAnswered(pending->model->id, response->times.finished - pending->received);
  }
  auto shared = std::make_shared<StatusOr<InferResponse>>(std::move(response));
  callbacks_.push_back([this, pending, shared] {
    pending->done(std::move(*shared));
    absl::MutexLock lock(&mu_);
    --outstanding_;
  });
}

void ServerImpl::Finish(WaiterId waiter, StatusOr<int64_t> result) {
  const auto found = replies_.find(waiter);
  if (found == replies_.end()) return;
  callbacks_.push_back([reply = std::move(found->second), result = std::move(result)] { reply->Set(result); });
  replies_.erase(found);
}

void ServerImpl::RunCallbacks() {
  for (const auto& callback : std::exchange(callbacks_, {})) callback();
}

void ServerImpl::Send(const Message& message) {
  if (link_ == nullptr) return;  // lost a moment ago: the core has been told
  if (Status status = link_->Send(message); !status.ok())
    LoseWorker(fmt::format("does not listen: {}", ToString(status)), absl::ZeroDuration());
}

void ServerImpl::StartWorker(absl::Time now) {
  const uint64_t generation = ++link_generation_;
  greeted_ = false;
  worker_started_ = now;
  StatusOr<UniqueFd> pool = broker_->Connect();
  Status status = pool.status();
  if (status.ok()) {
    WorkerLinkOptions options{.binary = options_.worker_binary,
                              .threads = options_.worker_threads,
                              .pool = std::move(pool).value(),
                              .slab_fd = slab_->fd(),
                              .slab_bytes = options_.shared_memory_bytes};
    options.on_message = [this, generation](Message message) {
      auto shared = std::make_shared<Message>(std::move(message));
      tasks_->Post([this, generation, shared] {
        if (link_ != nullptr && generation == link_generation_) OnMessage(std::move(*shared));
      });
    };
    options.on_end = [this, generation](const Status& why) {
      tasks_->Post([this, generation, why] {
        if (link_ == nullptr || generation != link_generation_) return;
        // The end of the socket is the normal way to learn of a death; anything else is a broken message.
        const bool closed = why.code() == StatusCode::kUnavailable;
        LoseWorker(closed ? "" : fmt::format("broke the protocol: {}", MessageOf(why)),
                   closed ? absl::Seconds(1) : absl::ZeroDuration());
      });
    };
    auto link = WorkerLink::Start(std::move(options));
    status = link.status();
    if (link.ok()) link_ = std::move(link).value();
  }
  if (status.ok()) return;
  Log(LogLevel::kError, "device worker did not start", {{"error", status}});
  worker_start_at_ = now + std::min(kRestartMax, kRestartMin * static_cast<double>(1 << std::min(worker_failures_++, 10)));
  absl::MutexLock lock(&mu_);
  if (first_worker_.ok() && generation == 1) first_worker_ = status;
}

void ServerImpl::LoseWorker(const std::string& how, absl::Duration grace) {
  const absl::Time now = clock_->Now();
  const ExitStatus exit = link_->End(grace);  // before its part of the slab is used again
  const std::string text = how.empty() ? exit.Describe() : how;
  link_.reset();
  for (const auto& [job, slot] : slots_) allocator_.Free(slot.offset);
  slots_.clear();
  loads_.clear();
  unloads_.clear();
  if (greeted_ && now - worker_started_ > kStableWorker) worker_failures_ = 0;
  // The first death is answered at once: that is what a killed worker's users wait for.
  const absl::Duration wait =
      worker_failures_ == 0 ? absl::ZeroDuration() : kRestartMin * static_cast<double>(1 << std::min(worker_failures_, 10));
  worker_start_at_ = now + std::min(kRestartMax, wait);
  ++worker_failures_;
  Log(LogLevel::kError, "device worker lost", {{"how", text}, {"restart_in", tidepool::FormatDuration(worker_start_at_ - now)}});
  {
    absl::MutexLock lock(&mu_);
    worker_up_ = false;
    worker_pid_ = 0;
    if (link_generation_ == 1 && !greeted_) {
      first_worker_ = Unavailable("the device worker '{}' ended before it was ready: it {}; its own messages are above",
                                  options_.worker_binary, text);
    }
  }
  core_.OnWorkerLost(text, now);
}

absl::Time ServerImpl::FromMonotonic(int64_t nanos) const {
  return clock_->Now() - absl::Nanoseconds(std::max<int64_t>(0, MonotonicNanos() - nanos));
}

void ServerImpl::OnMessage(Message message) {
  if (const auto* hello = std::get_if<HelloReplyMessage>(&message)) {
    greeted_ = true;
    Log(LogLevel::kInfo, "device worker ready", {{"pid", link_->pid()}, {"runtime", hello->runtime}});
    core_.OnWorkerUp();
    absl::MutexLock lock(&mu_);
    worker_up_ = true;
    worker_pid_ = link_->pid();
  } else if (const auto* load = std::get_if<LoadDoneMessage>(&message)) {
    OnLoadDone(*load);
  } else if (const auto* unload = std::get_if<UnloadDoneMessage>(&message)) {
    OnUnloadDone(*unload);
  } else if (const auto* execute = std::get_if<ExecuteDoneMessage>(&message)) {
    OnExecuteDone(*execute);
  } else if (const auto* workspace = std::get_if<WorkspaceMessage>(&message)) {
    core_.OnWorkspace(workspace->pages);
  } else {
    LoseWorker("broke the protocol: it sent a message that only the front end sends", absl::ZeroDuration());
  }
}

void ServerImpl::OnLoadDone(const LoadDoneMessage& message) {
  const auto found = loads_.find(message.job);
  if (found == loads_.end())
    return LoseWorker("broke the protocol: it answered a load that was not ordered", absl::ZeroDuration());
  const auto [model, start] = found->second;
  loads_.erase(found);
  const absl::Time now = clock_->Now();
  const std::string& name = served_.at(model)->lease_name;
  if (message.status.ok()) {
    Log(LogLevel::kDebug, "model loaded",
        {{"model", name},
         {"bytes", FormatBytes(message.bytes)},
         {"memory_ms", static_cast<double>(message.grow_ns) / 1e6},
         {"read_ms", static_cast<double>(message.read_ns) / 1e6},
         {"total_ms", static_cast<double>(message.total_ns) / 1e6}});
    Emit({.kind = ServeEvent::Kind::kLoad,
          .model = name,
          .start = start,
          .duration = now - start,
          .bytes = message.pages * page_bytes_});
  } else {
    Log(LogLevel::kWarning, "model not loaded", {{"model", name}, {"error", message.status}});
  }
  core_.OnLoadDone(message.job, message.status, message.pages, now - start, now);
}

void ServerImpl::OnUnloadDone(const UnloadDoneMessage& message) {
  const auto found = unloads_.find(message.job);
  if (found == unloads_.end())
    return LoseWorker("broke the protocol: it answered an unload that was not ordered", absl::ZeroDuration());
  const auto [model, start] = found->second;
  unloads_.erase(found);
  if (!message.status.ok()) {
    // What it holds is unknown now; the pool takes back everything from a dead one.
    return LoseWorker(fmt::format("could not unload model '{}': {}", served_.at(model)->lease_name, ToString(message.status)),
                      absl::ZeroDuration());
  }
  Emit({.kind = ServeEvent::Kind::kEvict,
        .model = served_.at(model)->lease_name,
        .start = start,
        .duration = clock_->Now() - start,
        .bytes = message.freed_bytes});
  core_.OnUnloadDone(message.job, message.status, message.freed_bytes);
}

void ServerImpl::OnExecuteDone(const ExecuteDoneMessage& message) {
  const auto found = slots_.find(message.job);
  if (found == slots_.end())
    return LoseWorker("broke the protocol: it answered an execution that was not ordered", absl::ZeroDuration());
  const Slot slot = std::move(found->second);
  slots_.erase(found);
  const absl::Duration compute = absl::Nanoseconds(std::max<int64_t>(0, message.end_ns - message.start_ns));
  auto result = core_.OnExecuteDone(message.job, message.status, compute, message.workspace_pages, message.workspace_peak_pages,
                                    clock_->Now());
  if (result.ok()) {
    Scatter(*result, slot, message);
    for (const Actions::Answer& answer : result->failed) Answer(answer.request, answer.status);
    if (message.status.ok()) {
      Emit({.kind = ServeEvent::Kind::kExecute,
            .model = served_.at(result->model)->lease_name,
            .batch = result->batch,
            .start = FromMonotonic(message.start_ns),
            .duration = compute});
    }
  }
  allocator_.Free(slot.offset);
}

void ServerImpl::Scatter(const ExecutionResult& result, const Slot& slot, const ExecuteDoneMessage& message) {
  int64_t first = 0;  // sample of the batch
  for (const FinishedRequest& finished : result.done) {
    const Pending& pending = *pending_.at(finished.request.id);
    const CatalogModel& model = *pending.model;
    InferResponse response{.model = model.name, .version = fmt::format("{}", model.version), .id = pending.request.id};
    for (size_t output : pending.checked.outputs) {
      const int64_t sample_bytes = model.output_sample_bytes[output];
      Tensor tensor{
          .name = model.outputs[output].name, .datatype = model.outputs[output].datatype, .shape = model.outputs[output].shape};
      tensor.shape[0] = pending.checked.batch;
      const std::byte* data = slab_->base() + slot.outputs[output].offset + first * sample_bytes;
      tensor.data.assign(reinterpret_cast<const char*>(data), static_cast<size_t>(sample_bytes * pending.checked.batch));
      response.outputs.push_back(std::move(tensor));
    }
    response.times = {.received = pending.received,
                      .dispatched = finished.dispatched,
                      .compute_start = FromMonotonic(message.start_ns),
                      .compute_end = FromMonotonic(message.end_ns),
                      .load = finished.load};
    first += pending.checked.batch;
    Answer(finished.request.id, std::move(response));
  }
}

void ServerImpl::Publish() {
  absl::MutexLock lock(&mu_);
  for (auto it = numbers_.begin(); it != numbers_.end();) it = served_.contains(it->first) ? std::next(it) : numbers_.erase(it);
  for (const auto& [id, model] : served_) {
    const SloAccount& slo = core_.slo(id);
    numbers_[id] = {.state = core_.state(id),
                    .counters = core_.counters(id),
                    .slo = slo.slo(),
                    .solo = slo.solo(),
                    .resident_pages = core_.resident_pages(id),
                    .last_used = core_.residency().last_used(id),
                    .failure = core_.last_failure(id)};
  }
}

void ServerImpl::Emit(const ServeEvent& event) {
  std::function<void(const ServeEvent&)> listener;
  {
    absl::MutexLock lock(&mu_);
    listener = listener_;
  }
  if (listener) listener(event);
}

}  // namespace tidepool::serve
