// Ids shared by the serving policies and the shell around them.
#pragma once

#include "base/ids.h"

namespace tidepool::serve {

using ModelId = StrongId<struct ServeModelTag, uint32_t>;      // one version of one served model
using RequestId = StrongId<struct ServeRequestTag, uint64_t>;  // one accepted request
using JobId = StrongId<struct ServeJobTag, uint64_t>;          // one order to the worker: a load, an unload, an execution

}  // namespace tidepool::serve
