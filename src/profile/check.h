// Whether the numbers of a bundle can be true: rates against the stated hardware, order in the batch, repeats, units.
//
// The measure for FLOP rates is the least arithmetic that the fastest known algorithm needs (networks.h), so that a fast
// convolution is no fault; rows of networks that the table does not know are checked in every other respect.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "profile/bundle.h"

namespace tidepool::profile {

struct Finding {
  enum class Level : uint8_t { kNote, kFault };
  Level level = Level::kFault;
  std::string check;  // "flops", "units", "monotone", "growth", "repeats", "spread", "memory", "link", "collective", ...
  std::string where;  // the row, or "bundle"
  std::string text;   // what is wrong, the value seen and the value allowed
};

// All findings: first those of the bundle as a whole, then those of rows in the order of the files.
std::vector<Finding> Check(const Bundle& bundle);
int64_t FaultsIn(const std::vector<Finding>& findings);
// FAILED_PRECONDITION with the faults if there is one: the first `shown` in full, and how many more.
Status ToStatus(const std::vector<Finding>& findings, const std::string& bundle_name, int64_t shown = 20);

}  // namespace tidepool::profile
