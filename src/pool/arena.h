// Allocation inside one lease: blocks of any size from the lease's pages, with neighbouring free space merged across pages.
//
// Freed space stays with the lease (touched pages are the cheapest memory there is) until ReturnCached gives every page without a
// live block back to the broker. Blocks are aligned to 64 bytes. A block never moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "pool/client.h"

namespace tidepool::pool {

struct ArenaStats {
  int64_t live_bytes = 0;       // in blocks handed out
  int64_t peak_live_bytes = 0;  // since the last ResetPeak
  int64_t held_pages = 0;       // of the lease
  int64_t peak_held_pages = 0;
  int64_t cached_pages = 0;     // without any live block
  int64_t allocations = 0;      // since start
  int64_t blocks = 0;           // live
};

struct ArenaOptions {
  absl::Duration grow_timeout = absl::Seconds(5);
  int64_t grow_step_pages = 4;  // asked for at a time when a smaller block does not fit (less if the limit is near)
};

// Thread-safe: blocks may be freed by any thread.
class Arena {
 public:
  // `client` outlives the arena; the arena uses every page of `lease`.
  static std::unique_ptr<Arena> Create(Client* client, LeaseId lease, const ArenaOptions& options);
  virtual ~Arena() = default;  // returns every page; live blocks are a bug of the caller

  // RESOURCE_EXHAUSTED names the lease, what was asked for, held and allowed; DEADLINE_EXCEEDED if reclaim was too slow.
  virtual StatusOr<void*> Allocate(int64_t size_bytes) = 0;
  virtual void Free(void* block) = 0;
  // Gives back pages without live blocks, but keeps up to `keep_pages` held in all. Returns how many it gave back.
  virtual StatusOr<int64_t> ReturnCached(int64_t keep_pages) = 0;

  virtual LeaseId lease() const = 0;
  virtual ArenaStats stats() const = 0;
  virtual void ResetPeak() = 0;

  // The arena that owns the block at `address`, or null if it is not pool memory of this process.
  static Arena* Owner(const void* address);
};

}  // namespace tidepool::pool
