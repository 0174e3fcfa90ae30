// The page ledger of one device: who holds which page, what may be granted, what must be cleared first.
//
// A page goes FREE -> GRANTED -> RETURNING(fence) -> DIRTY -> FREE. RETURNING pages are given up, but somebody may still reach
// them until the fence has passed. DIRTY pages belong to nobody and hold their last owner's bytes; FREE pages are zero. A grant
// may use both, and says which of its pages must be cleared: DIRTY ones that another lease had, unless both leases carry the same
// non-empty trust label.
//
// Accounting: free + granted + returning + dirty == total after every transition, and a page has at most one owner.
// Guarantees: pinned holdings above their guarantees never exceed total minus the sum of guarantees. So a lease always reaches
// its guarantee once reclaimable leases are down to theirs (and returning pages have arrived).
//
// A pure state machine: no threads, no time, no I/O. Thread-compatible.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "pool/run_index.h"
#include "pool/types.h"

namespace tidepool::pool {

enum class PageState : uint8_t { kFree, kGranted, kReturning, kDirty };
std::string_view Name(PageState state);

using Fence = StrongId<struct FenceTag, uint64_t>;
inline constexpr Fence kNoFence{};  // nothing is in flight: passed already

struct PageRecord {
  PageState state = PageState::kFree;
  uint32_t generation = 0;  // counts grants
  LeaseId owner;            // while granted
  LeaseId last_owner;       // while returning or dirty; 0 when the page is zero
};

struct LeaseRecord {
  LeaseOptions options;
  ClientId client;
  int64_t held = 0;     // granted pages
  int64_t residue = 0;  // returning and dirty pages that it had last
  bool closed = false;  // kept only while it has residue
};

struct Grant {
  std::vector<Extent> extents;  // in order of address
  std::vector<Extent> zero;     // the part of them that must be cleared before use
  int64_t pages() const;
};

struct LedgerCounts {
  int64_t total = 0, free = 0, granted = 0, returning = 0, dirty = 0;
  int64_t peak_granted = 0;
  int64_t violations = 0;
};

// The most runs one grant may have, so that it fits one message.
inline constexpr size_t kMaxGrantRuns = 8000;

class Ledger {
 public:
  Ledger(int32_t pages, FitPolicy fit);

  // INVALID_ARGUMENT for sizes that contradict each other, RESOURCE_EXHAUSTED if the guarantees could not be kept.
  StatusOr<LeaseId> OpenLease(ClientId client, const LeaseOptions& options);
  // FAILED_PRECONDITION while it holds pages.
  Status CloseLease(LeaseId lease);
  Status SetGuaranteed(LeaseId lease, int64_t pages);

  // What Grow says apart from the pages that are available now: OK if the lease may have so much. `reserved` pages of bursts are
  // promised to others.
  Status CheckGrow(LeaseId lease, const GrowOptions& options, int64_t reserved = 0) const;
  // UNAVAILABLE if the pages (or runs that are long enough) are not there at present; the other errors are CheckGrow's.
  StatusOr<Grant> Grow(LeaseId lease, const GrowOptions& options, int64_t reserved = 0);
  // All or nothing: INVALID_ARGUMENT if a page is named twice or is not held by the lease.
  Status Return(LeaseId lease, std::span<const Extent> extents, Fence fence);
  // Everything the lease holds.
  Status ReturnAll(LeaseId lease, Fence fence);
  // RETURNING pages behind `fence` become DIRTY. Returns how many.
  int64_t PassFence(Fence fence);
  // DIRTY -> FREE. The caller has cleared them. INVALID_ARGUMENT if a page is not dirty.
  Status MarkZeroed(Extent extent);
  // The next dirty page that an open lease would need cleared, searched from the last one found; -1 if there is none.
  PageIndex NextToZero();

  const LeaseRecord* Find(LeaseId lease) const;  // open leases only
  const std::map<LeaseId, LeaseRecord>& leases() const { return leases_; }
  const PageRecord& page(PageIndex index) const { return pages_[static_cast<size_t>(index)]; }
  LedgerCounts counts() const { return counts_; }
  int64_t available() const { return counts_.free + counts_.dirty; }
  int32_t longest_run() const { return available_.longest(); }
  int64_t guaranteed_pages() const;
  // Pages that pinned leases hold above their guarantees.
  int64_t pinned_burst_pages() const;
  // How many pages beyond their guarantees pinned leases can get at most.
  int64_t unpromised_pages() const { return counts_.total - guaranteed_pages() - pinned_burst_pages(); }

  // Recounts everything from the page records and compares; adds each difference to `violations` and returns how many there were.
  int64_t Audit();

 private:
  bool NeedsZero(const PageRecord& page, LeaseId lease, const LeaseOptions& options) const;
  bool PlanRuns(int64_t pages, int64_t min_run, Placement placement, std::vector<Extent>* runs);
  void Take(LeaseId lease, LeaseRecord& record, Extent extent, Grant* grant);
  void Settle(PageIndex index, PageRecord& page);
  void DropResidue(LeaseId last_owner);
  void Check(bool condition) {
    if (!condition) ++counts_.violations;
  }
  void CheckSum();
  Status Missing(LeaseId lease) const;

  const FitPolicy fit_;
  std::vector<PageRecord> pages_;
  RunIndex available_;  // FREE and DIRTY pages
  std::map<LeaseId, LeaseRecord> leases_;
  std::map<Fence, std::vector<Extent>> fences_;
  LedgerCounts counts_;
  uint32_t next_lease_ = 1;
  PageIndex zero_cursor_ = 0;
};

}  // namespace tidepool::pool
