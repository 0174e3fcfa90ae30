// How much reclaimable leases may hold at this moment: the reclaim policy.
//
// Reclaimable leases share a budget: what pinned holdings, the guarantees of pinned leases and waiting demands leave. A part of
// the device, the reserve, absorbs small demands without disturbing anybody:
//   - a demand that the reserve covers leaves the budget as it is;
//   - a demand that it does not cover shrinks the budget so far that the whole reserve is free again afterwards;
//   - the budget grows only when more than the reserve is free.
// (Source of the idea: the reallocation watermark of Sirius, USENIX ATC'25: one reclaim reaches a stable point instead of many
// small ones chasing the load.) The budget is dealt out max-min fairly above the guarantees of the reclaimable leases.
//
// Pure: no threads, no time. Thread-compatible.
#pragma once

#include <map>
#include <vector>

#include "pool/types.h"

namespace tidepool::pool {

struct ReclaimOptions {
  int64_t total_pages = 0;
  int64_t reserve_pages = 0;
  int64_t static_reclaimable_pages = -1;  // >= 0: the budget is this and pinned leases have the rest; nothing moves
};

struct ReclaimableLease {
  LeaseId id;
  int64_t guaranteed = 0;
  int64_t burst = 0;
};

struct ReclaimView {
  int64_t pinned_pages = 0;              // over pinned leases: the larger of held and guaranteed
  int64_t demand_pages = 0;              // what waiting demands of pinned leases need beyond that
  bool paused = false;                   // every reclaimable lease goes down to its guarantee
  std::vector<ReclaimableLease> leases;  // in order of id
};

class ReclaimPolicy {
 public:
  explicit ReclaimPolicy(const ReclaimOptions& options) : options_(options) {}

  // The limit of each reclaimable lease, from the present state and the budget before.
  std::map<LeaseId, int64_t> Update(const ReclaimView& view);

  int64_t budget() const { return budget_; }

  // Deals `budget` out: each lease gets its guarantee, the rest goes to the lowest first, none above its burst.
  static std::map<LeaseId, int64_t> Share(int64_t budget, const std::vector<ReclaimableLease>& leases);

 private:
  const ReclaimOptions options_;
  int64_t budget_ = 0;
};

}  // namespace tidepool::pool
