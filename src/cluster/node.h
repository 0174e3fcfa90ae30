// One node: one device or several equal ones, each with its page broker and its serving front end, and, if asked for, a training
// job that lives in the memory that serving leaves of one of them. The node supervises its processes, keeps a timeline, and ends
// within stated limits. The APIs of api/ are put on server() by whoever starts the node.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/options.h"
#include "base/status.h"
#include "cluster/timeline.h"
#include "device/device.h"
#include "pool/broker.h"
#include "serve/server.h"
#include "train/job.h"

namespace tidepool::cluster {

// Of a node whose options and whose device's name say nothing else.
inline constexpr int64_t kUsualCapacityBytes = int64_t{2} << 30;

struct NodeOptions {
  // The name may mean several devices. .capacity_bytes: of each one; 0: what the name says, or kUsualCapacityBytes.
  device::DeviceOptions device;
  pool::FitPolicy fit = pool::FitPolicy::kFirstFit;  // models from the low end, training and activations from the high one
  int64_t reserve_bytes = 0;                         // kept free of training, on the device that trains
  absl::Duration fence_after = absl::Seconds(5);
  int train_device = 0;  // of the node's devices; the modes are about this one
  // Mode static: the part of the device that training has; serving has the rest.
  double static_train_fraction = 0.5;
  serve::ServerOptions server;  // .mode is the node's mode; .worker_threads 0: all cores, divided by the number of devices
  bool measure_solo = true;     // measure each model alone at start, which sets SLOs that are not given
  absl::Duration measure_limit = absl::Seconds(120);

  train::TrainOptions train;  // .data empty: no training job
  int train_restarts = 5;     // in a row without progress, after a job was killed; it resumes from its checkpoint
  absl::Duration train_backoff = absl::Milliseconds(200);  // before the first restart; doubles up to 10 s
  absl::Duration train_stop_limit = absl::Seconds(10);     // to write a checkpoint and end

  std::string runtime_directory;  // sockets and the job's checkpoint; empty: a private one that is removed at the end
  absl::Duration sample_interval = absl::Milliseconds(50);
  Clock* clock = Clock::Real();

  // Sections [node], [pool], [serve] and (by TrainOptions) [train]. Without training, only the first three.
  void Register(OptionTable* table, bool with_training = true);
  // Reports all faults at once.
  Status Validate() const;
  bool has_training() const { return !train.data.empty(); }
};

// tidepool-worker beside the running program: what an empty server.worker_binary stands for.
std::string DefaultWorkerBinary();

enum class TrainState : uint8_t { kNone, kRunning, kRestarting, kFinished, kFailed, kStopped };
std::string_view Name(TrainState state);

struct TrainStatus {
  TrainState state = TrainState::kNone;
  int pid = 0;
  int restarts = 0;   // since start
  Status last_error;  // why it ended the last time
  train::TrainProgress latest;
};

// Where the times of an emulated device come from, and what it has done for all processes that have it.
struct EmulationStatus {
  device::DeviceProperties properties;
  device::TimelineReport report;
};
// Thread-safe.
class Node {
 public:
  // Opens the devices, starts brokers and workers, and measures models if asked to. The training job is started by StartTraining.
  static StatusOr<std::unique_ptr<Node>> Start(NodeOptions options);
  virtual ~Node() = default;  // Stop()s with no patience: children are killed

  virtual serve::Server& server() = 0;  // of the device, or of all devices as one
  virtual int device_count() const = 0;
  virtual pool::Broker& broker(int device = 0) = 0;
  std::vector<pool::Broker*> brokers();            // by device
  std::vector<pool::PoolStats> PoolStats();        // by device
  virtual const NodeOptions& options() const = 0;  // as completed at the start; .device is one device's
  virtual const std::string& runtime_directory() const = 0;
  virtual const Timeline& timeline() const = 0;
  // Of all devices together. Nothing for devices that are not emulated.
  virtual std::optional<EmulationStatus> emulation() = 0;

  // FAILED_PRECONDITION if one runs already or options.train.data is empty.
  virtual Status StartTraining() = 0;
  // Asks it to checkpoint and end, waits train_stop_limit, then kills it. OK if none runs.
  virtual Status StopTraining() = 0;
  virtual TrainStatus training() = 0;
  // Waits until the job has finished, failed for good or was stopped: its last error. DEADLINE_EXCEEDED if it goes on.
  virtual Status WaitForTraining(absl::Time deadline) = 0;

  // One JSON object with the node's mode, pool, leases, models and training job: what `tidepool status` prints.
  virtual std::string StatusJson() = 0;

  // Refuses new requests, lets accepted ones end within server.drain_limit, stops training with a checkpoint, ends the worker.
  // Idempotent.
  virtual Status Stop() = 0;
};

}  // namespace tidepool::cluster
