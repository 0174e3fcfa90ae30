// Experiments of the planner: prices, searches and accuracy beside published numbers.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/fd.h"
#include "cli/experiment.h"
#include "cli/plan_output.h"
#include "report/plot.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using report::Cell;

constexpr int64_t kMostJsonBytes = int64_t{64} << 20;

Cell Number(double value, int digits) { return {.text = fmt::format("{:.{}f}", value, digits), .number = true}; }

StatusOr<Json> ReadJson(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostJsonBytes));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("{}:1: this is not a JSON object", path);
  return json;
}

// What the published planner's cost model gave for a plan, and the cluster that it was for.
struct Expected {
  std::string profiles;
  plan::Cluster cluster;
  double iteration_ms = 0;
  std::vector<double> memory_mib;
};

StatusOr<Expected> ExpectedOf(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  const auto found = json.find("expected_by_peer_cost_model");
  const auto number = [&](const char* key) { return found->contains(key) && (*found)[key].is_number(); };
  if (found == json.end() || !found->is_object() || !number("iteration_ms") || !number("nodes") || !number("gpus_per_node") ||
      !number("memory_limit_MB") || !found->contains("profiles") || !(*found)["profiles"].is_string() ||
      !found->contains("stage_memory_MB") || !(*found)["stage_memory_MB"].is_array()) {
    return InvalidArgument("{}: key 'expected_by_peer_cost_model' is missing or incomplete", path);
  }
  Expected expected;
  expected.profiles = (*found)["profiles"];
  expected.iteration_ms = (*found)["iteration_ms"];
  expected.cluster = {
      .nodes = (*found)["nodes"], .gpus_per_node = (*found)["gpus_per_node"], .memory_limit_mib = (*found)["memory_limit_MB"]};
  for (const Json& value : (*found)["stage_memory_MB"])
    expected.memory_mib.push_back(value.is_number() ? value.get<double>() : NAN);
  return expected;
}

// Every stored plan, priced by the parity model, beside the price that the published planner's own model gave.
StatusOr<ExperimentReport> Prices(const ExperimentContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string root, ReferenceFolder(context, "aceso"));
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::directory_iterator entry(root + "/golden-plans", error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".json") paths.push_back(entry->path().string());
  }
  if (paths.empty()) return NotFound("there are no plans in {}/golden-plans", root);
  std::sort(paths.begin(), paths.end());
  if (context.quick) paths.resize(std::min<size_t>(paths.size(), 2));
  ExperimentReport report;
  report.json["plans"] = Json::array();
  report::Table table{
      .columns = {"PLAN", "MODEL", "DEVICES", "STAGES", "PUBLISHED ms", "OURS ms", "DIFFERENCE ms", "MEMORY DIFFERENCE MiB"}};
  double worst_ms = 0, worst_mib = 0;
  for (const std::string& path : paths) {
    if (context.stopped()) return Cancelled("stopped after {} of {} plans", table.rows.size(), paths.size());
    context.show_progress(fmt::format("{} of {} plans", table.rows.size(), paths.size()));
    TIDEPOOL_ASSIGN_OR_RETURN(const Expected expected, ExpectedOf(path));
    TIDEPOOL_ASSIGN_OR_RETURN(const plan::PlanFile file, plan::ReadPlan(path));
    PlanSettingOptions options{.profiles = root + "/" + expected.profiles,
                               .nodes = expected.cluster.nodes,
                               .gpus_per_node = expected.cluster.gpus_per_node,
                               .memory_mib = expected.cluster.memory_limit_mib,
                               .cost = {.name = "parity"}};
    TIDEPOOL_ASSIGN_OR_RETURN(const auto setting, SettingOfPlan(options, file, path));
    const std::string name = fs::path(path).stem().string();
    TIDEPOOL_ASSIGN_OR_RETURN(const PricedPlan priced, PriceOf(name, file.plan, *setting));
    const double ms = std::abs(priced.cost.iteration_ms - expected.iteration_ms);
    double mib = 0;
    for (size_t i = 0; i < std::min(expected.memory_mib.size(), priced.cost.stages.size()); ++i) {
      mib = std::max(mib, std::abs(priced.cost.stages[i].memory_mib - expected.memory_mib[i]));
    }
    worst_ms = std::max(worst_ms, ms);
    worst_mib = std::max(worst_mib, mib);
    report.json["plans"].push_back({{"plan", name},
                                    {"model", setting->ops.name},
                                    {"published_ms", expected.iteration_ms},
                                    {"ours_ms", priced.cost.iteration_ms},
                                    {"largest_memory_difference_mib", mib}});
    table.rows.push_back({{name},
                          {setting->ops.name},
                          Number(priced.plan.gpus(), 0),
                          Number(static_cast<double>(priced.plan.stages.size()), 0),
                          Number(expected.iteration_ms, 2),
                          Number(priced.cost.iteration_ms, 2),
                          Number(ms, 4),
                          Number(mib, 4)});
  }
  report.json["largest_difference_ms"] = worst_ms;
  report.json["largest_memory_difference_mib"] = worst_mib;
  report.notes.push_back(fmt::format("{} plans; the largest differences are {:.4f} ms and {:.4f} MiB in one stage", paths.size(),
                                     worst_ms, worst_mib));
  report.tables.push_back(std::move(table));
  return report;
}

}  // namespace

void AddPlanningExperiments(std::vector<Experiment>* experiments) {
  experiments->push_back(
      {"planning/prices", "Prices of stored plans: our parity model beside the published planner's own", Prices});
}

}  // namespace tidepool::cli
