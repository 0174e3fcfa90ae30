// What `tidepool stalls` prints: text, JSON and plots of one analysis.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "cli/stalls_setting.h"
#include "report/html.h"

namespace tidepool::cli {

nlohmann::ordered_json StallsJson(const StallsSetting& setting, const data::stalls::Analysis& analysis);
void PrintStalls(const StallsSetting& setting, const data::stalls::Analysis& analysis);
std::vector<std::string> StallsPlots(const data::stalls::Analysis& analysis);
report::Page StallsPage(const StallsSetting& setting, const data::stalls::Analysis& analysis);

}  // namespace tidepool::cli
