// The hints that a wrapper has passed on and the source below still counts on.
//
// A RecordSource expects that each WillNeed is followed by one Read or one WontNeed. A wrapper that answers a Read by itself must
// take the hint back, or the source keeps bytes in its budget that nobody will ask for.
//
// Thread-safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace tidepool::data {

class HintLedger {
 public:
  void Add(int64_t record) {
    Shard& shard = ShardOf(record);
    absl::MutexLock lock(&shard.mu);
    ++shard.counts[record];
    outstanding_.fetch_add(1, std::memory_order_relaxed);
  }
  // Takes one hint of `record` out. False if there is none.
  bool Take(int64_t record) {
    if (outstanding_.load(std::memory_order_relaxed) == 0) return false;
    Shard& shard = ShardOf(record);
    absl::MutexLock lock(&shard.mu);
    const auto found = shard.counts.find(record);
    if (found == shard.counts.end()) return false;
    if (--found->second == 0) shard.counts.erase(found);
    outstanding_.fetch_sub(1, std::memory_order_relaxed);
    return true;
  }
  int64_t outstanding() const { return outstanding_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Shard {
    absl::Mutex mu;
    absl::flat_hash_map<int64_t, int64_t> counts ABSL_GUARDED_BY(mu);
  };
  Shard& ShardOf(int64_t record) { return shards_[static_cast<uint64_t>(record) % shards_.size()]; }

  std::array<Shard, 16> shards_;
  std::atomic<int64_t> outstanding_{0};
};

}  // namespace tidepool::data
