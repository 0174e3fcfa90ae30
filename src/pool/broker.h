// The single writer of a node's page ledger: grants pages, asks them back, and takes over what dead processes held.
//
// Processes attach through a Unix socket (or an inherited connection) and get the device memory's descriptor once. The broker
// runs on one event-loop thread. Every wait has a deadline: a tenant that does not give back in time is fenced (killed) and its
// pages taken.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/unix_socket.h"
#include "device/device.h"
#include "pool/types.h"

namespace tidepool::pool {

struct BrokerOptions {
  std::string socket_path;  // empty: only inherited connections
  FitPolicy fit = FitPolicy::kBestFit;
  // Pages kept from reclaimable leases so that a small load need not disturb training. Training is shrunk until `reserve_max` is
  // free and grows again only when more than that is free.
  int64_t reserve_pages = 0;
  // Static split: reclaimable leases together may hold this much and pinned ones the rest. Negative: no split.
  int64_t static_reclaimable_pages = -1;
  absl::Duration revoke_slack = absl::Milliseconds(200);  // told to the tenant
  absl::Duration fence_after = absl::Seconds(5);          // a tenant still above its limit then is killed
  bool zero_when_idle = true;
  Clock* clock = Clock::Real();
  std::function<void(const HandoverRecord&)> on_handover;  // called on the broker thread; must not block

  Status Validate(const device::DeviceInfo& info) const;
};

struct LeaseStats {
  LeaseId id;
  std::string name, client;
  int pid = 0;
  LeaseClass lease_class = LeaseClass::kPinned;
  int64_t guaranteed_pages = 0, burst_pages = 0, limit_pages = 0, held_pages = 0;
};

struct PoolStats {
  int64_t page_bytes = 0;
  int64_t total = 0, free = 0, granted = 0, returning = 0, dirty = 0;  // pages; the last four add up to the first
  int64_t peak_granted = 0;
  int64_t violations = 0;  // transitions after which the sum was wrong, or a page had two owners: always 0
  int64_t grants = 0, returns = 0, revokes = 0, fenced = 0, zeroed_pages = 0;
  std::vector<LeaseStats> leases;
};

// Thread-safe.
class Broker {
 public:
  // `device` outlives the broker.
  static StatusOr<std::unique_ptr<Broker>> Start(device::Device* device, BrokerOptions options);
  virtual ~Broker() = default;  // closes every connection; tenants see it as the end of the node

  // A connected socket for a child process to inherit (already usable by pool::Client::Attach).
  virtual StatusOr<UniqueFd> Connect() = 0;
  virtual PoolStats Stats() = 0;
  virtual PinnedRoom RoomForPinned() = 0;
  // While paused, reclaimable leases shrink to their guaranteed size and their owners are told to stop computing.
  // Returns when all have done so, or DEADLINE_EXCEEDED.
  virtual Status SetPaused(bool paused, absl::Time deadline) = 0;
  virtual const std::string& socket_path() const = 0;
};

}  // namespace tidepool::pool
