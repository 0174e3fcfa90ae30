// Planted times for tests; no part of the product.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "device/emulated/cost_source.h"

namespace tidepool::device::emulated::testing {

// Round numbers: 1 GB/s to the device, 2 GB/s from it, 10 GB/s between peers, 1 GB/s over the network; no latency unless it is
// set.
struct PlantedCosts final : public CostSource {
  PlantedCosts() {
    sheet.name = "planted";
    sheet.hardware.name = "planted";
    sheet.hardware.memory_bytes = 64.0 * (1 << 30);
    sheet.hardware.memory_bytes_per_s = 100e9;
    links[{profile::LinkKind::kHostToDevice, true}] = {.bytes_per_s = 1e9};
    links[{profile::LinkKind::kDeviceToHost, true}] = {.bytes_per_s = 2e9};
    links[{profile::LinkKind::kHostToDevice, false}] = {.bytes_per_s = 0.5e9};
    links[{profile::LinkKind::kDeviceToHost, false}] = {.bytes_per_s = 0.5e9};
    links[{profile::LinkKind::kPeer, true}] = {.bytes_per_s = 10e9};
    links[{profile::LinkKind::kNetwork, true}] = {.bytes_per_s = 1e9};
  }
  const profile::Manifest& manifest() const override { return sheet; }
  StatusOr<OpTime> TimeOf(const Operation& operation) const override {
    const auto found = ops.find(operation.key.model);
    if (found == ops.end()) return NotFound("nothing is planted for '{}'", operation.key.model);
    return found->second;
  }
  StatusOr<LinkTime> TimeOf(profile::LinkKind link, bool pinned) const override {
    const auto found = links.find({link, pinned});
    if (found == links.end()) return NotFound("no link '{}' is planted", NameOf(link));
    return found->second;
  }
  int64_t PinNanos(int64_t size_bytes) const override { return size_bytes; }  // 1 GB/s

  profile::Manifest sheet;
  std::map<std::string, OpTime> ops;
  std::map<std::pair<profile::LinkKind, bool>, LinkTime> links;
};

}  // namespace tidepool::device::emulated::testing
