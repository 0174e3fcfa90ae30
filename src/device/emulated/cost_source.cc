#include "device/emulated/cost_source.h"

#include <algorithm>
#include <cmath>

namespace tidepool::device::emulated {
namespace {

int64_t Nanos(double us) { return std::llround(us * 1e3); }

class BundleCosts final : public CostSource {
 public:
  explicit BundleCosts(std::shared_ptr<const profile::Bundle> bundle) : lookup_(std::move(bundle)) {}

  const profile::Manifest& manifest() const override { return lookup_.bundle().manifest; }

  StatusOr<OpTime> TimeOf(const Operation& operation) const override {
    if (operation.key.batch < 1) return InvalidArgument("an operation of batch {}; allowed: 1 or more", operation.key.batch);
    TIDEPOOL_ASSIGN_OR_RETURN(const profile::OpTimes times, lookup_.Find(operation.key, operation.cost));
    const profile::TimeEstimate estimate = times.At(operation.key.batch);
    return OpTime{.median_ns = Nanos(estimate.median_us),
                  .p10_ns = Nanos(estimate.p10_us),
                  .p90_ns = Nanos(estimate.p90_us),
                  .first_ns = Nanos(estimate.first_us),
                  .origin = estimate.origin};
  }

  StatusOr<LinkTime> TimeOf(profile::LinkKind link, bool pinned) const override {
    TIDEPOOL_ASSIGN_OR_RETURN(const profile::SizeTimes times, lookup_.FindLink(link, pinned));
    double latency_us, us_per_byte;
    if (const profile::AffineFit* fit = times.fit(); fit != nullptr && fit->slope > 0) {
      latency_us = std::max(0.0, fit->intercept);
      us_per_byte = fit->slope;
    } else {
      constexpr double kSmall = 1, kLarge = 1e9;
      latency_us = times.At(kSmall).median_us;
      us_per_byte = (times.At(kLarge).median_us - latency_us) / (kLarge - kSmall);
      latency_us = std::max(0.0, latency_us - us_per_byte * kSmall);
    }
    if (!(us_per_byte > 0)) return InvalidArgument("profile '{}': {} transfers take no time", manifest().name, NameOf(link));
    return LinkTime{.latency_ns = Nanos(latency_us), .bytes_per_s = 1e6 / us_per_byte};
  }

  int64_t PinNanos(int64_t size_bytes) const override {
    const auto bytes = static_cast<double>(size_bytes);
    if (const auto times = lookup_.FindPin(); times.ok()) return Nanos(times->At(bytes).median_us);
    return std::llround(bytes * 1e9 / kPinBytesPerS);
  }

 private:
  const profile::Lookup lookup_;
};

}  // namespace

std::unique_ptr<CostSource> MakeBundleCosts(std::shared_ptr<const profile::Bundle> bundle) {
  return std::make_unique<BundleCosts>(std::move(bundle));
}

}  // namespace tidepool::device::emulated
