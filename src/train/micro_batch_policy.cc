#include "train/micro_batch_policy.h"

#include <algorithm>
#include <cmath>

namespace tidepool::train {

namespace {

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::optional<MicroBatchPolicy::Line> MicroBatchPolicy::Fit() const {
  if (needs_.empty()) return std::nullopt;
  Line line;
  if (needs_.size() == 1) {
    // One point: everything above the persistent state is taken to grow with the batch, which overestimates.
    const auto& [batch, need] = *needs_.begin();
    line.base = static_cast<double>(std::min(options_.persistent_bytes, need));
    line.slope = (static_cast<double>(need) - line.base) / static_cast<double>(batch);
    return line;
  }
  std::vector<double> slopes;
  for (auto a = needs_.begin(); a != needs_.end(); ++a) {
    for (auto b = std::next(a); b != needs_.end(); ++b) {
      slopes.push_back(static_cast<double>(b->second - a->second) / static_cast<double>(b->first - a->first));
    }
  }
  line.slope = std::max(0.0, Median(std::move(slopes)));
  std::vector<double> bases;
  for (const auto& [batch, need] : needs_) bases.push_back(static_cast<double>(need) - line.slope * static_cast<double>(batch));
  line.base = Median(std::move(bases));
  for (const auto& [batch, need] : needs_) line.miss = std::max(line.miss, static_cast<double>(need) - line.At(batch));
  return line;
}

std::optional<int64_t> MicroBatchPolicy::Predict(int64_t batch) const {
  if (!line_.has_value()) return std::nullopt;
  const double at = line_->At(batch);
  // What stays is known to the byte; only what comes and goes needs a margin.
  double need = at + std::max(0.0, at - static_cast<double>(options_.persistent_bytes)) * options_.margin + line_->miss;
  for (auto bound = lower_bounds_.begin(); bound != lower_bounds_.end() && bound->first <= batch; ++bound) {
    need = std::max(need, static_cast<double>(bound->second) + 1);
  }
  return static_cast<int64_t>(std::ceil(need));
}

int64_t MicroBatchPolicy::LargestWithin(int64_t bytes, int64_t at_most) const {
  if (at_most < 1 || Predict(1).value_or(0) > bytes) return 0;
  int64_t low = 1, high = at_most + 1;  // need is monotone: low fits, high does not or is not allowed
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (*Predict(middle) <= bytes ? low : high) = middle;
  }
  return low;
}

bool MicroBatchPolicy::Fits(int64_t batch, int64_t limit_bytes, int64_t guaranteed_bytes) const {
  return Predict(batch).value_or(0) <= limit_bytes || (batch == 1 && GuaranteeHolds(limit_bytes, guaranteed_bytes));
}

MicroBatchChoice MicroBatchPolicy::Choose(int64_t limit_bytes, int64_t guaranteed_bytes, int64_t remaining,
                                          int64_t at_most) const {
  int64_t most = std::min({options_.max_batch, remaining, at_most});
  if (most < 1) return {};
  if (!line_.has_value()) return {.batch = limit_bytes > options_.persistent_bytes ? 1 : 0};
  // Probes: the line is only trusted within a few times what was seen, at first within 1, 2, 4.
  const int64_t growth = needs_.size() < 3 ? 2 : options_.growth_per_step;
  most = std::min(most, largest_success() * growth);
  if (cap_ > 0) most = std::min(most, cap_);
  if (options_.protected_after_aborts > 0 && aborts_in_a_row_ >= options_.protected_after_aborts) {
    const int64_t batch = LargestWithin(std::min(guaranteed_bytes, limit_bytes), most);
    if (batch > 0) return {.batch = batch, .protected_run = true};
    if (GuaranteeHolds(limit_bytes, guaranteed_bytes)) return {.batch = 1, .protected_run = true};
  }
  const int64_t largest = LargestWithin(limit_bytes, most);
  if (largest == 0) return {.batch = GuaranteeHolds(limit_bytes, guaranteed_bytes) ? 1 : 0};
  // Equal parts: a global batch of 64 of which 30 fit is 22 + 21 + 21, not 30 + 30 + 4. (Statistics over very few samples are
  // poor.)
  const int64_t parts = (remaining + largest - 1) / largest;
  return {.batch = (remaining + parts - 1) / parts};
}

void MicroBatchPolicy::ObserveSuccess(int64_t batch, int64_t need_bytes) {
  aborts_in_a_row_ = 0;
  // The newest need counts, but an old larger one is only forgotten slowly: memory that was needed once may be needed again.
  auto [entry, is_new] = needs_.try_emplace(batch, need_bytes);
  if (!is_new) entry->second = std::max(need_bytes, entry->second - (entry->second - need_bytes) / 8);
  std::erase_if(lower_bounds_, [&](const auto& bound) { return bound.first <= batch && bound.second >= need_bytes; });
  line_ = Fit();
  if (cap_ > 0 && ++successes_ >= options_.successes_to_double) {
    successes_ = 0;
    cap_ = cap_ >= options_.max_batch ? 0 : cap_ * 2;
  }
}

void MicroBatchPolicy::ObserveExhausted(int64_t batch, int64_t held_bytes) {
  int64_t& bound = lower_bounds_[batch];
  bound = std::max(bound, held_bytes);
  cap_ = std::max<int64_t>(1, batch / 2);
  successes_ = 0;
}

}  // namespace tidepool::train
