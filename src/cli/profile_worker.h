// The measuring process: `tidepool-worker profile --options-fd=N` (profile_measure.h says what goes in and out). Exit code 0 when
// done, 1 on failure, 2 for a wrong command line. It dies with the process that started it.
#pragma once

namespace tidepool::cli {

int RunProfileWorkerMain(int argc, char** argv);

}  // namespace tidepool::cli
