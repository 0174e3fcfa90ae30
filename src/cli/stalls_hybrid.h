// `tidepool stalls --data`: the analysis on this machine, and how it is shown.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "cli/stalls_setting.h"
#include "data/stalls/hybrid.h"

namespace tidepool::cli {

// `--disk real`: no storage model, the disk as it is.
inline constexpr char kRealDisk[] = "real";

struct HybridSetting {
  data::stalls::HybridOptions options;
  bool estimated = false;
  double least_utilisation = 0;
  std::vector<std::string> facts;
};
StatusOr<HybridSetting> MakeHybridSetting(const StallsOptions& options, const std::string& data);

nlohmann::ordered_json HybridJson(const HybridSetting& setting, const data::stalls::HybridAnalysis& analysis);
void PrintHybrid(const HybridSetting& setting, const data::stalls::HybridAnalysis& analysis);

}  // namespace tidepool::cli
