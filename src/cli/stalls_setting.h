// What `tidepool stalls` is asked: options of the command line made into a pipeline.
#pragma once

#include <string>
#include <vector>

#include "base/options.h"
#include "base/status.h"
#include "data/stalls/analysis.h"
#include "data/stalls/workloads.h"

namespace tidepool::cli {

struct StallsOptions {
  std::string device = "h100";  // a bundle, or emulated:BUNDLExN
  std::string profiles = "profiles";
  std::string model = "resnet50";
  std::string dtype = "F32";
  std::string workload;  // instead of device and model
  int64_t batch = 256;
  absl::Duration step_time = absl::ZeroDuration();  // instead of a profile's
  absl::Duration copy_time = absl::ZeroDuration();
  absl::Duration host_time = absl::ZeroDuration();

  int64_t samples = 1'281'167;
  int64_t sample_bytes = 114'660;
  double variation = 0.6;
  std::string sizes;  // file
  int64_t tensor_bytes = 602'112;
  uint64_t seed = 1;

  std::string disk = "sata-ssd";
  std::string cache = "page-cache";
  std::string cache_size = "35%";
  int cores = 8;
  double prep_rate = 500;  // samples per second of one core; 0: free
  std::string loader = "tidepool";
  int64_t read_ahead = 256;
  int64_t batches_ahead = 4;

  int64_t simulated_samples = 50'000;
  int epochs = 3;

  // Of --data only.
  int threads = 0;
  int image_size = 224;
  absl::Duration phase = absl::Seconds(3);
};

void RegisterStallsOptions(OptionTable* table, StallsOptions* options);

struct StallsSetting {
  data::stalls::PipelineSpec spec;  // scaled down to at most simulated_samples, the cache with it
  int64_t samples = 0;              // of the data set itself
  double scale = 1;                 // spec's samples / samples
  double cached_share = 0;
  int devices = 1;
  bool estimated = false;          // the step time is
  double least_utilisation = 0;    // of the workload; 0: none
  std::vector<std::string> facts;  // for people: where the step time comes from, what was scaled down
};

StatusOr<StallsSetting> MakeStallsSetting(const StallsOptions& options);

}  // namespace tidepool::cli
