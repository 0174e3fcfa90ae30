// The part of the server that its callers' threads run. The loop is in server_loop.cc.
#include "serve/server.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/text.h"
#include "base/units.h"
#include "serve/server_impl.h"

namespace tidepool::serve {
namespace {

constexpr absl::Duration kWorkerStartLimit = absl::Seconds(120);

CoreOptions CoreOptionsOf(const ServerOptions& options) {
  CoreOptions core;
  core.mode = options.mode;
  // In the other modes idle models take nothing from training: a fixed part is theirs, or training is stopped anyway.
  core.residency.idle_eviction = options.mode == Mode::kColocate ? options.idle_eviction : absl::InfiniteDuration();
  core.residency.serving_limit_pages = options.serving_limit_pages;
  core.task_switch_idle = options.task_switch_idle;
  core.load_deadline = options.load_deadline;
  return core;
}

}  // namespace

std::string_view Name(ModelState state) {
  switch (state) {
    case ModelState::kAbsent: return "absent";
    case ModelState::kLoading: return "loading";
    case ModelState::kReady: return "ready";
    case ModelState::kDraining: return "draining";
  }
  return "?";
}

std::string_view Name(Mode mode) {
  switch (mode) {
    case Mode::kColocate: return "colocate";
    case Mode::kStatic: return "static";
    case Mode::kTaskSwitch: return "task-switch";
  }
  return "?";
}

StatusOr<Mode> ParseMode(std::string_view text) {
  for (Mode mode : {Mode::kColocate, Mode::kStatic, Mode::kTaskSwitch}) {
    if (text == Name(mode)) return mode;
  }
  return InvalidArgument("mode is '{}'; allowed: colocate, static, task-switch", text);
}

Status ServerOptions::Validate() const {
  std::vector<std::string> faults;
  if (repository.empty()) faults.push_back("repository is empty; allowed: a directory of models");
  if (worker_binary.empty() || ::access(worker_binary.c_str(), X_OK) != 0) {
    faults.push_back(fmt::format("worker_binary is '{}'; allowed: the path of an executable tidepool-worker", worker_binary));
  }
  const auto positive = [&](const char* name, absl::Duration value) {
    if (value <= absl::ZeroDuration())
      faults.push_back(fmt::format("{} is {}; allowed: above 0", name, tidepool::FormatDuration(value)));
  };
  positive("idle_eviction", idle_eviction);
  positive("load_deadline", load_deadline);
  positive("drain_limit", drain_limit);
  if (task_switch_idle < absl::ZeroDuration()) {
    faults.push_back(fmt::format("task_switch_idle is {}; allowed: 0 or more", tidepool::FormatDuration(task_switch_idle)));
  }
  if (worker_threads < 0 || worker_threads > 1024)
    faults.push_back(fmt::format("worker_threads is {}; allowed: 0 to 1024", worker_threads));
  if (queue_limit < 1) faults.push_back(fmt::format("queue_limit is {}; allowed: 1 or more", queue_limit));
  if (!(slo_factor > 0)) faults.push_back(fmt::format("slo_factor is {}; allowed: above 0", slo_factor));
  if (shared_memory_bytes < kMiB) {
    faults.push_back(fmt::format("shared_memory_bytes is {}; allowed: {} or more", shared_memory_bytes, kMiB));
  }
  if (clock == nullptr) faults.push_back("clock is null");
  if (faults.empty()) return {};
  return InvalidArgument("server options: {}", JoinText(faults, "; "));
}

StatusOr<std::unique_ptr<Server>> Server::Start(pool::Broker* broker, ServerOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  auto server = std::make_unique<ServerImpl>(broker, std::move(options), broker->Stats().page_bytes);
  TIDEPOOL_RETURN_IF_ERROR(server->Init());
  return server;
}

bool TaskQueue::Post(Task task, bool bounded) {
  absl::MutexLock lock(&mu_);
  if (closed_ || (bounded && tasks_.size() >= kLimit)) return false;
  tasks_.push_back(std::move(task));
  return true;
}

std::vector<TaskQueue::Task> TaskQueue::Wait(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  clock_->Await(
      &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return closed_ || !tasks_.empty(); }, deadline);
  return std::exchange(tasks_, {});
}

void TaskQueue::Close() {
  absl::MutexLock lock(&mu_);
  closed_ = true;
}

bool TaskQueue::closed() {
  absl::MutexLock lock(&mu_);
  return closed_;
}

class ServerImpl::Handle : public InferHandle {
 public:
  explicit Handle(std::weak_ptr<TaskQueue> tasks, std::function<void()> cancel)
      : tasks_(std::move(tasks)), cancel_(std::move(cancel)) {}
  void Cancel() override {
    // The task holds a raw pointer to the server; a closed queue, or none, means that the server is going and answers everybody
    // anyway.
    if (const auto tasks = tasks_.lock(); tasks != nullptr && cancel_) tasks->Post(cancel_);
  }

 private:
  const std::weak_ptr<TaskQueue> tasks_;
  const std::function<void()> cancel_;
};

ServerImpl::ServerImpl(pool::Broker* broker, ServerOptions options, int64_t page_bytes)
    : broker_(broker),
      options_(std::move(options)),
      clock_(options_.clock),
      page_bytes_(page_bytes),
      tasks_(std::make_shared<TaskQueue>(clock_)),
      core_(CoreOptionsOf(options_)),
      allocator_(options_.shared_memory_bytes) {}

Status ServerImpl::Init() {
  TIDEPOOL_ASSIGN_OR_RETURN(slab_, SlabMapping::Create(options_.shared_memory_bytes));
  {
    absl::MutexLock scan(&scan_mu_);
    TIDEPOOL_ASSIGN_OR_RETURN(auto scanned, Catalog::Scan(options_.repository, page_bytes_, nullptr, &next_model_));
    ApplyCatalog(std::move(scanned));
  }
  Publish();
  loop_ = std::thread([this] { Loop(); });
  pauser_ = std::thread([this] {
    while (true) {
      bool pause = false;
      {
        absl::MutexLock lock(&pause_mu_);
        pause_mu_.Await(absl::Condition(
            +[](ServerImpl* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->pause_stop_ || !self->pauses_.empty(); }, this));
        if (pauses_.empty()) return;
        pause = pauses_.front();
        pauses_.erase(pauses_.begin());
      }
      const absl::Time start = clock_->Now();
      const Status status = broker_->SetPaused(pause, start + options_.load_deadline);
      tasks_->Post([this, pause, status, start] {
        const absl::Time now = clock_->Now();
        if (!status.ok())
          Log(LogLevel::kWarning, pause ? "training did not stop" : "training did not resume", {{"error", status}});
        if (status.ok())
          Emit({.kind = pause ? ServeEvent::Kind::kPause : ServeEvent::Kind::kResume, .start = start, .duration = now - start});
        if (pause) {
          core_.OnPaused(status, now);
        } else {
          core_.OnResumed(status, now);
        }
      });
    }
  });
  absl::MutexLock lock(&mu_);
  const bool up = clock_->Await(
      &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return worker_up_ || !first_worker_.ok(); },
      clock_->Now() + kWorkerStartLimit);
  if (!first_worker_.ok()) return first_worker_;
  if (!up)
    return DeadlineExceeded("the device worker '{}' did not report within {}", options_.worker_binary,
                            tidepool::FormatDuration(kWorkerStartLimit));
  return {};
}

ServerImpl::~ServerImpl() {
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
  }
  tasks_->Close();
  if (loop_.joinable()) loop_.join();
  {
    absl::MutexLock lock(&pause_mu_);
    pause_stop_ = true;
  }
  if (pauser_.joinable()) pauser_.join();
  if (paused_) (void)broker_->SetPaused(false, clock_->Now() + absl::Seconds(5));
}

std::shared_ptr<const Catalog> ServerImpl::catalog() {
  absl::MutexLock lock(&mu_);
  return catalog_;
}

std::shared_ptr<InferHandle> ServerImpl::Infer(InferRequest request, InferCallback done) {
  const auto refuse = [&](Status status) -> std::shared_ptr<InferHandle> {
    done(std::move(status));
    return std::make_shared<Handle>(std::weak_ptr<TaskQueue>(), nullptr);
  };
  auto pending = std::make_shared<Pending>();
  pending->received = clock_->Now();
  auto model = catalog()->Find(request.model, request.version);
  if (!model.ok()) return refuse(model.status());
  auto checked = CheckRequest(**model, request);
  if (!checked.ok()) return refuse(checked.status());
  if (checked->slab_bytes > allocator_.size_bytes()) {
    return refuse(
        ResourceExhausted("the request to model '{}' needs {} of shared memory for its inputs and results; allowed: {} "
                          "(shared_memory_bytes)",
                          request.model, FormatBytes(checked->slab_bytes), FormatBytes(allocator_.size_bytes())));
  }
  pending->request = std::move(request);
  pending->done = std::move(done);
  pending->checked = std::move(checked).value();
  pending->model = std::move(model).value();
  const ModelId model_id = pending->model->id;
  RequestId id;
  bool draining;
  {
    absl::MutexLock lock(&mu_);
    draining = draining_;
    if (!draining) {
      id = RequestId(++last_request_);
      ++outstanding_;
    }
  }
  if (draining) {
    done = std::move(pending->done);
    return refuse(Unavailable("the server is draining and takes no new requests"));
  }
  if (!tasks_->Post([this, id, pending] { Accept(id, pending); }, true)) {
    {
      absl::MutexLock lock(&mu_);
      --outstanding_;
    }
    done = std::move(pending->done);
    return refuse(ResourceExhausted("too many requests wait to be queued; try again later"));
  }
  return std::make_shared<Handle>(tasks_, [this, id, model_id] {
    if (core_.Cancel(model_id, id).ok()) Answer(id, Cancelled("the request was cancelled while it waited"));
  });
}

bool ServerImpl::Ready() {
  absl::MutexLock lock(&mu_);
  return worker_up_ && !draining_;
}

int ServerImpl::worker_pid() {
  absl::MutexLock lock(&mu_);
  return worker_pid_;
}

void ServerImpl::SetEventListener(std::function<void(const ServeEvent&)> listener) {
  {
    absl::MutexLock lock(&mu_);
    listener_ = std::move(listener);
  }
  // A round through the loop: the old listener is not running any more.
  (void)Ask(clock_->Now() + absl::Seconds(10), [this](WaiterId waiter) { Finish(waiter, int64_t{0}); });
}

ModelStatus ServerImpl::StatusOf(const CatalogEntry& entry) {
  ModelStatus status{.name = entry.name, .platform = "tidepool_graph", .spec = entry.spec};
  status.servable = entry.status.ok();
  status.reason = MessageOf(entry.status);
  for (const auto& [version, model] : entry.versions) status.versions.push_back(fmt::format("{}", version));
  if (entry.versions.empty()) return status;
  const CatalogModel& highest = *entry.versions.rbegin()->second;
  if (highest.graph != nullptr) status.family = highest.graph->family;
  status.inputs = highest.inputs;
  status.outputs = highest.outputs;
  status.weight_bytes = highest.weight_bytes;
  status.max_batch_size = highest.serving.max_batch_size;
  absl::Time used = absl::InfinitePast();
  absl::MutexLock lock(&mu_);
  for (const auto& [version, model] : entry.versions) {
    const auto found = numbers_.find(model->id);
    if (found == numbers_.end()) continue;
    const Numbers& numbers = found->second;
    if (model->id == highest.id) {
      status.state = numbers.state;
      status.slo = numbers.slo;
      status.solo_latency = numbers.solo;
      if (status.reason.empty() && !numbers.failure.ok()) status.reason = MessageOf(numbers.failure);
    }
    status.resident_bytes += numbers.resident_pages * page_bytes_;
    const ModelCounters& counters = numbers.counters;
    status.requests += counters.requests;
    status.failures += counters.failures;
    status.executions += counters.executions;
    status.batched_requests += counters.batched_requests;
    status.loads += counters.loads;
    status.evictions += counters.evictions;
    status.rejected += counters.rejected;
    status.within_slo += counters.within_slo;
    status.queue_time += counters.queue_time;
    status.compute_time += counters.compute_time;
    status.load_time += counters.load_time;
    used = std::max(used, numbers.last_used);
  }
  status.last_used_ago = used == absl::InfinitePast() ? absl::InfiniteDuration() : clock_->Now() - used;
  return status;
}

StatusOr<ModelStatus> ServerImpl::Model(const std::string& name) {
  const auto current = catalog();
  const auto entry = current->entries().find(name);
  if (entry == current->entries().end()) return current->Find(name, "").status();
  return StatusOf(entry->second);
}

std::vector<ModelStatus> ServerImpl::Models() {
  const auto current = catalog();
  std::vector<ModelStatus> models;
  for (const auto& [name, entry] : current->entries()) models.push_back(StatusOf(entry));
  return models;
}

StatusOr<ModelPresence> ServerImpl::Presence(const std::string& name, const std::string& version) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto model, catalog()->Find(name, version));
  ModelPresence presence{.weight_bytes = model->weight_bytes};
  absl::MutexLock lock(&mu_);
  if (const auto found = numbers_.find(model->id); found != numbers_.end()) {
    presence.state = found->second.state;
    presence.solo_latency = found->second.solo;
    presence.slo = found->second.slo;
  }
  return presence;
}

StatusOr<int64_t> ServerImpl::Ask(absl::Time deadline, std::function<void(WaiterId)> ask) {
  auto reply = std::make_shared<Reply>();
  WaiterId waiter = 0;
  {
    absl::MutexLock lock(&mu_);
    waiter = ++last_waiter_;
  }
  const bool posted = tasks_->Post([this, reply, waiter, ask = std::move(ask)] {
    replies_[waiter] = reply;
    ask(waiter);
  });
  if (!posted) return Unavailable("the server is stopping");
  // The loop keeps the deadline and knows the reason; the second more is for its answer.
  absl::MutexLock lock(&reply->mu);
  if (!clock_->Await(
          &reply->mu, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return reply->done; }, deadline + absl::Seconds(1))) {
    return DeadlineExceeded("the serving loop gave no answer in time");
  }
  return reply->result;
}

Status ServerImpl::Rescan() {
  absl::MutexLock scan(&scan_mu_);
  TIDEPOOL_ASSIGN_OR_RETURN(auto scanned, Catalog::Scan(options_.repository, page_bytes_, catalog().get(), &next_model_));
  return Ask(clock_->Now() + absl::Seconds(30),
             [this, scanned](WaiterId waiter) {
               ApplyCatalog(scanned);
               Finish(waiter, int64_t{0});
             })
      .status();
}

Status ServerImpl::Load(const std::string& model, absl::Time deadline) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto found, catalog()->Find(model, ""));
  return Ask(deadline,
             [this, id = found->id, deadline](WaiterId waiter) { core_.LoadModel(id, waiter, deadline, clock_->Now()); })
      .status();
}

StatusOr<int64_t> ServerImpl::Unload(const std::string& model, absl::Time deadline) {
  const auto current = catalog();
  const auto entry = current->entries().find(model);
  if (entry == current->entries().end()) return current->Find(model, "").status();
  int64_t freed = 0;
  for (const auto& [version, found] : entry->second.versions) {
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t bytes, Ask(deadline, [this, id = found->id, deadline](WaiterId waiter) {
                                core_.UnloadModel(id, waiter, deadline);
                              }));
    freed += bytes;
  }
  return freed;
}

void ServerImpl::Drain() {
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
    clock_->Await(
        &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return outstanding_ == 0; }, clock_->Now() + options_.drain_limit);
    if (outstanding_ == 0) return;
  }
  (void)Ask(clock_->Now() + absl::Seconds(5), [this](WaiterId waiter) {
    for (const Actions::Answer& answer : core_.FailAll(Unavailable("the server stopped before the request could be finished"))) {
      Answer(answer.request, answer.status);
    }
    Finish(waiter, int64_t{0});
  });
}

}  // namespace tidepool::serve
