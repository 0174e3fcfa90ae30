#include "train/reclaim_decision.h"

#include <algorithm>
#include <cmath>

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
  absl::Duration patience = std::max(absl::ZeroDuration(), situation.slack * options.slack_fraction);
  if (situation.longest_operator > absl::ZeroDuration()) {
    patience = std::min(patience, situation.longest_operator * options.operator_fraction);
  }
  if (!situation.phase_expected.has_value()) return {ReclaimAction::kAbort};
  // A phase that is late already may end any moment or not: it gets no further patience.
  const absl::Duration remaining = *situation.phase_expected - situation.phase_elapsed;
  if (remaining <= absl::ZeroDuration() || remaining > patience) return {ReclaimAction::kAbort};
  return {ReclaimAction::kWaitBoundary, patience};
}

void DurationModel::Observe(int64_t batch, absl::Duration duration) {
  constexpr double kKeep = 0.98;
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

bool DurationModel::tells_fixed_cost() const {
  constexpr double kLeastSpread = 0.1;  // standard deviation of the sizes, of their mean
  if (weight_ == 0) return false;
  const double mean = sum_b_ / weight_, variance = sum_bb_ / weight_ - mean * mean;
  return variance >= kLeastSpread * kLeastSpread * mean * mean;
}

std::optional<int64_t> DurationModel::SmallestAtSpeed(double share, int64_t most) const {
  if (!tells_fixed_cost()) return std::nullopt;
  const auto speed = [this](int64_t batch) {
    const auto duration = Predict(batch);
    if (!duration.has_value() || *duration <= absl::ZeroDuration()) return 0.0;
    return static_cast<double>(batch) / absl::ToDoubleSeconds(*duration);
  };
  const double wanted = share * speed(most);
  int64_t low = 0, high = std::max<int64_t>(1, most);  // too slow at low, fast enough at high: speed does not fall with the size
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (speed(middle) >= wanted ? high : low) = middle;
  }
  return high;
}

void AbortRate::Observe(absl::Duration computed, bool aborted) {
  constexpr double kMemorySeconds = 5;
  const double seconds = absl::ToDoubleSeconds(computed), keep = std::exp(-seconds / kMemorySeconds);
  aborts_ = aborts_ * keep + (aborted ? 1 : 0);
  seconds_ = seconds_ * keep + seconds;
}

int64_t BestSize(const DurationModel& durations, double aborts_per_second, int64_t most) {
  constexpr int64_t kSteps = 64;
  if (aborts_per_second <= 0 || !durations.tells_fixed_cost()) return most;
  int64_t best = most;
  double best_speed = 0;
  for (int64_t batch = most; batch >= 1; batch -= std::max<int64_t>(1, most / kSteps)) {
    const double seconds = absl::ToDoubleSeconds(durations.Predict(batch).value_or(absl::ZeroDuration()));
    if (seconds <= 0) break;
    const double speed = static_cast<double>(batch) * aborts_per_second / std::expm1(aborts_per_second * seconds);
    if (speed > best_speed) {
      best_speed = speed;
      best = batch;
    }
  }
  return best;
}

}  // namespace tidepool::train
