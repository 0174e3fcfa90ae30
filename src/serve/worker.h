// The device worker: the process that holds models in device memory and runs them for one front end (server.h). It decides
// nothing; docs/serve.md has the orders it takes. This header is torch-free.
#pragma once

namespace tidepool::serve {

// `tidepool-worker serve --pool-fd N --channel-fd N [--threads N]`, where the descriptors are inherited: a connection to the page
// broker and the channel to the front end. Returns the exit code: 0 after a shutdown order or the front end's end, 1 after a
// failure (written to stderr), 2 for a wrong command line.
int RunServeWorkerMain(int argc, char** argv);

}  // namespace tidepool::serve
