#include "api/load/load_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

#include "base/fd.h"
#include "base/text.h"
#include "base/units.h"

namespace tidepool::api {
namespace {

class ModelChooser {
 public:
  ModelChooser(size_t models, double exponent) {
    double sum = 0;
    for (const double share : ZipfShares(models, exponent)) cumulative_.push_back(sum += share);
  }
  uint32_t Choose(double uniform) const {
    const auto it = std::upper_bound(cumulative_.begin(), cumulative_.end(), uniform);
    const auto index = std::min<ptrdiff_t>(it - cumulative_.begin(), static_cast<ptrdiff_t>(cumulative_.size()) - 1);
    return static_cast<uint32_t>(index);
  }

 private:
  std::vector<double> cumulative_;
};

Status CheckSize(double expected) {
  if (expected <= static_cast<double>(kMaxPlannedRequests)) return absl::OkStatus();
  return InvalidArgument("the load would have about {:.0f} requests; allowed: {}. Lower the rate or the length", expected,
                         kMaxPlannedRequests);
}

// Times of a Poisson process whose rate is rates[state]; state 0 and 1 alternate after exponential times with the given means.
// A process without memory may be drawn anew at each change of state.
void PlanPoisson(const LoadOptions& options, const ModelChooser& chooser, std::vector<PlannedRequest>* plan) {
  // Two streams, so that the choice of models does not change when the arrivals do.
  UniformSource gaps(options.seed), choices(options.seed ^ 0x9e3779b97f4a7c15u);
  const bool bursty = options.arrivals == Arrivals::kBursty;
  const double rates[] = {options.rate, options.burst_rate};
  const double means[] = {absl::ToDoubleSeconds(options.calm_length), absl::ToDoubleSeconds(options.burst_length)};
  const double length = absl::ToDoubleSeconds(options.length);
  int state = 0;
  double now = 0;
  while (now < length) {
    const double change = bursty ? std::min(length, now + gaps.NextExponential(means[state])) : length;
    while (rates[state] > 0) {
      now += gaps.NextExponential(1 / rates[state]);
      if (now >= change) break;
      plan->push_back({absl::Seconds(now), chooser.Choose(choices.Next())});
    }
    now = change;
    state = 1 - state;
  }
}

void PlanConstant(const LoadOptions& options, const ModelChooser& chooser, std::vector<PlannedRequest>* plan) {
  UniformSource choices(options.seed ^ 0x9e3779b97f4a7c15u);
  for (int64_t i = 0;; ++i) {
    const absl::Duration at = absl::Seconds(static_cast<double>(i) / options.rate);
    if (at >= options.length) return;
    plan->push_back({at, chooser.Choose(choices.Next())});
  }
}

}  // namespace

uint64_t UniformSource::NextBits() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double UniformSource::NextExponential(double mean) { return -std::log1p(-Next()) * mean; }

double UniformSource::NextNormal() {
  const double radius = std::sqrt(-2 * std::log1p(-Next()));
  return radius * std::cos(2 * std::numbers::pi * Next());
}

std::vector<double> ZipfShares(size_t models, double exponent) {
  std::vector<double> shares;
  double sum = 0;
  for (size_t k = 1; k <= models; ++k) sum += shares.emplace_back(std::pow(static_cast<double>(k), -exponent));
  for (double& share : shares) share /= sum;
  return shares;
}

StatusOr<std::vector<PlannedRequest>> MakePlan(const LoadOptions& options, std::span<const std::string> models) {
  if (models.empty()) return InvalidArgument("the load has no models; allowed: at least one");
  if (options.arrivals == Arrivals::kTrace) {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.trace_file, int64_t{1} << 30));
    StatusOr<std::vector<PlannedRequest>> plan = ParseTrace(text, models, options.length);
    return plan.ok() ? std::move(plan) : Annotate(plan.status(), options.trace_file);
  }
  const double peak = options.arrivals == Arrivals::kBursty ? std::max(options.rate, options.burst_rate) : options.rate;
  TIDEPOOL_RETURN_IF_ERROR(CheckSize(peak * absl::ToDoubleSeconds(options.length)));
  const ModelChooser chooser(models.size(), options.zipf);
  std::vector<PlannedRequest> plan;
  if (options.arrivals == Arrivals::kConstant) {
    PlanConstant(options, chooser, &plan);
  } else {
    PlanPoisson(options, chooser, &plan);
  }
  return plan;
}

StatusOr<std::vector<PlannedRequest>> ParseTrace(std::string_view text, std::span<const std::string> models,
                                                 absl::Duration length) {
  std::vector<PlannedRequest> plan;
  int line_number = 0;
  bool first = true;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = TrimText(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    if (line.empty() || line.starts_with('#')) continue;
    const bool may_be_header = std::exchange(first, false);
    const size_t comma = line.find(',');
    if (comma == std::string_view::npos)
      return InvalidArgument("line {}: '{}' has no comma; allowed: seconds,model", line_number, line);
    const std::string_view time = TrimText(line.substr(0, comma)), name = TrimText(line.substr(comma + 1));
    double seconds = 0;
    const auto [stop, error] = std::from_chars(time.data(), time.data() + time.size(), seconds);
    if (error != std::errc() || stop != time.data() + time.size() || !(seconds >= 0) || !std::isfinite(seconds)) {
      if (may_be_header) continue;
      return InvalidArgument("line {}: '{}' is not a time in seconds; allowed: 0 and above", line_number, time);
    }
    const auto model = std::find(models.begin(), models.end(), name);
    if (model == models.end()) {
      return InvalidArgument("line {}: model '{}' is not part of the load; allowed: {}", line_number, name,
                             JoinText(models, ", "));
    }
    if (absl::Seconds(seconds) >= length) continue;
    if (static_cast<int64_t>(plan.size()) >= kMaxPlannedRequests) return CheckSize(static_cast<double>(plan.size()) + 1);
    plan.push_back({absl::Seconds(seconds), static_cast<uint32_t>(model - models.begin())});
  }
  std::stable_sort(plan.begin(), plan.end(), [](const PlannedRequest& a, const PlannedRequest& b) { return a.at < b.at; });
  return plan;
}

}  // namespace tidepool::api
