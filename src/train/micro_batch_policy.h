// How many samples the next micro-batch takes.
//
// Memory is modelled online as need(b) = base + slope * b, fitted robustly (median of pairwise slopes) to what micro-batches
// really needed, plus an upper margin that covers every miss of the line so far. Before the line exists sizes 1, 2 and 4 are
// probed. A micro-batch that ran out of memory teaches a lower bound and halves the next ones until things have gone well for a
// while.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <vector>

namespace tidepool::train {

struct MicroBatchOptions {
  int64_t max_batch = 64;
  int64_t persistent_bytes = 0;    // what the job holds while no micro-batch runs
  double margin = 0.03;            // of the line's value above persistent_bytes, kept free beyond the largest miss
  int protected_after_aborts = 4;  // 0: never
  int successes_to_double = 4;     // after running out of memory
  int64_t growth_per_step = 4;     // at most so many times the largest size that ever fitted
};

struct MicroBatchChoice {
  int64_t batch = 0;           // 0: nothing fits, park
  bool protected_run = false;  // must not be aborted; it fits into the guaranteed memory
};

// Pure. Thread-compatible.
class MicroBatchPolicy {
 public:
  explicit MicroBatchPolicy(MicroBatchOptions options) : options_(options) {}

  // The largest size that fits into `limit_bytes`, made smaller so that the `remaining` samples come in equal parts. Never parks
  // while the limit is at least the guarantee: that one sample fits into it was measured, whatever the line says since.
  // `at_most`: no larger, though it would fit.
  MicroBatchChoice Choose(int64_t limit_bytes, int64_t guaranteed_bytes, int64_t remaining,
                          int64_t at_most = std::numeric_limits<int64_t>::max()) const;

  // Whether a micro-batch of `batch` samples is worth a try within `limit_bytes`.
  bool Fits(int64_t batch, int64_t limit_bytes, int64_t guaranteed_bytes) const;

  void ObserveSuccess(int64_t batch, int64_t need_bytes);
  void ObserveAbort() { ++aborts_in_a_row_; }
  // It ran out of memory while it held `held_bytes`.
  void ObserveExhausted(int64_t batch, int64_t held_bytes);
  void LimitChanged() { cap_ = 0; }

  // Upper estimate of what a micro-batch of `batch` samples holds at its highest point; nothing before the first observation.
  std::optional<int64_t> Predict(int64_t batch) const;
  int64_t largest_success() const { return needs_.empty() ? 0 : needs_.rbegin()->first; }
  int aborts_in_a_row() const { return aborts_in_a_row_; }

 private:
  struct Line {
    double base = 0, slope = 0, miss = 0;
    double At(int64_t batch) const { return base + slope * static_cast<double>(batch); }
  };
  std::optional<Line> Fit() const;
  static bool GuaranteeHolds(int64_t limit_bytes, int64_t guaranteed_bytes) {
    return guaranteed_bytes > 0 && limit_bytes >= guaranteed_bytes;
  }
  int64_t LargestWithin(int64_t bytes, int64_t at_most) const;

  const MicroBatchOptions options_;
  std::map<int64_t, int64_t> needs_;         // size -> recent need
  std::map<int64_t, int64_t> lower_bounds_;  // size -> it needed more than this
  std::optional<Line> line_;
  int64_t cap_ = 0;  // after running out of memory; 0: none
  int successes_ = 0;
  int aborts_in_a_row_ = 0;
};

// Data parallel: cuts samples into rounds of one micro-batch per device, so that no device is without work. Pure.
class Rounds {
 public:
  explicit Rounds(int64_t devices) : devices_(devices) {}
  // How many of the `left` samples the next micro-batch is cut from, after `done` micro-batches: at a round's beginning each
  // device's share is an equal part of what is left, rounded up. One device: all of them.
  int64_t Share(int64_t done, int64_t left) {
    if (done % devices_ == 0) share_ = (left + devices_ - 1) / devices_;
    return std::min(share_, left);
  }

 private:
  const int64_t devices_;
  int64_t share_ = 0;
};

}  // namespace tidepool::train
