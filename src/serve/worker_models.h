// The models that lie in a worker's device memory: loading into leases, binding, unloading.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/inference.h"
#include "pool/client.h"
#include "profile/lookup.h"
#include "serve/protocol.h"
#include "serve/weights.h"

namespace tidepool::serve {

// A loaded model. Its pages stay until Unload; the module reads them in place.
struct Instance {
  std::string name;
  pool::LeaseId lease;
  int64_t pages = 0;
  std::unique_ptr<engine::InferenceModule> module;
  std::vector<int64_t> input_sample_bytes, output_sample_bytes;
  // Names the network in profiles, and describes its forward pass where no profile has it.
  std::string spec;
  profile::OpCost cost;
  std::atomic<int> executions{0};  // ordered and not finished
};

struct LoadReport {
  std::shared_ptr<Instance> instance;
  int64_t bytes = 0;
  absl::Duration grow, read;
};

// Loads come from one thread, Unload from another, at the same time. Thread-safe.
class WorkerModels {
 public:
  // `client` outlives this. `trim` gives back workspace memory that nothing uses; called when a load finds no room.
  WorkerModels(pool::Client* client, std::function<void()> trim) : client_(client), trim_(std::move(trim)) {}
  ~WorkerModels();

  // Reads the weights straight into pool memory. CANCELLED soon after `cancelled` is set. On any error nothing is held.
  StatusOr<LoadReport> Load(const LoadMessage& order, const std::atomic<bool>& cancelled);
  void Add(JobId id, std::shared_ptr<Instance> instance);
  // FAILED_PRECONDITION names the id if there is no such instance.
  StatusOr<std::shared_ptr<Instance>> Find(JobId id);
  // Returns the bytes that went back to the pool. FAILED_PRECONDITION while executions are under way.
  StatusOr<int64_t> Unload(JobId id);

 private:
  StatusOr<std::shared_ptr<const model::Graph>> GraphOf(const std::string& spec);
  StatusOr<std::vector<pool::Extent>> Grow(pool::LeaseId lease, int64_t pages, int64_t min_run, absl::Duration slack,
                                           absl::Time limit, const std::atomic<bool>& cancelled);
  StatusOr<std::vector<int64_t>> Place(pool::LeaseId lease, const WeightList& weights, const LoadMessage& order, absl::Time limit,
                                       const std::atomic<bool>& cancelled);
  Status Fill(Instance* instance, const LoadMessage& order, const WeightList& weights, const model::SafetensorsFile& file,
              std::shared_ptr<const model::Graph> graph, const std::atomic<bool>& cancelled, LoadReport* report);

  pool::Client* const client_;
  const std::function<void()> trim_;
  absl::Mutex mu_;
  std::map<JobId, std::shared_ptr<Instance>> instances_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::shared_ptr<const model::Graph>> graphs_;  // of the loading thread
};

}  // namespace tidepool::serve
