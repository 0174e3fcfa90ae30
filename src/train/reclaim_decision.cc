#include "train/reclaim_decision.h"

#include <algorithm>

namespace tidepool::train {

std::string_view Name(Phase phase) {
  switch (phase) {
    case Phase::kIdle: return "idle";
    case Phase::kMicroBatch: return "micro-batch";
    case Phase::kCommit: return "commit";
    case Phase::kOptimizer: return "optimizer";
  }
  return "?";
}

std::string_view Name(ReclaimAction action) {
  switch (action) {
    case ReclaimAction::kDone: return "done";
    case ReclaimAction::kWaitBoundary: return "wait-boundary";
    case ReclaimAction::kAbort: return "abort";
    case ReclaimAction::kCannot: return "cannot";
  }
  return "?";
}

ReclaimDecision DecideReclaim(const ReclaimSituation& situation, const ReclaimOptions& options) {
  if (situation.held_pages <= situation.limit_pages) return {ReclaimAction::kDone};
  switch (situation.phase) {
    case Phase::kIdle: return {ReclaimAction::kCannot};
    case Phase::kCommit:
    case Phase::kOptimizer: return {ReclaimAction::kWaitBoundary};
    case Phase::kMicroBatch: break;
  }
  if (situation.protected_run) return {ReclaimAction::kWaitBoundary};
  const absl::Duration patience = std::max(absl::ZeroDuration(), situation.slack * options.slack_fraction);
  if (!situation.phase_expected.has_value()) return {ReclaimAction::kAbort};
  // A phase that is late already may end any moment or not: it gets no further patience.
  const absl::Duration remaining = *situation.phase_expected - situation.phase_elapsed;
  if (remaining <= absl::ZeroDuration() || remaining > patience) return {ReclaimAction::kAbort};
  return {ReclaimAction::kWaitBoundary, patience};
}

void DurationModel::Observe(int64_t batch, absl::Duration duration) {
  constexpr double kKeep = 0.9;
  const double b = static_cast<double>(batch), t = absl::ToDoubleSeconds(duration);
  weight_ = kKeep * weight_ + 1;
  sum_b_ = kKeep * sum_b_ + b;
  sum_t_ = kKeep * sum_t_ + t;
  sum_bb_ = kKeep * sum_bb_ + b * b;
  sum_bt_ = kKeep * sum_bt_ + b * t;
}

std::optional<absl::Duration> DurationModel::Predict(int64_t batch) const {
  if (weight_ == 0) return std::nullopt;
  const double mean_b = sum_b_ / weight_, mean_t = sum_t_ / weight_;
  const double variance = sum_bb_ / weight_ - mean_b * mean_b;
  const double b = static_cast<double>(batch);
  // Without spread in the sizes, time is taken to be proportional to the size.
  double slope = mean_t / mean_b;
  if (variance > 1e-6 * mean_b * mean_b) slope = std::clamp((sum_bt_ / weight_ - mean_b * mean_t) / variance, 0.0, slope);
  return absl::Seconds(std::max(0.0, mean_t + slope * (b - mean_b)));
}

}  // namespace tidepool::train
