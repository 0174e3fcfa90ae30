#include "device/emulated/topology.h"

#include <algorithm>
#include <initializer_list>

namespace tidepool::device::emulated {
namespace {

constexpr double kUsualNetworkBytesPerS = 12.5e9;  // 100 Gbit/s
constexpr int64_t kUsualNetworkLatencyNs = 5'000;

Topology::Path Join(std::initializer_list<Topology::Path> parts) {
  Topology::Path path;
  for (const Topology::Path& part : parts) {
    if (part.links.empty()) continue;
    path.bytes_per_s = path.links.empty() ? part.bytes_per_s : std::min(path.bytes_per_s, part.bytes_per_s);
    path.links.insert(path.links.end(), part.links.begin(), part.links.end());
    path.latency_ns = std::max(path.latency_ns, part.latency_ns);
  }
  return path;
}

}  // namespace

StatusOr<Topology> Topology::Build(const TopologyOptions& options, const CostSource& costs, LinkNetwork* network) {
  if (options.nodes < 1 || options.devices_per_node < 1 || int64_t{options.nodes} * options.devices_per_node > 4096) {
    return InvalidArgument("an emulated system of {} nodes with {} devices; allowed: 1 to 4096 devices in all", options.nodes,
                           options.devices_per_node);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const LinkTime down, costs.TimeOf(profile::LinkKind::kHostToDevice, true));
  const LinkTime up = costs.TimeOf(profile::LinkKind::kDeviceToHost, true).value_or(down);
  const auto peer = costs.TimeOf(profile::LinkKind::kPeer, true);
  LinkTime nic =
      costs.TimeOf(profile::LinkKind::kNetwork, true).value_or(LinkTime{kUsualNetworkLatencyNs, kUsualNetworkBytesPerS});
  if (options.network_bytes_per_s > 0) nic.bytes_per_s = options.network_bytes_per_s;

  Topology topology;
  topology.options_ = options;
  const auto add = [network](const std::string& name, const LinkTime& time) {
    return Path{
        .links = {network->AddLink(name, time.bytes_per_s)}, .latency_ns = time.latency_ns, .bytes_per_s = time.bytes_per_s};
  };
  for (int32_t node = 0; node < options.nodes; ++node) {
    topology.network_out_.push_back(options.nodes > 1 ? add(fmt::format("node{}.net.out", node), nic) : Path());
    topology.network_in_.push_back(options.nodes > 1 ? add(fmt::format("node{}.net.in", node), nic) : Path());
    Path switch_down, switch_up;
    for (int32_t i = 0; i < options.devices_per_node; ++i) {
      const int32_t device = node * options.devices_per_node + i;
      if (options.devices_per_switch > 0 && i % options.devices_per_switch == 0) {
        switch_down = add(fmt::format("node{}.switch{}.down", node, i / options.devices_per_switch), down);
        switch_up = add(fmt::format("node{}.switch{}.up", node, i / options.devices_per_switch), up);
      }
      Ports ports{.from_host = Join({switch_down, add(fmt::format("device{}.pcie.down", device), down)}),
                  .to_host = Join({add(fmt::format("device{}.pcie.up", device), up), switch_up})};
      if (peer.ok()) {
        ports.peer_out = add(fmt::format("device{}.peer.out", device), *peer);
        ports.peer_in = add(fmt::format("device{}.peer.in", device), *peer);
      }
      topology.devices_.push_back(std::move(ports));
    }
  }
  return topology;
}

Topology::Path Topology::Between(int32_t from, int32_t to) const {
  const Ports& a = devices_[static_cast<size_t>(from)];
  const Ports& b = devices_[static_cast<size_t>(to)];
  if (node_of(from) != node_of(to)) {
    return Join({a.to_host, network_out_[static_cast<size_t>(node_of(from))], network_in_[static_cast<size_t>(node_of(to))],
                 b.from_host});
  }
  return a.peer_out.links.empty() ? Join({a.to_host, b.from_host}) : Join({a.peer_out, b.peer_in});
}

}  // namespace tidepool::device::emulated
