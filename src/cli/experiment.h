// Published experiments that a user can repeat: `tidepool experiment GROUP/NAME`. A group adds its experiments to the list in
// experiment_verbs.cc; the verb runs them and writes text, JSON, a page and plots.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "report/html.h"

namespace tidepool::cli {

struct ExperimentContext {
  std::string reference;                                  // folder of the published reference data; empty: there is none here
  bool quick = false;                                     // smaller than published, to see that it works
  bool real_time = false;                                 // on the real clock; only for experiments that can
  int threads = 0;                                        // 0: one per core
  std::function<bool()> stopped;                          // long experiments end with CANCELLED
  std::function<void(const std::string&)> show_progress;  // one line; does nothing without a terminal
};

// NOT_FOUND that says how to get the reference data, if `folder` of it is not there; else its path.
StatusOr<std::string> ReferenceFolder(const ExperimentContext& context, const std::string& folder);

struct ExperimentReport {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  std::vector<report::Table> tables;  // with captions
  std::vector<std::string> notes;     // what a reader must know: what is estimated, what is held beside it
  std::vector<std::string> plots;     // made by report/plot.h
};

struct Experiment {
  std::string name;     // "planning/figure-7"
  std::string summary;  // one line
  std::function<StatusOr<ExperimentReport>(const ExperimentContext&)> run;
  bool on_real_clock = false;  // it has a mode in real time too
};

// One function per group, each appending its own.
void AddPlanningExperiments(std::vector<Experiment>* experiments);
void AddPlanningFigures(std::vector<Experiment>* experiments);
void AddStallExperiments(std::vector<Experiment>* experiments);

// All of them, in the order of the list.
std::vector<Experiment> AllExperiments();

}  // namespace tidepool::cli
