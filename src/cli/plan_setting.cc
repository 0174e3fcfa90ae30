#include "cli/plan_setting.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>

#include "base/text.h"
#include "base/units.h"
#include "model/families.h"
#include "plan/calibrated_cost_model.h"
#include "plan/estimate.h"
#include "plan/op_list_json.h"
#include "profile/builtin.h"
#include "profile/open.h"
#include "profile/plan_csv.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;

constexpr int32_t kUsualNode = 8;       // devices
constexpr int32_t kWidestEstimate = 8;  // tensor-parallel groups stay small unless a plan says otherwise

bool HoldsCsv(const std::string& directory) {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".csv") return true;
  }
  return false;
}

StatusOr<PlanProfile> FromCsv(const std::string& directory, const plan::OpList& ops) {
  TIDEPOOL_ASSIGN_OR_RETURN(profile::PlanCsvDatabase database, profile::ReadPlanCsv(directory, {.models = {ops.profile_model}}));
  PlanProfile result{.bundle = std::move(database.bundle), .source = directory};
  if (!database.refused.empty()) {
    result.notes.push_back(fmt::format("{} collectives are marked as skipped or failed in {}; the first: {}",
                                       database.refused.size(), directory, database.refused[0]));
  }
  return result;
}

// Rows for every way to divide the micro-batches, and for widths that a node can have.
StatusOr<PlanProfile> Estimated(const plan::OpList& ops, const profile::Hardware& hardware, const ProfileNeeds& needs) {
  std::set<int32_t> batches, widths(needs.widths.begin(), needs.widths.end());
  for (const int32_t micro_batch : needs.micro_batches) {
    for (int32_t replicas = 1; replicas <= std::min(needs.gpus, micro_batch); ++replicas) {
      if (micro_batch % replicas == 0) batches.insert(micro_batch / replicas);
    }
  }
  for (int32_t width = 1; width <= std::min(needs.gpus, kWidestEstimate); width *= 2) widths.insert(width);
  const plan::EstimateOptions options{.batches = {batches.begin(), batches.end()}, .widths = {widths.begin(), widths.end()}};
  PlanProfile result;
  TIDEPOOL_ASSIGN_OR_RETURN(result.bundle, plan::EstimateBundle(ops, hardware, options));
  result.source = fmt::format("{}, roofline", hardware.name);
  result.estimated = true;
  result.device_mib = hardware.memory_bytes / kMiB;
  return result;
}

StatusOr<PlanProfile> FromBundle(const profile::BundlePlace& place, const plan::OpList& ops, const ProfileNeeds& needs) {
  TIDEPOOL_ASSIGN_OR_RETURN(profile::Bundle bundle, profile::LoadBundle(place));
  const auto is_ours = [&](const profile::OpRow& row) { return row.key.model == ops.profile_model && !row.key.op.empty(); };
  if (std::none_of(bundle.ops.begin(), bundle.ops.end(), is_ours)) {
    TIDEPOOL_ASSIGN_OR_RETURN(PlanProfile result, Estimated(ops, bundle.manifest.hardware, needs));
    if (bundle.manifest.measured) {
      result.notes.push_back(
          fmt::format("the profile '{}' has no rows of {}: its device's rates are used", place.name, ops.name));
    }
    return result;
  }
  PlanProfile result;
  result.source = place.name;
  result.estimated = !bundle.manifest.measured;
  result.device_mib = bundle.manifest.hardware.memory_bytes / kMiB;
  result.bundle = std::move(bundle);
  return result;
}

// Nodes of equal size that hold exactly the plan's devices, where its options do not say.
plan::Cluster ClusterFor(const PlanSettingOptions& options, int32_t gpus) {
  plan::Cluster cluster;
  cluster.memory_limit_mib = options.memory_mib;
  if (options.gpus_per_node > 0) {
    cluster.gpus_per_node = options.gpus_per_node;
  } else if (options.nodes > 0) {
    cluster.gpus_per_node = (gpus + options.nodes - 1) / options.nodes;
  } else {
    cluster.gpus_per_node = gpus <= kUsualNode ? gpus : std::gcd(gpus, kUsualNode);
  }
  cluster.nodes = options.nodes > 0 ? options.nodes : (gpus + cluster.gpus_per_node - 1) / cluster.gpus_per_node;
  return cluster;
}

}  // namespace

void PlanSettingOptions::Register(OptionTable* table) {
  table->Add({.key = "plan.profiles",
              .help = "Folder of published CSV files, or a profile bundle; empty: estimates for an H100",
              .metavar = "DIR|NAME"},
             &profiles);
  table->Add({.key = "plan.nodes", .help = "Machines; 0: one, or as many as the plan needs"}, &nodes);
  table->Add({.key = "plan.gpus_per_node", .help = "Devices of a machine; 0: 8, or as the plan needs"}, &gpus_per_node);
  table->Add({.key = "plan.gpu_memory_mib",
              .help = "Memory of a device in MiB; 0: what the profile's device has. Not given: what the plan file says, else 0"},
             &memory_mib);
  cost.Register(table);
}

void PlanSettingOptions::Note(const OptionTable& table) {
  cost.Note(table);
  const OptionTable::Entry* entry = table.FindKey("plan.gpu_memory_mib");
  whole_device = memory_mib == 0 && entry != nullptr && entry->source != OptionTable::Source::kDefault;
}

StatusOr<plan::OpList> FindOpList(const std::string& model) {
  if (model.empty()) return InvalidArgument("--model is missing; allowed: {}", JoinText(plan::PublishedOpListNames(), ", "));
  if (model.ends_with(".json")) return plan::ReadOpList(model);
  StatusOr<plan::OpList> published = plan::PublishedOpList(model);
  if (published.ok()) return published;
  const auto spec = model::ParseSpec(model);
  if (!spec.ok()) {
    std::vector<std::string> families;
    for (const model::FamilyInfo& family : model::Families()) families.push_back(family.name);
    return InvalidArgument(
        "model '{}' is none of the published ones ({}), no op list file (*.json), and no spec of a family ({}): {}", model,
        JoinText(plan::PublishedOpListNames(), ", "), JoinText(families, ", "), MessageOf(spec.status()));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const model::Graph graph, model::BuildGraph(*spec));
  return plan::OpListOfGraph(graph, {.name = model});
}

StatusOr<plan::OpList> OpListOfPlan(const plan::PlanFile& file, const std::string& path) {
  StatusOr<plan::OpList> ops = file.schema > 0 && !file.model.empty() ? FindOpList(file.model) : plan::PublishedOpListOf(file);
  if (!ops.ok()) return Annotate(ops.status(), path);
  return ops;
}

StatusOr<PlanProfile> LoadPlanProfile(const std::string& profiles, const plan::OpList& ops, const ProfileNeeds& needs) {
  if (profiles.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(PlanProfile result,
                              Estimated(ops, profile::FindBuiltin(kQuickStartDevice)->manifest.hardware, needs));
    result.notes.push_back(fmt::format("no --profiles: all times are estimates from the datasheet of {}", kQuickStartDevice));
    return result;
  }
  std::error_code error;
  if (fs::is_directory(profiles, error)) {
    if (fs::exists(fs::path(profiles) / "manifest.json", error)) {
      return FromBundle({fs::path(profiles).lexically_normal().string(), profiles}, ops, needs);
    }
    if (HoldsCsv(profiles)) return FromCsv(profiles, ops);
    return InvalidArgument("--profiles: '{}' holds neither manifest.json nor *.csv", profiles);
  }
  const auto place = profile::FindBundle(profiles);
  if (!place.ok()) return Annotate(place.status(), "--profiles");
  return FromBundle(*place, ops, needs);
}

StatusOr<std::unique_ptr<PlanSetting>> MakePlanSetting(plan::OpList ops, const PlanProfile& profile, plan::Cluster cluster,
                                                       const PlanCostModel& cost, std::span<const int32_t> micro_batches) {
  const bool parity = cost.name == "parity";
  auto setting = std::make_unique<PlanSetting>();
  setting->ops = std::move(ops);
  setting->cluster = cluster;
  setting->source = profile.source;
  setting->estimated = profile.estimated;
  setting->notes = profile.notes;
  if (cluster.memory_limit_mib == 0) {
    if (!(profile.device_mib > 0)) {
      return InvalidArgument("--gpu-memory-mib is missing: '{}' does not say how much memory its device has", profile.source);
    }
    setting->cluster.memory_limit_mib = std::floor(profile.device_mib);
  } else {
    setting->memory_from = MemoryLimitFrom::kFlag;
  }
  TIDEPOOL_RETURN_IF_ERROR(plan::Validate(setting->cluster));
  TIDEPOOL_ASSIGN_OR_RETURN(
      plan::ProfileTable table,
      plan::ProfileTable::Build(profile.bundle, setting->ops, parity ? plan::kParityTable : plan::ProfileTableOptions{}));
  setting->table = std::make_unique<plan::ProfileTable>(std::move(table));
  TIDEPOOL_ASSIGN_OR_RETURN(
      setting->model,
      parity ? plan::MakeParityModel(setting->ops, *setting->table, setting->cluster, micro_batches)
             : plan::MakeCalibratedModel(setting->ops, *setting->table, setting->cluster, micro_batches, cost.options));
  if (!parity) setting->cost_options = cost.options;
  return setting;
}

StatusOr<std::unique_ptr<PlanSetting>> SettingOfPlan(const PlanSettingOptions& options, const plan::PlanFile& file,
                                                     const std::string& path) {
  const StatusOr<PlanCostModel> cost = options.cost.Over(file.cost_options.value_or(plan::CalibratedOptions()));
  if (!cost.ok()) return Annotate(cost.status(), path);
  TIDEPOOL_ASSIGN_OR_RETURN(plan::OpList ops, OpListOfPlan(file, path));
  ProfileNeeds needs{.micro_batches = {file.plan.micro_batch}, .gpus = file.plan.gpus()};
  std::set<int32_t> widths;
  for (const plan::StagePtr& stage : file.plan.stages) {
    for (const plan::ChoiceRun& run : stage->runs()) widths.insert(run.choice.tensor_parallel);
  }
  needs.widths.assign(widths.begin(), widths.end());
  StatusOr<PlanProfile> profile = LoadPlanProfile(options.profiles, ops, needs);
  if (!profile.ok()) return Annotate(profile.status(), path);
  const int32_t micro_batches[] = {file.plan.micro_batch};
  plan::Cluster cluster = ClusterFor(options, file.plan.gpus());
  const bool limit_of_file = file.gpu_memory_mib && options.memory_mib == 0 && !options.whole_device;
  if (limit_of_file) cluster.memory_limit_mib = *file.gpu_memory_mib;
  auto setting = MakePlanSetting(std::move(ops), *profile, cluster, *cost, micro_batches);
  if (!setting.ok()) return Annotate(setting.status(), path);
  if (limit_of_file) {
    (*setting)->memory_from = MemoryLimitFrom::kPlanFile;
    if (profile->device_mib > 0 && *file.gpu_memory_mib > profile->device_mib) {
      (*setting)->notes.push_back(fmt::format("{}: made for devices of {:.0f} MiB; that of the profile has {:.0f}", path,
                                              *file.gpu_memory_mib, std::floor(profile->device_mib)));
    }
  }
  if (!file.model_hash.empty() && file.model_hash != (*setting)->ops.hash) {
    (*setting)->notes.push_back(fmt::format("{}: made for another version of {}", path, (*setting)->ops.name));
  }
  // An estimate covers what it is asked for, so its hash says nothing.
  const bool same_kind = !(*setting)->estimated && file.cost_model == (*setting)->model->name();
  if (same_kind && !file.database_hash.empty() && file.database_hash != (*setting)->table->hash()) {
    (*setting)->notes.push_back(fmt::format("{}: made with another profile; its stored times do not apply", path));
  }
  return setting;
}

std::string_view NameOf(MemoryLimitFrom from) {
  switch (from) {
    case MemoryLimitFrom::kFlag: return "flag";
    case MemoryLimitFrom::kPlanFile: return "plan_file";
    default: return "device";
  }
}

std::string_view TextOf(MemoryLimitFrom from) {
  switch (from) {
    case MemoryLimitFrom::kFlag: return "--gpu-memory-mib";
    case MemoryLimitFrom::kPlanFile: return "the plan file";
    default: return "the profile's device";
  }
}

std::string_view OriginOf(const PlanSetting& setting) { return setting.estimated ? "estimated" : "measured"; }

}  // namespace tidepool::cli
