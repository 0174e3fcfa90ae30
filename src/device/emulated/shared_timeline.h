// The timelines of one emulated device that several processes use. It lies behind the device's pages in the same memory file, so
// whoever attaches to the device has it. One word per engine says until when the engine is taken; a process reserves the next
// stretch by one compare-and-swap. A process that dies leaves at most the stretches behind that it had reserved.
//
// Layout (little-endian, kBytes long, at offset capacity_bytes of the memory file):
//   0   8  magic "TPEMUTL1"
//   8   8  epoch: CLOCK_MONOTONIC in ns when the device was opened; all times below count from it
//   16  4 x 8  per engine (EngineKind): end of the last reserved stretch
//   48  4 x 8  per engine: sum of all reserved stretches
//   80  8  sum of what work took longer on this machine than on the device
//   88  8  how far real time ran ahead of a thread that submitted, at worst
//
// Thread-safe and process-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/status.h"

namespace tidepool::device::emulated {

class SharedTimeline {
 public:
  static constexpr int64_t kBytes = 4096;
  static constexpr int kEngines = 4;

  // Maps kBytes at `offset` of `fd`, which stays the caller's. Create writes a new timeline; Open checks that there is one.
  static StatusOr<std::unique_ptr<SharedTimeline>> Create(int fd, int64_t offset, int64_t epoch_ns);
  static StatusOr<std::unique_ptr<SharedTimeline>> Open(int fd, int64_t offset);
  ~SharedTimeline();
  SharedTimeline(const SharedTimeline&) = delete;
  SharedTimeline& operator=(const SharedTimeline&) = delete;

  int64_t epoch_ns() const { return page_->epoch_ns; }
  // The start of `duration_ns` on the engine, not before `ready_ns`.
  int64_t Reserve(int engine, int64_t ready_ns, int64_t duration_ns);
  int64_t busy_ns(int engine) const { return page_->busy_ns[engine].load(std::memory_order_relaxed); }
  void AddOverrun(int64_t ns) { page_->overrun_ns.fetch_add(ns, std::memory_order_relaxed); }
  int64_t overrun_ns() const { return page_->overrun_ns.load(std::memory_order_relaxed); }
  void NoteBehind(int64_t ns);
  int64_t behind_max_ns() const { return page_->behind_max_ns.load(std::memory_order_relaxed); }

 private:
  struct Page {
    char magic[8];
    int64_t epoch_ns;
    std::atomic<int64_t> free_ns[kEngines];
    std::atomic<int64_t> busy_ns[kEngines];
    std::atomic<int64_t> overrun_ns;
    std::atomic<int64_t> behind_max_ns;
  };
  static_assert(std::atomic<int64_t>::is_always_lock_free && sizeof(Page) == 96);
  static StatusOr<std::unique_ptr<SharedTimeline>> Map(int fd, int64_t offset);
  explicit SharedTimeline(Page* page) : page_(page) {}
  Page* const page_;
};

}  // namespace tidepool::device::emulated
