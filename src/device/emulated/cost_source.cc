#include "device/emulated/cost_source.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tidepool::device::emulated {
namespace {

int64_t Nanos(double us) { return std::llround(us * 1e3); }

// bytes -> time as a straight line by least squares of the relative error; nothing if the rows do not show one.
std::optional<LinkCost> FitLine(const std::vector<const profile::LinkRow*>& rows) {
  double w = 0, x = 0, xx = 0, y = 0, xy = 0;
  for (const profile::LinkRow* row : rows) {
    if (row->median_us <= 0) continue;
    const double weight = 1 / (row->median_us * row->median_us);
    w += weight;
    x += weight * row->bytes;
    xx += weight * row->bytes * row->bytes;
    y += weight * row->median_us;
    xy += weight * row->bytes * row->median_us;
  }
  const double determinant = w * xx - x * x;
  if (!(determinant > 1e-9 * w * xx)) return std::nullopt;
  const double us_per_byte = (w * xy - x * y) / determinant;
  const double latency_us = std::max(0.0, (y * xx - x * xy) / determinant);
  if (!(us_per_byte > 0)) return std::nullopt;
  return LinkCost{.latency_ns = Nanos(latency_us), .bytes_per_s = 1e6 / us_per_byte};
}

class BundleCosts final : public CostSource {
 public:
  explicit BundleCosts(std::shared_ptr<const profile::Bundle> bundle) : bundle_(std::move(bundle)) {}

  const profile::Manifest& manifest() const override { return bundle_->manifest; }

  StatusOr<OpCost> CostOf(const Operation& operation) const override {
    const auto row = std::lower_bound(bundle_->ops.begin(), bundle_->ops.end(), operation.key,
                                      [](const profile::OpRow& a, const profile::OpKey& key) { return a.key < key; });
    if (row != bundle_->ops.end() && row->key == operation.key) {
      return OpCost{.median_ns = Nanos(row->median_us),
                    .p10_ns = Nanos(row->p10_us),
                    .p90_ns = Nanos(row->p90_us),
                    .first_ns = Nanos(row->first_us),
                    .memory = row->memory,
                    .origin = bundle_->manifest.measured ? profile::Origin::kMeasured : profile::Origin::kEstimated};
    }
    return Roofline(operation);
  }

  StatusOr<LinkCost> CostOf(profile::LinkKind link, bool pinned) const override {
    std::vector<const profile::LinkRow*> rows;
    for (const profile::LinkRow& row : bundle_->links) {
      if (row.kind == link && row.pinned == pinned) rows.push_back(&row);
    }
    if (const auto fitted = FitLine(rows)) return *fitted;
    const auto& described = bundle_->manifest.hardware.link_bytes_per_s;
    const auto found = described.find(link);
    if (found == described.end() || !(found->second > 0)) {
      return NotFound("hardware '{}' has no link '{}'", bundle_->manifest.hardware.name, NameOf(link));
    }
    LinkCost cost{.latency_ns = link == profile::LinkKind::kPeer      ? kPeerLatencyNs
                                : link == profile::LinkKind::kNetwork ? kNetworkLatencyNs
                                                                      : kCopyLatencyNs,
                  .bytes_per_s = found->second};
    // Pageable memory goes through a bounce buffer, one copy after the other.
    if (!pinned) cost.bytes_per_s = 1 / (1 / cost.bytes_per_s + 1 / kBounceBytesPerS);
    return cost;
  }

 private:
  StatusOr<OpCost> Roofline(const Operation& operation) const {
    const profile::Hardware& hardware = bundle_->manifest.hardware;
    const auto peak = hardware.peak_flops.find(operation.key.dtype);
    const bool has_peak = peak != hardware.peak_flops.end() && peak->second > 0;
    if ((operation.flops <= 0 || !has_peak) && (operation.memory_bytes <= 0 || hardware.memory_bytes_per_s <= 0)) {
      return NotFound("profile '{}' has no time for model '{}', op '{}', {}, batch {}, {}, and its work is not known to estimate one",
                      bundle_->manifest.name, operation.key.model, operation.key.op, NameOf(operation.key.phase), operation.key.batch,
                      NameOf(operation.key.dtype));
    }
    const double compute_s = has_peak ? operation.flops / peak->second : 0;
    const double memory_s = hardware.memory_bytes_per_s > 0 ? operation.memory_bytes / hardware.memory_bytes_per_s : 0;
    return OpCost{.median_ns = Nanos(hardware.launch_us) + std::llround(std::max(compute_s, memory_s) * 1e9),
                  .origin = profile::Origin::kEstimated};
  }

  const std::shared_ptr<const profile::Bundle> bundle_;
};

}  // namespace

std::unique_ptr<CostSource> MakeBundleCosts(std::shared_ptr<const profile::Bundle> bundle) {
  return std::make_unique<BundleCosts>(std::move(bundle));
}

}  // namespace tidepool::device::emulated
