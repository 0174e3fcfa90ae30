// A stream of an emulated device: commands go to the emulation, their work runs on a thread of the stream's own.
#pragma once

#include <memory>

#include "device/device.h"
#include "device/emulated/system.h"

namespace tidepool::device::emulated {

// The destructor finishes the work that runs, drops what is queued and sets dropped events to CANCELLED. `pinned` outlives the
// stream.
StatusOr<std::unique_ptr<Stream>> CreateEmulatedStream(std::shared_ptr<System> system, int32_t device, const PinnedPool* pinned,
                                                       const StreamOptions& options);

}  // namespace tidepool::device::emulated
