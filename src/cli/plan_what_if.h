// Sweeps over clusters: what more devices, more memory or faster links would buy, and the smallest cluster that is fast enough.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "cli/plan_search.h"

namespace tidepool::cli {

enum class SweepAxis : uint8_t { kGpus, kMemory, kLinks };

// In the order in which the user gave the axes; the first is the plot's x axis.
struct Sweep {
  struct Axis {
    SweepAxis axis = SweepAxis::kGpus;
    std::vector<double> values;  // devices, MiB, times the speed; ascending
  };
  std::vector<Axis> axes;
};
// Words of --what-if: "gpus=4", "8", "memory=8000", "12000", "links=x0.5", "x1". INVALID_ARGUMENT names the word and what is
// allowed: an axis twice or unknown, a number out of range, more than 256 points.
StatusOr<Sweep> ParseSweep(const std::vector<std::string>& words);

struct SweepPoint {
  plan::Cluster cluster;
  double links = 1;  // times the profile's speed
  Status status;     // why there is no plan
  plan::SearchResult result;
  double throughput = 0;  // samples/s
};
struct SweepResult {
  std::vector<SweepPoint> points;
  int cheapest = -1;  // of those that reach the target: fewest devices, then least memory, then slowest links; -1: none does
  std::vector<std::string> notes;
};

// Searches at every point. Axes that were not given have the options' value.
StatusOr<SweepResult> RunSweep(const Sweep& sweep, const PlanSearchOptions& search, const PlanSettingOptions& setting,
                               const PlanCostModel& cost, double target_throughput, const VerbContext& context);

nlohmann::ordered_json SweepJson(const SweepResult& result, double target_throughput);
void PrintSweep(const SweepResult& result, double target_throughput);
// Throughput over the first axis, one line per combination of the others.
std::string SweepPlot(const Sweep& sweep, const SweepResult& result, double target_throughput, const std::string& title);

// Messages of the profile take 1 / `speed` of their time. What tensor-parallel ops wait for inside of their own time is not known
// and stays as it is.
void ScaleLinks(double speed, profile::Bundle* bundle);

}  // namespace tidepool::cli
