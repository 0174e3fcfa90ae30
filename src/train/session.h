// What a trainer works with, in the order in which it is made and, backwards, ended: data, pool, lease, arena, network.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "data/dataset.h"
#include "data/loader.h"
#include "device/device.h"
#include "engine/training.h"
#include "pool/arena.h"
#include "pool/broker.h"
#include "pool/client.h"
#include "train/checkpoint.h"
#include "train/cpu_yield.h"
#include "train/device_time.h"
#include "train/job.h"
#include "train/reclaimer.h"
#include "train/replica_time.h"
#include "train/trainer.h"

namespace tidepool::train {

// Thread-compatible: the trainer's main thread. The reclaimer's callbacks use module and yield.
class Session {
 public:
  static StatusOr<std::unique_ptr<Session>> Open(const TrainOptions& options, const TrainerHooks& hooks, StopToken* stop);
  ~Session();

  // Of the data-parallel job; one where `device_time` is null.
  int devices() const { return device_time == nullptr ? 1 : device_time->devices(); }

  // --- set by Open ---
  std::string spec;  // complete: every option of the family
  std::shared_ptr<const model::Graph> graph;
  std::unique_ptr<data::Dataset> dataset, evaluation;
  std::optional<CheckpointManifest> resumed;  // the checkpoint that the state comes from
  std::unique_ptr<device::Device> device;     // of a pool of its own; it stands for all replicas if there are several
  std::unique_ptr<pool::Broker> broker;
  std::unique_ptr<Reclaimer> reclaimer;
  std::unique_ptr<pool::Client> client;
  std::unique_ptr<CpuYield> yield;
  std::unique_ptr<pool::Arena> arena;
  std::unique_ptr<engine::TrainingModule> module;
  std::unique_ptr<DeviceTime> device_time;  // null: the device is not emulated
  pool::LeaseId lease;
  int64_t page_bytes = 0;
  int64_t burst_pages = 0;
  int64_t guaranteed_pages = 0;

  // Changes the guarantee. The error says what it is for.
  Status SetGuaranteed(int64_t pages);
  // The part of a checkpoint that names the run.
  CheckpointManifest Identity() const;
  Status Save(CheckpointManifest manifest) const;
  Status SaveWeights(const std::string& path) const;

 private:
  explicit Session(const TrainOptions& options, const TrainerHooks& hooks, StopToken* stop)
      : options_(options), hooks_(hooks), stop_(stop) {}
  Status OpenData();
  Status OpenPool();
  Status OpenDeviceTime(const device::NodeDevices& own);
  Status OpenLease();
  Status BuildModule();
  Status LoadState();
  int64_t PersistentBytes() const;

  const TrainOptions options_;
  const TrainerHooks hooks_;
  StopToken* const stop_;
  absl::Mutex mu_;  // the two that callbacks of other threads reach while they come and go
  engine::TrainingModule* abortable_ ABSL_GUARDED_BY(mu_) = nullptr;
  CpuYield* urgent_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace tidepool::train
