#include "cli/plan_what_if.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <tuple>

#include "cli/print.h"
#include "report/plot.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostPoints = 256;

struct AxisRule {
  SweepAxis axis;
  const char* name;
  const char* label;
  double min, max;
};
constexpr AxisRule kAxes[] = {{SweepAxis::kGpus, "gpus", "devices", 1, 65536},
                              {SweepAxis::kMemory, "memory", "memory of a device, MiB", 1, 1e9},
                              {SweepAxis::kLinks, "links", "times the speed of links", 1e-3, 1e3}};

const AxisRule& RuleOf(SweepAxis axis) { return kAxes[static_cast<size_t>(axis)]; }

StatusOr<double> ParseValue(const AxisRule& rule, const std::string& word) {
  std::string_view text = word;
  if (rule.axis == SweepAxis::kLinks && text.starts_with('x')) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = rule.axis != SweepAxis::kGpus || value == std::floor(value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= rule.min && value <= rule.max) || !whole) {
    return InvalidArgument("--what-if: '{}' for {}; allowed: {} from {} to {}", word, rule.name,
                           rule.axis == SweepAxis::kGpus ? "integers" : "numbers", rule.min, rule.max);
  }
  return value;
}

// One node up to the options' size of a node, else whole nodes of it.
StatusOr<plan::Cluster> WithGpus(plan::Cluster cluster, int32_t gpus) {
  if (gpus <= cluster.gpus_per_node) {
    cluster.nodes = 1;
    cluster.gpus_per_node = gpus;
    return cluster;
  }
  if (gpus % cluster.gpus_per_node != 0) {
    return InvalidArgument("--what-if: gpus={}; allowed: up to {}, or a multiple of it (--gpus-per-node)", gpus,
                           cluster.gpus_per_node);
  }
  cluster.nodes = gpus / cluster.gpus_per_node;
  return cluster;
}

StatusOr<std::vector<SweepPoint>> PointsOf(const Sweep& sweep, const plan::Cluster& base) {
  std::vector<SweepPoint> points = {{.cluster = base}};
  for (const Sweep::Axis& axis : sweep.axes) {
    std::vector<SweepPoint> next;
    for (const SweepPoint& point : points) {
      for (const double value : axis.values) {
        SweepPoint changed = point;
        if (axis.axis == SweepAxis::kGpus) {
          TIDEPOOL_ASSIGN_OR_RETURN(changed.cluster, WithGpus(base, static_cast<int32_t>(value)));
          changed.cluster.memory_limit_mib = point.cluster.memory_limit_mib;
        } else if (axis.axis == SweepAxis::kMemory) {
          changed.cluster.memory_limit_mib = value;
        } else {
          changed.links = value;
        }
        next.push_back(std::move(changed));
      }
    }
    points = std::move(next);
  }
  return points;
}

Status RunPoint(plan::SearchKind kind, const plan::OpList& ops, const std::string& profiles, const PlanCostModel& cost,
                plan::SearchRequest request, const VerbContext& context, SweepPoint* point, std::vector<std::string>* notes) {
  TIDEPOOL_ASSIGN_OR_RETURN(
      PlanProfile profile,
      LoadPlanProfile(profiles, ops, {.micro_batches = request.micro_batches, .gpus = point->cluster.gpus()}));
  if (point->links != 1) ScaleLinks(point->links, &profile.bundle);
  TIDEPOOL_ASSIGN_OR_RETURN(const auto setting, MakePlanSetting(ops, profile, point->cluster, cost, request.micro_batches));
  point->cluster = setting->cluster;
  for (const std::string& note : setting->notes) {
    if (std::find(notes->begin(), notes->end(), note) == notes->end()) notes->push_back(note);
  }
  request.max_stages = std::min(request.max_stages, std::min(point->cluster.gpus(), ops.size()));
  auto result = RunSearch(kind, *setting, request, context);
  point->status = result.status();
  // What does not fit is an answer; what is wrong with the request is an error of the whole sweep.
  if (!result.ok()) return result.status().code() == StatusCode::kResourceExhausted ? Status() : result.status();
  point->result = *std::move(result);
  const plan::RankedPlan& best = point->result.plans.front();
  point->throughput = static_cast<double>(best.plan.micro_batches()) * best.plan.micro_batch / best.cost.iteration_ms * 1000;
  return {};
}

std::string LinksText(double links) { return fmt::format("x{:g}", links); }

}  // namespace

StatusOr<Sweep> ParseSweep(const std::vector<std::string>& words) {
  Sweep sweep;
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    if (equals != std::string::npos) {
      const std::string name = word.substr(0, equals);
      const auto rule = std::find_if(std::begin(kAxes), std::end(kAxes), [&](const AxisRule& one) { return name == one.name; });
      if (rule == std::end(kAxes))
        return InvalidArgument("--what-if: '{}'; allowed: gpus=N,..., memory=MIB,..., links=xF,...", word);
      for (const Sweep::Axis& axis : sweep.axes) {
        if (axis.axis == rule->axis) return InvalidArgument("--what-if: {} twice; allowed: once", rule->name);
      }
      sweep.axes.push_back({.axis = rule->axis});
    } else if (sweep.axes.empty()) {
      return InvalidArgument("--what-if: '{}'; allowed: gpus=N,..., memory=MIB,..., links=xF,...", word);
    }
    Sweep::Axis& axis = sweep.axes.back();
    TIDEPOOL_ASSIGN_OR_RETURN(const double value,
                              ParseValue(RuleOf(axis.axis), equals == std::string::npos ? word : word.substr(equals + 1)));
    axis.values.push_back(value);
  }
  size_t points = 1;
  for (Sweep::Axis& axis : sweep.axes) {
    std::sort(axis.values.begin(), axis.values.end());
    axis.values.erase(std::unique(axis.values.begin(), axis.values.end()), axis.values.end());
    points *= axis.values.size();
    if (points > kMostPoints) return InvalidArgument("--what-if: more than {} points; allowed: at most so many", kMostPoints);
  }
  return sweep;
}

void ScaleLinks(double speed, profile::Bundle* bundle) {
  for (profile::LinkRow& row : bundle->links) row.median_us /= speed;
  for (profile::CollectiveRow& row : bundle->collectives) row.median_us /= speed;
}

StatusOr<SweepResult> RunSweep(const Sweep& sweep, const PlanSearchOptions& search, const PlanSettingOptions& setting,
                               const PlanCostModel& cost, double target_throughput, const VerbContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const plan::SearchKind kind, search.Kind(cost.options.schedule));
  TIDEPOOL_ASSIGN_OR_RETURN(const plan::SearchRequest request, search.Request());
  TIDEPOOL_ASSIGN_OR_RETURN(const plan::OpList ops, FindOpList(search.model));
  SweepResult result;
  TIDEPOOL_ASSIGN_OR_RETURN(result.points, PointsOf(sweep, ClusterOf(setting)));
  const auto price = [](const SweepPoint& point) {
    return std::tuple(point.cluster.gpus(), point.cluster.memory_limit_mib, point.links);
  };
  for (size_t i = 0; i < result.points.size(); ++i) {
    if (context.stopped()) return Cancelled("stopped after {} of {} clusters", i, result.points.size());
    SweepPoint& point = result.points[i];
    const Status run = RunPoint(kind, ops, setting.profiles, cost, request, context, &point, &result.notes);
    if (!run.ok())
      return Annotate(run, fmt::format("{} devices of {:.0f} MiB", point.cluster.gpus(), point.cluster.memory_limit_mib));
    const bool reaches = point.status.ok() && target_throughput > 0 && point.throughput >= target_throughput;
    if (reaches && (result.cheapest < 0 || price(point) < price(result.points[static_cast<size_t>(result.cheapest)]))) {
      result.cheapest = static_cast<int>(i);
    }
  }
  const bool scaled =
      std::any_of(result.points.begin(), result.points.end(), [](const SweepPoint& point) { return point.links != 1; });
  if (scaled)
    result.notes.emplace_back(
        "links: collectives inside of tensor-parallel ops are part of their measured times and are not scaled");
  return result;
}

Json SweepJson(const SweepResult& result, double target_throughput) {
  Json points = Json::array();
  for (const SweepPoint& point : result.points) {
    Json entry = {{"gpus", point.cluster.gpus()},
                  {"nodes", point.cluster.nodes},
                  {"gpu_memory_mib", point.cluster.memory_limit_mib},
                  {"links", point.links}};
    if (point.status.ok()) {
      entry["throughput_samples_per_s"] = point.throughput;
      entry["iteration_seconds"] = point.result.best_ms() / 1000;
      entry["memory_mib"] = MemoryJson(point.result.plans.front().cost);
      entry["gap"] = GapOf(point.result) >= 0 ? Json(GapOf(point.result)) : Json(nullptr);
      entry["search_seconds"] = point.result.seconds;
    } else {
      entry["error"] = MessageOf(point.status);
    }
    points.push_back(std::move(entry));
  }
  return {{"points", std::move(points)},
          {"target_throughput", target_throughput > 0 ? Json(target_throughput) : Json(nullptr)},
          {"cheapest", result.cheapest >= 0 ? Json(result.cheapest) : Json(nullptr)},
          {"notes", result.notes}};
}

void PrintSweep(const SweepResult& result, double target_throughput) {
  std::vector<std::vector<std::string>> rows = {
      {"DEVICES", "NODES", "MEMORY", "LINKS", "ITERATION", "SAMPLES/S", "PER DEVICE", "STAGES", "FULLEST", "SEARCHED", ""}};
  for (size_t i = 0; i < result.points.size(); ++i) {
    const SweepPoint& point = result.points[i];
    std::vector<std::string> row = {fmt::format("{}", point.cluster.gpus()), fmt::format("{}", point.cluster.nodes),
                                    fmt::format("{:.0f} MiB", point.cluster.memory_limit_mib), LinksText(point.links)};
    if (point.status.ok()) {
      const plan::RankedPlan& best = point.result.plans.front();
      row.insert(row.end(),
                 {PlanTimeText(best.cost.iteration_ms * 1000), fmt::format("{:.3f}", point.throughput),
                  fmt::format("{:.3f}", point.throughput / point.cluster.gpus()), fmt::format("{}", best.plan.stages.size()),
                  fmt::format("{:.0f} MiB", best.cost.max_memory_mib), fmt::format("{:.2f} s", point.result.seconds),
                  result.cheapest == static_cast<int>(i) ? "<- cheapest that reaches the target" : ""});
    } else {
      row.insert(row.end(), {"-", "-", "-", "-", "-", "-", MessageOf(point.status).substr(0, 100)});
    }
    rows.push_back(std::move(row));
  }
  PrintTable(rows, "rrrrrrrrrrl");
  if (target_throughput > 0 && result.cheapest < 0)
    fmt::print("\nnone of these clusters reaches {:g} samples/s\n", target_throughput);
  for (const std::string& note : result.notes) fmt::print("note: {}\n", note);
}

std::string SweepPlot(const Sweep& sweep, const SweepResult& result, double target_throughput, const std::string& title) {
  const SweepAxis axis = sweep.axes.front().axis;
  std::vector<report::Series> series;
  std::map<std::string, size_t> index;
  for (const SweepPoint& point : result.points) {
    std::string name;
    double x = 0;
    for (const Sweep::Axis& one : sweep.axes) {
      const double value = one.axis == SweepAxis::kGpus     ? point.cluster.gpus()
                           : one.axis == SweepAxis::kMemory ? point.cluster.memory_limit_mib
                                                            : point.links;
      if (one.axis == axis) {
        x = value;
      } else {
        name += fmt::format("{}{} {:g}", name.empty() ? "" : ", ", RuleOf(one.axis).name, value);
      }
    }
    const auto [entry, fresh] = index.try_emplace(name, series.size());
    if (fresh) series.push_back({.name = name});
    series[entry->second].x.push_back(x);
    series[entry->second].y.push_back(point.status.ok() ? point.throughput : NAN);
  }
  report::PlotOptions options{.title = title, .x = {.label = RuleOf(axis).label}, .y = {.label = "samples/s", .min = 0}};
  if (target_throughput > 0) options.marks.push_back({"target", target_throughput});
  return report::LinePlot(series, options);
}

}  // namespace tidepool::cli
