// From what was recorded to the figures of one run.
#include "cli/demo_figures.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

namespace tidepool::cli {
namespace {

// Samples trained by `time`, between two reports by the straight line.
double SamplesAt(const std::vector<std::pair<double, double>>& points, double time) {
  if (points.empty() || time <= points.front().first) return points.empty() ? 0 : points.front().second;
  for (size_t i = 1; i < points.size(); ++i) {
    const auto& [t0, n0] = points[i - 1];
    const auto& [t1, n1] = points[i];
    if (time <= t1) return t1 > t0 ? n0 + (n1 - n0) * (time - t0) / (t1 - t0) : n1;
  }
  return points.back().second;
}

void TrainFigures(const DemoRun& run, DemoFigures* figures) {
  std::vector<std::pair<double, double>> points;
  std::vector<double> losses;
  bool accuracy_seen = false;
  for (const train::TrainProgress& progress : run.timeline.train) {
    if (progress.event == "step" || progress.event == "started") {
      points.emplace_back(absl::ToDoubleSeconds(progress.time - run.start), static_cast<double>(progress.samples));
    }
    if (progress.event == "step") {
      losses.push_back(progress.loss);
      figures->steps = progress.step;
    }
    if (progress.event == "evaluation") {
      if (!accuracy_seen) figures->accuracy_first = progress.accuracy;
      accuracy_seen = true;
      figures->accuracy_last = progress.accuracy;
      ++figures->evaluations;
    }
    figures->aborts = std::max(figures->aborts, progress.aborts);
    figures->boundary_waits = std::max(figures->boundary_waits, progress.boundary_waits);
    figures->micro_batches = std::max(figures->micro_batches, progress.micro_batches);
    figures->compute_seconds = std::max(figures->compute_seconds, progress.compute_seconds);
    figures->wasted_seconds = std::max(figures->wasted_seconds, progress.wasted_seconds);
    figures->paused_seconds = std::max(figures->paused_seconds, progress.paused_seconds);
    figures->longest_operator_ms = std::max(figures->longest_operator_ms, progress.longest_operator_ms);
  }
  // One global batch is noisy: a quarter of the steps, at most five, stands for each end.
  if (!losses.empty()) {
    const size_t count = std::clamp<size_t>(losses.size() / 4, 1, 5);
    figures->loss_first =
        std::accumulate(losses.begin(), losses.begin() + static_cast<ptrdiff_t>(count), 0.0) / static_cast<double>(count);
    figures->loss_last =
        std::accumulate(losses.end() - static_cast<ptrdiff_t>(count), losses.end(), 0.0) / static_cast<double>(count);
  }
  const double length = absl::ToDoubleSeconds(run.end - run.start);
  const double trained = SamplesAt(points, length) - SamplesAt(points, 0);
  figures->samples = std::llround(trained);
  figures->samples_per_s = length > 0 ? trained / length : 0;
}

void LoadFigures(const DemoRun& run, const DemoPlan& plan, DemoFigures* figures) {
  // Counted anew with the plan's SLOs: every mode is held to the same ones.
  int64_t within = 0;
  std::vector<double> latencies;
  for (const api::LoadSample& sample : run.load.samples) {
    ++figures->requests;
    if (sample.dropped || sample.code != StatusCode::kOk) {
      ++figures->errors;
      continue;
    }
    latencies.push_back(absl::ToDoubleMilliseconds(sample.latency));
    const auto slo = plan.slo.find(run.load.models[sample.model].model);
    if (slo != plan.slo.end() && sample.latency <= slo->second) ++within;
  }
  const Percentiles percentiles = PercentilesOf(std::move(latencies));
  figures->infer_p50_ms = percentiles.p50;
  figures->infer_p99_ms = percentiles.p99;
  figures->slo_attainment = figures->requests > 0 ? static_cast<double>(within) / static_cast<double>(figures->requests) : 0;
}

}  // namespace

Percentiles PercentilesOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
  };
  double sum = 0;
  for (const double value : values) sum += value;
  return {.p50 = at(0.5), .p99 = at(0.99), .max = values.back(), .mean = sum / static_cast<double>(values.size())};
}

std::vector<std::pair<std::string, double>> HandoverParts(const pool::HandoverRecord& record) {
  const auto ms = [](absl::Duration duration) { return std::max(0.0, absl::ToDoubleMilliseconds(duration)); };
  std::vector<std::pair<std::string, double>> parts = {{"notify", ms(record.notify)},
                                                       {"cached", ms(record.giver_parts.cached)},
                                                       {"wait", ms(record.giver_parts.wait)},
                                                       {"unwind", ms(record.giver_parts.unwind)},
                                                       {"give_back", ms(record.giver_parts.give_back)},
                                                       {"zero", ms(record.zero)}};
  double known = 0;
  for (const auto& [name, value] : parts) known += value;
  parts.emplace_back("other", std::max(0.0, ms(record.total) - known));
  return parts;
}

std::vector<pool::HandoverRecord> HandoversDuring(const DemoRun& run) {
  std::vector<pool::HandoverRecord> records;
  for (const pool::HandoverRecord& record : run.timeline.handovers) {
    if (record.start >= run.start && record.start <= run.end && !record.giver.empty()) records.push_back(record);
  }
  return records;
}

DemoFigures FiguresOf(const DemoRun& run, const DemoPlan& plan, const std::vector<pool::PoolStats>& pools) {
  DemoFigures figures;
  LoadFigures(run, plan, &figures);
  TrainFigures(run, &figures);
  std::vector<double> totals;
  std::vector<std::pair<std::string, std::vector<double>>> parts;
  for (const pool::HandoverRecord& record : HandoversDuring(run)) {
    if (!record.granted) {
      ++figures.handovers_late;
      continue;
    }
    totals.push_back(absl::ToDoubleMilliseconds(record.total));
    const auto split = HandoverParts(record);
    parts.resize(split.size());
    for (size_t i = 0; i < split.size(); ++i) {
      parts[i].first = split[i].first;
      parts[i].second.push_back(split[i].second);
    }
  }
  figures.handovers = static_cast<int64_t>(totals.size());
  figures.handover_ms = PercentilesOf(std::move(totals));
  if (parts.empty()) {
    for (const auto& [name, value] : HandoverParts({})) parts.push_back({name, {}});
  }
  for (auto& [name, values] : parts) figures.parts_ms.emplace_back(name, PercentilesOf(std::move(values)));
  for (const pool::PoolStats& pool : pools) {
    const DeviceMemory memory{.capacity_bytes = pool.total * pool.page_bytes,
                              .peak_granted_bytes = pool.peak_granted * pool.page_bytes,
                              .violations = pool.violations};
    figures.capacity_bytes += memory.capacity_bytes;
    figures.peak_granted_bytes += memory.peak_granted_bytes;
    figures.violations += memory.violations;
    figures.devices.push_back(memory);
  }
  for (const serve::ServeEvent& event : run.timeline.serve) {
    if (event.start < run.start || event.start > run.end) continue;
    figures.loads += event.kind == serve::ServeEvent::Kind::kLoad;
    figures.evictions += event.kind == serve::ServeEvent::Kind::kEvict;
  }
  return figures;
}

std::optional<size_t> BestSplit(const std::vector<StaticSplit>& splits, double least_slo) {
  std::optional<size_t> best;
  const auto key = [&](const StaticSplit& split) {
    const bool keeps = split.slo_attainment >= least_slo;
    return keeps ? std::tuple(1, split.samples_per_s, split.slo_attainment)
                 : std::tuple(0, split.slo_attainment, split.samples_per_s);
  };
  for (size_t i = 0; i < splits.size(); ++i) {
    if (splits[i].failure.empty() && (!best.has_value() || key(splits[i]) > key(splits[*best]))) best = i;
  }
  return best;
}

}  // namespace tidepool::cli
