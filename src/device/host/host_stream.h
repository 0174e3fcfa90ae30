// A stream of the host device: one thread and a bounded queue.
#pragma once

#include "device/device.h"

namespace tidepool::device {

// The destructor finishes the operation that runs, drops what is queued and sets dropped events to CANCELLED.
StatusOr<std::unique_ptr<Stream>> CreateHostStream(const StreamOptions& options);

}  // namespace tidepool::device
