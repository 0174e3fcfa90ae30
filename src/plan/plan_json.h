// Plan files: JSON with the keys of the published planner, so that its files can be read and it can read ours, and keys of our
// own. docs/plan.md lists them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "plan/calibrated_cost_model.h"
#include "plan/op_list.h"
#include "plan/plan.h"

namespace tidepool::plan {

// 2: `gpu_memory_mib`. Files of all schemas up to this one are read.
inline constexpr int32_t kPlanSchema = 2;

struct PlanFile {
  Plan plan;
  // What the plan is for, as the file has it.
  std::string model_name, model_size;
  std::vector<int64_t> num_layers;
  // Of our own files; empty or 0 in others.
  int32_t schema = 0;
  std::string model;                              // op list: "gpt:1.3b", or the spec of a graph
  std::string cost_model;                         // what the bounds were computed with: "parity", "calibrated"
  std::optional<CalibratedOptions> cost_options;  // of the calibrated model that the plan was made with
  std::string model_hash, database_hash;
  // Limit of one device that the search was given; none: it had all memory of the profile's device, or the file does not say.
  std::optional<double> gpu_memory_mib;
  std::optional<double> upper_bound_seconds;  // iteration time of this plan
  std::optional<double> lower_bound_seconds;  // no plan is faster

  // (upper - lower) / lower, if both are there.
  std::optional<double> gap() const;
};

// INVALID_ARGUMENT names `file`, line, key and entry: not JSON, nested too deeply, a key missing or twice, of a wrong type, out
// of range, lists whose lengths do not agree, splits of one stage with different numbers of devices, a schema that is newer than
// ours, options of the cost model that contradict each other. Unknown keys are ignored, but for those of the cost model's
// options. Bounds: 64 MiB, six million values, 65536 stages of up to 65536 devices, 16 million devices, a million ops.
StatusOr<PlanFile> ParsePlan(std::string_view text, const std::string& file);
StatusOr<PlanFile> ReadPlan(const std::string& path);  // NOT_FOUND: no such file

// The file's text: our keys first, then those of the published planner. `file.plan` must be one of `ops`; model names, hashes of
// the model and derived keys come from `ops`.
std::string FormatPlan(const PlanFile& file, const OpList& ops);
// Every option by its name, as it stands in plan files.
nlohmann::ordered_json CalibratedOptionsJson(const CalibratedOptions& options);
// Writes beside `path` and renames. UNAVAILABLE with the path.
Status WritePlan(const PlanFile& file, const OpList& ops, const std::string& path);

// The published op list that the file is for; INVALID_ARGUMENT if it is of a graph (`model` is its spec then) or unknown.
StatusOr<OpList> PublishedOpListOf(const PlanFile& file);

}  // namespace tidepool::plan
