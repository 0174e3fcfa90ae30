#include "serve/slo.h"

#include <algorithm>

namespace tidepool::serve {
namespace {

// How much of a refusal-causing estimate survives one refusal, and how fast the least time follows slower samples upwards.
constexpr double kDoubt = 0.8;
constexpr double kLeastDrift = 1.05;

}  // namespace

void ComputeEstimator::Record(ModelId model, int batch, absl::Duration compute) {
  auto [it, fresh] = models_[model].by_batch.try_emplace(batch, Sample{compute, compute});
  if (fresh) return;
  Sample& sample = it->second;
  sample.mean = sample.mean * (1 - kWeight) + compute * kWeight;
  sample.least = compute < sample.least ? compute : std::min(compute, sample.least * kLeastDrift);
}

template <typename Pick>
absl::Duration ComputeEstimator::Lookup(ModelId model, int batch, Pick pick) const {
  const auto found = models_.find(model);
  if (found == models_.end() || found->second.by_batch.empty()) return absl::ZeroDuration();
  const auto& known = found->second.by_batch;
  const auto above = known.lower_bound(batch);
  if (above != known.end() && above->first == batch) return pick(above->second);
  if (above == known.begin()) return pick(above->second);
  const auto below = std::prev(above);
  if (above == known.end()) return pick(below->second) * (static_cast<double>(batch) / below->first);
  const double share = static_cast<double>(batch - below->first) / (above->first - below->first);
  return pick(below->second) * (1 - share) + pick(above->second) * share;
}

absl::Duration ComputeEstimator::Expected(ModelId model, int batch) const {
  return Lookup(model, batch, [](const Sample& sample) { return sample.mean; });
}

absl::Duration ComputeEstimator::Least(ModelId model, int batch) const {
  // A size that was never run proves nothing about the least time, but the smallest known size below it does.
  const auto found = models_.find(model);
  if (found == models_.end()) return absl::ZeroDuration();
  const auto& known = found->second.by_batch;
  auto it = known.upper_bound(batch);
  if (it == known.begin()) return absl::ZeroDuration();
  return std::prev(it)->second.least;
}

void ComputeEstimator::Doubt(ModelId model) {
  const auto found = models_.find(model);
  if (found == models_.end()) return;
  for (auto& [batch, sample] : found->second.by_batch) sample.least *= kDoubt;
}

void ComputeEstimator::RecordLoad(ModelId model, absl::Duration load) {
  absl::Duration& mean = models_[model].load;
  mean = mean == absl::ZeroDuration() ? load : mean * (1 - kWeight) + load * kWeight;
}

absl::Duration ComputeEstimator::ExpectedLoad(ModelId model) const {
  const auto found = models_.find(model);
  return found == models_.end() ? absl::ZeroDuration() : found->second.load;
}

void ComputeEstimator::Forget(ModelId model) { models_.erase(model); }

absl::Time SloAccount::Target(absl::Time received, absl::Time deadline) const {
  const absl::Duration slo = this->slo();
  return std::min(deadline, received + (slo > absl::ZeroDuration() ? slo : kUnknown));
}

}  // namespace tidepool::serve
