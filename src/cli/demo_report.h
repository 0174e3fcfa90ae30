// What the demo leaves behind: a table for people, a JSON object, a report page and a Chrome trace.
#pragma once

#include <string>
#include <vector>

#include "cli/demo_figures.h"
#include "cli/demo_run.h"

namespace tidepool::cli {

struct DemoResult {
  DemoSettings settings;
  DemoPlan plan;
  DemoRun main;
  std::vector<DemoRun> baselines;          // static, then task-switch; each may be missing
  std::vector<StaticSplit> static_splits;  // that ran; the chosen one is the baseline
  std::string machine;                     // "2 cores, ..."
  int64_t training_bytes_estimate = 0;
};

// "a device of 200 MiB", "2 devices of 200 MiB".
std::string DevicesText(const DemoSettings& settings);
// The keys are those that docs/demo.md lists.
std::string DemoJson(const DemoResult& result);
// The table at the end.
std::string DemoText(const DemoResult& result);
Status WriteDemoReport(const DemoResult& result, const std::string& path);
// Slices of executions, loads and handovers, counters of memory; opens in Perfetto and speedscope.
Status WriteDemoTrace(const DemoResult& result, const std::string& path);

// The longest single operator of training plus 5 ms: what the 99th percentile of handovers is held against.
double HandoverLimitMs(const DemoFigures& figures);

}  // namespace tidepool::cli
