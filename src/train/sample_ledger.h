// Which samples of one global batch are still to be trained on: each position is unprocessed, processing or processed, and is
// processed exactly once, however often a micro-batch over it is thrown away.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/status.h"
#include "data/loader.h"

namespace tidepool::train {

using data::PositionRange;

// Pure. Thread-compatible.
class SampleLedger {
 public:
  struct Ticket {
    int64_t id = 0;
    std::vector<PositionRange> ranges;  // sorted, disjoint
    int64_t size() const;
  };

  explicit SampleLedger(PositionRange global_batch);

  // Claims the lowest `count` unprocessed positions, or all that are left. OUT_OF_RANGE if none is.
  StatusOr<Ticket> Get(int64_t count);
  // Claims exactly `ranges` (a replay). FAILED_PRECONDITION names the first position that is not unprocessed.
  StatusOr<Ticket> GetExactly(const std::vector<PositionRange>& ranges);
  // Both end a ticket; NOT_FOUND for one that has ended already.
  Status Finish(const Ticket& ticket);
  Status Abort(const Ticket& ticket);  // its positions are unprocessed again

  PositionRange global_batch() const { return whole_; }
  int64_t unprocessed() const { return unprocessed_count_; }
  int64_t processing() const { return processing_count_; }
  int64_t processed() const { return whole_.size() - unprocessed_count_ - processing_count_; }
  bool done() const { return processed() == whole_.size(); }

 private:
  Status End(const Ticket& ticket, bool finished);
  void Insert(PositionRange range);

  const PositionRange whole_;
  std::map<int64_t, int64_t> unprocessed_;  // begin -> end; neighbours are merged
  std::map<int64_t, std::vector<PositionRange>> processing_;
  int64_t unprocessed_count_ = 0, processing_count_ = 0;
  int64_t next_ticket_ = 1;
};

// "[0, 8) [12, 16)".
std::string Describe(const std::vector<PositionRange>& ranges);

}  // namespace tidepool::train
