// The broker's decisions: who gets pages now, who waits, who must give back, who is fenced. Events and the time go in, decisions
// come out through CoreSink. broker.cc runs it on real sockets.
//
// Waiting requests are served in order of arrival within a class, pinned leases first. A request of a reclaimable lease that
// would pass its present limit is refused at once, so that its owner can shrink its work instead of waiting.
//
// A pure state machine: no threads, no sockets, no system time. Thread-compatible.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "pool/broker.h"
#include "pool/ledger.h"
#include "pool/reclaim.h"

namespace tidepool::pool {

// One request of a client; its answer carries the same numbers.
struct CallId {
  ClientId client;
  uint32_t call = 0;
};

// What the core wants done. None of these calls back into the core.
class CoreSink {
 public:
  virtual ~CoreSink() = default;
  virtual void Answer(const CallId& call, const Status& status) = 0;
  // `demand` comes back in GrantReady once `grant.zero` has been cleared; only then is the client told.
  virtual void Granted(const CallId& call, LeaseId lease, DemandId demand, const Grant& grant) = 0;
  virtual void Revoke(ClientId client, const RevokeRequest& request) = 0;
  virtual void LimitChanged(ClientId client, LeaseId lease, int64_t limit_pages) = 0;
  virtual void PauseChanged(ClientId client, bool paused) = 0;
  // The tenant did not do what was asked in time; `reason` says what. Its end is reported by ClientGone.
  virtual void Fence(ClientId client, const std::string& reason) = 0;
  virtual void Handover(const HandoverRecord& record) = 0;
};

struct CoreOptions {
  int32_t pages = 0;
  FitPolicy fit = FitPolicy::kBestFit;
  int64_t reserve_pages = 0;
  int64_t static_reclaimable_pages = -1;
  absl::Duration revoke_slack = absl::Milliseconds(200);
  absl::Duration fence_after = absl::Seconds(5);
  size_t waiting_limit = 1024;  // Grow requests of all clients
  size_t leases_per_client = 4096;
};

// What the giver of a handover reports when it is done.
struct RevokeReport {
  LeaseId lease;
  DemandId demand;
  absl::Time received;  // when it had the request
  ReclaimParts parts;
};

class PoolCore {
 public:
  PoolCore(const CoreOptions& options, CoreSink* sink);

  void Attach(ClientId client, const std::string& name, int pid);
  StatusOr<LeaseId> OpenLease(ClientId client, const LeaseOptions& options, absl::Time now);
  Status CloseLease(ClientId client, LeaseId lease, absl::Time now);
  // Answers through the sink, now or later.
  void Grow(const CallId& call, LeaseId lease, const GrowOptions& options, absl::Time deadline, absl::Time now);
  void GrantReady(DemandId demand, absl::Duration zero_time, absl::Time now);
  Status Return(ClientId client, LeaseId lease, std::span<const Extent> extents, absl::Time now);
  Status SetGuaranteed(ClientId client, LeaseId lease, int64_t pages, absl::Time now);
  Status SetPreferred(ClientId client, LeaseId lease, int64_t pages);
  Status FinishRevoke(ClientId client, const RevokeReport& report, absl::Time now);
  void SetPaused(bool paused, absl::Time now);

  // The connection ended. `clean`: the client has no mapping of device memory any more, so its pages are free at once; otherwise
  // they wait for ClientGone, and the client is fenced after fence_after.
  void Disconnect(ClientId client, bool clean, absl::Time now);
  // The process does not exist any more. May come without Disconnect.
  void ClientGone(ClientId client, absl::Time now);

  // Lets deadlines take effect. NextDeadline is when that is due next.
  void Tick(absl::Time now);
  absl::Time NextDeadline() const;

  int64_t limit_pages(LeaseId lease) const;
  bool paused() const { return paused_; }
  // Whether every tenant has done what the pause asked of it.
  bool PauseComplete() const;
  int64_t AvailableToPinned() const;
  // Of those, what leaves every reclaimable lease the size that it prefers; negative by as much as they miss already.
  int64_t SpareForPinned() const;
  PoolStats Stats();
  Ledger& ledger() { return ledger_; }
  void CountZeroed(int64_t pages) { zeroed_ += pages; }

 private:
  struct ClientRecord {
    std::string name;
    int pid = 0;
    bool connected = true;
    absl::Time fence_at = absl::InfiniteFuture();
    bool fenced = false;
  };
  // What a reclaimable lease has to come down to, and by when.
  struct Obligation {
    int64_t limit = 0;
    absl::Time fence_at;
  };
  // A reclaimable lease's side of things.
  struct Tenant {
    int64_t limit = 0;
    int64_t preferred = 0;             // pages; below that its owner gets much slower
    bool announced = false;            // its owner knows the lease and may be told of changes
    int64_t asked_limit = 0;           // of the newest open request
    std::set<DemandId> open_requests;  // FinishRevoke has not come
    std::vector<Obligation> obligations;
    DemandId stop_request;  // of a pause: until it is finished, the owner has not said that it stopped
  };
  struct Waiting {
    DemandId demand;
    CallId call;
    LeaseId lease;
    GrowOptions options;
    absl::Time deadline;
    int64_t extra_pages = 0;  // asked for beyond `pages` to find runs that are long enough
  };
  // A handover that is being written down: it ends when the requester has its answer and every giver has reported.
  struct OpenRecord {
    HandoverRecord record;
    ClientId client;
    std::set<std::pair<LeaseId, DemandId>> givers;
    bool answered = false;
    absl::Duration slowest_giver;
  };

  Status CheckOwner(ClientId client, LeaseId lease) const;
  int64_t HeldBy(LeaseId lease) const;

  // core.cc: requests and waiting.
  Status CheckStaticSplit(const LeaseRecord& record, int64_t pages) const;
  void GrowReclaimable(const CallId& call, LeaseId lease, const GrowOptions& options, absl::Time deadline, absl::Time now);
  bool Enqueue(std::deque<Waiting>* queue, Waiting request, absl::Time now);
  // Pages that waiting pinned leases will hold above their guarantees; and above what they hold or are guaranteed now.
  int64_t PromisedBursts() const;
  int64_t WaitingDemand() const;
  int64_t PinnedPages() const;
  void PumpPinned(absl::Time now);
  void PumpReclaimable(absl::Time now);
  void GrantTo(const Waiting& request, const Grant& grant);
  void Refuse(const Waiting& request, const Status& status, absl::Time now);
  void DropWaiting(LeaseId lease, const Status& status, absl::Time now);
  // Everything that may follow from a change: limits, requests to give back, grants.
  void Settle(absl::Time now);

  // core_tenants.cc: limits, requests to give back, escalation, records.
  void UpdateLimits(absl::Time now);
  void ApplyLimit(LeaseId lease, Tenant& tenant, int64_t limit, absl::Time now);
  void SendRevoke(LeaseId lease, Tenant& tenant, absl::Time now);
  void DropMetObligations(LeaseId lease, Tenant& tenant);
  bool TenantsComply() const;
  bool CanShrinkFurther() const;
  void OpenRecordFor(const Waiting& request, absl::Time now);
  void AddGiver(OpenRecord& record, LeaseId lease, DemandId request);
  void FinishGiver(LeaseId lease, DemandId request, const RevokeReport* report, absl::Time now);
  void EmitIfComplete(std::map<DemandId, OpenRecord>::iterator record);
  void ForgetTenant(LeaseId lease, absl::Time now);
  void FenceClient(ClientId client, const std::string& reason);

  const CoreOptions options_;
  CoreSink* const sink_;
  Ledger ledger_;
  ReclaimPolicy policy_;
  std::map<ClientId, ClientRecord> clients_;
  std::map<LeaseId, Tenant> tenants_;
  std::deque<Waiting> pinned_waiting_, reclaimable_waiting_;
  std::map<DemandId, OpenRecord> records_;
  bool paused_ = false;
  uint64_t next_demand_ = 1;
  int64_t grants_ = 0, returns_ = 0, revokes_ = 0, fenced_ = 0, zeroed_ = 0;
};

}  // namespace tidepool::pool
