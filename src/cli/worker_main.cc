// The binary that links torch: device workers and trainers. `tidepool` starts it and speaks to it over inherited descriptors.
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "cli/profile_worker.h"
#include "serve/worker.h"
#include "train/train_worker.h"

namespace {

constexpr char kHelp[] =
    "tidepool-worker runs networks for tidepool, which starts it by itself; there is no need to start it by hand.\n"
    "\n"
    "  tidepool-worker serve ...   the device worker of `tidepool serve` and `tidepool up`\n"
    "  tidepool-worker train ...   the trainer of `tidepool train`\n"
    "  tidepool-worker profile ... the measurement of `tidepool profile`\n"
    "  tidepool-worker --version\n"
    "\n"
    "Try `tidepool serve --help` or `tidepool train --help`.\n";

int Dispatch(int argc, char** argv) {
  const char* verb = argc > 1 ? argv[1] : "";
  if (std::strcmp(verb, "serve") == 0) return tidepool::serve::RunServeWorkerMain(argc - 1, argv + 1);
  if (std::strcmp(verb, "train") == 0) return tidepool::train::RunTrainWorkerMain(argc - 1, argv + 1);
  if (std::strcmp(verb, "profile") == 0) return tidepool::cli::RunProfileWorkerMain(argc - 1, argv + 1);
  if (std::strcmp(verb, "--version") == 0) {
    std::printf("tidepool-worker %s\n", TIDEPOOL_VERSION);
    return 0;
  }
  if (std::strcmp(verb, "--help") == 0 || std::strcmp(verb, "-h") == 0) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  if (*verb != '\0')
    std::fprintf(stderr, "tidepool-worker: unknown command '%s'; allowed: serve, train, profile, --version\n\n", verb);
  std::fputs(kHelp, stderr);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const int code = Dispatch(argc, argv);
  std::fflush(nullptr);
  // Torch's static objects would be destroyed in an order that nobody controls, after the allocator that owns their memory.
  ::_exit(code);
}
