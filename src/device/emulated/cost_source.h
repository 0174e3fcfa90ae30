// Where an emulated device gets its times from.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "device/device.h"
#include "profile/bundle.h"
#include "profile/lookup.h"

namespace tidepool::device::emulated {

// The time of one operation.
struct OpTime {
  int64_t median_ns = 0;
  int64_t p10_ns = 0, p90_ns = 0;  // equal to the median or 0: the spread is not known
  int64_t first_ns = 0;            // the first run on a device, with warm-up; 0: as any other
  profile::Origin origin = profile::Origin::kMeasured;
};

// A copy of n bytes takes latency_ns + n / bytes_per_s when it is alone.
struct LinkTime {
  int64_t latency_ns = 0;
  double bytes_per_s = 0;
};

// Thread-safe: constant after it was made.
class CostSource {
 public:
  virtual ~CostSource() = default;
  virtual const profile::Manifest& manifest() const = 0;
  // NOT_FOUND if there is no time for the operation and nothing to estimate one from.
  virtual StatusOr<OpTime> TimeOf(const Operation& operation) const = 0;
  // NOT_FOUND if the device has no such link.
  virtual StatusOr<LinkTime> TimeOf(profile::LinkKind link, bool pinned) const = 0;
  // To pin host memory.
  virtual int64_t PinNanos(int64_t size_bytes) const = 0;
};

// The times of a bundle, by profile/lookup.h: rows, what lies between them, fits, and estimates. A link is the straight line
// through its rows.
std::unique_ptr<CostSource> MakeBundleCosts(std::shared_ptr<const profile::Bundle> bundle);

// Where a bundle has no times of pinning; measured tables of several machines lie between 3.0 and 3.6 GB/s.
inline constexpr double kPinBytesPerS = 3.3e9;

}  // namespace tidepool::device::emulated
