#include "pool/ledger.h"

#include <algorithm>

namespace tidepool::pool {

std::string_view Name(PageState state) {
  switch (state) {
    case PageState::kFree: return "free";
    case PageState::kGranted: return "granted";
    case PageState::kReturning: return "returning";
    case PageState::kDirty: return "dirty";
  }
  return "unknown";
}

int64_t Grant::pages() const {
  int64_t sum = 0;
  for (const Extent& extent : extents) sum += extent.count;
  return sum;
}

namespace {

// Adds one page to a list of extents in order of address.
void Append(std::vector<Extent>* extents, PageIndex page) {
  if (!extents->empty() && extents->back().end() == page) {
    ++extents->back().count;
  } else {
    extents->push_back({page, 1});
  }
}

int64_t BurstOf(const LeaseRecord& lease) { return std::max<int64_t>(0, lease.held - lease.options.guaranteed_pages); }

}  // namespace

Ledger::Ledger(int32_t pages, FitPolicy fit) : fit_(fit), pages_(static_cast<size_t>(pages)), available_(pages) {
  counts_.total = counts_.free = pages;
  if (pages > 0) available_.Add({0, pages});
}

int64_t Ledger::guaranteed_pages() const {
  int64_t sum = 0;
  for (const auto& [id, lease] : leases_) {
    if (!lease.closed) sum += lease.options.guaranteed_pages;
  }
  return sum;
}

int64_t Ledger::pinned_burst_pages() const {
  int64_t sum = 0;
  for (const auto& [id, lease] : leases_) {
    if (lease.options.lease_class == LeaseClass::kPinned) sum += BurstOf(lease);
  }
  return sum;
}

const LeaseRecord* Ledger::Find(LeaseId lease) const {
  const auto found = leases_.find(lease);
  return found == leases_.end() || found->second.closed ? nullptr : &found->second;
}

Status Ledger::Missing(LeaseId lease) const { return NotFound("lease {} is not open", lease); }

StatusOr<LeaseId> Ledger::OpenLease(ClientId client, const LeaseOptions& options) {
  if (options.guaranteed_pages < 0 || options.burst_pages < 1 || options.burst_pages < options.guaranteed_pages ||
      options.burst_pages > counts_.total) {
    return InvalidArgument(
        "lease '{}': {} pages guaranteed and a burst of {}; allowed: 0 <= guaranteed <= burst, 1 <= burst <= {}", options.name,
        options.guaranteed_pages, options.burst_pages, counts_.total);
  }
  if (options.guaranteed_pages > unpromised_pages()) {
    return ResourceExhausted(
        "lease '{}' asks for {} guaranteed pages; of {} pages {} are guaranteed to others and {} are held by "
        "pinned leases above their guarantees",
        options.name, options.guaranteed_pages, counts_.total, guaranteed_pages(), pinned_burst_pages());
  }
  const LeaseId id(next_lease_++);
  leases_[id] = {.options = options, .client = client};
  return id;
}

Status Ledger::CloseLease(LeaseId lease) {
  const auto found = leases_.find(lease);
  if (found == leases_.end() || found->second.closed) return Missing(lease);
  if (found->second.held > 0) {
    return FailedPrecondition("lease '{}' still holds {} pages", found->second.options.name, found->second.held);
  }
  found->second.closed = true;
  if (found->second.residue == 0) leases_.erase(found);
  return {};
}

Status Ledger::SetGuaranteed(LeaseId lease, int64_t pages) {
  const auto found = leases_.find(lease);
  if (found == leases_.end() || found->second.closed) return Missing(lease);
  LeaseRecord& record = found->second;
  if (pages < 0 || pages > record.options.burst_pages) {
    return InvalidArgument("lease '{}': {} guaranteed pages; allowed: 0 to its burst of {}", record.options.name, pages,
                           record.options.burst_pages);
  }
  const int64_t before = record.options.guaranteed_pages;
  record.options.guaranteed_pages = pages;
  if (pages > before && unpromised_pages() < 0) {
    record.options.guaranteed_pages = before;
    return ResourceExhausted("lease '{}' asks for {} guaranteed pages instead of {}; {} pages are not promised to others",
                             record.options.name, pages, before, unpromised_pages());
  }
  return {};
}

Status Ledger::CheckGrow(LeaseId lease, const GrowOptions& options, int64_t reserved) const {
  const LeaseRecord* record = Find(lease);
  if (record == nullptr) return Missing(lease);
  const LeaseOptions& terms = record->options;
  if (options.pages < 1 || options.min_run_pages < 1 || options.min_run_pages > options.pages) {
    return InvalidArgument("lease '{}' asks for {} pages in runs of at least {}; allowed: 1 or more pages, runs from 1 to that",
                           terms.name, options.pages, options.min_run_pages);
  }
  if (options.pages > terms.burst_pages - record->held) {
    return ResourceExhausted("lease '{}' holds {} pages and asks for {} more; its burst is {}", terms.name, record->held,
                             options.pages, terms.burst_pages);
  }
  if (terms.lease_class == LeaseClass::kPinned) {
    const int64_t new_burst = std::max<int64_t>(0, record->held + options.pages - terms.guaranteed_pages) - BurstOf(*record);
    if (new_burst > 0 && new_burst > unpromised_pages() - reserved) {
      return ResourceExhausted(
          "lease '{}' holds {} pages and asks for {} more; of {} pages {} are guaranteed, {} are held by pinned leases "
          "above their guarantees and {} are promised to earlier requests",
          terms.name, record->held, options.pages, counts_.total, guaranteed_pages(), pinned_burst_pages(), reserved);
    }
  }
  return {};
}

bool Ledger::PlanRuns(int64_t pages, int64_t min_run, Placement placement, std::vector<Extent>* runs) {
  // Runs are taken out of the index while planning, so that the next search does not see them; the caller puts them back on
  // failure.
  int64_t left = pages;
  while (left > 0) {
    if (runs->size() == kMaxGrantRuns) return false;
    Extent run = available_.Find(static_cast<int32_t>(left), fit_, placement);
    if (run.count == 0) {
      // No run holds the rest: whole runs from the longest down need the fewest pieces.
      run = available_.Longest(placement);
      if (run.count == 0 || run.count < min_run) return false;
    }
    available_.Remove(run);
    runs->push_back(run);
    left -= run.count;
  }
  return true;
}

bool Ledger::NeedsZero(const PageRecord& page, LeaseId lease, const LeaseOptions& options) const {
  if (page.state != PageState::kDirty || page.last_owner == lease) return false;
  const auto last = leases_.find(page.last_owner);
  return last == leases_.end() || options.trust_label.empty() || last->second.options.trust_label != options.trust_label;
}

void Ledger::DropResidue(LeaseId last_owner) {
  const auto found = leases_.find(last_owner);
  Check(found != leases_.end() && found->second.residue > 0);
  if (found == leases_.end()) return;
  if (--found->second.residue == 0 && found->second.closed) leases_.erase(found);
}

void Ledger::Take(LeaseId lease, LeaseRecord& record, Extent extent, Grant* grant) {
  for (PageIndex index = extent.first; index < extent.end(); ++index) {
    PageRecord& page = pages_[static_cast<size_t>(index)];
    Check((page.state == PageState::kFree || page.state == PageState::kDirty) && page.owner == LeaseId());
    if (NeedsZero(page, lease, record.options)) Append(&grant->zero, index);
    if (page.state == PageState::kDirty) {
      DropResidue(page.last_owner);
      --counts_.dirty;
    } else {
      --counts_.free;
    }
    page.state = PageState::kGranted;
    page.owner = lease;
    page.last_owner = LeaseId();
    ++page.generation;
  }
  counts_.granted += extent.count;
  record.held += extent.count;
  grant->extents.push_back(extent);
}

StatusOr<Grant> Ledger::Grow(LeaseId lease, const GrowOptions& options, int64_t reserved) {
  TIDEPOOL_RETURN_IF_ERROR(CheckGrow(lease, options, reserved));
  LeaseRecord& record = leases_.find(lease)->second;
  std::vector<Extent> runs;
  if (options.pages > available_.pages() || !PlanRuns(options.pages, options.min_run_pages, record.options.placement, &runs)) {
    for (const Extent& run : runs) available_.Add(run);
    return Unavailable("lease '{}' asks for {} pages in runs of at least {}; {} are available, the longest run has {}",
                       record.options.name, options.pages, options.min_run_pages, available_.pages(), available_.longest());
  }
  std::sort(runs.begin(), runs.end(), [](const Extent& a, const Extent& b) { return a.first < b.first; });
  Grant grant;
  for (const Extent& run : runs) Take(lease, record, run, &grant);
  counts_.peak_granted = std::max(counts_.peak_granted, counts_.granted);
  CheckSum();
  return grant;
}

Status Ledger::Return(LeaseId lease, std::span<const Extent> extents, Fence fence) {
  const auto found = leases_.find(lease);
  if (found == leases_.end() || found->second.closed) return Missing(lease);
  LeaseRecord& record = found->second;
  std::vector<Extent> sorted(extents.begin(), extents.end());
  std::sort(sorted.begin(), sorted.end(), [](const Extent& a, const Extent& b) { return a.first < b.first; });
  for (size_t i = 0; i < sorted.size(); ++i) {
    const Extent& extent = sorted[i];
    if (extent.first < 0 || extent.count < 1 || extent.first > counts_.total - extent.count) {
      return InvalidArgument("lease '{}' returns {} pages from page {}; the device has pages 0 to {}", record.options.name,
                             extent.count, extent.first, counts_.total - 1);
    }
    if (i > 0 && sorted[i - 1].end() > extent.first) {
      return InvalidArgument("lease '{}' returns page {} twice", record.options.name, extent.first);
    }
    for (PageIndex index = extent.first; index < extent.end(); ++index) {
      if (page(index).state != PageState::kGranted || page(index).owner != lease) {
        return InvalidArgument("lease '{}' returns page {}, which it does not hold", record.options.name, index);
      }
    }
  }
  for (const Extent& extent : sorted) {
    for (PageIndex index = extent.first; index < extent.end(); ++index) {
      PageRecord& page = pages_[static_cast<size_t>(index)];
      page.state = PageState::kReturning;
      page.owner = LeaseId();
      page.last_owner = lease;
    }
    counts_.granted -= extent.count;
    counts_.returning += extent.count;
    record.held -= extent.count;
    record.residue += extent.count;
    std::vector<Extent>& waiting = fences_[fence];
    waiting.push_back(extent);
  }
  CheckSum();
  if (fence == kNoFence) PassFence(fence);
  return {};
}

Status Ledger::ReturnAll(LeaseId lease, Fence fence) {
  const LeaseRecord* record = Find(lease);
  if (record == nullptr) return Missing(lease);
  std::vector<Extent> held;
  if (record->held > 0) {
    for (PageIndex index = 0; index < static_cast<PageIndex>(pages_.size()); ++index) {
      if (page(index).state == PageState::kGranted && page(index).owner == lease) Append(&held, index);
    }
  }
  return Return(lease, held, fence);
}

int64_t Ledger::PassFence(Fence fence) {
  const auto found = fences_.find(fence);
  if (found == fences_.end()) return 0;
  int64_t passed = 0;
  for (const Extent& extent : found->second) {
    for (PageIndex index = extent.first; index < extent.end(); ++index) {
      PageRecord& page = pages_[static_cast<size_t>(index)];
      Check(page.state == PageState::kReturning && page.owner == LeaseId());
      page.state = PageState::kDirty;
    }
    counts_.returning -= extent.count;
    counts_.dirty += extent.count;
    passed += extent.count;
    available_.Add(extent);
  }
  fences_.erase(found);
  CheckSum();
  return passed;
}

Status Ledger::MarkZeroed(Extent extent) {
  if (extent.first < 0 || extent.count < 1 || extent.first > counts_.total - extent.count) {
    return InvalidArgument("{} pages from page {} are not a part of the device", extent.count, extent.first);
  }
  for (PageIndex index = extent.first; index < extent.end(); ++index) {
    if (page(index).state != PageState::kDirty) {
      return InvalidArgument("page {} is {}; only dirty pages become free", index, Name(page(index).state));
    }
  }
  for (PageIndex index = extent.first; index < extent.end(); ++index) {
    PageRecord& page = pages_[static_cast<size_t>(index)];
    DropResidue(page.last_owner);
    page.state = PageState::kFree;
    page.last_owner = LeaseId();
  }
  counts_.dirty -= extent.count;
  counts_.free += extent.count;
  CheckSum();
  return {};
}

PageIndex Ledger::NextToZero() {
  if (counts_.dirty == 0) return -1;
  const auto total = static_cast<PageIndex>(pages_.size());
  for (PageIndex step = 0; step < total; ++step) {
    const PageIndex index = (zero_cursor_ + step) % total;
    if (page(index).state != PageState::kDirty) continue;
    const bool wanted = std::any_of(leases_.begin(), leases_.end(), [&](const auto& entry) {
      return !entry.second.closed && NeedsZero(page(index), entry.first, entry.second.options);
    });
    if (wanted) {
      zero_cursor_ = index;
      return index;
    }
  }
  return -1;
}

void Ledger::CheckSum() {
  Check(counts_.free + counts_.granted + counts_.returning + counts_.dirty == counts_.total &&
        available_.pages() == counts_.free + counts_.dirty);
}

int64_t Ledger::Audit() {
  const int64_t before = counts_.violations;
  LedgerCounts seen;
  std::map<LeaseId, std::pair<int64_t, int64_t>> by_lease;  // held, residue
  std::vector<Extent> runs;
  for (PageIndex index = 0; index < static_cast<PageIndex>(pages_.size()); ++index) {
    const PageRecord& page = pages_[static_cast<size_t>(index)];
    switch (page.state) {
      case PageState::kFree: ++seen.free; break;
      case PageState::kGranted: ++seen.granted; break;
      case PageState::kReturning: ++seen.returning; break;
      case PageState::kDirty: ++seen.dirty; break;
    }
    const bool granted = page.state == PageState::kGranted;
    const bool residue = page.state == PageState::kReturning || page.state == PageState::kDirty;
    Check(granted == (page.owner != LeaseId()) && residue == (page.last_owner != LeaseId()));
    if (granted) ++by_lease[page.owner].first;
    if (residue) ++by_lease[page.last_owner].second;
    if (page.state == PageState::kFree || page.state == PageState::kDirty) Append(&runs, index);
  }
  Check(seen.free == counts_.free && seen.granted == counts_.granted && seen.returning == counts_.returning &&
        seen.dirty == counts_.dirty);
  for (const auto& [id, lease] : leases_) {
    const auto [held, residue] = by_lease[id];
    Check(held == lease.held && residue == lease.residue && (!lease.closed || (held == 0 && residue > 0)));
  }
  Check(by_lease.size() == leases_.size());
  const bool same_runs = std::equal(runs.begin(), runs.end(), available_.runs().begin(), available_.runs().end(),
                                    [](const Extent& a, const auto& b) { return a.first == b.first && a.count == b.second; });
  Check(same_runs);
  Check(unpromised_pages() >= 0);
  CheckSum();
  return counts_.violations - before;
}

}  // namespace tidepool::pool
