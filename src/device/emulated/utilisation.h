// How well an accelerator was used, and whose fault it was when it stood still.
//
// The usual metric, busy time over all time, charges the storage with everything: a loop that takes 2 us of host code between
// steps of 0.3 ms seems to wait for data although the data is there. Here the idle time between two operations is divided: what
// the host spent waiting for data is the storage's, the rest is the host's own. The score is busy / (busy + storage_idle), so
// infinitely fast storage scores 100 %.
//
// Times are nanoseconds on one device's timeline. Thread-compatible.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

namespace tidepool::device::emulated {

class UtilisationMeter {
 public:
  // The host waited for data. Intervals come in order of their ends; they may overlap (several threads).
  void AddDataWait(int64_t begin_ns, int64_t end_ns) {
    if (end_ns <= begin_ns) return;
    constexpr size_t kMost = 4096;  // between two operations
    if (waits_.size() >= kMost) waits_.pop_front();
    waits_.push_back({begin_ns, end_ns});
  }

  // The compute engine ran an operation. Operations come in order of their ends.
  void AddBusy(int64_t start_ns, int64_t end_ns) {
    if (started_) {
      if (start_ns > busy_until_ns_) AddGap(busy_until_ns_, start_ns);
      start_ns = std::max(start_ns, busy_until_ns_);
    }
    started_ = true;
    if (end_ns > start_ns) busy_ns_ += end_ns - start_ns;
    busy_until_ns_ = std::max(busy_until_ns_, end_ns);
    while (!waits_.empty() && waits_.front().end_ns <= busy_until_ns_) waits_.pop_front();
  }

  int64_t busy_ns() const { return busy_ns_; }
  int64_t storage_idle_ns() const { return storage_idle_ns_; }
  int64_t host_idle_ns() const { return host_idle_ns_; }
  // 1 before the first operation.
  double score() const {
    const int64_t all_ns = busy_ns_ + storage_idle_ns_;
    return all_ns == 0 ? 1 : static_cast<double>(busy_ns_) / static_cast<double>(all_ns);
  }

 private:
  struct Interval {
    int64_t begin_ns, end_ns;
  };
  void AddGap(int64_t begin_ns, int64_t end_ns) {
    int64_t waited_ns = 0, covered_until_ns = begin_ns;
    for (const Interval& wait : waits_) {
      const int64_t from = std::max(wait.begin_ns, covered_until_ns), to = std::min(wait.end_ns, end_ns);
      if (to <= from) continue;
      waited_ns += to - from;
      covered_until_ns = to;
    }
    storage_idle_ns_ += waited_ns;
    host_idle_ns_ += end_ns - begin_ns - waited_ns;
  }

  std::deque<Interval> waits_;  // that may reach into the next gap
  bool started_ = false;
  int64_t busy_until_ns_ = 0;
  int64_t busy_ns_ = 0, storage_idle_ns_ = 0, host_idle_ns_ = 0;
};

}  // namespace tidepool::device::emulated
