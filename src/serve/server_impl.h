// The shell around Core: threads, sockets, shared memory and the worker process. One loop thread owns the state machine and
// everything marked "loop"; other threads hand it tasks.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "serve/catalog.h"
#include "serve/core.h"
#include "serve/server.h"
#include "serve/slab.h"
#include "serve/worker_link.h"

namespace tidepool::serve {

// Tasks for the loop thread. Handles of requests hold it, so they may outlive the server. Thread-safe.
class TaskQueue {
 public:
  using Task = std::function<void()>;
  explicit TaskQueue(Clock* clock) : clock_(clock) {}
  // False once closed, or if `bounded` and too many tasks wait.
  bool Post(Task task, bool bounded = false);
  std::vector<Task> Wait(absl::Time deadline);
  // Later posts fail; what was posted is still returned by Wait.
  void Close();
  bool closed();

 private:
  static constexpr size_t kLimit = 1 << 16;
  Clock* clock_;
  absl::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mu_);
};

class ServerImpl : public Server {
 public:
  ServerImpl(pool::Broker* broker, ServerOptions options, int64_t page_bytes);
  ~ServerImpl() override;
  Status Init();

  std::shared_ptr<InferHandle> Infer(InferRequest request, InferCallback done) override;
  bool Live() override { return true; }
  bool Ready() override;
  StatusOr<ModelStatus> Model(const std::string& name) override;
  std::vector<ModelStatus> Models() override;
  StatusOr<ModelPresence> Presence(const std::string& model, const std::string& version) override;
  Status Rescan() override;
  Status Load(const std::string& model, absl::Time deadline) override;
  StatusOr<int64_t> Unload(const std::string& model, absl::Time deadline) override;
  Status MeasureSoloLatencies(absl::Time deadline) override;
  SoloLatencies solo_latencies() override;
  Status SetSoloLatencies(const SoloLatencies& latencies, absl::Time deadline) override;
  void Drain() override;
  int worker_pid() override;
  void SetEventListener(std::function<void(const ServeEvent&)> listener) override;

 private:
  struct Pending {  // an accepted request; the loop owns it until it is answered
    InferRequest request;
    InferCallback done;
    CheckedRequest checked;
    std::shared_ptr<const CatalogModel> model;
    absl::Time received;
  };
  struct Numbers {  // of one model, for queries from other threads
    ModelState state = ModelState::kAbsent;
    ModelCounters counters;
    absl::Duration slo, solo;
    int64_t resident_pages = 0;
    absl::Time last_used = absl::InfinitePast();
    Status failure;
  };
  struct Slot {  // of one running execution in the slab
    int64_t offset = 0;
    std::vector<SlabRange> inputs, outputs;
  };
  struct Reply {  // of the loop to a thread that waits
    absl::Mutex mu;
    bool done ABSL_GUARDED_BY(mu) = false;
    StatusOr<int64_t> result ABSL_GUARDED_BY(mu) = int64_t{0};
    void Set(StatusOr<int64_t> value) {
      absl::MutexLock lock(&mu);
      result = std::move(value);
      done = true;
    }
  };
  class Handle;

  std::shared_ptr<const Catalog> catalog() ABSL_LOCKS_EXCLUDED(mu_);
  ModelStatus StatusOf(const CatalogEntry& entry) ABSL_LOCKS_EXCLUDED(mu_);
  StatusOr<absl::Duration> MeasureSolo(const CatalogModel& model, absl::Time deadline);
  StatusOr<int64_t> Ask(absl::Time deadline, std::function<void(WaiterId)> ask);

  // Loop.
  void Loop();
  void StepCore(absl::Time now);
  void Perform(Actions actions, absl::Time now);
  void Order(const Actions& actions, absl::Time now);
  void PerformExecute(const Actions::Execute& execute);
  void AddToCore(const CatalogModel& model);
  void ApplyCatalog(std::shared_ptr<const Catalog> next);
  void Accept(RequestId id, const std::shared_ptr<Pending>& pending);
  void Answer(RequestId id, StatusOr<InferResponse> response);
  void Finish(WaiterId waiter, StatusOr<int64_t> result);
  void RunCallbacks();
  void Send(const Message& message);
  void StartWorker(absl::Time now);
  void LoseWorker(const std::string& how, absl::Duration grace);
  void OnMessage(Message message);
  void OnLoadDone(const LoadDoneMessage& message);
  void OnUnloadDone(const UnloadDoneMessage& message);
  void OnExecuteDone(const ExecuteDoneMessage& message);
  void Scatter(const ExecutionResult& result, const Slot& slot, const ExecuteDoneMessage& message);
  void Publish();
  void Emit(const ServeEvent& event);
  void Pause(bool pause);
  absl::Time FromMonotonic(int64_t nanos) const;

  pool::Broker* const broker_;
  const ServerOptions options_;
  Clock* const clock_;
  const int64_t page_bytes_;
  const std::shared_ptr<TaskQueue> tasks_;
  // Loop.
  Core core_;
  std::unique_ptr<SlabMapping> slab_;
  SlabAllocator allocator_;
  std::unique_ptr<WorkerLink> link_;
  uint64_t link_generation_ = 0;
  bool greeted_ = false;
  int worker_failures_ = 0;
  absl::Time worker_started_, worker_start_at_ = absl::InfinitePast();
  absl::flat_hash_map<RequestId, std::shared_ptr<Pending>> pending_;
  std::map<JobId, Slot> slots_;
  std::map<ModelId, std::shared_ptr<const CatalogModel>> served_;
  std::map<JobId, std::pair<ModelId, absl::Time>> loads_, unloads_;
  std::map<WaiterId, std::shared_ptr<Reply>> replies_;
  // Answers that are due. They go out after the next orders to the worker, which then computes meanwhile, and after the numbers,
  // so that who has an answer sees it counted.
  std::vector<std::function<void()>> callbacks_;
  absl::Time wake_ = absl::InfinitePast();
  bool paused_ = false;

  absl::Mutex scan_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  uint32_t next_model_ ABSL_GUARDED_BY(scan_mu_) = 0;
  absl::Mutex mu_;
  std::shared_ptr<const Catalog> catalog_ ABSL_GUARDED_BY(mu_);
  std::map<ModelId, Numbers> numbers_ ABSL_GUARDED_BY(mu_);
  std::function<void(const ServeEvent&)> listener_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  int outstanding_ ABSL_GUARDED_BY(mu_) = 0;
  bool worker_up_ ABSL_GUARDED_BY(mu_) = false;
  int worker_pid_ ABSL_GUARDED_BY(mu_) = 0;
  Status first_worker_ ABSL_GUARDED_BY(mu_);  // why the first worker did not start
  uint64_t last_request_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t last_waiter_ ABSL_GUARDED_BY(mu_) = 0;
  // The thread for calls of the broker that block.
  absl::Mutex pause_mu_;
  std::vector<bool> pauses_ ABSL_GUARDED_BY(pause_mu_);
  bool pause_stop_ ABSL_GUARDED_BY(pause_mu_) = false;
  std::thread pauser_;
  std::thread loop_;
};

}  // namespace tidepool::serve
