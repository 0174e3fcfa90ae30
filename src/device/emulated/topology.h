// Which links lie between the devices of an emulated system. Every link has one direction.
//
//   host of node n ── [switch] ── device d     to the device and from it (PCIe)
//   device ── peer port ── peer port ── device of the same node, where the hardware has such a link (NVLink); else over PCIe
//   node n ── network port ── network port ── node m
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "device/emulated/cost_source.h"
#include "device/emulated/links.h"

namespace tidepool::device::emulated {

struct TopologyOptions {
  int32_t nodes = 1;
  int32_t devices_per_node = 1;
  int32_t devices_per_switch = 0;  // that share one PCIe link to the host; 0: each has its own
  double network_bytes_per_s = 0;  // per node and direction; 0: what the profile says, or 12.5e9
};

class Topology {
 public:
  // INVALID_ARGUMENT for sizes out of range, NOT_FOUND if the profile has no link to the host.
  static StatusOr<Topology> Build(const TopologyOptions& options, const CostSource& costs, LinkNetwork* network);

  int32_t devices() const { return static_cast<int32_t>(devices_.size()); }
  int32_t node_of(int32_t device) const { return device / options_.devices_per_node; }

  struct Path {
    std::vector<LinkId> links;
    int64_t latency_ns = 0;
    double bytes_per_s = 0;  // of its slowest link
  };
  const Path& ToDevice(int32_t device) const { return devices_[static_cast<size_t>(device)].from_host; }
  const Path& FromDevice(int32_t device) const { return devices_[static_cast<size_t>(device)].to_host; }
  // From one device to another one.
  Path Between(int32_t from, int32_t to) const;

 private:
  struct Ports {
    Path from_host, to_host;
    Path peer_out, peer_in;  // no links: there are none
  };
  TopologyOptions options_;
  std::vector<Ports> devices_;
  std::vector<Path> network_out_, network_in_;  // by node
};

}  // namespace tidepool::device::emulated
