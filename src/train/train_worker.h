// The process of a training job: `tidepool-worker train --options-fd=N`. Options come as JSON on descriptor N, progress goes out
// as JSON lines on stdout, SIGTERM asks it to checkpoint and end. Exit code 0 when done or stopped, 1 on failure, 2 for a wrong
// command line.
#pragma once

namespace tidepool::train {

int RunTrainWorkerMain(int argc, char** argv);

}  // namespace tidepool::train
