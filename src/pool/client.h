// A process's connection to the page broker of its node, and the leases it holds there.
//
// The device memory is mapped once when attaching; growing and returning change the ledger (and, in strict mode, what is
// accessible). If the broker dies every call returns UNAVAILABLE; if this process dies the broker takes back what it held.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/unix_socket.h"
#include "device/device.h"
#include "pool/types.h"

namespace tidepool::pool {

struct ClientOptions {
  std::string socket_path;    // the broker's socket; or
  UniqueFd connected_socket;  // a connection that was inherited from the node
  std::string name;           // "worker", "train:demo"
  absl::Duration attach_timeout = absl::Seconds(10);
  Clock* clock = Clock::Real();
};

// Called on the client's own thread, one at a time. It brings the lease down to the limit with Return calls and then calls
// FinishRevoke; it may hand the work to another thread and return early.
using RevokeHandler = std::function<void(const RevokeRequest&)>;
// Called on the client's own thread when a lease's limit has risen or training was paused or resumed.
using LimitHandler = std::function<void(LeaseId, int64_t limit_pages, bool paused)>;

// Thread-safe.
class Client {
 public:
  static StatusOr<std::unique_ptr<Client>> Attach(ClientOptions options);
  virtual ~Client() = default;

  virtual device::Device& device() = 0;

  virtual StatusOr<LeaseId> OpenLease(const LeaseOptions& options, absl::Time deadline) = 0;
  // Returns every page of the lease first.
  virtual Status CloseLease(LeaseId lease) = 0;

  // Asks for more. RESOURCE_EXHAUSTED if the burst or the present limit would be passed or nobody can give that much;
  // DEADLINE_EXCEEDED if reclaim was too slow. Nothing is granted in either case. Pages of another owner come zeroed.
  virtual StatusOr<std::vector<Extent>> Grow(LeaseId lease, const GrowOptions& options, absl::Time deadline) = 0;
  // Gives pages back. The caller has no access in flight: the pages may be somebody else's when this returns.
  virtual Status Return(LeaseId lease, std::span<const Extent> extents) = 0;
  // Changes how much of the lease can never be asked back. RESOURCE_EXHAUSTED if the guarantees would exceed the device.
  virtual Status SetGuaranteed(LeaseId lease, int64_t pages, absl::Time deadline) = 0;
  // Says below which size the owner of a reclaimable lease gets much slower. Nothing is promised: whoever places pinned leases
  // spares it where that costs little. INVALID_ARGUMENT for a pinned lease or beyond the burst.
  virtual Status SetPreferred(LeaseId lease, int64_t pages, absl::Time deadline) = 0;

  // How much a reclaimable lease may hold at this moment; its burst for a pinned lease. Never blocks.
  virtual int64_t limit_pages(LeaseId lease) const = 0;
  virtual int64_t held_pages(LeaseId lease) const = 0;
  // What it was opened as; empty for a lease that is not open here.
  virtual std::string lease_name(LeaseId lease) const = 0;
  virtual bool paused() const = 0;

  // Set before the first reclaimable lease is opened.
  virtual void SetHandlers(RevokeHandler revoke, LimitHandler limit) = 0;
  // Ends one RevokeRequest: the lease holds no more than its limit, or cannot come down to it (held above limit is then an error
  // that the broker escalates). `parts` goes into the handover's record.
  virtual Status FinishRevoke(const RevokeRequest& request, const ReclaimParts& parts) = 0;

  // False once the broker is gone; `broken` callbacks may be waiting on it.
  virtual bool connected() const = 0;
  // Called once, on the client's thread, when the broker is gone.
  virtual void SetDisconnectHandler(std::function<void()> handler) = 0;
};

}  // namespace tidepool::pool
