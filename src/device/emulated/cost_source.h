// Where an emulated device gets its times from.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "base/status.h"
#include "device/device.h"
#include "profile/bundle.h"

namespace tidepool::device::emulated {

// The time of one operation. Spread and first run are 0 where they are not known.
struct OpCost {
  int64_t median_ns = 0;
  int64_t p10_ns = 0, p90_ns = 0;
  int64_t first_ns = 0;  // the first run on a device, with warm-up
  profile::OpMemory memory;
  profile::Origin origin = profile::Origin::kMeasured;
};

// A copy of n bytes takes latency_ns + n / bytes_per_s when it is alone.
struct LinkCost {
  int64_t latency_ns = 0;
  double bytes_per_s = 0;
};

// Thread-safe: constant after it was made.
class CostSource {
 public:
  virtual ~CostSource() = default;
  virtual const profile::Manifest& manifest() const = 0;
  // NOT_FOUND if there is no time for the operation and nothing to estimate one from.
  virtual StatusOr<OpCost> CostOf(const Operation& operation) const = 0;
  // NOT_FOUND if the device has no such link.
  virtual StatusOr<LinkCost> CostOf(profile::LinkKind link, bool pinned) const = 0;
};

// Times of a bundle: what it has a row for, else an estimate from the hardware's description and the operation's flops and bytes (the roofline
// model of Williams, Waterman and Patterson, 2009). Links: a straight line through the bundle's rows, else the description.
std::unique_ptr<CostSource> MakeBundleCosts(std::shared_ptr<const profile::Bundle> bundle);

// Bandwidth at which the host copies memory into a pinned bounce buffer, and at which it pins memory, where nothing was measured.
inline constexpr double kBounceBytesPerS = 10e9;
inline constexpr double kPinBytesPerS = 3.3e9;
// From the call of a copy to its first byte, where nothing was measured.
inline constexpr int64_t kCopyLatencyNs = 8'000;
inline constexpr int64_t kPeerLatencyNs = 3'000;
inline constexpr int64_t kNetworkLatencyNs = 10'000;

}  // namespace tidepool::device::emulated
