// Bundles that come with the program, so that nothing else is needed to start. Their hardware is from datasheets and every time
// of theirs is an estimate, but for the rows that name a source of their own.
#pragma once

#include <string_view>
#include <vector>

#include "profile/bundle.h"

namespace tidepool::profile {

// Ordered by age: k80, p100, v100, t4, a100, h100, h200.
const std::vector<Bundle>& BuiltinBundles();
// Null if there is none of this name.
const Bundle* FindBuiltin(std::string_view name);

}  // namespace tidepool::profile
