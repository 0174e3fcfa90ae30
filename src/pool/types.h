// Names shared by the ledger, the broker and its clients.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "device/device.h"

namespace tidepool::pool {

using device::Extent;
using device::PageIndex;
using ClientId = StrongId<struct ClientTag, uint32_t>;  // an attached process
using LeaseId = StrongId<struct LeaseTag, uint32_t>;
using DemandId = StrongId<struct DemandTag, uint64_t>;  // one request for memory that others had to give back for

enum class LeaseClass : uint8_t {
  kPinned,       // inference: what is granted stays until it is returned; its growth may take from reclaimable leases
  kReclaimable,  // training: what is granted above `guaranteed` may be asked back at any time
};

// Where in the device new pages are looked for: the two classes grow towards each other, which keeps free runs long.
enum class Placement : uint8_t { kLow, kHigh };

enum class FitPolicy : uint8_t { kFirstFit, kBestFit, kNextFit };

struct LeaseOptions {
  std::string name;  // "model:resnet18-a", "train:demo": what users see in `ps`, metrics and errors
  LeaseClass lease_class = LeaseClass::kPinned;
  int64_t guaranteed_pages = 0;  // always available to this lease; the sum over all leases never exceeds the device
  int64_t burst_pages = 0;       // the most it may ever hold; >= guaranteed_pages
  Placement placement = Placement::kLow;
  std::string trust_label;  // pages that move between leases of one non-empty label are not zeroed
};

struct GrowOptions {
  int64_t pages = 0;
  // Every granted run has at least this many pages (the last may be shorter only if it completes `pages`); `pages` asks for one
  // run.
  int64_t min_run_pages = 1;
};

// The broker's request that a reclaimable lease shrink to `limit_pages` (free pages included) before `deadline`.
struct RevokeRequest {
  LeaseId lease;
  DemandId demand;
  int64_t limit_pages = 0;
  absl::Duration slack = absl::ZeroDuration();  // from receipt; what is not returned in time is escalated
};

// What a reclaim cost the tenant that gave the memory back, in parts. All durations are real time.
struct ReclaimParts {
  absl::Duration cached;     // returning pages that held nothing live
  absl::Duration wait;       // until the running operator ended and the abort or the boundary was reached
  absl::Duration unwind;     // dropping the graph and the staged gradients
  absl::Duration give_back;  // returning what became free
  bool aborted = false;      // a micro-batch was thrown away
  bool boundary = false;     // the micro-batch was allowed to end
};

// One handover from start to end, as the broker saw it: total = notify + giver_parts + zero + rest.
struct HandoverRecord {
  DemandId demand;
  std::string requester, giver;  // names of leases; several givers are joined by '+', and the parts are the slowest one's
  int64_t pages = 0;
  absl::Time start;
  absl::Duration total;   // from the Grow request's arrival to its grant
  absl::Duration notify;  // until the giver had the request (its receipt stamp)
  ReclaimParts giver_parts;
  absl::Duration zero;   // clearing the pages for their new owner
  absl::Duration rest;   // messages under way, and the ledger; below zero if the giver ended after the grant
  bool granted = false;  // false: the deadline passed
};

std::string_view Name(LeaseClass lease_class);
std::string_view Name(Placement placement);
std::string_view Name(FitPolicy policy);
StatusOr<FitPolicy> ParseFitPolicy(std::string_view text);

// What a pinned lease could get.
struct PinnedRoom {
  int64_t pages = 0;        // by now and by reclaiming everything above the guarantees of reclaimable leases
  int64_t spare_pages = 0;  // of those, what leaves every reclaimable lease the size that it prefers; negative: they miss so much
};

}  // namespace tidepool::pool
