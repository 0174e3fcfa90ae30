#include "serve/worker.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <deque>
#include <thread>

#include "base/log.h"
#include "base/unix_socket.h"
#include "engine/inference.h"
#include "engine/runtime.h"
#include "pool/arena.h"
#include "pool/client.h"
#include "serve/protocol.h"
#include "serve/slab.h"
#include "serve/worker_models.h"

namespace tidepool::serve {
namespace {

constexpr absl::Duration kHelloLimit = absl::Seconds(60);
constexpr absl::Duration kCopyLimit = absl::Seconds(60);
constexpr absl::Duration kSendLimit = absl::Seconds(10);
// Memory for activations is kept this long after the last execution: taking it again may cost training a micro-batch.
constexpr absl::Duration kWorkspaceIdle = absl::Seconds(1);
constexpr int64_t kWorkspaceStepPages = 8, kWorkspaceStepPart = 50;  // at most so many, and no more than this part of the device
constexpr size_t kLoadQueueLimit = 64;
constexpr int kMostExecutions = 64;         // ordered and not answered
constexpr int kOperationsPerExecution = 3;  // of the device's stream: a mark, the arithmetic, the answer

struct WorkerOptions {
  int pool_fd = -1, channel_fd = -1, threads = 0;
};

StatusOr<WorkerOptions> ParseArguments(int argc, char** argv) {
  WorkerOptions options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    int* target = flag == "--pool-fd"      ? &options.pool_fd
                  : flag == "--channel-fd" ? &options.channel_fd
                  : flag == "--threads"    ? &options.threads
                                           : nullptr;
    if (target == nullptr) return InvalidArgument("unknown flag '{}'; allowed: --pool-fd, --channel-fd, --threads", flag);
    if (i + 1 >= argc) return InvalidArgument("{} needs a number", flag);
    const std::string_view value = argv[i + 1];
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), *target);
    if (error != std::errc() || end != value.data() + value.size() || *target < 0) {
      return InvalidArgument("{} is '{}'; allowed: a number from 0", flag, value);
    }
  }
  for (const auto& [name, fd] : {std::pair("--pool-fd", options.pool_fd), std::pair("--channel-fd", options.channel_fd)}) {
    if (fd < 0 || ::fcntl(fd, F_GETFD) < 0) {
      return InvalidArgument("{} is {}; allowed: an open descriptor. `tidepool serve` starts this program with the right ones",
                             name, fd);
    }
  }
  return options;
}

// Orders arrive on the main thread; executions run on the device's stream, one at a time; loads run on a thread of their own, so
// that a model is read while others compute.
class Worker {
 public:
  Status Start(const WorkerOptions& options);
  Status Serve();
  ~Worker();

 private:
  struct Job {  // a load or an execution that can be cancelled
    std::atomic<bool> cancelled{false};
  };
  void Send(const Message& message);
  Status Handle(Message message);
  void StartLoad(LoadMessage order);
  void LoadLoop();
  // On its way through the device's stream.
  struct Execution {
    ExecuteMessage order;
    std::shared_ptr<Instance> instance;
    std::shared_ptr<Job> job;
    device::Event begun;    // the stream has come to it
    bool computed = false;  // false at its end: the device only keeps time
    ExecuteDoneMessage done;
  };
  Status ChargeCopy(int64_t size_bytes);
  void StartExecute(ExecuteMessage order);
  Status EnqueueExecute(const std::shared_ptr<Execution>& execution);
  Status CheckExecute(const ExecuteMessage& order, const Instance& instance) const;
  void Compute(Execution* execution);
  void Answer(Execution* execution);
  // What a device that only keeps time gives out instead of results.
  void ZeroOutputs(const ExecuteMessage& order);
  // Runs samples [first, first + count); what does not fit into memory is halved.
  Status RunPiece(const ExecuteMessage& order, Instance* instance, const Job& job, int64_t first, int64_t count,
                  uint32_t* pieces);
  void TrimWorkspace();
  std::shared_ptr<Job> Register(JobId id) ABSL_LOCKS_EXCLUDED(mu_);
  void Forget(JobId id) ABSL_LOCKS_EXCLUDED(mu_);

  std::unique_ptr<pool::Client> client_;
  std::unique_ptr<pool::Arena> workspace_;
  std::unique_ptr<WorkerModels> models_;
  std::unique_ptr<SlabMapping> slab_;
  std::unique_ptr<device::Stream> stream_;
  std::unique_ptr<device::Stream> copies_;
  bool emulated_ = false;  // the device
  PacketSocket channel_;
  absl::Mutex send_mu_;
  absl::Mutex mu_;
  std::map<JobId, std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mu_);
  std::deque<std::pair<LoadMessage, std::shared_ptr<Job>>> loads_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::atomic<int64_t> last_execution_ns_{0};
  std::atomic<int> executing_{0};
  std::thread loader_;
};

Status Worker::Start(const WorkerOptions& options) {
  channel_ = PacketSocket(UniqueFd(options.channel_fd));
  TIDEPOOL_RETURN_IF_ERROR(engine::InitRuntime({.threads = options.threads}));
  pool::ClientOptions client;
  client.connected_socket = UniqueFd(options.pool_fd);
  client.name = "worker";
  TIDEPOOL_ASSIGN_OR_RETURN(client_, pool::Client::Attach(std::move(client)));
  client_->SetDisconnectHandler([this] {
    Log(LogLevel::kError, "the page broker is gone; the device worker ends");
    channel_.Shutdown();
  });

  TIDEPOOL_ASSIGN_OR_RETURN(Packet packet, channel_.Receive(Clock::Real()->Now() + kHelloLimit));
  TIDEPOOL_ASSIGN_OR_RETURN(const Message message, Decode(packet.data));
  const auto* hello = std::get_if<HelloMessage>(&message);
  if (hello == nullptr || packet.fds.size() != 1)
    return InvalidArgument("the front end did not begin with a greeting and one descriptor");
  TIDEPOOL_ASSIGN_OR_RETURN(slab_, SlabMapping::Map(std::move(packet.fds[0]), static_cast<int64_t>(hello->slab_bytes)));

  const device::DeviceInfo& info = client_->device().info();
  TIDEPOOL_ASSIGN_OR_RETURN(const pool::LeaseId lease, client_->OpenLease({.name = "workspace",
                                                                           .lease_class = pool::LeaseClass::kPinned,
                                                                           .burst_pages = info.capacity_bytes / info.page_bytes,
                                                                           .placement = pool::Placement::kHigh,
                                                                           .trust_label = "serve"},
                                                                          Clock::Real()->Now() + kHelloLimit));
  // Each growth may cost training a micro-batch: few large ones are better than many small ones.
  workspace_ = pool::Arena::Create(
      client_.get(), lease,
      {.grow_step_pages = std::clamp<int64_t>(info.capacity_bytes / info.page_bytes / kWorkspaceStepPart, 1, kWorkspaceStepPages),
       .placement = pool::Placement::kHigh});
  models_ = std::make_unique<WorkerModels>(client_.get(), [this] { TrimWorkspace(); });
  TIDEPOOL_ASSIGN_OR_RETURN(
      stream_, client_->device().CreateStream({.name = "execute", .queue_limit = kMostExecutions * kOperationsPerExecution}));
  TIDEPOOL_ASSIGN_OR_RETURN(copies_, client_->device().CreateStream({.name = "copies"}));
  emulated_ = client_->device().timeline().has_value();
  loader_ = std::thread([this] { LoadLoop(); });
  const engine::RuntimeInfo runtime = engine::DescribeRuntime();
  Send(HelloReplyMessage{
      .pid = ::getpid(),
      .runtime = fmt::format("torch {}, {}, {} threads", runtime.torch_version, runtime.blas, runtime.threads)});
  return {};
}

Worker::~Worker() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    for (const auto& [id, job] : jobs_) job->cancelled = true;
  }
  if (loader_.joinable()) loader_.join();
  stream_.reset();
  copies_.reset();
  models_.reset();
  workspace_.reset();
}

void Worker::Send(const Message& message) {
  absl::MutexLock lock(&send_mu_);
  // If the front end is gone, the receiving side ends this process.
  (void)channel_.Send(Encode(message), Clock::Real()->Now() + kSendLimit);
}

Status Worker::Serve() {
  while (true) {
    StatusOr<Packet> packet = channel_.Receive(Clock::Real()->Now() + kWorkspaceIdle / 2);
    if (!packet.ok()) {
      if (packet.status().code() == StatusCode::kUnavailable) return client_->connected() ? Status() : packet.status();
      if (packet.status().code() != StatusCode::kDeadlineExceeded) return packet.status();
      const absl::Duration idle = absl::Nanoseconds(MonotonicNanos() - last_execution_ns_.load());
      if (executing_.load() == 0 && idle >= kWorkspaceIdle && workspace_->stats().held_pages > 0) TrimWorkspace();
      continue;
    }
    TIDEPOOL_ASSIGN_OR_RETURN(Message message, Decode(packet->data));
    if (std::holds_alternative<ShutdownMessage>(message)) return {};
    TIDEPOOL_RETURN_IF_ERROR(Handle(std::move(message)));
  }
}

Status Worker::Handle(Message message) {
  if (auto* load = std::get_if<LoadMessage>(&message)) {
    StartLoad(std::move(*load));
  } else if (auto* execute = std::get_if<ExecuteMessage>(&message)) {
    StartExecute(std::move(*execute));
  } else if (const auto* cancel = std::get_if<CancelMessage>(&message)) {
    absl::MutexLock lock(&mu_);
    const auto found = jobs_.find(cancel->job);
    if (found != jobs_.end()) found->second->cancelled = true;
  } else if (const auto* unload = std::get_if<UnloadMessage>(&message)) {
    const StatusOr<int64_t> freed = models_->Unload(unload->instance);
    Send(UnloadDoneMessage{.job = unload->job, .status = freed.status(), .freed_bytes = freed.ok() ? *freed : 0});
  } else {
    return InvalidArgument("the front end sent a message that only the worker sends");
  }
  return {};
}

std::shared_ptr<Worker::Job> Worker::Register(JobId id) {
  absl::MutexLock lock(&mu_);
  return jobs_[id] = std::make_shared<Job>();
}

void Worker::Forget(JobId id) {
  absl::MutexLock lock(&mu_);
  jobs_.erase(id);
}

void Worker::StartLoad(LoadMessage order) {
  const JobId id = order.job;
  const std::shared_ptr<Job> job = Register(id);
  {
    absl::MutexLock lock(&mu_);
    if (loads_.size() < kLoadQueueLimit) {
      loads_.emplace_back(std::move(order), job);
      return;
    }
  }
  Forget(id);
  Send(LoadDoneMessage{.job = id,
                       .status = ResourceExhausted("{} loads wait already; allowed: {}", kLoadQueueLimit, kLoadQueueLimit)});
}

void Worker::LoadLoop() {
  while (true) {
    std::pair<LoadMessage, std::shared_ptr<Job>> next;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](Worker* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->stopping_ || !self->loads_.empty(); }, this));
      if (stopping_) return;
      next = std::move(loads_.front());
      loads_.pop_front();
    }
    const LoadMessage& order = next.first;
    const absl::Time start = Clock::Real()->Now();
    StatusOr<LoadReport> report = models_->Load(order, next.second->cancelled);
    if (report.ok() && emulated_) {
      if (const Status copied = ChargeCopy(report->bytes); !copied.ok()) {
        Log(LogLevel::kWarning, "the copy of a model to the emulated device was not timed",
            {{"model", order.name}, {"error", copied}});
      }
    }
    LoadDoneMessage done{.job = order.job, .status = report.status()};
    if (report.ok()) {
      done.pages = report->instance->pages;
      done.bytes = report->bytes;
      done.grow_ns = absl::ToInt64Nanoseconds(report->grow);
      done.read_ns = absl::ToInt64Nanoseconds(report->read);
      models_->Add(order.job, std::move(report->instance));
    }
    done.total_ns = absl::ToInt64Nanoseconds(Clock::Real()->Now() - start);
    Forget(order.job);
    Send(done);
  }
}

// Weights were read straight into device memory; an emulated device is given the time that their copy takes.
Status Worker::ChargeCopy(int64_t size_bytes) {
  TIDEPOOL_RETURN_IF_ERROR(copies_->Transfer({.engine = device::EngineKind::kHostToDevice, .size_bytes = size_bytes}));
  return copies_->Synchronize(client_->device().clock()->Now() + kCopyLimit);
}

Status Worker::CheckExecute(const ExecuteMessage& order, const Instance& instance) const {
  const auto check = [&](const std::vector<SlabRange>& ranges, const std::vector<int64_t>& sample_bytes,
                         const char* what) -> Status {
    if (ranges.size() != sample_bytes.size()) {
      return InvalidArgument("an execution of model '{}' has {} {}; allowed: {}", instance.name, ranges.size(), what,
                             sample_bytes.size());
    }
    for (size_t i = 0; i < ranges.size(); ++i) {
      TIDEPOOL_RETURN_IF_ERROR(CheckRange(ranges[i], slab_->size_bytes()));
      const uint64_t expected = static_cast<uint64_t>(sample_bytes[i]) * order.batch;
      if (ranges[i].size != expected) {
        return InvalidArgument("{} {} of an execution of model '{}' have {} bytes; allowed: {}", what, i, instance.name,
                               ranges[i].size, expected);
      }
    }
    return {};
  };
  if (order.batch == 0 || order.batch > (1u << 20))
    return InvalidArgument("the batch size is {}; allowed: 1 to {}", order.batch, 1 << 20);
  TIDEPOOL_RETURN_IF_ERROR(check(order.inputs, instance.input_sample_bytes, "inputs"));
  return check(order.outputs, instance.output_sample_bytes, "outputs");
}

void Worker::StartExecute(ExecuteMessage order) {
  const JobId id = order.job;
  StatusOr<std::shared_ptr<Instance>> instance = models_->Find(order.instance);
  Status status = instance.status();
  if (status.ok()) status = CheckExecute(order, **instance);
  if (status.ok() && executing_.load() >= kMostExecutions) {
    status = ResourceExhausted("{} executions are under way; allowed: {}", executing_.load(), kMostExecutions);
  }
  if (status.ok()) {
    auto execution = std::make_shared<Execution>();
    execution->job = Register(id);
    execution->instance = *instance;
    execution->order = std::move(order);
    ++(*instance)->executions;
    ++executing_;
    status = EnqueueExecute(execution);
    if (status.ok()) return;
    --(*instance)->executions;
    --executing_;
    Forget(id);
  }
  Send(ExecuteDoneMessage{.job = id, .status = status});
}

// The stream has room for all of an execution's operations, because their number is limited before. So only the launch may fail
// (a profile that has no time for it), and nothing has been enqueued then that touches the instance.
Status Worker::EnqueueExecute(const std::shared_ptr<Execution>& execution) {
  TIDEPOOL_ASSIGN_OR_RETURN(execution->begun, stream_->Record());
  const device::Operation forward{.key = {.model = execution->instance->spec, .batch = execution->order.batch},
                                  .cost = execution->instance->cost};
  TIDEPOOL_RETURN_IF_ERROR(stream_->Launch(forward, [this, execution] {
    Compute(execution.get());
    return Status();  // its failure is the request's, not the stream's
  }));
  return stream_->Enqueue("answer", [this, execution] {
    Answer(execution.get());
    return Status();
  });
}

void Worker::Compute(Execution* execution) {
  ExecuteDoneMessage& done = execution->done;
  execution->computed = true;
  done.start_ns = MonotonicNanos();
  workspace_->ResetPeak();
  {
    engine::MemoryScope scope(workspace_.get());
    done.status = RunPiece(execution->order, execution->instance.get(), *execution->job, 0, execution->order.batch, &done.pieces);
  }
  done.end_ns = MonotonicNanos();
}

void Worker::Answer(Execution* execution) {
  ExecuteDoneMessage& done = execution->done;
  done.job = execution->order.job;
  if (!execution->computed) {
    done.status = execution->job->cancelled ? Cancelled("the execution was cancelled") : Status();
    if (done.status.ok()) ZeroOutputs(execution->order);
  }
  if (emulated_) {
    // On the device's timeline, which may have taken longer than the arithmetic.
    const absl::Time now = client_->device().clock()->Now();
    done.end_ns = MonotonicNanos();
    done.start_ns = done.end_ns - absl::ToInt64Nanoseconds(now - execution->begun.ReachedAt().value_or(now));
  }
  const pool::ArenaStats stats = workspace_->stats();
  done.workspace_pages = stats.held_pages;
  done.workspace_peak_pages = stats.peak_held_pages;
  last_execution_ns_ = done.end_ns;
  --executing_;
  --execution->instance->executions;  // before the answer: an unload may follow it at once
  Forget(execution->order.job);
  Send(done);
}

void Worker::ZeroOutputs(const ExecuteMessage& order) {
  for (const SlabRange& range : order.outputs) std::memset(slab_->base() + range.offset, 0, range.size);
}

Status Worker::RunPiece(const ExecuteMessage& order, Instance* instance, const Job& job, int64_t first, int64_t count,
                        uint32_t* pieces) {
  const model::Graph& graph = instance->module->graph();
  std::vector<engine::TensorView> inputs;
  for (size_t i = 0; i < graph.inputs.size(); ++i) {
    const model::Value& value = graph.values[static_cast<size_t>(graph.inputs[i])];
    engine::TensorView view{slab_->base() + order.inputs[i].offset + first * instance->input_sample_bytes[i], value.dtype,
                            value.shape};
    view.shape[0] = count;
    inputs.push_back(std::move(view));
  }
  engine::RunOptions options;
  options.before_op = [&job](int) { return job.cancelled.load() ? Cancelled("the execution was cancelled") : Status(); };
  StatusOr<std::unique_ptr<engine::Outputs>> outputs = instance->module->Run(inputs, options);
  if (outputs.status().code() == StatusCode::kResourceExhausted && count > 1) {
    const int64_t half = count / 2;
    TIDEPOOL_RETURN_IF_ERROR(RunPiece(order, instance, job, first, half, pieces));
    return RunPiece(order, instance, job, first + half, count - half, pieces);
  }
  TIDEPOOL_RETURN_IF_ERROR(outputs.status());
  ++*pieces;
  const auto views = (*outputs)->views();
  for (size_t i = 0; i < instance->output_sample_bytes.size(); ++i) {
    const int64_t bytes = instance->output_sample_bytes[i];
    if (i >= views.size() || views[i].size_bytes() != bytes * count) {
      return Internal("output {} of model '{}' has {} bytes for {} samples; its graph says {}", i, instance->name,
                      i < views.size() ? views[i].size_bytes() : 0, count, bytes * count);
    }
    std::memcpy(slab_->base() + order.outputs[i].offset + first * bytes, views[i].data, static_cast<size_t>(bytes * count));
  }
  return {};
}

void Worker::TrimWorkspace() {
  if (auto returned = workspace_->ReturnCached(0); returned.ok() && *returned > 0) {
    Send(WorkspaceMessage{.pages = workspace_->stats().held_pages});
  }
}

}  // namespace

int RunServeWorkerMain(int argc, char** argv) {
  (void)InitLogging({.process = "worker"});
  StatusOr<WorkerOptions> options = ParseArguments(argc, argv);
  if (!options.ok()) {
    Log(LogLevel::kError, "wrong command line", {{"error", options.status()}});
    return 2;
  }
  Worker worker;
  Status status = worker.Start(*options);
  if (status.ok()) status = worker.Serve();
  if (!status.ok()) Log(LogLevel::kError, "device worker ends", {{"error", status}});
  return status.ok() ? 0 : 1;
}

}  // namespace tidepool::serve
