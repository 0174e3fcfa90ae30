// What the verbs of the planner work with: an op list, a profile, a cluster and the cost model over them, found from what a user
// typed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/options.h"
#include "base/status.h"
#include "cli/plan_cost_options.h"
#include "plan/cost_model.h"
#include "plan/plan_json.h"
#include "profile/bundle.h"

namespace tidepool::cli {

struct PlanSettingOptions {
  std::string profiles;   // CSV folder, bundle directory or bundle name; empty: estimates for kQuickStartDevice
  int nodes = 0;          // 0: as many as the plan needs, or one
  int gpus_per_node = 0;  // 0: as the plan needs, or 8
  double memory_mib = 0;  // of one device; 0: what the plan file says, else what the profile's device has
  // 0 above was asked for: what the profile's device has, whatever the plan file says.
  bool whole_device = false;
  PlanCostFlags cost;

  void Register(OptionTable* table);
  // Which flags were given; once they are read. `table` is what Register filled.
  void Note(const OptionTable& table);
};
inline constexpr char kQuickStartDevice[] = "h100";

// The times that plans are priced with.
struct PlanProfile {
  profile::Bundle bundle;
  std::string source;      // for people: "profiles/v100 (CSV)", "h100, roofline"
  bool estimated = false;  // nothing was measured
  double device_mib = 0;   // memory of the device; 0: the source does not say
  std::vector<std::string> notes;
};

// A published name ("gpt:1.3b"), an op list file ("net.json"), or the spec of a model family ("resnet50:image=224").
// INVALID_ARGUMENT says what is allowed.
StatusOr<plan::OpList> FindOpList(const std::string& model);
// The list that a plan file is for.
StatusOr<plan::OpList> OpListOfPlan(const plan::PlanFile& file, const std::string& path);

// What an estimate has to cover; measured profiles have what they have.
struct ProfileNeeds {
  std::vector<int32_t> micro_batches, widths;
  int32_t gpus = 1;
};
StatusOr<PlanProfile> LoadPlanProfile(const std::string& profiles, const plan::OpList& ops, const ProfileNeeds& needs);

enum class MemoryLimitFrom : uint8_t { kDevice, kFlag, kPlanFile };
std::string_view NameOf(MemoryLimitFrom from);  // "device", "flag", "plan_file"
std::string_view TextOf(MemoryLimitFrom from);  // for people: "the profile's device"

// Not movable: the model refers to the rest.
struct PlanSetting {
  plan::OpList ops;
  std::unique_ptr<plan::ProfileTable> table;
  plan::Cluster cluster;
  MemoryLimitFrom memory_from = MemoryLimitFrom::kDevice;  // the cluster's limit
  std::unique_ptr<plan::CostModel> model;
  std::optional<plan::CalibratedOptions> cost_options;  // of the calibrated model
  std::string source;
  bool estimated = false;
  std::vector<std::string> notes;
};

// `cluster.memory_limit_mib` 0: the device's; INVALID_ARGUMENT if the profile does not know it.
StatusOr<std::unique_ptr<PlanSetting>> MakePlanSetting(plan::OpList ops, const PlanProfile& profile, plan::Cluster cluster,
                                                       const PlanCostModel& cost, std::span<const int32_t> micro_batches);
// For a plan file: cluster, micro-batch, memory limit and options of the cost model are its own where the flags do not say.
StatusOr<std::unique_ptr<PlanSetting>> SettingOfPlan(const PlanSettingOptions& options, const plan::PlanFile& file,
                                                     const std::string& path);

// "measured" or "estimated".
std::string_view OriginOf(const PlanSetting& setting);

}  // namespace tidepool::cli
