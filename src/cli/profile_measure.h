// A measurement of a device as a process of its own: `tidepool-worker profile --options-fd=N`. Options go in as JSON on
// descriptor N, progress comes out as JSON lines on stdout, and the bundle lies in `output` when the process has ended well.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <string>
#include <vector>

#include "base/options.h"
#include "base/status.h"
#include "base/units.h"

namespace tidepool::cli {

struct MeasureOptions {
  std::string device = "host";
  std::vector<std::string> models;  // specs, "resnet18:image=64", or parts of one, cut at its commas
  std::vector<std::string> batches = {"1", "2", "4", "8", "16", "32", "64"};
  std::vector<std::string> phases = {"forward", "step"};  // step: also backward and optimizer
  bool ops = true;                                        // the forward pass op by op as well
  int repeats = 10;                                       // of each row, without the first run
  int64_t memory_bytes = 4 * kGiB;                        // of the device
  int threads = 0;                                        // 0: all cores
  absl::Duration time_limit = absl::Minutes(5);           // batches that would pass it are left out
  std::string output;                                     // directory of the bundle; set by the verb

  void Register(OptionTable* table);
  // Reports every fault at once.
  Status Validate() const;
  // The specs, put together again: the option's lists are cut at commas, which specs have too.
  std::vector<std::string> Models() const;
  // In ascending order. Validate has passed.
  std::vector<int64_t> Batches() const;
};
std::string ToJson(const MeasureOptions& options);
StatusOr<MeasureOptions> ParseMeasureOptions(const std::string& json);

// Runs the process to its end. `on_text` gets each line of progress. Its own error if it fails; CANCELLED when `stopped` says so
// (the process is then killed), ABORTED when a signal killed it.
Status RunMeasurement(const MeasureOptions& options, const std::string& worker_binary,
                      const std::function<void(const std::string& text)>& on_text, const std::function<bool()>& stopped);

// One line of progress: {"text": "..."} or, as the last one, {"code": "...", "message": "..."}.
std::string ProgressLine(const std::string& text);
std::string FailureLine(const Status& status);

}  // namespace tidepool::cli
