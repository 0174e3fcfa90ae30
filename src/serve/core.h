// The serving state machine of one node: every decision of the front end, without threads, sockets, bytes or time.
//
// Events come in (a request, its cancellation, an answer of the worker, the worker's death); Step returns what to do now and when
// to come back. Every accepted request leaves exactly once: through `answers` of a Step or through ExecutionResult. The shell in
// server.cc and the simulation run this same class. Owned by one thread.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "pool/types.h"
#include "serve/batcher.h"
#include "serve/residency.h"
#include "serve/server.h"
#include "serve/slo.h"
#include "serve/types.h"

namespace tidepool::serve {

struct CoreOptions {
  Mode mode = Mode::kColocate;
  ResidencyOptions residency;
  absl::Duration task_switch_idle = absl::Milliseconds(10);
  absl::Duration load_deadline = absl::Seconds(10);    // most a load may take, and most a request waits for one
  absl::Duration starvation_limit = absl::Seconds(5);  // see Batcher
  absl::Duration execution_limit = absl::Seconds(60);  // a worker that is silent for longer is killed
  int attempts = 2;                                    // executions of one request that a dying worker may take with it
};

struct ModelTraits {
  std::string name;
  QueueOptions queue;
  int64_t pages = 0, workspace_pages = 0, least_workspace_pages = 0;
  absl::Duration slo;  // zero: from the solo latency
  double slo_factor = 4;
};

// Counters of one model since start.
struct ModelCounters {
  int64_t requests = 0, failures = 0, executions = 0, batched_requests = 0, loads = 0, evictions = 0, rejected = 0,
          within_slo = 0;
  absl::Duration queue_time, compute_time, load_time;
};

using WaiterId = uint64_t;  // of the shell, for explicit loads and unloads

struct Actions {
  struct Load {
    JobId job;
    ModelId model;
    absl::Duration grow_slack;  // for the memory; derived from the slack of the waiting requests
    absl::Duration limit;       // for everything
  };
  struct Unload {
    JobId job;
    JobId instance;
    ModelId model;
  };
  struct Execute {
    JobId job;
    JobId instance;
    Batch batch;
  };
  struct Answer {  // never successes: those come from OnExecuteDone
    RequestId request;
    Status status;
  };
  struct WaiterDone {
    WaiterId waiter;
    StatusOr<int64_t> result;  // bytes freed by an unload
  };
  std::vector<Load> loads;
  std::vector<Unload> unloads;
  std::vector<Execute> executions;
  std::vector<JobId> cancels;  // loads or executions that nobody waits for any more
  std::vector<Answer> answers;
  std::vector<WaiterDone> waiters;
  std::vector<ModelId> retired;  // replaced models that are gone for good now
  TaskSwitch::Action task_switch = TaskSwitch::Action::kNone;
  std::string kill_worker;  // not empty: why
  absl::Time wake = absl::InfiniteFuture();
  bool empty() const {
    return loads.empty() && unloads.empty() && executions.empty() && cancels.empty() && answers.empty() && waiters.empty() &&
           retired.empty() && task_switch == TaskSwitch::Action::kNone && kill_worker.empty();
  }
};

struct FinishedRequest {
  QueuedRequest request;
  absl::Time dispatched;
  absl::Duration load;  // of its waiting, for the model to become resident
};

struct ExecutionResult {
  ModelId model;
  int batch = 0;
  std::vector<FinishedRequest> done;  // have results
  std::vector<Actions::Answer> failed;
  int64_t requeued = 0;
};

class Core {
 public:
  explicit Core(const CoreOptions& options);

  void AddModel(ModelId model, const ModelTraits& traits);
  // The model is gone from the repository or has changed: what it accepted still runs, nothing new comes, then it is unloaded.
  void RetireModel(ModelId model, const Status& reason);

  // An error answers the request here; it is not queued then.
  Status Submit(QueuedRequest request, absl::Time now);  // sets `target`
  // OK: it was queued and is out now. FAILED_PRECONDITION: it runs or has been answered. If nobody else is in its batch the
  // worker is told to stop.
  Status Cancel(ModelId model, RequestId request);
  void LoadModel(ModelId model, WaiterId waiter, absl::Time deadline, absl::Time now);
  void UnloadModel(ModelId model, WaiterId waiter, absl::Time deadline);

  void OnWorkerUp();
  void OnWorkerLost(const std::string& how, absl::Time now);
  void OnLoadDone(JobId job, const Status& status, int64_t pages, absl::Duration took, absl::Time now);
  void OnUnloadDone(JobId job, const Status& status, int64_t freed_bytes);
  // INVALID_ARGUMENT if no such execution was ordered.
  StatusOr<ExecutionResult> OnExecuteDone(JobId job, const Status& status, absl::Duration compute, int64_t workspace_held_pages,
                                          int64_t workspace_peak_pages, absl::Time now);
  // The shell could not make room for the batch in shared memory: it waits for the next free moment.
  void OnExecuteRefused(JobId job);
  // The worker gave back what it held for activations, all but `pages`.
  void OnWorkspace(int64_t pages) { workspace_held_pages_ = pages; }
  void OnPaused(const Status& status, absl::Time now) { task_switch_.OnPaused(status, now); }
  void OnResumed(const Status& status, absl::Time now) { task_switch_.OnResumed(status, now); }
  // Every request that is still inside gets `status`.
  std::vector<Actions::Answer> FailAll(const Status& status);

  // `room_for_pinned` is asked only when a load is due.
  Actions Step(absl::Time now, int64_t slab_free_bytes, const std::function<pool::PinnedRoom()>& room_for_pinned);

  // Measured alone; sets the SLO where none is given.
  void SetSolo(ModelId model, absl::Duration solo);
  // An answer was delivered.
  void OnAnswered(ModelId model, absl::Duration latency);

  ModelState state(ModelId model) const;
  const ModelCounters& counters(ModelId model) const;
  const SloAccount& slo(ModelId model) const;
  const Residency& residency() const { return residency_; }
  int64_t resident_pages(ModelId model) const;
  Status last_failure(ModelId model) const;
  int outstanding() const;  // accepted and not answered
  bool worker_up() const { return worker_up_; }

 private:
  struct Waiter {
    WaiterId id;
    absl::Time deadline;
  };
  struct Model {
    ModelTraits traits;
    SloAccount slo;
    ModelCounters counters;
    JobId instance;  // of a resident one: the job of its load
    JobId unload_job;
    absl::Time load_started, ready_since = absl::InfinitePast();
    bool unload_wanted = false;  // by a user, or because the model is retired
    bool retired = false;
    Status retired_reason;
    std::vector<Waiter> load_waiters, unload_waiters;
  };
  struct Running {
    Batch batch;
    absl::Time dispatched;
    std::set<RequestId> cancelled;
    bool cancel_sent = false;
  };

  JobId NextJob() { return JobId(++last_job_); }
  bool HasWork() const;
  Batcher::Cutoff CutoffFunction() const;
  void Answer(const QueuedRequest& request, Status status);
  void AnswerQueue(ModelId model, const Status& status);
  void FinishLoadWaiters(Model* model, const Status& status);
  void FinishUnloadWaiters(Model* model, StatusOr<int64_t> result);
  void ExpireWaiters(absl::Time now);
  void ExpireWaitingForLoads(absl::Time now);
  void CheckJobs(absl::Time now);
  void StepTaskSwitch(absl::Time now);
  void StepUnloads(absl::Time now);
  void UpdateBusyShare(absl::Time now);
  bool CheapToReload(ModelId id) const;
  void StepResidency(absl::Time now, const std::function<pool::PinnedRoom()>& room_for_pinned);
  void StepExecutions(absl::Time now, int64_t slab_free_bytes);
  void StartUnload(ModelId id, bool eviction);
  bool Executing(ModelId model) const;
  void Requeue(const Running& running, ExecutionResult* result, bool alone);

  const CoreOptions options_;
  ComputeEstimator estimator_;
  Batcher batcher_;
  Residency residency_;
  TaskSwitch task_switch_;
  std::map<ModelId, Model> models_;
  std::map<JobId, Running> running_;
  bool worker_up_ = false;
  bool kill_asked_ = false;
  int64_t workspace_held_pages_ = 0;
  // Share of the last second or so in which the device computed.
  double busy_share_ = 0;
  bool was_busy_ = false;
  absl::Time busy_at_ = absl::InfinitePast();
  absl::Time next_look_at_room_ = absl::InfinitePast(), next_load_ahead_ = absl::InfinitePast();
  uint64_t last_job_ = 0;
  Actions pending_;  // filled between steps and during one
};

}  // namespace tidepool::serve
