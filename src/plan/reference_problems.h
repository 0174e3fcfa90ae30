// The settings that the published search was measured on, for tests and benches: op list, measured profile, cluster, batch sizes,
// and what that search found there. They come from reference data that is not part of this project.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "plan/cost_model.h"
#include "plan/search.h"

namespace tidepool::plan::testing {

// Not movable: the model refers to the rest.
struct ReferenceProblem {
  std::string name;  // "large/gpt_13B"
  OpList ops;
  std::unique_ptr<ProfileTable> table;
  Cluster cluster;
  std::unique_ptr<CostModel> model;  // parity
  SearchRequest request;             // batch sizes; the rest is default
  bool fine_tune = false;            // the published search was run with fine-tuning
  // 0: not measured there.
  double grid_seconds = 0;           // iteration of its grid's best plan
  double published_seconds = 0;      // iteration of the best plan of all its runs
  double published_found_cpu_s = 0;  // CPU seconds of one worker until that plan, in the run that found it
  double published_total_cpu_s = 0;  // of all workers of that run
  double lower_bound_seconds = 0;
};

// Names in the reference data; empty if it is absent. `source_root`: the project's folder.
std::vector<std::string> ReferenceProblemNames(const std::string& source_root);
StatusOr<std::unique_ptr<ReferenceProblem>> LoadReferenceProblem(const std::string& source_root, const std::string& name);

}  // namespace tidepool::plan::testing
