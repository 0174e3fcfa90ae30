// What a cache keeps, as pure bookkeeping: no threads, no I/O, no clock, no bytes. The real cache (cache.h) and the experiments
// in virtual time decide with these same classes.
//
// Items are numbered 0 ... items - 1 (the records of a data set, or its groups). Everything is O(1) and, once a policy is made,
// allocates nothing. The sum of the bytes of what is kept never exceeds the budget, not by a byte.
//
//   none        keeps nothing
//   minio       keeps what it took first and never replaces it (Mohan et al., Analyzing and Mitigating Data Stalls in DNN
//   Training,
//               VLDB 2021). With epochs that visit every item once, the share of hits is the share that fits: c
//   lru         replaces what was used longest ago. Hits in the same case: c + (1 - c) ln(1 - c)
//   fifo        replaces what came in first
//   two-list    inactive and active list: an item enters the inactive list, a second use moves it to the active one, which holds
//               at most half of the budget and hands its oldest back; the oldest inactive item is replaced
//   page-cache  how the page cache of Linux treats files that are read once an epoch: whole pages, and FIFO unless another of the
//               lists is asked for. Measured stalls follow FIFO: pages touched once do not become active
//
// Thread-compatible.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

enum class CacheKind : uint8_t { kNone, kPageCache, kMinio, kLru, kFifo, kTwoList };
std::string_view CacheKindName(CacheKind kind);  // "two-list"
StatusOr<CacheKind> ParseCacheKind(std::string_view name);

// Which items MinIO takes.
enum class MinioAdmission : uint8_t {
  kUntilFull,   // whatever comes, until nothing more fits
  kSeededHash,  // those whose hash with the seed is small enough: everybody who knows the seed knows which they are
};

struct CachePolicyOptions {
  CacheKind kind = CacheKind::kMinio;
  int64_t budget_bytes = 0;
  int64_t items = 0;
  CacheKind page_cache_list = CacheKind::kFifo;  // of kPageCache: kFifo, kLru or kTwoList
  MinioAdmission admission = MinioAdmission::kUntilFull;
  uint64_t seed = 0;        // of kSeededHash
  int64_t total_bytes = 0;  // of kSeededHash: of all items; budget / total is the share that it takes

  Status Validate() const;
};

struct CacheAccess {
  bool hit = false;
  bool admitted = false;             // it was not there and is now
  std::span<const int64_t> evicted;  // what went for it; valid until the next call
};

struct CacheCounts {
  int64_t hits = 0, misses = 0;       // Touch
  int64_t admitted = 0, refused = 0;  // Insert
  int64_t evicted = 0;
};

class CachePolicy {
 public:
  static StatusOr<std::unique_ptr<CachePolicy>> Create(const CachePolicyOptions& options);
  virtual ~CachePolicy() = default;
  CachePolicy(const CachePolicy&) = delete;
  CachePolicy& operator=(const CachePolicy&) = delete;

  // One use of an item: Touch, and Insert if it is not there.
  CacheAccess Access(int64_t id, int64_t bytes) {
    if (Touch(id)) return {.hit = true};
    return Insert(id, bytes);
  }
  // Whether it is there; if so, this was a use of it.
  bool Touch(int64_t id) {
    const bool hit = Contains(id);
    if (hit) {
      ++counts_.hits;
      OnHit(id);
    } else {
      ++counts_.misses;
    }
    return hit;
  }
  // For an item that is not there and was fetched. An item of more bytes than the budget is never admitted.
  CacheAccess Insert(int64_t id, int64_t bytes);

  bool Contains(int64_t id) const { return nodes_[id].list != List::kAbsent; }
  // Whether Insert would admit it now. MinIO: once false, false until Clear.
  virtual bool WouldAdmit(int64_t id, int64_t bytes) const { return Charge(bytes) <= budget_bytes_ && !Contains(id); }
  // Whether hits change what will be evicted. If not, Touch need not be called for them.
  virtual bool hits_matter() const { return false; }
  // Forgets all items; they do not count as evicted.
  void Clear();

  CacheKind kind() const { return kind_; }
  int64_t items() const { return static_cast<int64_t>(nodes_.size()); }
  int64_t budget_bytes() const { return budget_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }
  int64_t used_items() const { return used_items_; }
  const CacheCounts& counts() const { return counts_; }

 protected:
  enum class List : uint8_t { kAbsent, kInactive, kActive };
  struct Node {
    int64_t bytes = 0;  // charged
    int32_t newer = -1, older = -1;
    List list = List::kAbsent;
  };
  // Linked through the nodes.
  struct Chain {
    int32_t newest = -1, oldest = -1;
    int64_t bytes = 0;
  };

  CachePolicy(const CachePolicyOptions& options);
  virtual void OnHit(int64_t id) { (void)id; }
  // Before an admitted item is put in front of the inactive list.
  virtual void MakeRoom(int64_t bytes);

  int64_t Charge(int64_t bytes) const;
  void Link(Chain* chain, int64_t id, List list);
  void Unlink(Chain* chain, int64_t id);
  void Evict(Chain* chain);  // its oldest

  std::vector<Node> nodes_;
  Chain inactive_, active_;

 private:
  const CacheKind kind_;
  const int64_t budget_bytes_;
  const int64_t page_bytes_;
  int64_t used_bytes_ = 0, used_items_ = 0;
  CacheCounts counts_;
  std::vector<int64_t> evicted_;
};

// Whether the seeded hash of an item is among the smallest `share` of all. The same everywhere; its values are part of the
// protocol of partition.h.
bool InSeededShare(uint64_t seed, int64_t id, double share);

}  // namespace tidepool::data
