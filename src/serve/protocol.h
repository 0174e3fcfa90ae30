// Messages between the serving front end and its device worker, on a sequenced-packet socket; tensor bytes lie in a shared slab
// of which messages carry offsets. docs/serve.md has the format to the byte. One format change = one version bump.
//
// Decoding trusts nothing: lengths, counts, strings and the end of the message are checked, and what is refused is named.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"
#include "serve/types.h"

namespace tidepool::serve {

inline constexpr uint32_t kProtocolMagic = 0x56535054;  // "TPSV"
inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr int64_t kMaxProtocolString = 4096;
inline constexpr int kMaxProtocolTensors = 256;  // inputs, or outputs, of one execution
inline constexpr int64_t kSlabAlignment = 64;

// A part of the slab.
struct SlabRange {
  uint64_t offset = 0;
  uint64_t size = 0;
  friend bool operator==(const SlabRange&, const SlabRange&) = default;
};
// INVALID_ARGUMENT unless the range is aligned and lies inside a slab of `slab_bytes`.
Status CheckRange(const SlabRange& range, int64_t slab_bytes);

// Front end to worker. `job` is chosen by the front end and comes back with the answer.
struct HelloMessage {  // carries the slab's descriptor
  uint64_t slab_bytes = 0;
};
struct LoadMessage {
  JobId job;  // from then on also the name of the loaded instance
  std::string name, spec, path;
  int64_t grow_slack_ns = 0;  // for the memory, at first; the load goes on until `limit_ns`
  int64_t limit_ns = 0;
  bool direct_io = false;  // past the page cache
};
struct CancelMessage {
  JobId job;  // of a load or an execution; it is answered as usual
};
struct UnloadMessage {
  JobId job;
  JobId instance;
};
struct ExecuteMessage {
  JobId job;
  JobId instance;
  uint32_t batch = 0;
  std::vector<SlabRange> inputs, outputs;  // in the graph's order
};
struct ShutdownMessage {};

// Worker to front end. Stamps are CLOCK_MONOTONIC nanoseconds.
struct HelloReplyMessage {
  int32_t pid = 0;
  std::string runtime;  // what computes, for the log
};
struct LoadDoneMessage {
  JobId job;
  Status status;
  int64_t pages = 0, bytes = 0;
  int64_t grow_ns = 0, read_ns = 0, total_ns = 0;
};
struct UnloadDoneMessage {
  JobId job;
  Status status;
  int64_t freed_bytes = 0;
};
struct ExecuteDoneMessage {
  JobId job;
  Status status;
  int64_t start_ns = 0, end_ns = 0;
  uint32_t pieces = 1;  // above one: the batch had to be cut for want of memory
  int64_t workspace_pages = 0, workspace_peak_pages = 0;
};
struct WorkspaceMessage {  // unasked: the memory for activations was trimmed
  int64_t pages = 0;
};

using Message = std::variant<HelloMessage, LoadMessage, CancelMessage, UnloadMessage, ExecuteMessage, ShutdownMessage,
                             HelloReplyMessage, LoadDoneMessage, UnloadDoneMessage, ExecuteDoneMessage, WorkspaceMessage>;

// Strings that are too long (only error texts can be) are cut.
std::string Encode(const Message& message);
// INVALID_ARGUMENT names the fault; FAILED_PRECONDITION on another version.
StatusOr<Message> Decode(std::string_view data);

}  // namespace tidepool::serve
