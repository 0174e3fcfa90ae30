// What happened on a node, in bounded memory: the newest records of each kind are kept, older ones are counted and dropped.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "pool/broker.h"
#include "serve/server.h"
#include "train/job.h"

namespace tidepool::cluster {

// Pages of one device by tenant at one moment.
struct MemorySample {
  absl::Time time;
  int device = 0;
  int64_t free = 0, granted = 0, returning = 0, dirty = 0;
  std::vector<std::pair<uint32_t, int64_t>>
      held;                  // tenant (index into TimelineData::tenants), pages; tenants with none are left out
  int64_t train_limit = -1;  // pages the training job may hold; -1: no job
};

struct TimelineLimits {
  int64_t memory_samples = 36000;  // of each device; half an hour at 20/s
  int64_t handovers = 20000;
  int64_t serve_events = 100000;
  int64_t train_events = 50000;
};

struct TimelineData {
  int64_t page_bytes = 0, total_pages = 0;  // of each device
  int devices = 1;
  std::vector<std::string> tenants;  // lease names, in order of appearance
  std::deque<MemorySample> memory;
  std::deque<pool::HandoverRecord> handovers;
  std::deque<serve::ServeEvent> serve;
  std::deque<train::TrainProgress> train;
  int64_t dropped_memory = 0, dropped_handovers = 0, dropped_serve = 0, dropped_train = 0;
};

// Thread-safe.
class Timeline {
 public:
  explicit Timeline(const TimelineLimits& limits = {}) : limits_(limits) {}
  void AddMemory(absl::Time now, const pool::PoolStats& stats, int device = 0);
  void AddHandover(const pool::HandoverRecord& record);
  void AddServeEvent(const serve::ServeEvent& event);
  void AddTrainProgress(const train::TrainProgress& progress);
  TimelineData Snapshot() const;

 private:
  const TimelineLimits limits_;
  mutable absl::Mutex mu_;
  TimelineData data_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tidepool::cluster
