#include "cli/profile_worker.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/log.h"
#include "cli/profile_measure.h"
#include "cli/profile_runner.h"
#include "engine/runtime.h"
#include "profile/bundle_io.h"

namespace tidepool::cli {
namespace {

constexpr int64_t kLargestOptions = 1 << 20;

// The descriptor is a memory file, whose offset is shared with the process that wrote it.
StatusOr<std::string> ReadOptions(const UniqueFd& fd) {
  std::string text;
  char buffer[4096];
  while (static_cast<int64_t>(text.size()) <= kLargestOptions) {
    const ssize_t n = ::pread(fd.get(), buffer, sizeof(buffer), static_cast<off_t>(text.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, fmt::format("reading the measuring options from descriptor {}", fd.get()));
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
  return InvalidArgument("measuring options of more than {} bytes", kLargestOptions);
}

void Print(const std::string& line) {
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

Status Run(int options_fd) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadOptions(UniqueFd(options_fd)));
  TIDEPOOL_ASSIGN_OR_RETURN(const MeasureOptions options, ParseMeasureOptions(text));
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_RETURN_IF_ERROR(InitLogging({.process = "profile"}));
  TIDEPOOL_RETURN_IF_ERROR(engine::InitRuntime({.threads = options.threads}));
  TIDEPOOL_ASSIGN_OR_RETURN(const profile::Bundle bundle,
                            MeasureDevice(options, [](const std::string& line) { Print(ProgressLine(line)); }));
  return profile::WriteBundle(bundle, options.output);
}

}  // namespace

int RunProfileWorkerMain(int argc, char** argv) {
  constexpr std::string_view kFlag = "--options-fd=";
  int options_fd = -1;
  if (argc == 2 && std::string_view(argv[1]).starts_with(kFlag)) {
    const std::string_view number = std::string_view(argv[1]).substr(kFlag.size());
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), options_fd);
    if (error != std::errc() || end != number.data() + number.size()) options_fd = -1;
  }
  if (options_fd < 0) {
    std::fprintf(stderr, "usage: tidepool-worker profile --options-fd=N   (N is an open descriptor; use `tidepool profile`)\n");
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  const Status status = Run(options_fd);
  if (status.ok()) return 0;
  Print(FailureLine(status));
  return 1;
}

}  // namespace tidepool::cli
