// The published measurements that the figures are held beside. Internal to figures.cc; docs/stalls.md describes the files.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "data/stalls/pipeline.h"

namespace tidepool::data::stalls {

// One epoch of the emulator: seconds that its loop spent on each part.
struct PublishedRun {
  double wait = 0, copy = 0, compute = 0;
  double total() const { return wait + copy + compute; }
};

// Lines of three numbers. INVALID_ARGUMENT names file and line; there must be `lines` of them.
StatusOr<std::vector<PublishedRun>> ReadRuns(const std::string& path, int lines);
// Lines of "name<TAB>number"; the numbers.
StatusOr<std::vector<double>> ReadColumn(const std::string& path, int lines);

struct PublishedStep {
  double copy_seconds = 0, compute_seconds = 0;  // of a batch of 64 on one device
  bool estimated = false;
};
// From the emulator's own table of `card` ("P100"), or, with an empty folder, from the built-in bundle of that name.
StatusOr<PublishedStep> StepOf64(const std::string& reference, const std::string& card, const std::string& model);

}  // namespace tidepool::data::stalls
