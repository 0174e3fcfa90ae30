// What the loaders share: which sample a position means, telling the data set early what will be read, and what becomes of a
// sample that cannot be read.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "data/dataset.h"

namespace tidepool::data {

// Of a sample that cannot be read.
enum class OnError : uint8_t {
  kFail,     // whoever asks for it gets the error
  kReplace,  // the next readable sample of the data set takes its place (the same one for ever, as long as the files do not
             // change)
  kSkip,     // its batch is shorter
};

struct SampleOptions {
  uint64_t seed = 0;
  bool shuffle = true;
  // Of data whose samples lie in groups: shuffle groups, and the samples of this many groups together. 0: every sample anywhere,
  // at the price of a disk read for each.
  int64_t window_groups = 16;
  bool augment = true;
  OnError on_error = OnError::kFail;
  int max_replacements = 16;  // tries for one position
  int64_t read_ahead = 64;    // samples that the data set is told about before they are read; at least the window's
  int64_t end = INT64_MAX;    // the first position that is not read
};

// Position p is the sample at offset p mod size of the order of epoch p / size. Thread-safe.
class SampleReader {
 public:
  // `dataset` outlives the reader.
  SampleReader(const Dataset* dataset, SampleOptions options, int64_t first_position);
  // Takes back the announcements of what was not read.
  ~SampleReader();

  int64_t IndexAt(int64_t position);
  // Announces what comes next; call it when `position` is about to be read. Positions are read in rising order, more or less.
  void Announce(int64_t position);
  // Positions [first, last) will not be read after all.
  void Skip(int64_t first, int64_t last);
  // Forgets orders of epochs before that of `position`.
  void ReleaseBefore(int64_t position);

  struct Outcome {
    int64_t index = 0;  // of the sample that was read, or should have been
    int64_t reads = 0;  // tries
    Status replaced;    // the error of the sample whose place it took, if it did
  };
  Status Read(int64_t position, std::span<std::byte> input, std::span<std::byte> target, const std::function<bool()>& cancelled,
              Outcome* outcome);

 private:
  std::shared_ptr<const std::vector<int64_t>> OrderOf(int64_t epoch);

  const Dataset& dataset_;
  const SampleOptions options_;
  const std::vector<int64_t> groups_;
  int64_t read_ahead_ = 0;

  absl::Mutex mu_;
  std::map<int64_t, std::shared_ptr<const std::vector<int64_t>>> orders_ ABSL_GUARDED_BY(mu_);
  int64_t announced_ ABSL_GUARDED_BY(mu_);  // all positions before it
  int64_t reached_ ABSL_GUARDED_BY(mu_);    // all positions before it are read, or being read
};

}  // namespace tidepool::data
