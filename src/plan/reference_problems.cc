#include "plan/reference_problems.h"

#include <algorithm>

#include "base/json.h"
#include "base/testing.h"
#include "profile/plan_csv.h"
#include "profile/testing.h"

namespace tidepool::plan::testing {
namespace {

using Json = nlohmann::json;

Json ReadSettings(const std::string& source_root) {
  const std::string root = ::tidepool::testing::ReferenceFolder("aceso", source_root);
  if (root.empty()) return Json::object();
  return Json::parse(::tidepool::testing::ReadAll(root + "/baseline.json"))["settings"];
}

StatusOr<OpList> OpsOf(const std::string& name, const Json& setting) {
  if (setting.contains("num_layers")) return PublishedOpList(fmt::format("gpt-layers:{}", setting["num_layers"].get<int>()));
  const std::string base = name.substr(name.find('/') + 1);  // "gpt_1_3B"
  const size_t split = base.find('_');
  std::string family = base.substr(0, split), size = base.substr(split + 1);
  if (family == "resnet") family = "wresnet";
  std::replace(size.begin(), size.end(), '_', '.');
  std::transform(size.begin(), size.end(), size.begin(), [](unsigned char c) { return std::tolower(c); });
  return PublishedOpList(family + ":" + size);
}

}  // namespace

std::vector<std::string> ReferenceProblemNames(const std::string& source_root) {
  std::vector<std::string> names;
  const Json settings = ReadSettings(source_root);
  for (const auto& [name, setting] : settings.items()) names.push_back(name);
  return names;
}

StatusOr<std::unique_ptr<ReferenceProblem>> LoadReferenceProblem(const std::string& source_root, const std::string& name) {
  const Json settings = ReadSettings(source_root);
  if (!settings.contains(name)) return NotFound("no reference setting '{}'", name);
  const Json& setting = settings[name];
  auto problem = std::make_unique<ReferenceProblem>();
  problem->name = name;
  TIDEPOOL_ASSIGN_OR_RETURN(problem->ops, OpsOf(name, setting));
  const std::string root = ::tidepool::testing::ReferenceFolder("aceso", source_root);
  TIDEPOOL_ASSIGN_OR_RETURN(
      const profile::PlanCsvDatabase database,
      profile::ReadPlanCsv(root + "/" + setting["profiles"].get<std::string>(), {.models = {problem->ops.profile_model}}));
  TIDEPOOL_ASSIGN_OR_RETURN(ProfileTable table, ProfileTable::Build(database.bundle, problem->ops, kParityTable));
  problem->table = std::make_unique<ProfileTable>(std::move(table));
  problem->cluster = {
      .nodes = setting["nodes"], .gpus_per_node = setting["gpus_per_node"], .memory_limit_mib = setting["memory_limit_MB"]};
  problem->request.global_batch = setting["global_batch"];
  problem->request.micro_batches = setting["micro_batches"].get<std::vector<int32_t>>();
  problem->fine_tune = setting.value("finetune_after_trial", 0) != 0;
  problem->grid_seconds = setting.value("megatron_grid_pred_s", 0.0);
  const Json none = Json::object();
  const Json& runs = setting.contains("runs") ? setting["runs"] : none;
  for (const auto& [run, result] : runs.items()) {
    const double seconds = result.value("best_evaluated_pred_s", 0.0);
    if (problem->published_seconds > 0 && seconds >= problem->published_seconds) continue;
    problem->published_seconds = seconds;
    problem->published_total_cpu_s = result.value("cpu_s_total", 0.0);
    const Json& curve = result["anytime_curve_cpu_s_per_worker__pred_s__stages"];
    problem->published_found_cpu_s = curve.empty() ? 0 : curve.back()[0].get<double>();
  }
  const Json& ours = setting.contains("our_reference_same_cost_model") ? setting["our_reference_same_cost_model"] : none;
  problem->lower_bound_seconds = ours.contains("lower_bound_s") ? ours["lower_bound_s"].get<double>() : 0;
  TIDEPOOL_ASSIGN_OR_RETURN(problem->model,
                            MakeParityModel(problem->ops, *problem->table, problem->cluster, problem->request.micro_batches));
  return problem;
}

}  // namespace tidepool::plan::testing
