// Starting and following a training job from a torch-free process. The job runs in a process of its own (`tidepool-worker
// train`), attached to the node's page broker, and reports its progress as JSON lines.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/options.h"
#include "base/process.h"
#include "base/status.h"
#include "base/units.h"
#include "data/wrapped_source.h"

namespace tidepool::train {

inline constexpr int64_t kUsualPoolBytes = 2 * kGiB;

struct TrainOptions {
  std::string name = "train";
  std::string model = "resnet18";  // a spec; its weights are seeded unless `initial_weights` is given
  std::string initial_weights;     // a safetensors file
  std::string data;                // "imagefolder:PATH", "text:PATH"
  std::string evaluation_data;     // evaluated before the first and after every epoch; empty: none
  int64_t evaluation_steps = 0;    // and after every so many steps; 0: at epochs only
  int64_t global_batch = 64;
  int64_t max_micro_batch = 64;
  int64_t epochs = 1;
  int64_t max_steps = 0;          // 0: no limit
  std::string optimizer = "sgd";  // sgd, adamw
  double learning_rate = 0.05;
  double momentum = 0.9;
  double weight_decay = 0;
  uint64_t seed = 0;
  int threads = 0;  // 0: all cores
  int loader_threads = 1;
  int64_t prefetch_bytes = 64 * kMiB;
  data::WrapOptions wrap;            // cache and storage model of the training data
  bool skip_broken_samples = false;  // a sample that cannot be read is replaced by the next one instead of ending the job
  bool yield_cpu = true;             // run in the idle scheduling class
  int protected_after_aborts = 4;    // after so many aborts in a row a micro-batch runs to its end
  std::string pool_socket;           // the node's broker; empty: a pool of its own of `pool_bytes` on `device`
  std::string device = "host";       // of a pool of its own, as device/device.h names it; several are replicas
  int64_t pool_bytes = 0;            // of each device; 0: what its name says, or kUsualPoolBytes
  int64_t burst_bytes = 0;           // most it may hold; 0: the device
  std::string journal;               // write the partition journal here
  std::string replay;                // follow this journal exactly
  std::string checkpoint;            // directory; resumes from it if it holds one
  int64_t checkpoint_steps = 0;      // 0: at epoch ends and when stopped
  std::string final_weights;         // write the trained model here (safetensors)

  // Without a pool of its own (a node's job) there is no device to choose.
  void Register(OptionTable* table, bool with_device = true);
  // Reports every fault at once.
  Status Validate() const;
};
// Every option by its key, as text: how a job's process gets its options.
std::string ToJson(const TrainOptions& options);
StatusOr<TrainOptions> ParseTrainOptions(const std::string& json);

// One line of progress. Counters are totals since the job's start.
struct TrainProgress {
  std::string event;  // "started", "step", "evaluation", "checkpoint", "paused", "resumed", "finished", "failed"
  absl::Time time;
  int64_t step = 0, epoch = 0, samples = 0;
  double loss = 0;      // mean over the global batch, or over the evaluation set
  double accuracy = 0;  // evaluation
  double samples_per_s = 0;
  int64_t micro_batch = 0, micro_batches = 0, aborts = 0, boundary_waits = 0, protected_runs = 0;
  double wasted_seconds = 0, compute_seconds = 0, paused_seconds = 0;
  double longest_operator_ms = 0;
  int64_t devices = 1;  // that train side by side
  // On emulated devices: what the job has had of their time (one device: of its compute time; several: of all of them together,
  // side by side), the part of it that was exchange between them, and the samples of the last steps per second of it. Else 0.
  double device_seconds = 0, communication_seconds = 0, device_samples_per_s = 0;
  // Why the pace on this machine is not that of the emulated devices; empty if it is.
  std::string host_limited;
  int64_t held_bytes = 0, live_bytes = 0, guaranteed_bytes = 0;
  std::string message;
};
std::string ToJson(const TrainProgress& progress);
StatusOr<TrainProgress> ParseTrainProgress(const std::string& line);

// A training process. Start it from a thread that outlives it. Thread-safe.
class TrainJob {
 public:
  static StatusOr<std::unique_ptr<TrainJob>> Start(const TrainOptions& options, const std::string& worker_binary,
                                                   std::function<void(const TrainProgress&)> on_progress);
  virtual ~TrainJob() = default;  // kills it
  virtual int pid() = 0;
  virtual TrainProgress Latest() = 0;
  // Asks it to checkpoint and end; kills it after `grace`.
  virtual Status Stop(absl::Duration grace) = 0;
  // OK when it finished (or was stopped and wrote its checkpoint); ABORTED when a signal killed it; its own error when it failed;
  // DEADLINE_EXCEEDED if it still runs.
  virtual Status Wait(absl::Time deadline) = 0;
};

}  // namespace tidepool::train
