// The partition journal: how each global batch was cut into micro-batches. A run that follows a journal gives the same bits as
// the run that wrote it, whatever memory it had.
//
// Format (docs/train.md): JSON lines. The first is a header, then one line per global batch, written after its optimizer step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "train/sample_ledger.h"

namespace tidepool::train {

// What must be equal for a journal to fit a run.
struct JournalHeader {
  std::string model;  // the spec as the model's family writes it
  uint64_t seed = 0;
  int64_t global_batch = 0;
  int64_t dataset_size = 0;
  friend bool operator==(const JournalHeader&, const JournalHeader&) = default;
};

struct JournalMicroBatch {
  std::vector<PositionRange> ranges;
  uint64_t rng_key = 0;
  friend bool operator==(const JournalMicroBatch&, const JournalMicroBatch&) = default;
};

struct JournalStep {
  int64_t epoch = 0;
  int64_t step = 0;                              // the optimizer step that it ends with; the first is 1
  PositionRange positions;                       // of the whole global batch
  std::vector<JournalMicroBatch> micro_batches;  // in the order of their commits
  friend bool operator==(const JournalStep&, const JournalStep&) = default;
};

// Owned by one thread.
class JournalWriter {
 public:
  // Starts a new journal, or goes on with one: cuts it to `keep_bytes` and checks its header.
  static StatusOr<std::unique_ptr<JournalWriter>> Create(const std::string& path, const JournalHeader& header);
  static StatusOr<std::unique_ptr<JournalWriter>> Resume(const std::string& path, const JournalHeader& header,
                                                         int64_t keep_bytes);
  // One write call per line: a killed process leaves at most one torn line, at the end.
  Status Append(const JournalStep& step);
  Status Sync();
  int64_t size_bytes() const { return size_bytes_; }

 private:
  JournalWriter(std::string path, UniqueFd fd, int64_t size) : path_(std::move(path)), fd_(std::move(fd)), size_bytes_(size) {}
  Status Write(const std::string& line);

  std::string path_;
  UniqueFd fd_;
  int64_t size_bytes_ = 0;
};

// Strict: a line that breaks a rule is refused with its number and the reason.
class JournalReader {
 public:
  static StatusOr<std::unique_ptr<JournalReader>> Open(const std::string& path);
  const JournalHeader& header() const { return header_; }
  // FAILED_PRECONDITION lists every difference.
  Status CheckFits(const JournalHeader& run) const;
  // The entry of optimizer step `step`. NOT_FOUND behind the last one.
  StatusOr<const JournalStep*> Step(int64_t step) const;
  int64_t first_step() const { return steps_.empty() ? 0 : steps_.front().step; }
  int64_t last_step() const { return steps_.empty() ? 0 : steps_.back().step; }

 private:
  JournalReader(std::string path, JournalHeader header, std::vector<JournalStep> steps)
      : path_(std::move(path)), header_(std::move(header)), steps_(std::move(steps)) {}
  std::string path_;
  JournalHeader header_;
  std::vector<JournalStep> steps_;
};

std::string ToJson(const JournalHeader& header);
std::string ToJson(const JournalStep& step);
StatusOr<JournalHeader> ParseJournalHeader(const std::string& line);
StatusOr<JournalStep> ParseJournalStep(const std::string& line);

}  // namespace tidepool::train
