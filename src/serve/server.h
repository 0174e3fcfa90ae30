// The torch-free serving front end of one node: model states, queues, batching, eviction. It owns the device worker process and
// hands it batches through shared memory. The front ends of api/ call it; policies it uses are pure classes beside it.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/dtype.h"
#include "base/status.h"
#include "model/repository.h"
#include "pool/broker.h"

namespace tidepool::serve {

struct Tensor {
  std::string name;
  DType datatype = DType::kF32;
  std::vector<int64_t> shape;
  std::string data;  // row-major little-endian bytes; BYTES elements carry a 4-byte length each
};

struct InferRequest {
  std::string model;
  std::string version;  // empty: the highest
  std::string id;
  std::vector<Tensor> inputs;
  std::vector<std::string> outputs;  // names asked for; empty: all
  absl::Time deadline = absl::InfiniteFuture();
};

// Stamps of one request on the node's clock, in the order in which they happen.
struct RequestTimes {
  absl::Time received, dispatched, compute_start, compute_end, finished;
  absl::Duration load;  // of this, waiting for the model to become resident
};

struct InferResponse {
  std::string model, version, id;
  std::vector<Tensor> outputs;
  RequestTimes times;
};

enum class ModelState : uint8_t { kAbsent, kLoading, kReady, kDraining };
std::string_view Name(ModelState state);

struct TensorMetadata {
  std::string name;
  DType datatype = DType::kF32;
  std::vector<int64_t> shape;  // -1 for the batch
};

struct ModelStatus {
  std::string name;
  std::vector<std::string> versions;
  std::string platform;  // "tidepool_graph"
  std::string family, spec;
  ModelState state = ModelState::kAbsent;
  std::string reason;  // why it cannot be served, or why the last load failed
  bool servable = true;
  std::vector<TensorMetadata> inputs, outputs;
  int64_t weight_bytes = 0, resident_bytes = 0;
  absl::Duration slo, solo_latency;
  int max_batch_size = 0;
  // Counters since start.
  int64_t requests = 0, failures = 0, executions = 0, batched_requests = 0, loads = 0, evictions = 0, rejected = 0,
          within_slo = 0;
  absl::Duration queue_time, compute_time, load_time;
  absl::Duration last_used_ago;
  std::vector<int> devices;  // where several devices serve: those that hold memory of it
};

// What routing asks about one version of a model.
struct ModelPresence {
  ModelState state = ModelState::kAbsent;
  int64_t weight_bytes = 0;
  absl::Duration solo_latency, slo;  // zero while unknown
};
// Latencies alone, by model as the pool names it: "name", or "name:3" for a version that is not the highest.
using SoloLatencies = std::map<std::string, absl::Duration>;

enum class Mode : uint8_t { kColocate, kStatic, kTaskSwitch };
std::string_view Name(Mode mode);
StatusOr<Mode> ParseMode(std::string_view text);

struct ServerOptions {
  std::string repository;
  std::string worker_binary;  // tidepool-worker
  int worker_threads = 0;     // 0: all cores
  bool direct_io = false;     // weights are read past the page cache, where the file system can
  Mode mode = Mode::kColocate;
  absl::Duration idle_eviction = absl::Seconds(3);
  absl::Duration task_switch_idle = absl::Milliseconds(10);  // task-switch: training resumes after this long without work
  int64_t shared_memory_bytes = 256 << 20;                   // requests and results in flight
  absl::Duration load_deadline = absl::Seconds(10);
  absl::Duration drain_limit = absl::Seconds(10);
  int queue_limit = 256;             // per model, unless its model.toml says otherwise
  double slo_factor = 4;             // SLO = factor x solo latency where model.toml gives none
  int64_t serving_limit_pages = -1;  // most pages all models may hold (static split); negative: the device
  Clock* clock = Clock::Real();
  Status Validate() const;
};

// One executed batch or load, for traces and the report.
struct ServeEvent {
  enum class Kind : uint8_t { kExecute, kLoad, kEvict, kPause, kResume } kind = Kind::kExecute;
  std::string model;
  int batch = 0;
  absl::Time start;
  absl::Duration duration;
  int64_t bytes = 0;
  int device = 0;  // of the node's devices
};

using InferCallback = std::function<void(StatusOr<InferResponse>)>;
// Handle of an accepted request. Cancel drops it if it has not been dispatched; the callback then gets CANCELLED. May outlive the
// server.
class InferHandle {
 public:
  virtual ~InferHandle() = default;
  virtual void Cancel() = 0;
};

// Thread-safe.
class Server {
 public:
  // Starts the worker process and scans the repository. `broker` outlives the server.
  static StatusOr<std::unique_ptr<Server>> Start(pool::Broker* broker, ServerOptions options);
  virtual ~Server() = default;

  // `done` is called exactly once, possibly before this returns, on a thread of the server; it must not block.
  // NOT_FOUND, INVALID_ARGUMENT, RESOURCE_EXHAUSTED (queue full), DEADLINE_EXCEEDED, UNAVAILABLE (worker lost, draining).
  virtual std::shared_ptr<InferHandle> Infer(InferRequest request, InferCallback done) = 0;

  virtual bool Live() = 0;
  virtual bool Ready() = 0;
  virtual StatusOr<ModelStatus> Model(const std::string& name) = 0;
  virtual std::vector<ModelStatus> Models() = 0;
  // Cheap. NOT_FOUND for what Infer would not find; an empty version is the highest.
  virtual StatusOr<ModelPresence> Presence(const std::string& model, const std::string& version) = 0;
  // Reads the repository again; new, changed and vanished models are taken over.
  virtual Status Rescan() = 0;
  // Blocks until loaded (or the reason why not), or unloaded: then it returns how many bytes were freed.
  virtual Status Load(const std::string& model, absl::Time deadline) = 0;
  virtual StatusOr<int64_t> Unload(const std::string& model, absl::Time deadline) = 0;
  // Measures each model's latency alone (loaded, batch 1) and sets SLOs that are not given. Called by Start's users once.
  virtual Status MeasureSoloLatencies(absl::Time deadline) = 0;
  // What was measured; and what another server has measured for the same models on an equal device.
  virtual SoloLatencies solo_latencies() = 0;
  virtual Status SetSoloLatencies(const SoloLatencies& latencies, absl::Time deadline) = 0;

  // Refuses new requests, lets accepted ones finish within drain_limit.
  virtual void Drain() = 0;
  virtual int worker_pid() = 0;
  // Called on a thread of the server, in order for each device; must not block, nor call this. The listener before is not called
  // any more when this returns.
  virtual void SetEventListener(std::function<void(const ServeEvent&)> listener) = 0;
};

}  // namespace tidepool::serve
