// From what was recorded to the figures of one run of the demo. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/demo_run.h"

namespace tidepool::cli {

// Needs run.start, end, load, timeline. Every mode is held to the SLOs of the plan.
DemoFigures FiguresOf(const DemoRun& run, const DemoPlan& plan, const std::vector<pool::PoolStats>& pools);

// The records of memory that training gave to a model while the load ran, granted or not.
std::vector<pool::HandoverRecord> HandoversDuring(const DemoRun& run);

// A run of the mode static.
struct StaticSplit {
  double train_fraction = 0;  // training's part of the device
  double slo_attainment = 0, samples_per_s = 0;
  std::string failure;  // why the split cannot work
  bool chosen = false;
};
// The split that is hardest to beat: of those that keep at least `least_slo` the one that trains fastest; if none does, the one
// that keeps most, of equals the faster one. Nothing if all failed.
std::optional<size_t> BestSplit(const std::vector<StaticSplit>& splits, double least_slo);

}  // namespace tidepool::cli
