// The published planner's evaluation, repeated with our searches under the same cost model: throughput (its figure 7), search
// time (8), depth (9), and how well its model predicts. What is set beside ours was published or measured by others; ours is
// predicted by the parity model, as theirs is.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#include "base/fd.h"
#include "base/text.h"
#include "base/units.h"
#include "cli/experiment.h"
#include "cli/plan_search.h"
#include "report/plot.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::ordered_json;
using report::Cell;
using report::Table;

constexpr int64_t kMostBytes = int64_t{16} << 20;
constexpr absl::Duration kLongestSearch = absl::Seconds(60);

Cell Number(double value, int digits, const char* unit = "") {
  return {.text = std::isfinite(value) ? fmt::format("{:.{}f}{}", value, digits, unit) : "-", .number = true};
}
Json Finite(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

// Column of the first row -> name of a row -> value; what is 0 was not measured and is absent.
using PublishedTable = std::map<std::string, std::map<std::string, double>>;
StatusOr<PublishedTable> ReadPublished(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostBytes));
  PublishedTable table;
  std::vector<std::string> head;
  int64_t line_number = 0;
  for (const std::string& line : SplitText(text, '\n')) {
    ++line_number;
    if (TrimText(line).empty()) continue;
    const std::vector<std::string> fields = SplitText(line, ',');
    if (head.empty()) {
      head = fields;
      continue;
    }
    if (fields.size() != head.size())
      return InvalidArgument("{}:{}: {} fields; allowed: {}", path, line_number, fields.size(), head.size());
    for (size_t i = 1; i < fields.size(); ++i) {
      const std::string field(TrimText(fields[i]));
      char* end = nullptr;
      const double value = std::strtod(field.c_str(), &end);
      if (field.empty() || *end != '\0') return InvalidArgument("{}:{}: '{}' is no number", path, line_number, field);
      if (value != 0) table[std::string(TrimText(head[i]))][std::string(TrimText(fields[0]))] = value;
    }
  }
  return table;
}
double ValueOf(const PublishedTable& table, const std::string& column, const std::string& row) {
  const auto found = table.find(column);
  if (found == table.end()) return NAN;
  const auto value = found->second.find(row);
  return value == found->second.end() ? NAN : value->second;
}

// One setting of baseline.json: what the published planner was run on, and what it found on a machine like ours.
struct PeerSetting {
  std::string name, family, size, model;  // "large/gpt_1_3B", "gpt", "1_3B", "gpt:1.3b"
  plan::Cluster cluster;
  std::string profiles;
  int64_t global_batch = 0;
  std::vector<int32_t> micro_batches;
  double peer_seconds = NAN, peer_cpu_seconds = NAN, grid_seconds = NAN;
};

std::string ModelOf(const std::string& group, const std::string& family, std::string size) {
  if (group == "scale") return "gpt-layers:" + size;
  std::replace(size.begin(), size.end(), '_', '.');
  std::transform(size.begin(), size.end(), size.begin(), [](unsigned char c) { return std::tolower(c); });
  return (family == "resnet" ? "wresnet" : family) + ":" + size;
}

Status ReadSetting(const std::string& path, const std::string& name, const Json& json, PeerSetting* setting) {
  const auto fault = [&](const char* key) {
    return InvalidArgument("{}: settings['{}']: key '{}' is missing or of a wrong type", path, name, key);
  };
  for (const char* key : {"nodes", "gpus_per_node", "memory_limit_MB", "global_batch"}) {
    if (!json.contains(key) || !json[key].is_number()) return fault(key);
  }
  if (!json.contains("profiles") || !json["profiles"].is_string()) return fault("profiles");
  if (!json.contains("micro_batches") || !json["micro_batches"].is_array()) return fault("micro_batches");
  setting->name = name;
  const size_t slash = name.find('/'), bar = name.find('_');
  const std::string group = name.substr(0, slash);
  setting->family = group == "scale" ? "scale" : name.substr(slash + 1, bar - slash - 1);
  setting->size = group == "scale" ? name.substr(slash + 1) : name.substr(bar + 1);
  setting->model = ModelOf(group, setting->family, setting->size);
  setting->cluster = {
      .nodes = json["nodes"], .gpus_per_node = json["gpus_per_node"], .memory_limit_mib = json["memory_limit_MB"]};
  setting->profiles = json["profiles"];
  setting->global_batch = json["global_batch"];
  for (const Json& value : json["micro_batches"]) {
    if (!value.is_number_integer()) return fault("micro_batches");
    setting->micro_batches.push_back(value);
  }
  if (json.contains("megatron_grid_pred_s") && json["megatron_grid_pred_s"].is_number())
    setting->grid_seconds = json["megatron_grid_pred_s"];
  if (!json.contains("runs") || !json["runs"].is_object()) return {};
  for (const auto& [run, values] : json["runs"].items()) {
    const auto number = [&](const char* key) {
      return values.contains(key) && values[key].is_number() ? values[key].get<double>() : NAN;
    };
    const double found = number("best_evaluated_pred_s");
    if (!(found >= setting->peer_seconds)) {
      setting->peer_seconds = found;
      setting->peer_cpu_seconds = number("cpu_s_total");
    }
  }
  return {};
}

// Those of `group` ("large", "scale", "small"), in the file's order.
StatusOr<std::vector<PeerSetting>> ReadSettings(const std::string& root, const std::vector<std::string>& groups) {
  const std::string path = root + "/baseline.json";
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostBytes));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("settings") || !json["settings"].is_object())
    return InvalidArgument("{}: key 'settings' is missing", path);
  std::vector<PeerSetting> settings;
  for (const auto& [name, value] : json["settings"].items()) {
    if (std::find(groups.begin(), groups.end(), name.substr(0, name.find('/'))) == groups.end()) continue;
    TIDEPOOL_RETURN_IF_ERROR(ReadSetting(path, name, value, &settings.emplace_back()));
  }
  return settings;
}

struct Found {
  Status status;
  plan::SearchKind kind = plan::SearchKind::kAuto;
  plan::SearchResult result;
  double peak_mib = NAN;                                                          // most memory that this process held meanwhile
  double seconds() const { return status.ok() ? result.best_ms() / 1000 : NAN; }  // of an iteration
};

// The most resident memory since the last call. NaN where the kernel does not tell.
double PeakMibSinceLastCall() {
  double mib = NAN;
  if (const auto status = ReadFile("/proc/self/status", kMiB); status.ok()) {
    if (const size_t at = status->find("VmHWM:"); at != std::string::npos) {
      mib = std::strtod(status->c_str() + at + 6, nullptr) / 1024;
    }
  }
  // 5 sets the mark back to what is resident now.
  std::ofstream reset("/proc/self/clear_refs");
  reset << "5" << std::flush;
  return reset ? mib : NAN;
}

StatusOr<Found> SearchSetting(const ExperimentContext& context, const std::string& root, const PeerSetting& peer) {
  TIDEPOOL_ASSIGN_OR_RETURN(plan::OpList ops, FindOpList(peer.model));
  TIDEPOOL_ASSIGN_OR_RETURN(const PlanProfile profile, LoadPlanProfile(root + "/" + peer.profiles, ops, {}));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto setting,
                            MakePlanSetting(std::move(ops), profile, peer.cluster, {.name = "parity"}, peer.micro_batches));
  plan::SearchRequest request{.global_batch = peer.global_batch, .micro_batches = peer.micro_batches, .threads = context.threads};
  request.wall_limit = kLongestSearch;
  request.stopped = context.stopped;
  request.on_progress = [&](const plan::SearchProgress& progress) {
    context.show_progress(fmt::format("{}: {}", peer.name, ProgressText(progress)));
  };
  Found found;
  PeakMibSinceLastCall();
  auto result = plan::Search(found.kind, *setting->model, request);
  found.peak_mib = PeakMibSinceLastCall();
  found.status = result.status();
  if (result.ok()) found.result = *std::move(result);
  return found;
}

// Runs `each` for every setting with what was found.
template <typename Each>
Status ForEach(const ExperimentContext& context, const std::string& root, std::vector<PeerSetting> settings,
               ExperimentReport* report, Each each) {
  if (context.quick) settings.resize(std::min<size_t>(settings.size(), 2));
  report->json["settings"] = Json::array();
  for (const PeerSetting& peer : settings) {
    if (context.stopped()) return Cancelled("stopped before {}", peer.name);
    TIDEPOOL_ASSIGN_OR_RETURN(const Found found, SearchSetting(context, root, peer));
    const bool bound = found.status.ok() && found.result.lower_bound_ms > 0;
    Json entry = {{"setting", peer.name},
                  {"search", plan::NameOf(found.kind)},
                  {"ours_seconds", Finite(found.seconds())},
                  {"search_seconds", found.status.ok() ? Json(found.result.seconds) : Json(nullptr)},
                  {"evaluations", found.result.evaluations},
                  {"peak_mib", Finite(found.peak_mib)},
                  {"gap", bound ? Json(GapOf(found.result)) : Json(nullptr)},
                  {"cut_short", found.result.hit_wall_limit},
                  {"peer_seconds", Finite(peer.peer_seconds)},
                  {"peer_cpu_seconds", Finite(peer.peer_cpu_seconds)}};
    if (!found.status.ok()) {
      entry["error"] = ToString(found.status);
      report->notes.push_back(fmt::format("{}: {}", peer.name, MessageOf(found.status)));
    } else if (found.result.hit_wall_limit) {
      report->notes.push_back(
          fmt::format("{}: our search was cut short after {}", peer.name, absl::FormatDuration(kLongestSearch)));
    }
    each(peer, found);
    report->json["settings"].push_back(std::move(entry));
  }
  return {};
}

StatusOr<ExperimentReport> Throughput(const ExperimentContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string root, ReferenceFolder(context, "aceso"));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto settings, ReadSettings(root, {"large"}));
  std::map<std::string, PublishedTable> published;
  for (const char* family : {"gpt", "resnet", "t5"}) {
    TIDEPOOL_ASSIGN_OR_RETURN(published[family],
                              ReadPublished(fmt::format("{}/published-results/e2e_norm_thpt_large_{}.csv", root, family)));
  }
  ExperimentReport report;
  Table table{
      .columns = {"SETTING", "DEVICES", "OURS s", "ACESO s", "OURS / ACESO", "OURS / GRID", "PUBLISHED ALPA", "PUBLISHED ACESO"},
      .caption = "Predicted iteration, and throughput over that of Megatron's grid (published columns: measured on V100)"};
  std::vector<std::string> names;
  report::BarPart ours{.name = "ours, predicted, over the grid"};
  TIDEPOOL_RETURN_IF_ERROR(ForEach(context, root, settings, &report, [&](const PeerSetting& peer, const Found& found) {
    names.push_back(peer.model);
    ours.values.push_back(peer.grid_seconds / found.seconds());
    table.rows.push_back({{peer.name},
                          Number(peer.cluster.gpus(), 0),
                          Number(found.seconds(), 3),
                          Number(peer.peer_seconds, 3),
                          Number(found.seconds() / peer.peer_seconds, 4),
                          Number(peer.grid_seconds / found.seconds(), 2),
                          Number(ValueOf(published[peer.family], peer.size, "alpa"), 2),
                          Number(ValueOf(published[peer.family], peer.size, "aceso"), 2)});
  }));
  report.plots.push_back(report::StackedBarPlot(
      names, {ours},
      {.title = "Throughput over Megatron's grid", .note = "predicted by one cost model", .y = {.label = "times the grid's"}}));
  report.tables.push_back(std::move(table));
  report.notes.emplace_back("ACESO s: the best that the published search found on a machine like ours, priced by the same model");
  return report;
}

StatusOr<ExperimentReport> SearchCost(const ExperimentContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string root, ReferenceFolder(context, "aceso"));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto settings, ReadSettings(root, {"small", "large"}));
  std::map<std::string, PublishedTable> published;
  for (const char* family : {"gpt", "resnet"}) {
    TIDEPOOL_ASSIGN_OR_RETURN(published[family],
                              ReadPublished(fmt::format("{}/published-results/search_cost_large_{}.csv", root, family)));
  }
  ExperimentReport report;
  Table table{.columns = {"SETTING", "OURS s", "STAGES PRICED", "ACESO CPU s, RE-RUN", "PUBLISHED ACESO s", "PUBLISHED ALPA s"},
              .caption = "Search time; ours is wall time on this machine"};
  report::Series ours{.name = "ours", .dots = true}, aceso{.name = "Aceso, published", .dots = true},
      alpa{.name = "Alpa, published", .dots = true};
  TIDEPOOL_RETURN_IF_ERROR(ForEach(context, root, settings, &report, [&](const PeerSetting& peer, const Found& found) {
    const bool large = peer.name.starts_with("large/");
    const double peer_aceso = large ? ValueOf(published[peer.family], peer.size, "aceso") : NAN;
    const double peer_alpa = large ? ValueOf(published[peer.family], peer.size, "alpa") : NAN;
    const double seconds = found.status.ok() ? found.result.seconds : NAN;
    for (auto* one : {&ours, &aceso, &alpa}) one->x.push_back(peer.cluster.gpus());
    ours.y.push_back(seconds);
    aceso.y.push_back(peer_aceso);
    alpa.y.push_back(peer_alpa);
    table.rows.push_back({{peer.name},
                          Number(seconds, 2),
                          Number(static_cast<double>(found.result.evaluations), 0),
                          Number(peer.peer_cpu_seconds, 0),
                          Number(peer_aceso, 0),
                          Number(peer_alpa, 0)});
  }));
  report.plots.push_back(
      report::LinePlot({ours, aceso, alpa}, {.title = "Search time",
                                             .x = {.label = "devices"},
                                             .y = {.label = "search", .unit = report::Unit::kSeconds, .log = true}}));
  report.tables.push_back(std::move(table));
  return report;
}

StatusOr<ExperimentReport> Depth(const ExperimentContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string root, ReferenceFolder(context, "aceso"));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto settings, ReadSettings(root, {"scale"}));
  TIDEPOOL_ASSIGN_OR_RETURN(const PublishedTable speed,
                            ReadPublished(root + "/published-results/e2e_thpt_scale_scale-layer.csv"));
  TIDEPOOL_ASSIGN_OR_RETURN(const PublishedTable cost,
                            ReadPublished(root + "/published-results/search_cost_scale_scale-layer.csv"));
  ExperimentReport report;
  Table table{
      .columns = {"LAYERS", "OURS s", "ACESO s", "OURS SAMPLES/S", "PUBLISHED ACESO", "PUBLISHED MEGATRON", "SEARCH s",
                  "PUBLISHED ACESO s", "PUBLISHED ALPA s", "PEAK MiB"},
      .caption =
          "GPT of 8 to 1,024 layers on 8 devices: predicted iteration and throughput beside measured ones; search time, and "
          "the memory of this process meanwhile"};
  report::Series ours{.name = "ours, predicted"}, aceso{.name = "Aceso, published"}, search{.name = "ours"},
      peer_search{.name = "Aceso, published"}, memory{.name = "ours"};
  TIDEPOOL_RETURN_IF_ERROR(ForEach(context, root, settings, &report, [&](const PeerSetting& peer, const Found& found) {
    const double layers = std::strtod(peer.size.c_str(), nullptr),
                 samples = static_cast<double>(peer.global_batch) / found.seconds();
    const std::string column = peer.size + "layers";
    for (auto* one : {&ours, &aceso, &search, &peer_search, &memory}) one->x.push_back(layers);
    memory.y.push_back(found.peak_mib);
    ours.y.push_back(samples);
    aceso.y.push_back(ValueOf(speed, column, "aceso"));
    search.y.push_back(found.status.ok() ? found.result.seconds : NAN);
    peer_search.y.push_back(ValueOf(cost, column, "aceso"));
    table.rows.push_back({Number(layers, 0), Number(found.seconds(), 3), Number(peer.peer_seconds, 3), Number(samples, 2),
                          Number(aceso.y.back(), 2), Number(ValueOf(speed, column, "megatron"), 2), Number(search.y.back(), 2),
                          Number(peer_search.y.back(), 0), Number(ValueOf(cost, column, "alpa"), 0), Number(found.peak_mib, 0)});
  }));
  const report::Axis layers{.label = "layers", .log = true};
  report.plots.push_back(
      report::LinePlot({ours, aceso}, {.title = "Throughput", .x = layers, .y = {.label = "samples/s", .log = true}}));
  report.plots.push_back(report::LinePlot(
      {search, peer_search},
      {.title = "Search time", .x = layers, .y = {.label = "search", .unit = report::Unit::kSeconds, .log = true}}));
  report.plots.push_back(
      report::LinePlot({memory}, {.title = "Memory while searching", .x = layers, .y = {.label = "MiB", .log = true}}));
  report.tables.push_back(std::move(table));
  return report;
}

// Published predictions beside published measurements. No search: how far a prediction of this model can be trusted.
StatusOr<ExperimentReport> Accuracy(const ExperimentContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string root, ReferenceFolder(context, "aceso"));
  ExperimentReport report;
  for (const char* family : {"gpt", "resnet"}) {
    TIDEPOOL_ASSIGN_OR_RETURN(const PublishedTable time,
                              ReadPublished(fmt::format("{}/published-results/perf_model_time_large_{}.csv", root, family)));
    TIDEPOOL_ASSIGN_OR_RETURN(const PublishedTable memory,
                              ReadPublished(fmt::format("{}/published-results/perf_model_mem_large_{}.csv", root, family)));
    Table table{.columns = {"SIZE", "MEASURED s", "PREDICTED s", "ERROR", "MEASURED MiB", "PREDICTED MiB", "ERROR"},
                .caption = fmt::format("{}: published predictions of the parity model beside published measurements", family)};
    double sum = 0;
    for (const auto& [size, values] : time) {
      const double actual = ValueOf(time, size, "actual"), predicted = ValueOf(time, size, "predict");
      const double used = ValueOf(memory, size, "actual"),
                   needed = ValueOf(memory, size, "predict (norm)") + ValueOf(memory, size, "predict (extra)");
      sum += std::abs(predicted / actual - 1);
      table.rows.push_back({{size},
                            Number(actual, 2),
                            Number(predicted, 2),
                            Number(100 * (predicted / actual - 1), 1, " %"),
                            Number(used, 0),
                            Number(needed, 0),
                            Number(100 * (needed / used - 1), 1, " %")});
      report.json[family][size] = {{"measured_seconds", Finite(actual)},
                                   {"predicted_seconds", Finite(predicted)},
                                   {"measured_mib", Finite(used)},
                                   {"predicted_mib", Finite(needed)}};
    }
    if (!time.empty()) {
      report.notes.push_back(
          fmt::format("{}: mean error of the time {:.1f} %", family, 100 * sum / static_cast<double>(time.size())));
    }
    report.tables.push_back(std::move(table));
  }
  return report;
}

}  // namespace

void AddPlanningFigures(std::vector<Experiment>* experiments) {
  experiments->push_back(
      {"planning/figure-7", "Throughput of plans over Megatron's grid, beside Aceso's and Alpa's", Throughput});
  experiments->push_back({"planning/figure-8", "Search time on every published setting, beside Aceso's and Alpa's", SearchCost});
  experiments->push_back({"planning/figure-9", "GPT of 8 to 1,024 layers: throughput, search time and memory", Depth});
  experiments->push_back(
      {"planning/accuracy", "Published predictions of time and memory beside published measurements", Accuracy});
}

}  // namespace tidepool::cli
