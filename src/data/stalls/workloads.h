// Step times for the analyzer: from a profile bundle, or the constants of named workloads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "profile/lookup.h"

namespace tidepool::data::stalls {

// One accelerator's training step as MLPerf Storage emulates it: a constant time, and records of a normal distribution.
struct Workload {
  std::string_view name;  // "resnet50-h100"
  int64_t batch = 1;      // of one accelerator
  double step_seconds = 0;
  int64_t record_bytes = 0;
  double record_variation = 0;   // standard deviation / mean
  double least_utilisation = 0;  // of the accelerator, for a pass
};

// From the workload files of MLPerf Storage and DLIO (mlcommons/storage): resnet50, unet3d and cosmoflow on a100 and h100.
const std::vector<Workload>& Workloads();
// INVALID_ARGUMENT lists them.
StatusOr<Workload> FindWorkload(std::string_view name);

struct StepTimes {
  double copy_seconds = 0;     // of the step's input
  double compute_seconds = 0;  // with the all-reduce of several devices
  bool estimated = false;
  double error = 0;    // relative, to be expected
  std::string source;  // for people
};

struct StepQuestion {
  std::string model;
  DType dtype = DType::kF32;
  int64_t batch = 256;  // of all devices together
  int devices = 1;
  double sample_bytes = 0;  // as it is copied to the device
};

// A training step, data-parallel: each device computes its part of the batch, then gradients are reduced where the model's
// parameters are known and the bundle has a peer link. NOT_FOUND as profile::Lookup.
StatusOr<StepTimes> FindStepTimes(const profile::Lookup& lookup, const StepQuestion& question);

}  // namespace tidepool::data::stalls
