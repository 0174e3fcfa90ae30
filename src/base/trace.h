// Writes Chrome trace JSON, which Perfetto and speedscope open. pid = process or rank, tid = stream or thread lane.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace tidepool {

using TraceArgs = std::vector<std::pair<std::string, std::string>>;

// Thread-safe. Times are absolute; the file counts microseconds from the first event. Finish() or the destructor completes the
// file; a file that was cut short is still readable by both viewers.
class TraceWriter {
 public:
  static StatusOr<std::unique_ptr<TraceWriter>> Open(const std::string& path, absl::Time start);
  virtual ~TraceWriter() = default;

  virtual void NameProcess(int pid, std::string_view name) = 0;
  virtual void NameThread(int pid, int tid, std::string_view name) = 0;
  virtual void Complete(int pid, int tid, std::string_view name, absl::Time start, absl::Duration duration,
                        const TraceArgs& args = {}) = 0;
  virtual void Instant(int pid, int tid, std::string_view name, absl::Time at, const TraceArgs& args = {}) = 0;
  virtual void Counter(int pid, std::string_view name, absl::Time at,
                       const std::vector<std::pair<std::string, double>>& series) = 0;
  // An arrow from one slice to another: the same id at both ends.
  virtual void FlowStart(int pid, int tid, std::string_view name, absl::Time at, uint64_t id) = 0;
  virtual void FlowEnd(int pid, int tid, std::string_view name, absl::Time at, uint64_t id) = 0;
  virtual Status Finish() = 0;
};

}  // namespace tidepool
