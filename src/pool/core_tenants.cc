// The side of PoolCore that asks reclaimable leases to give back: limits, requests, escalation and the records of handovers.
#include <algorithm>

#include "pool/core.h"

namespace tidepool::pool {
namespace {

absl::Duration SumOf(const ReclaimParts& parts) { return parts.cached + parts.wait + parts.unwind + parts.give_back; }

}  // namespace

void PoolCore::UpdateLimits(absl::Time now) {
  ReclaimView view{.pinned_pages = PinnedPages(), .demand_pages = WaitingDemand(), .paused = paused_};
  for (const auto& [id, tenant] : tenants_) {
    const LeaseOptions& terms = ledger_.Find(id)->options;
    view.leases.push_back({.id = id, .guaranteed = terms.guaranteed_pages, .burst = terms.burst_pages});
  }
  const std::map<LeaseId, int64_t> limits = policy_.Update(view);
  for (auto& [id, tenant] : tenants_) ApplyLimit(id, tenant, limits.at(id), now);
}

void PoolCore::ApplyLimit(LeaseId lease, Tenant& tenant, int64_t limit, absl::Time now) {
  const bool changed = tenant.limit != limit;
  tenant.limit = limit;
  DropMetObligations(lease, tenant);
  if (!tenant.announced || !changed) return;
  const bool asked_enough = !tenant.open_requests.empty() && tenant.asked_limit <= limit;
  if (HeldBy(lease) > limit && !asked_enough) {
    SendRevoke(lease, tenant, now);
  } else {
    sink_->LimitChanged(ledger_.Find(lease)->client, lease, limit);
  }
}

void PoolCore::DropMetObligations(LeaseId lease, Tenant& tenant) {
  const int64_t held = HeldBy(lease);
  std::erase_if(tenant.obligations,
                [&](const Obligation& obligation) { return held <= std::max(obligation.limit, tenant.limit); });
}

void PoolCore::SendRevoke(LeaseId lease, Tenant& tenant, absl::Time now) {
  const DemandId request(next_demand_++);
  tenant.open_requests.insert(request);
  tenant.asked_limit = tenant.limit;
  if (HeldBy(lease) > tenant.limit) {
    tenant.obligations.push_back({.limit = tenant.limit, .fence_at = now + options_.fence_after});
  }
  ++revokes_;
  for (auto& [demand, record] : records_) {
    if (!record.answered) AddGiver(record, lease, request);
  }
  sink_->Revoke(ledger_.Find(lease)->client,
                {.lease = lease, .demand = request, .limit_pages = tenant.limit, .slack = options_.revoke_slack});
}

bool PoolCore::TenantsComply() const {
  return std::all_of(tenants_.begin(), tenants_.end(),
                     [this](const auto& entry) { return HeldBy(entry.first) <= entry.second.limit; });
}

bool PoolCore::CanShrinkFurther() const {
  if (options_.static_reclaimable_pages >= 0) return false;
  return std::any_of(tenants_.begin(), tenants_.end(), [this](const auto& entry) {
    return entry.second.limit > ledger_.Find(entry.first)->options.guaranteed_pages;
  });
}

Status PoolCore::FinishRevoke(ClientId client, const RevokeReport& report, absl::Time now) {
  TIDEPOOL_RETURN_IF_ERROR(CheckOwner(client, report.lease));
  const auto found = tenants_.find(report.lease);
  const LeaseRecord& record = *ledger_.Find(report.lease);
  if (found == tenants_.end() || !found->second.open_requests.contains(report.demand)) {
    return NotFound("lease '{}' has no open request {} to give back", record.options.name, report.demand);
  }
  Tenant& tenant = found->second;
  // An answer to a request answers those before it, which asked for less.
  while (!tenant.open_requests.empty() && *tenant.open_requests.begin() <= report.demand) {
    const DemandId request = *tenant.open_requests.begin();
    tenant.open_requests.erase(tenant.open_requests.begin());
    FinishGiver(report.lease, request, &report, now);
  }
  if (tenant.stop_request <= report.demand) tenant.stop_request = DemandId();
  if (record.held <= tenant.limit) return {};
  return FailedPrecondition("lease '{}' ends request {} with {} pages; its limit is {}, and it is fenced if it stays above that",
                            record.options.name, report.demand, record.held, tenant.limit);
}

void PoolCore::SetPaused(bool paused, absl::Time now) {
  if (paused_ == paused) return;
  paused_ = paused;
  for (const auto& [client, record] : clients_) {
    if (record.connected) sink_->PauseChanged(client, paused);
  }
  const DemandId before(next_demand_);
  Settle(now);
  for (auto& [lease, tenant] : tenants_) {
    if (!paused) {
      tenant.stop_request = DemandId();
      sink_->LimitChanged(ledger_.Find(lease)->client, lease, tenant.limit);
      continue;
    }
    // Also a tenant that has nothing to give back is asked: its answer says that it computes no more.
    if (tenant.open_requests.empty() || *tenant.open_requests.rbegin() < before) SendRevoke(lease, tenant, now);
    tenant.stop_request = *tenant.open_requests.rbegin();
  }
}

bool PoolCore::PauseComplete() const {
  return TenantsComply() &&
         std::all_of(tenants_.begin(), tenants_.end(), [](const auto& entry) { return entry.second.stop_request == DemandId(); });
}

void PoolCore::OpenRecordFor(const Waiting& request, absl::Time now) {
  OpenRecord open;
  open.client = request.call.client;
  open.record = {.demand = request.demand,
                 .requester = ledger_.Find(request.lease)->options.name,
                 .pages = request.options.pages,
                 .start = now};
  // It also profits from what was asked for earlier requests and is not given back yet.
  for (const auto& [lease, tenant] : tenants_) {
    if (!tenant.open_requests.empty()) AddGiver(open, lease, *tenant.open_requests.rbegin());
  }
  records_[request.demand] = std::move(open);
}

void PoolCore::AddGiver(OpenRecord& record, LeaseId lease, DemandId request) {
  const std::string& name = ledger_.Find(lease)->options.name;
  const bool known =
      std::any_of(record.givers.begin(), record.givers.end(), [&](const auto& giver) { return giver.first == lease; });
  if (record.record.giver.empty()) {
    record.record.giver = name;
  } else if (!known) {
    record.record.giver += "+" + name;
  }
  record.givers.insert({lease, request});
}

void PoolCore::FinishGiver(LeaseId lease, DemandId request, const RevokeReport* report, absl::Time) {
  for (auto entry = records_.begin(); entry != records_.end();) {
    const auto current = entry++;
    OpenRecord& open = current->second;
    if (open.givers.erase({lease, request}) == 0) continue;
    if (report != nullptr && SumOf(report->parts) >= open.slowest_giver) {
      open.slowest_giver = SumOf(report->parts);
      open.record.giver_parts = report->parts;
      open.record.notify = std::max(absl::ZeroDuration(), report->received - open.record.start);
    }
    EmitIfComplete(current);
  }
}

void PoolCore::EmitIfComplete(std::map<DemandId, OpenRecord>::iterator record) {
  OpenRecord& open = record->second;
  if (!open.answered || !open.givers.empty()) return;
  HandoverRecord complete = std::move(open.record);
  records_.erase(record);
  // A request that only waited for pages on their way took nothing from anybody.
  if (complete.giver.empty()) return;
  complete.rest = complete.total - complete.notify - SumOf(complete.giver_parts) - complete.zero;
  sink_->Handover(complete);
}

void PoolCore::ForgetTenant(LeaseId lease, absl::Time now) {
  const auto found = tenants_.find(lease);
  if (found == tenants_.end()) return;
  const std::set<DemandId> open = found->second.open_requests;
  tenants_.erase(found);
  for (const DemandId request : open) FinishGiver(lease, request, nullptr, now);
}

void PoolCore::FenceClient(ClientId client, const std::string& reason) {
  const auto found = clients_.find(client);
  if (found == clients_.end() || found->second.fenced) return;
  found->second.fenced = true;
  ++fenced_;
  sink_->Fence(client, reason);
}

}  // namespace tidepool::pool
