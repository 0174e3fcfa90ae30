// The pipeline of pipeline.h on the real clock: threads in place of events, an emulated device in place of its arithmetic.
//
// Real are the clock, the workers with their waits for the cache, for the storage model and for room, the order of delivery, the
// thread that pins, the training loop, and the classes that a training job uses: Cache, PacedSource, the emulated device in real
// time. Preparation and pinning are slept for, so 24 workers run on two cores, and records have no content.
//
// Each thread keeps its own time, and threads hand the moments of what they have done to each other. What a thread sleeps for
// ends at absolute moments, so late wake-ups do not add up; what a worker waits for the disk costs what it cost on the real
// clock.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "data/stalls/pipeline.h"

namespace tidepool::data::stalls {

// How much smaller a pipeline is made so that it ends soon. Times per batch shrink with the batch, times per sample stay.
struct PipelineScale {
  int64_t samples = 1;  // divides the number of samples, and the start of the workers
  int64_t batch = 1;    // divides the batch, and what happens once per batch
  int64_t speed = 1;    // divides every time
  // Divides the bytes of each sample, of the cache and of the disk's rate, so that a cache fits into any machine. A cache in
  // pages becomes one in bytes.
  int64_t bytes = 1;
};
PipelineSpec ScaledDown(const PipelineSpec& spec, const PipelineScale& scale);
// What a run of the smaller pipeline says of the whole one.
PipelineRun ScaledUp(const PipelineRun& run, const PipelineScale& scale);

struct RealTimeRun {
  PipelineRun run;  // without events and hash
  double lateness_p99_seconds = 0;
  bool host_limited = false;  // this machine could not keep the device's time
  std::string host_limited_reason;
};

// Runs the last epoch of `spec`; the cache is filled in the order of the one before, past the storage model. Needs workers that
// read themselves and prepare whole batches, and copies that do not overlap (Assignment::kBatch, read_ahead 0): that is the
// loader of the published figures. UNIMPLEMENTED otherwise. CANCELLED soon after `stopped` says so, DEADLINE_EXCEEDED if a batch
// takes a minute longer than it can.
StatusOr<RealTimeRun> RunInRealTime(const PipelineSpec& spec, const std::function<bool()>& stopped);

}  // namespace tidepool::data::stalls
