// The wall around libtorch: nothing outside engine/ includes a torch header. This header is plain types.
//
// Torch's CPU allocations go to the pool arena that is current on the calling thread (MemoryScope); a limit of the pool is a
// RESOURCE_EXHAUSTED Status, never an abort of the process. Exceptions of torch end at the engine's guard.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "pool/arena.h"

namespace tidepool::engine {

struct RuntimeOptions {
  int threads = 0;  // of intra-operator parallelism; 0: all cores
  bool deterministic = true;
};

// Installs the allocator and the thread settings. Call once, first thing in a process that runs networks.
Status InitRuntime(const RuntimeOptions& options);

struct RuntimeInfo {
  std::string torch_version;
  std::string blas;  // "OpenBLAS 0.3.21" or "reference"
  int threads = 0;
  // Whether idle OpenMP threads sleep at once. If they spin, processes that share cores slow each other down; it is set with
  // OMP_WAIT_POLICY=passive in the environment before the process starts.
  bool passive_wait = false;
};
RuntimeInfo DescribeRuntime();

// A dense row-major tensor somewhere in memory. Does not own it.
struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t elements() const;
  int64_t size_bytes() const;
};

// While it lives, torch's allocations on this thread come from `arena` (null: from the process's heap). Nests.
class MemoryScope {
 public:
  explicit MemoryScope(pool::Arena* arena);
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;

 private:
  pool::Arena* previous_;
};

// A request to stop the computation that runs under an AbortScope: the next allocation inside it unwinds and the computation
// returns ABORTED. Thread-safe.
class AbortToken {
 public:
  void Request() { requested_.store(true, std::memory_order_release); }
  void Clear() { requested_.store(false, std::memory_order_release); }
  bool requested() const { return requested_.load(std::memory_order_acquire); }
  // For tests: unwinds at the n-th check from now (0: the next); negative: never.
  void RequestAtCheck(int64_t n) { countdown_.store(n, std::memory_order_release); }
  int64_t checks() const { return checks_.load(std::memory_order_relaxed); }
  // The longest time between two checks since the last ResetLongest, in nanoseconds: the longest single operator.
  int64_t longest_gap_ns() const { return longest_gap_ns_.load(std::memory_order_relaxed); }
  void ResetLongest() { longest_gap_ns_.store(0, std::memory_order_relaxed); }
  // Used by the allocator: counts the check and says whether to unwind.
  bool Check();
  void BeginScope();  // starts the gap measurement
  void EndScope();    // the stretch after the last check counts too

 private:
  void NoteGap();

  std::atomic<bool> requested_{false};
  std::atomic<int64_t> countdown_{-1};
  std::atomic<int64_t> checks_{0};
  std::atomic<int64_t> longest_gap_ns_{0};
  int64_t last_check_ns_ = 0;  // only the thread of the scope touches it
};

}  // namespace tidepool::engine
