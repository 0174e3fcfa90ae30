#include "api/load/load_stats.h"

#include <algorithm>
#include <cmath>

namespace tidepool::api {
namespace {

absl::Duration Quantile(const std::vector<absl::Duration>& sorted, double q) {
  if (sorted.empty()) return absl::ZeroDuration();
  const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(sorted.size())));
  return sorted[std::min(sorted.size(), std::max<size_t>(rank, 1)) - 1];
}

void Count(const LoadSample& sample, LoadGroup* group) {
  ++group->planned;
  if (sample.dropped) {
    ++group->dropped;
    return;
  }
  ++group->sent;
  if (sample.code == StatusCode::kOk) {
    ++group->succeeded;
  } else {
    ++group->errors;
    ++group->errors_by_code[CodeName(sample.code)];
  }
  if (sample.within_slo) ++group->within_slo;
}

void Finish(std::vector<absl::Duration> latencies, LoadGroup* group) {
  group->latency = Summarize(std::move(latencies));
  group->slo_attainment = group->planned == 0 ? 0 : static_cast<double>(group->within_slo) / static_cast<double>(group->planned);
}

}  // namespace

LatencySummary Summarize(std::vector<absl::Duration> values) {
  LatencySummary summary;
  summary.count = static_cast<int64_t>(values.size());
  if (values.empty()) return summary;
  std::sort(values.begin(), values.end());
  absl::Duration sum;
  for (const absl::Duration value : values) sum += value;
  summary.mean = sum / summary.count;
  summary.p50 = Quantile(values, 0.5);
  summary.p90 = Quantile(values, 0.9);
  summary.p95 = Quantile(values, 0.95);
  summary.p99 = Quantile(values, 0.99);
  summary.p999 = Quantile(values, 0.999);
  summary.max = values.back();
  return summary;
}

void Aggregate(LoadResult* result) {
  std::vector<absl::Duration> all;
  std::vector<std::vector<absl::Duration>> by_model(result->models.size()), by_second;
  for (LoadSample& sample : result->samples) {
    LoadGroup& model = result->models[sample.model];
    const bool succeeded = !sample.dropped && sample.code == StatusCode::kOk;
    sample.within_slo = succeeded && sample.latency <= model.slo;
    Count(sample, &model);
    Count(sample, &result->overall);
    const auto second = static_cast<size_t>(std::max<int64_t>(0, absl::ToInt64Seconds(sample.planned)));
    while (result->seconds.size() <= second) {
      result->seconds.push_back({.second = static_cast<int>(result->seconds.size())});
      by_second.emplace_back();
    }
    LoadSecond& slot = result->seconds[second];
    ++slot.planned;
    slot.dropped += sample.dropped ? 1 : 0;
    slot.succeeded += succeeded ? 1 : 0;
    slot.errors += !sample.dropped && !succeeded ? 1 : 0;
    slot.within_slo += sample.within_slo ? 1 : 0;
    if (!succeeded) continue;
    all.push_back(sample.latency);
    by_model[sample.model].push_back(sample.latency);
    by_second[second].push_back(sample.latency);
  }
  for (size_t i = 0; i < result->models.size(); ++i) Finish(std::move(by_model[i]), &result->models[i]);
  Finish(std::move(all), &result->overall);
  for (size_t i = 0; i < result->seconds.size(); ++i) {
    const LatencySummary summary = Summarize(std::move(by_second[i]));
    result->seconds[i].p50 = summary.p50;
    result->seconds[i].p99 = summary.p99;
    result->seconds[i].max = summary.max;
  }
}

}  // namespace tidepool::api
