// When a training job that was killed is started again. Pure: ends in, decisions out.
#pragma once

#include <absl/time/time.h>

#include <algorithm>
#include <optional>

namespace tidepool::cluster {

// Waits `backoff` before the first restart and twice as long before each further one, up to `max_backoff`; a job that made
// progress since its last start begins anew. Gives up after `limit` restarts in a row without progress. Thread-compatible.
class RestartPolicy {
 public:
  RestartPolicy(int limit, absl::Duration backoff, absl::Duration max_backoff)
      : limit_(limit), backoff_(backoff), max_backoff_(max_backoff) {}

  // The job was killed. How long to wait before it is started again; nothing: give up.
  std::optional<absl::Duration> OnKilled(bool progressed) {
    if (progressed) in_a_row_ = 0;
    if (in_a_row_ >= limit_) return std::nullopt;
    absl::Duration wait = backoff_;
    for (int i = 0; i < in_a_row_ && wait < max_backoff_; ++i) wait *= 2;
    ++in_a_row_;
    return std::min(wait, max_backoff_);
  }
  int in_a_row() const { return in_a_row_; }

 private:
  int limit_;
  absl::Duration backoff_, max_backoff_;
  int in_a_row_ = 0;
};

}  // namespace tidepool::cluster
