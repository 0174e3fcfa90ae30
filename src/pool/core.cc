#include "pool/core.h"

#include <algorithm>

#include "base/units.h"

namespace tidepool::pool {
namespace {

// A client's pages behind this fence are reachable for as long as its process lives.
Fence ProcessFence(ClientId client) { return Fence(client.value()); }

}  // namespace

PoolCore::PoolCore(const CoreOptions& options, CoreSink* sink)
    : options_(options),
      sink_(sink),
      ledger_(options.pages, options.fit),
      policy_({.total_pages = options.pages,
               .reserve_pages = options.reserve_pages,
               .static_reclaimable_pages = options.static_reclaimable_pages}) {}

void PoolCore::Attach(ClientId client, const std::string& name, int pid) { clients_[client] = {.name = name, .pid = pid}; }

Status PoolCore::CheckOwner(ClientId client, LeaseId lease) const {
  const LeaseRecord* record = ledger_.Find(lease);
  if (record == nullptr) return NotFound("lease {} is not open", lease);
  if (record->client != client) return PermissionDenied("lease {} belongs to another client", lease);
  return {};
}

int64_t PoolCore::HeldBy(LeaseId lease) const {
  const LeaseRecord* record = ledger_.Find(lease);
  return record == nullptr ? 0 : record->held;
}

int64_t PoolCore::limit_pages(LeaseId lease) const {
  if (const auto tenant = tenants_.find(lease); tenant != tenants_.end()) return tenant->second.limit;
  const LeaseRecord* record = ledger_.Find(lease);
  return record == nullptr ? 0 : record->options.burst_pages;
}

Status PoolCore::CheckStaticSplit(const LeaseRecord& record, int64_t pages) const {
  if (options_.static_reclaimable_pages < 0 || record.options.lease_class == LeaseClass::kReclaimable) return {};
  const int64_t share = options_.pages - options_.static_reclaimable_pages;
  const int64_t used = PinnedPages() + WaitingDemand();
  const int64_t more =
      std::max(record.held + pages, record.options.guaranteed_pages) - std::max(record.held, record.options.guaranteed_pages);
  if (used + more <= share) return {};
  return ResourceExhausted("lease '{}' holds {} pages and asks for {} more; pinned leases share {} pages and have {}",
                           record.options.name, record.held, pages, share, used);
}

StatusOr<LeaseId> PoolCore::OpenLease(ClientId client, const LeaseOptions& options, absl::Time now) {
  size_t open = 0;
  for (const auto& [id, lease] : ledger_.leases()) open += lease.client == client && !lease.closed ? 1 : 0;
  if (open >= options_.leases_per_client) {
    return ResourceExhausted("lease '{}': this client has {} leases open; allowed: {}", options.name, open,
                             options_.leases_per_client);
  }
  if (options_.static_reclaimable_pages >= 0) {
    const bool pinned = options.lease_class == LeaseClass::kPinned;
    int64_t others = 0;
    for (const auto& [id, lease] : ledger_.leases()) {
      if (!lease.closed && lease.options.lease_class == options.lease_class) others += lease.options.guaranteed_pages;
    }
    const int64_t share = pinned ? options_.pages - options_.static_reclaimable_pages : options_.static_reclaimable_pages;
    const int64_t used = pinned ? PinnedPages() + WaitingDemand() : others;
    if (options.guaranteed_pages > share - used) {
      return ResourceExhausted("lease '{}' asks for {} guaranteed pages; {} leases share {} pages and have {}", options.name,
                               options.guaranteed_pages, Name(options.lease_class), share, used);
    }
  }
  if (options.guaranteed_pages > ledger_.unpromised_pages() - PromisedBursts()) {
    return ResourceExhausted("lease '{}' asks for {} guaranteed pages; {} of {} are not promised to others", options.name,
                             options.guaranteed_pages, std::max<int64_t>(0, ledger_.unpromised_pages() - PromisedBursts()),
                             options_.pages);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const LeaseId lease, ledger_.OpenLease(client, options));
  if (options.lease_class == LeaseClass::kReclaimable) tenants_[lease] = {};
  Settle(now);
  if (const auto tenant = tenants_.find(lease); tenant != tenants_.end()) tenant->second.announced = true;
  return lease;
}

Status PoolCore::CloseLease(ClientId client, LeaseId lease, absl::Time now) {
  TIDEPOOL_RETURN_IF_ERROR(CheckOwner(client, lease));
  DropWaiting(lease, Cancelled("lease {} was closed", lease), now);
  TIDEPOOL_RETURN_IF_ERROR(ledger_.ReturnAll(lease, kNoFence));
  TIDEPOOL_RETURN_IF_ERROR(ledger_.CloseLease(lease));
  ForgetTenant(lease, now);
  Settle(now);
  return {};
}

int64_t PoolCore::PinnedPages() const {
  int64_t sum = 0;
  for (const auto& [id, lease] : ledger_.leases()) {
    if (!lease.closed && lease.options.lease_class == LeaseClass::kPinned) {
      sum += std::max(lease.held, lease.options.guaranteed_pages);
    }
  }
  return sum;
}

int64_t PoolCore::PromisedBursts() const {
  std::map<LeaseId, int64_t> waiting;
  for (const Waiting& request : pinned_waiting_) waiting[request.lease] += request.options.pages;
  int64_t sum = 0;
  for (const auto& [id, pages] : waiting) {
    const LeaseRecord* lease = ledger_.Find(id);
    if (lease == nullptr) continue;
    const int64_t guaranteed = lease->options.guaranteed_pages;
    sum += std::max<int64_t>(0, lease->held + pages - guaranteed) - std::max<int64_t>(0, lease->held - guaranteed);
  }
  return sum;
}

int64_t PoolCore::WaitingDemand() const {
  std::map<LeaseId, int64_t> waiting;
  for (const Waiting& request : pinned_waiting_) waiting[request.lease] += request.options.pages + request.extra_pages;
  int64_t sum = 0;
  for (const auto& [id, pages] : waiting) {
    const LeaseRecord* lease = ledger_.Find(id);
    if (lease == nullptr) continue;
    const int64_t guaranteed = lease->options.guaranteed_pages;
    sum += std::max(lease->held + pages, guaranteed) - std::max(lease->held, guaranteed);
  }
  return sum;
}

int64_t PoolCore::AvailableToPinned() const {
  int64_t most = ledger_.unpromised_pages() - PromisedBursts();
  if (options_.static_reclaimable_pages >= 0) {
    most = std::min(most, options_.pages - options_.static_reclaimable_pages - PinnedPages() - WaitingDemand());
  }
  return std::max<int64_t>(0, most);
}

int64_t PoolCore::SpareForPinned() const {
  const int64_t most = AvailableToPinned();
  if (options_.static_reclaimable_pages >= 0) return most;  // nothing moves
  int64_t kept = 0;
  for (const auto& [id, tenant] : tenants_) kept += std::max(tenant.preferred, ledger_.Find(id)->options.guaranteed_pages);
  return std::min(most, options_.pages - PinnedPages() - WaitingDemand() - kept);
}

void PoolCore::Grow(const CallId& call, LeaseId lease, const GrowOptions& options, absl::Time deadline, absl::Time now) {
  Status allowed = CheckOwner(call.client, lease);
  if (allowed.ok() && ledger_.Find(lease)->options.lease_class == LeaseClass::kReclaimable) {
    GrowReclaimable(call, lease, options, deadline, now);
    return;
  }
  if (allowed.ok()) allowed = ledger_.CheckGrow(lease, options, PromisedBursts());
  if (allowed.ok()) allowed = CheckStaticSplit(*ledger_.Find(lease), options.pages);
  if (!allowed.ok()) {
    sink_->Answer(call, allowed);
    return;
  }
  const Waiting request{
      .demand = DemandId(next_demand_++), .call = call, .lease = lease, .options = options, .deadline = deadline};
  if (pinned_waiting_.empty()) {
    if (auto grant = ledger_.Grow(lease, options); grant.ok()) {
      GrantTo(request, *grant);
      Settle(now);
      return;
    }
  }
  if (!Enqueue(&pinned_waiting_, request, now)) return;
  OpenRecordFor(request, now);
  Settle(now);
}

void PoolCore::GrowReclaimable(const CallId& call, LeaseId lease, const GrowOptions& options, absl::Time deadline,
                               absl::Time now) {
  const LeaseRecord& record = *ledger_.Find(lease);
  const Tenant& tenant = tenants_.at(lease);
  Status allowed = ledger_.CheckGrow(lease, options);
  if (allowed.ok() && options.pages > tenant.limit - record.held) {
    allowed = ResourceExhausted("lease '{}' holds {} pages and asks for {} more; its present limit is {}", record.options.name,
                                record.held, options.pages, tenant.limit);
  }
  if (!allowed.ok()) {
    sink_->Answer(call, allowed);
    return;
  }
  const Waiting request{
      .demand = DemandId(next_demand_++), .call = call, .lease = lease, .options = options, .deadline = deadline};
  if (Enqueue(&reclaimable_waiting_, request, now)) Settle(now);
}

bool PoolCore::Enqueue(std::deque<Waiting>* queue, Waiting request, absl::Time now) {
  const size_t waiting = pinned_waiting_.size() + reclaimable_waiting_.size();
  const std::string& name = ledger_.Find(request.lease)->options.name;
  if (waiting >= options_.waiting_limit) {
    sink_->Answer(request.call, ResourceExhausted("lease '{}' would wait for {} pages, but {} requests wait already; allowed: {}",
                                                  name, request.options.pages, waiting, options_.waiting_limit));
    return false;
  }
  if (request.deadline <= now && queue == &pinned_waiting_) {
    sink_->Answer(request.call, DeadlineExceeded("lease '{}' would have to wait for {} pages, and its deadline has passed", name,
                                                 request.options.pages));
    return false;
  }
  queue->push_back(request);
  return true;
}

void PoolCore::GrantTo(const Waiting& request, const Grant& grant) {
  ++grants_;
  sink_->Granted(request.call, request.lease, request.demand, grant);
}

void PoolCore::Refuse(const Waiting& request, const Status& status, absl::Time now) {
  sink_->Answer(request.call, status);
  if (const auto record = records_.find(request.demand); record != records_.end()) {
    record->second.record.total = now - record->second.record.start;
    record->second.answered = true;
    EmitIfComplete(record);
  }
}

void PoolCore::PumpPinned(absl::Time now) {
  while (!pinned_waiting_.empty()) {
    Waiting& first = pinned_waiting_.front();
    auto grant = ledger_.Grow(first.lease, first.options);
    if (grant.ok()) {
      const Waiting request = first;
      pinned_waiting_.pop_front();
      GrantTo(request, *grant);
      continue;
    }
    Status refusal = grant.status();
    if (refusal.code() == StatusCode::kUnavailable) {
      if (!TenantsComply() || ledger_.counts().returning > 0) return;
      if (CanShrinkFurther()) {
        // Everybody did what was asked and the pages lie in runs that are too short: ask for more.
        first.extra_pages = std::max(first.options.pages, 2 * first.extra_pages);
        UpdateLimits(now);
        continue;
      }
      refusal = ResourceExhausted("{}; no lease can give back more", MessageOf(refusal));
    }
    const Waiting request = first;
    pinned_waiting_.pop_front();
    Refuse(request, refusal, now);
  }
}

void PoolCore::PumpReclaimable(absl::Time now) {
  bool blocked = false;
  for (size_t i = 0; i < reclaimable_waiting_.size();) {
    const Waiting request = reclaimable_waiting_[i];
    const LeaseRecord& record = *ledger_.Find(request.lease);
    const int64_t limit = tenants_.at(request.lease).limit;
    Status refusal;
    if (request.options.pages > limit - record.held) {
      refusal = ResourceExhausted("lease '{}' holds {} pages and asks for {} more; its limit has become {}", record.options.name,
                                  record.held, request.options.pages, limit);
    } else if (!blocked && ledger_.available() - WaitingDemand() >= request.options.pages) {
      auto grant = ledger_.Grow(request.lease, request.options);
      if (grant.ok()) {
        reclaimable_waiting_.erase(reclaimable_waiting_.begin() + static_cast<std::ptrdiff_t>(i));
        GrantTo(request, *grant);
        continue;
      }
      if (grant.status().code() != StatusCode::kUnavailable) {
        refusal = grant.status();
      } else if (TenantsComply() && ledger_.counts().returning == 0) {
        refusal = ResourceExhausted("{}; no lease can give back more", MessageOf(grant.status()));
      }
    }
    if (refusal.ok()) {
      blocked = true;
      ++i;
      continue;
    }
    reclaimable_waiting_.erase(reclaimable_waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    Refuse(request, refusal, now);
  }
}

void PoolCore::Settle(absl::Time now) {
  UpdateLimits(now);
  PumpPinned(now);
  UpdateLimits(now);
  PumpReclaimable(now);
}

void PoolCore::GrantReady(DemandId demand, absl::Duration zero_time, absl::Time now) {
  const auto record = records_.find(demand);
  if (record == records_.end()) return;
  record->second.record.zero = zero_time;
  record->second.record.total = now - record->second.record.start;
  record->second.record.granted = true;
  record->second.answered = true;
  EmitIfComplete(record);
}

Status PoolCore::Return(ClientId client, LeaseId lease, std::span<const Extent> extents, absl::Time now) {
  TIDEPOOL_RETURN_IF_ERROR(CheckOwner(client, lease));
  TIDEPOOL_RETURN_IF_ERROR(ledger_.Return(lease, extents, kNoFence));
  ++returns_;
  Settle(now);
  return {};
}

Status PoolCore::SetGuaranteed(ClientId client, LeaseId lease, int64_t pages, absl::Time now) {
  TIDEPOOL_RETURN_IF_ERROR(CheckOwner(client, lease));
  const LeaseRecord& record = *ledger_.Find(lease);
  if (pages < 0 || pages > record.options.burst_pages) return ledger_.SetGuaranteed(lease, pages);
  const int64_t more = pages - record.options.guaranteed_pages;
  if (more > 0) {
    // What a pinned lease holds above its guarantee only changes its name.
    const bool pinned = record.options.lease_class == LeaseClass::kPinned;
    const int64_t held_already = pinned ? std::min(more, std::max<int64_t>(0, record.held - record.options.guaranteed_pages)) : 0;
    const int64_t room = ledger_.unpromised_pages() - PromisedBursts();
    if (more - held_already > room) {
      return ResourceExhausted("lease '{}' asks for {} guaranteed pages instead of {}; {} pages are not promised to others",
                               record.options.name, pages, record.options.guaranteed_pages, std::max<int64_t>(0, room));
    }
    if (!pinned && options_.static_reclaimable_pages >= 0) {
      int64_t others = 0;
      for (const auto& [id, tenant] : tenants_) others += id == lease ? 0 : ledger_.Find(id)->options.guaranteed_pages;
      if (others + pages > options_.static_reclaimable_pages) {
        return ResourceExhausted("lease '{}' asks for {} guaranteed pages; reclaimable leases share {} pages and have {}",
                                 record.options.name, pages, options_.static_reclaimable_pages, others);
      }
    }
    if (pinned) TIDEPOOL_RETURN_IF_ERROR(CheckStaticSplit(record, pages - record.held));
  }
  TIDEPOOL_RETURN_IF_ERROR(ledger_.SetGuaranteed(lease, pages));
  Settle(now);
  return {};
}

Status PoolCore::SetPreferred(ClientId client, LeaseId lease, int64_t pages) {
  TIDEPOOL_RETURN_IF_ERROR(CheckOwner(client, lease));
  const LeaseOptions& options = ledger_.Find(lease)->options;
  if (options.lease_class != LeaseClass::kReclaimable) {
    return InvalidArgument("lease '{}' is pinned; only reclaimable leases have a preferred size", options.name);
  }
  if (pages < 0 || pages > options.burst_pages) {
    return InvalidArgument("lease '{}' prefers {} pages; allowed: 0 to its burst of {}", options.name, pages,
                           options.burst_pages);
  }
  tenants_.at(lease).preferred = pages;
  return {};
}

void PoolCore::DropWaiting(LeaseId lease, const Status& status, absl::Time now) {
  for (std::deque<Waiting>* queue : {&pinned_waiting_, &reclaimable_waiting_}) {
    for (size_t i = 0; i < queue->size();) {
      if ((*queue)[i].lease != lease) {
        ++i;
        continue;
      }
      const Waiting request = (*queue)[i];
      queue->erase(queue->begin() + static_cast<std::ptrdiff_t>(i));
      Refuse(request, status, now);
    }
  }
}

void PoolCore::Disconnect(ClientId client, bool clean, absl::Time now) {
  const auto found = clients_.find(client);
  if (found == clients_.end() || !found->second.connected) return;
  found->second.connected = false;
  found->second.fence_at = clean ? absl::InfiniteFuture() : now + options_.fence_after;
  std::vector<LeaseId> leases;
  for (const auto& [id, lease] : ledger_.leases()) {
    if (lease.client == client && !lease.closed) leases.push_back(id);
  }
  for (const LeaseId lease : leases) {
    DropWaiting(lease, Cancelled("the client is gone"), now);
    ledger_.ReturnAll(lease, clean ? kNoFence : ProcessFence(client)).IgnoreError();
    ledger_.CloseLease(lease).IgnoreError();
    ForgetTenant(lease, now);
  }
  for (auto record = records_.begin(); record != records_.end();) {
    const auto current = record++;
    if (current->second.client != client || current->second.answered) continue;
    current->second.answered = true;
    EmitIfComplete(current);
  }
  if (clean) clients_.erase(found);
  Settle(now);
}

void PoolCore::ClientGone(ClientId client, absl::Time now) {
  Disconnect(client, /*clean=*/false, now);
  ledger_.PassFence(ProcessFence(client));
  clients_.erase(client);
  Settle(now);
}

void PoolCore::Tick(absl::Time now) {
  bool changed = false;
  for (std::deque<Waiting>* queue : {&pinned_waiting_, &reclaimable_waiting_}) {
    for (size_t i = 0; i < queue->size();) {
      if ((*queue)[i].deadline > now) {
        ++i;
        continue;
      }
      const Waiting request = (*queue)[i];
      queue->erase(queue->begin() + static_cast<std::ptrdiff_t>(i));
      const LedgerCounts counts = ledger_.counts();
      Refuse(request,
             DeadlineExceeded("lease '{}' waited in vain for {} pages; {} are available and {} are being given up",
                              ledger_.Find(request.lease)->options.name, request.options.pages, ledger_.available(),
                              counts.returning),
             now);
      changed = true;
    }
  }
  if (changed) Settle(now);
  for (auto& [lease, tenant] : tenants_) {
    for (const Obligation& obligation : tenant.obligations) {
      if (obligation.fence_at > now) continue;
      const LeaseRecord& record = *ledger_.Find(lease);
      FenceClient(record.client,
                  fmt::format("lease '{}' holds {} pages, {} after it was asked to come down to {}", record.options.name,
                              record.held, tidepool::FormatDuration(options_.fence_after), obligation.limit));
    }
  }
  for (auto& [client, record] : clients_) {
    if (record.fence_at > now || record.fenced) continue;
    FenceClient(client, fmt::format("client '{}' closed its connection and still runs after {}", record.name,
                                    tidepool::FormatDuration(options_.fence_after)));
  }
}

absl::Time PoolCore::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto* queue : {&pinned_waiting_, &reclaimable_waiting_}) {
    for (const Waiting& request : *queue) next = std::min(next, request.deadline);
  }
  for (const auto& [lease, tenant] : tenants_) {
    const auto client = clients_.find(ledger_.Find(lease)->client);
    if (client == clients_.end() || client->second.fenced) continue;
    for (const Obligation& obligation : tenant.obligations) next = std::min(next, obligation.fence_at);
  }
  for (const auto& [client, record] : clients_) {
    if (!record.fenced) next = std::min(next, record.fence_at);
  }
  return next;
}

PoolStats PoolCore::Stats() {
  ledger_.Audit();
  const LedgerCounts counts = ledger_.counts();
  PoolStats stats{.total = counts.total,
                  .free = counts.free,
                  .granted = counts.granted,
                  .returning = counts.returning,
                  .dirty = counts.dirty,
                  .peak_granted = counts.peak_granted,
                  .violations = counts.violations,
                  .grants = grants_,
                  .returns = returns_,
                  .revokes = revokes_,
                  .fenced = fenced_,
                  .zeroed_pages = zeroed_};
  for (const auto& [id, lease] : ledger_.leases()) {
    if (lease.closed) continue;
    const auto client = clients_.find(lease.client);
    stats.leases.push_back({.id = id,
                            .name = lease.options.name,
                            .client = client == clients_.end() ? "" : client->second.name,
                            .pid = client == clients_.end() ? 0 : client->second.pid,
                            .lease_class = lease.options.lease_class,
                            .guaranteed_pages = lease.options.guaranteed_pages,
                            .burst_pages = lease.options.burst_pages,
                            .limit_pages = limit_pages(id),
                            .held_pages = lease.held});
  }
  return stats;
}

}  // namespace tidepool::pool
