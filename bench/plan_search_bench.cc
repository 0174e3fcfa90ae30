// What the searches find, and how long they take, beside what the published planner's own search found on a machine like ours
// with the same profiles, limits and cost model (baseline.json of the reference data). One JSON object per setting and search on
// stdout. Options: --search A,B (default auto), --setting TEXT (those whose name has it), --threads N (default 2), --model parity
// (default) or calibrated (default options; what was published is of the other model, so nothing is beside it).
#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <sstream>

#include "base/json.h"
#include "plan/calibrated_cost_model.h"
#include "plan/search.h"
#include "plan/verify.h"
#include "profile/plan_csv.h"
#include "profile/testing.h"

namespace {

using namespace tidepool;        // NOLINT
using namespace tidepool::plan;  // NOLINT
using Json = nlohmann::json;

std::string OpListNameOf(const std::string& setting) {
  const std::string name = setting.substr(setting.find('/') + 1);
  if (setting.starts_with("scale/")) return "gpt-layers:" + name;
  const size_t cut = name.find('_');
  std::string family = name.substr(0, cut), size = name.substr(cut + 1);
  if (family == "resnet") family = "wresnet";
  for (char& c : size) c = c == '_' ? '.' : static_cast<char>(std::tolower(c));
  return family + ":" + size;
}

double BestOf(const Json& setting) {
  double best = 0;
  for (const auto& [name, run] : setting["runs"].items()) {
    const double seconds = run.value("best_evaluated_pred_s", 0.0);
    if (seconds > 0 && (best == 0 || seconds < best)) best = seconds;
  }
  return best;
}

int Run(const std::string& root, const std::string& searches, const std::string& filter, int32_t threads, bool calibrated) {
  std::ifstream in(root + "/baseline.json");
  const Json baseline = Json::parse(in, nullptr, false);
  if (baseline.is_discarded()) {
    fmt::print(stderr, "no baseline.json in {}\n", root);
    return 1;
  }
  for (const auto& [name, setting] : baseline["settings"].items()) {
    if (name.find(filter) == std::string::npos) continue;
    const auto ops = PublishedOpList(OpListNameOf(name));
    TIDEPOOL_CHECK(ops.ok(), "{}", ToString(ops.status()));
    const auto database =
        profile::ReadPlanCsv(root + "/" + setting["profiles"].get<std::string>(), {.models = {ops->profile_model}});
    TIDEPOOL_CHECK(database.ok(), "{}", ToString(database.status()));
    const auto table = ProfileTable::Build(database->bundle, *ops, calibrated ? ProfileTableOptions() : kParityTable);
    TIDEPOOL_CHECK(table.ok(), "{}", ToString(table.status()));
    const Cluster cluster{setting["nodes"], setting["gpus_per_node"], setting["memory_limit_MB"]};
    SearchRequest request{.global_batch = setting["global_batch"], .threads = threads};
    for (const int32_t b : setting["micro_batches"]) request.micro_batches.push_back(b);
    const auto model = calibrated ? MakeCalibratedModel(*ops, *table, cluster, request.micro_batches)
                                  : MakeParityModel(*ops, *table, cluster, request.micro_batches);
    TIDEPOOL_CHECK(model.ok(), "{}", ToString(model.status()));
    const double theirs = calibrated ? 0 : BestOf(setting);
    double wall = 0;
    for (const auto& [run_name, run] : setting["runs"].items()) wall = run.value("wall_s", 0.0);
    std::istringstream list(searches);
    for (std::string search; std::getline(list, search, ',');) {
      const auto kind = SearchKindFrom(search);
      TIDEPOOL_CHECK(kind.ok(), "{}", ToString(kind.status()));
      const auto cpu_before = std::clock();
      const auto result = Search(*kind, **model, request);
      const double cpu_s = static_cast<double>(std::clock() - cpu_before) / CLOCKS_PER_SEC;
      Json line = {{"setting", name},    {"model", (*model)->name()}, {"search", search},
                   {"threads", threads}, {"published_s", theirs},     {"published_wall_s", wall}};
      if (!result.ok()) {
        line["error"] = ToString(result.status());
      } else {
        const Plan& plan = result->plans[0].plan;
        line["iteration_s"] = result->best_ms() / 1000;
        line["ratio"] = theirs > 0 ? result->best_ms() / 1000 / theirs : 0;
        line["wall_s"] = result->seconds;
        line["cpu_s"] = cpu_s;
        line["evaluations"] = result->evaluations;
        line["lower_bound_s"] = result->lower_bound_ms / 1000;
        line["gap"] = result->lower_bound_ms > 0 ? result->best_ms() / result->lower_bound_ms - 1 : -1;
        line["micro_batch"] = plan.micro_batch;
        for (const StagePtr& stage : plan.stages) line["gpus"].push_back(stage->gpus());
        line["valid"] = FindFaults(**model, plan).empty();
        if (!result->notes.empty()) line["notes"] = result->notes;
      }
      fmt::print("{}\n", line.dump());
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options = {
      {"--search", "auto"}, {"--setting", ""}, {"--threads", "2"}, {"--model", "parity"}};
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  const std::string root = tidepool::testing::ReferenceFolder("aceso", TIDEPOOL_SOURCE_DIR);
  if (root.empty()) {
    fmt::print(stderr, "no reference data: set TIDEPOOL_REFERENCE_DIR to the folder that has aceso/baseline.json\n");
    return 0;
  }
  return Run(root, options["--search"], options["--setting"], std::atoi(options["--threads"].c_str()),
             options["--model"] == "calibrated");
}
