#include "pool/reclaim.h"

#include <algorithm>

namespace tidepool::pool {

std::map<LeaseId, int64_t> ReclaimPolicy::Update(const ReclaimView& view) {
  int64_t guaranteed = 0;
  for (const ReclaimableLease& lease : view.leases) guaranteed += lease.guaranteed;
  if (options_.static_reclaimable_pages >= 0) {
    budget_ = options_.static_reclaimable_pages;
  } else {
    const int64_t room = options_.total_pages - view.pinned_pages - view.demand_pages;
    const int64_t with_reserve = room - options_.reserve_pages;
    // Between the two lies the band in which the reserve is used up or refilled and nobody is disturbed.
    if (budget_ > room || budget_ < with_reserve) budget_ = with_reserve;
  }
  budget_ = std::max(budget_, guaranteed);
  // A pause does not forget the budget: afterwards it is what it was.
  return Share(view.paused ? guaranteed : budget_, view.leases);
}

std::map<LeaseId, int64_t> ReclaimPolicy::Share(int64_t budget, const std::vector<ReclaimableLease>& leases) {
  std::map<LeaseId, int64_t> limits;
  int64_t left = budget;
  for (const ReclaimableLease& lease : leases) {
    limits[lease.id] = lease.guaranteed;
    left -= lease.guaranteed;
  }
  // Raises the lowest limits together, step by step up to the next limit or burst.
  while (left > 0) {
    std::vector<const ReclaimableLease*> lowest;
    int64_t level = 0, next = 0;
    for (const ReclaimableLease& lease : leases) {
      const int64_t limit = limits[lease.id];
      if (limit >= lease.burst) continue;
      if (lowest.empty() || limit < level) {
        if (!lowest.empty()) next = level;
        lowest.assign(1, &lease);
        level = limit;
      } else if (limit == level) {
        lowest.push_back(&lease);
      } else {
        next = next == 0 ? limit : std::min(next, limit);
      }
    }
    if (lowest.empty()) break;
    const auto count = static_cast<int64_t>(lowest.size());
    int64_t step = left / count;
    if (next > level) step = std::min(step, next - level);
    for (const ReclaimableLease* lease : lowest) step = std::min(step, lease->burst - level);
    if (step == 0) {
      // Fewer pages than leases are left: one each, in order of id.
      for (int64_t i = 0; i < left; ++i) ++limits[lowest[static_cast<size_t>(i)]->id];
      break;
    }
    for (const ReclaimableLease* lease : lowest) limits[lease->id] += step;
    left -= step * count;
  }
  return limits;
}

}  // namespace tidepool::pool
