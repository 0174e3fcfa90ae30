// SIGINT and SIGTERM as something a verb can wait for. The first signal asks for a stop; a second one ends the process at once.
#pragma once

#include <absl/time/time.h>

namespace tidepool::cli {

// Installs the handlers; call once, before other threads start. Thread-safe afterwards.
void InstallStopSignals();
bool StopRequested();
// Waits until a stop is requested or `deadline` passes; true if it is requested.
bool WaitForStop(absl::Time deadline);

}  // namespace tidepool::cli
