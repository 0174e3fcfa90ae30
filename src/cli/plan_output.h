// How priced plans are shown: JSON, and tables with bars for people.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "cli/plan_setting.h"
#include "plan/verify.h"

namespace tidepool::cli {

// A plan with what it costs in a setting, which must outlive it.
struct PricedPlan {
  std::string name;  // the file, or what else it is called
  plan::Plan plan;
  plan::PlanCost cost;
  std::vector<plan::PlanFault> faults;
  const PlanSetting* setting = nullptr;

  double throughput() const;             // samples/s
  double slack_ms(int32_t stage) const;  // how much longer the stage's iteration may get until it is the slowest
  double share(int32_t stage) const;     // how much of the iteration the stage works
};
StatusOr<PricedPlan> PriceOf(std::string name, plan::Plan plan, const PlanSetting& setting,
                             const plan::VerifyOptions& options = {});

// "0-77 (78)"; "2x1" or "8x1, 4x2" (tensor-parallel x data-parallel, runs that differ); "0" or "4-7".
std::string OpsText(const plan::Stage& stage);
std::string SplitsText(const plan::Stage& stage);
std::string DevicesText(int32_t first, int32_t count);
// "1.23 ms": of microseconds.
std::string PlanTimeText(double us);
// "[######....]" of `width` characters; a '!' at its end if `share` is above 1.
std::string BarText(double share, int width);

// "12000 MiB (the plan file)": the limit of a device, and what says so.
std::string MemoryLimitText(const PlanSetting& setting);

nlohmann::ordered_json SettingJson(const PlanSetting& setting);
nlohmann::ordered_json FaultsJson(const std::vector<plan::PlanFault>& faults);
nlohmann::ordered_json PricedJson(const PricedPlan& priced);
// memory_mib of every stage.
nlohmann::ordered_json MemoryJson(const plan::PlanCost& cost);

void PrintSetting(const PlanSetting& setting);
void PrintPriced(const PricedPlan& priced);
// One row per stage: where its time goes, its memory against the limit.
void PrintStages(const PricedPlan& priced);
// One bar per stage: what its devices' memory is used for, in letters, against the limit.
void PrintMemory(const PricedPlan& priced);
// The ops of each stage with their splits and recomputation.
void PrintOps(const PricedPlan& priced);

}  // namespace tidepool::cli
