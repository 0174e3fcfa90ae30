// What a trainer does when memory is asked back and its cached pages were not enough: let the running phase end, if that is
// soon, or throw the micro-batch away.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace tidepool::train {

enum class Phase : uint8_t {
  kIdle,        // between micro-batches, parked, reading data: nothing to give but cached pages
  kMicroBatch,  // forward and backward, or evaluation
  kCommit,      // adding the staged gradients; short
  kOptimizer,   // the step; activations are dead already
};

struct ReclaimSituation {
  int64_t held_pages = 0;  // after cached pages were given back
  int64_t limit_pages = 0;
  Phase phase = Phase::kIdle;
  bool protected_run = false;
  absl::Duration phase_elapsed;
  // What this phase is expected to take in all; nothing if it is not known.
  std::optional<absl::Duration> phase_expected;
  absl::Duration slack;             // until the deadline that the broker gave
  absl::Duration longest_operator;  // that an abort may have to wait for; zero: not known
};

enum class ReclaimAction : uint8_t {
  kDone,          // the limit is met
  kWaitBoundary,  // the phase ends soon, or must not be aborted
  kAbort,
  kCannot,  // nothing runs that holds more
};
std::string_view Name(Phase phase);
std::string_view Name(ReclaimAction action);

struct ReclaimOptions {
  double slack_fraction = 0.25;    // of the slack may be spent waiting for a boundary
  double operator_fraction = 0.5;  // and no more than this part of the longest operator: an abort would be quicker
};

struct ReclaimDecision {
  ReclaimAction action = ReclaimAction::kDone;
  // Waiting turns into an abort after this long (infinite where an abort is not possible).
  absl::Duration patience = absl::InfiniteDuration();
};

// Pure.
ReclaimDecision DecideReclaim(const ReclaimSituation& situation, const ReclaimOptions& options);

// Expected durations of micro-batches by size: a fixed cost and a cost per sample, fitted to the recent past. Thread-compatible.
class DurationModel {
 public:
  void Observe(int64_t batch, absl::Duration duration);
  std::optional<absl::Duration> Predict(int64_t batch) const;
  // The smallest size that makes `share` of the samples per second that `most` makes. Nothing where the sizes of the recent past
  // were too much alike to tell the fixed cost from the cost per sample.
  std::optional<int64_t> SmallestAtSpeed(double share, int64_t most) const;
  bool tells_fixed_cost() const;

 private:
  // Exponentially weighted sums for a least-squares line.
  double weight_ = 0, sum_b_ = 0, sum_t_ = 0, sum_bb_ = 0, sum_bt_ = 0;
};

// How often running micro-batches are thrown away because their memory is wanted, over the last seconds of computing.
// Thread-compatible.
class AbortRate {
 public:
  void Observe(absl::Duration computed, bool aborted);
  double per_second() const { return aborts_ / seconds_; }

 private:
  double aborts_ = 0, seconds_ = 1;
};

// The size up to `most` with which most samples per second get done while micro-batches are thrown away at `aborts_per_second`,
// at any moment alike: large ones share their fixed cost among more samples, small ones lose less. A micro-batch of t seconds
// takes (exp(rate * t) - 1) / rate on average until it gets through. `most` while durations are not known well enough.
int64_t BestSize(const DurationModel& durations, double aborts_per_second, int64_t most);

}  // namespace tidepool::train
