// From what was recorded to the figures of one run of the demo. Pure.
#pragma once

#include <vector>

#include "cli/demo_run.h"

namespace tidepool::cli {

// Needs run.start, end, load, timeline. Every mode is held to the SLOs of the plan.
DemoFigures FiguresOf(const DemoRun& run, const DemoPlan& plan, const pool::PoolStats& pool);

// The records of memory that training gave to a model while the load ran, granted or not.
std::vector<pool::HandoverRecord> HandoversDuring(const DemoRun& run);

}  // namespace tidepool::cli
