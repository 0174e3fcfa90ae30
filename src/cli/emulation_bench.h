// The measurements behind `bench pacing` and `bench virtual-time`.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidepool::cli {

struct PacingBenchOptions {
  std::vector<double> targets_ms = {0.3, 1, 3.5, 20};
  int64_t steps = 1000;
  int64_t naive_steps = 200;  // of the comparison that sleeps for the step's time; 0: none
  int64_t fed_steps = 1000;   // of the loop that takes its batches from memory, but no more than take two seconds; 0: none
  // Steps that are launched and not waited for: how long the host may be kept from its core before the device stands still. 0:
  // StepsInFlight of each target.
  int64_t in_flight = 0;
  int decode_threads = 0;  // that decode JPEGs meanwhile; 0: as many as there are cores, -1: none
};

// One step time. Errors are relative to it, without sign.
struct PacingStep {
  double target_ms = 0;
  int64_t in_flight = 0;
  // Drift: the time per step between the moments at which a waiting thread saw two steps end, by the real clock, against the
  // step's time; the median over all pairs of steps that lie half of the run apart (the slope of Theil and Sen). Lateness that
  // added up would show here; that of single wake-ups is in total_error and in the three figures below.
  double error = 0;
  double total_error = 0;     // of the real time from the first to the last step, which contains the lateness of two wake-ups
  double timeline_error = 0;  // of the device's own times
  double naive_error = 0;     // of sleeping for each step's time
  absl::Duration lateness_p50, lateness_p99, lateness_max;
  bool host_limited = false;
  // Of a loop that waits for each step, takes the next batch from memory and only then launches the next step: the device's score
  // and, beside it, what the usual metric says, busy time over all time. Negative: not measured.
  double utilisation = -1, busy_share = -1;
  double images_per_s = 0;  // decoded meanwhile, by all threads
};
// About 50 ms of steps, 2 to 256: a GPU's launch queue is deeper (1,024 launches with CUDA).
int64_t StepsInFlight(double target_ms);

struct PacingBenchResult {
  int cores = 0, decode_threads = 0;
  int64_t steps = 0;
  std::vector<PacingStep> rows;
};
// Steps of each target on an emulated device beside threads that decode. The host launches ahead of the device, as training
// loops do that do not wait for each step.
StatusOr<PacingBenchResult> RunPacingBench(const PacingBenchOptions& options,
                                           const std::function<void(const std::string&)>& progress,
                                           const std::function<bool()>& stopped);

struct VirtualTimeBenchOptions {
  uint64_t seed = 1;
  int64_t events = 3'000'000;
  int32_t devices = 8;
};
struct VirtualTimeBenchResult {
  double events_per_s = 0;       // the slower one of the two runs of the seed
  double bare_events_per_s = 0;  // of events that do nothing
  int64_t events = 0;            // of one run
  int64_t commands = 0;
  absl::Duration simulated;
  uint64_t hash_a = 0, hash_b = 0, hash_other_seed = 0;
};
// Data-parallel training on emulated devices, in virtual time on one thread: copies, steps with jitter, all-reduces, two jobs per
// device.
StatusOr<VirtualTimeBenchResult> RunVirtualTimeBench(const VirtualTimeBenchOptions& options);

}  // namespace tidepool::cli
