// A pool of its own for a test: host device, broker, client and arena in this process, and an arena that counts and fails on
// demand.
#pragma once

#include <absl/synchronization/mutex.h>

#include <memory>
#include <set>
#include <thread>

#include "base/units.h"
#include "pool/arena.h"

namespace tidepool::engine {

class TestPool {
 public:
  virtual ~TestPool() = default;
  // Aborts the test program if the pool cannot be made.
  static std::unique_ptr<TestPool> Make(int64_t capacity_bytes, int64_t page_bytes = 64 * kKiB);
  // A lease of its own that may hold `burst_bytes`.
  virtual std::unique_ptr<pool::Arena> MakeArena(int64_t burst_bytes) = 0;
};

// Passes everything on to a real arena. Blocks belong to the real one, so frees do not come through here. Thread-safe.
class ProbeArena final : public pool::Arena {
 public:
  explicit ProbeArena(pool::Arena* arena) : arena_(arena) {}

  // Refuses the n-th allocation from now (0: the next), once; negative: none.
  void FailAt(int64_t n);
  int64_t allocations() const;
  int64_t allocated_bytes() const;
  bool failed() const;
  std::set<std::thread::id> threads() const;
  void Reset();

  StatusOr<void*> Allocate(int64_t size_bytes) override;
  void Free(void* block) override { arena_->Free(block); }
  StatusOr<int64_t> ReturnCached(int64_t keep_pages) override { return arena_->ReturnCached(keep_pages); }
  pool::LeaseId lease() const override { return arena_->lease(); }
  pool::ArenaStats stats() const override { return arena_->stats(); }
  void ResetPeak() override { arena_->ResetPeak(); }

 private:
  pool::Arena* const arena_;
  mutable absl::Mutex mu_;
  int64_t fail_at_ ABSL_GUARDED_BY(mu_) = -1;
  int64_t allocations_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t allocated_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool failed_ ABSL_GUARDED_BY(mu_) = false;
  std::set<std::thread::id> threads_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tidepool::engine
