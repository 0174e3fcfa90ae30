// Which cost model plans are priced with, and the options of the calibrated one, as flags. A plan file says what it was made
// with; a flag that is given comes before it.
#pragma once

#include <set>
#include <string>

#include "base/options.h"
#include "base/status.h"
#include "plan/calibrated_cost_model.h"

namespace tidepool::cli {

// What MakePlanSetting needs to make a model.
struct PlanCostModel {
  std::string name = "calibrated";  // or "parity", which has no options
  plan::CalibratedOptions options;
};

struct PlanCostFlags {
  std::string name = "calibrated";
  std::string schedule = "1f1b";
  plan::CalibratedOptions values;
  std::set<std::string> given;  // keys, without "plan."

  void Register(OptionTable* table);
  // Which flags were given; before Over. `table` is what Register filled.
  void Note(const OptionTable& table);
  // `base` with what was given. An interleaved schedule has two chunks unless something else is said; another one forgets those
  // of `base`. INVALID_ARGUMENT names the flags: no such model or schedule, options with the parity model, chunks without an
  // interleaved schedule, numbers out of range.
  StatusOr<PlanCostModel> Over(const plan::CalibratedOptions& base) const;
};

// What differs from the defaults: "interleaved with 4 chunks, ZeRO-1"; empty: nothing does.
std::string CostOptionsText(const plan::CalibratedOptions& options);

}  // namespace tidepool::cli
