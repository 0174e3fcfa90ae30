// One run of the demo in one mode: node, trainer, load over gRPC, and what came of it.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "api/load/load.h"
#include "cli/demo_data.h"
#include "cli/verb.h"
#include "cluster/node.h"

namespace tidepool::cli {

struct DemoSettings {
  DemoData data;
  std::string device = "host";  // as device/device.h names them; one, or several equal ones of which the first trains
  int devices = 1;              // that the name means
  int64_t capacity_bytes = int64_t{200} << 20;  // of each
  absl::Duration length = absl::Seconds(60);    // of the load
  uint64_t seed = 1;
  int64_t global_batch = 128, max_micro_batch = 128, evaluation_steps = 0;
  double learning_rate = 0.002;
  int worker_threads = 0, train_threads = 0;    // 0: half of the cores
  double burst_load = 0.22, calm_load = 0.002;  // of one device, by solo latencies
  double zipf = 0.5;                            // exponent of the models' shares, in the order of data.models
  bool direct_io = true;                        // weights come from the disk at each load, not from the page cache
  std::string worker_binary;                    // empty: beside this program
};

// The load that every mode gets: made from the first run's solo latencies and kept.
struct DemoPlan {
  api::LoadOptions load;
  std::map<std::string, absl::Duration> solo, slo;
  absl::Duration mean_service;  // by share of the load
  bool made = false;
};

struct Percentiles {
  double p50 = 0, p99 = 0, max = 0, mean = 0;
};
Percentiles PercentilesOf(std::vector<double> values);

struct DeviceMemory {
  int64_t capacity_bytes = 0, peak_granted_bytes = 0, violations = 0;
};

// Figures of one run; the keys of the JSON output.
struct DemoFigures {
  double slo_attainment = 0;
  int64_t requests = 0, errors = 0;
  double infer_p50_ms = 0, infer_p99_ms = 0;
  double samples_per_s = 0, loss_first = 0, loss_last = 0, accuracy_first = 0, accuracy_last = 0;
  int64_t samples = 0, steps = 0, aborts = 0, boundary_waits = 0, evaluations = 0, micro_batches = 0;
  double compute_seconds = 0, wasted_seconds = 0, paused_seconds = 0;  // of the whole job
  double longest_operator_ms = 0;
  int64_t handovers = 0, handovers_late = 0;  // granted, and not granted in time
  Percentiles handover_ms;
  std::vector<std::pair<std::string, Percentiles>> parts_ms;
  // Sums over the devices; peaks need not have been at one time.
  int64_t capacity_bytes = 0, peak_granted_bytes = 0, violations = 0;
  std::vector<DeviceMemory> devices;
  int64_t loads = 0, evictions = 0;
};

struct DemoRun {
  serve::Mode mode = serve::Mode::kColocate;
  double static_train_fraction = 0;  // mode static
  DemoFigures figures;
  api::LoadResult load;
  cluster::TimelineData timeline;
  std::vector<serve::ModelStatus> models;
  absl::Time start, end;  // of the load
  cluster::TrainStatus training;
  std::optional<cluster::EmulationStatus> emulation;  // at the load's end
};

// The network that is trained.
std::string TrainedModel(const DemoSettings& settings);

// What the live display shows.
struct DemoProgress {
  serve::Mode mode = serve::Mode::kColocate;
  absl::Duration elapsed, length;
  double requests_per_s = 0, p99_ms = 0, slo_attainment = 0, samples_per_s = 0;
  int64_t micro_batch = 0, errors = 0;
  struct Memory {
    int64_t total_pages = 0, train_pages = 0, model_pages = 0;
  };
  std::vector<Memory> memory;  // by device
  double loss = 0;
};

// The parts of a handover in the order in which they happen, in milliseconds; they add up to its total. The last one is what no
// part explains: bookkeeping and waiting for the broker's thread.
std::vector<std::pair<std::string, double>> HandoverParts(const pool::HandoverRecord& record);

// Starts node, API and trainer, waits until training makes steps, drives the load, and stops everything. `plan` is made if it is
// empty. CANCELLED if the user asked for a stop.
StatusOr<DemoRun> RunDemo(const DemoSettings& settings, serve::Mode mode, double static_train_fraction, DemoPlan* plan,
                          const VerbContext& context, const std::function<void(const std::string&)>& say,
                          const std::function<void(const DemoProgress&)>& show);

}  // namespace tidepool::cli
