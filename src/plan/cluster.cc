#include "plan/cluster.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace tidepool::plan {

bool Cluster::IsStageRange(int32_t first, int32_t count) const {
  if (count < 1 || first < 0 || first + count > gpus()) return false;
  const int32_t within = first % gpus_per_node;
  if (within + count <= gpus_per_node) return true;
  return within == 0 && count % gpus_per_node == 0;
}

int32_t Cluster::GroupOf(int32_t gpu) const {
  int32_t end = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    end += groups[i].nodes * gpus_per_node;
    if (gpu < end) return static_cast<int32_t>(i);
  }
  return -1;
}

double Cluster::MemoryLimitOf(int32_t gpu) const {
  const int32_t group = GroupOf(gpu);
  return group >= 0 && groups[group].memory_limit_mib > 0 ? groups[group].memory_limit_mib : memory_limit_mib;
}

double Cluster::MemoryLimitOf(int32_t first, int32_t count) const {
  double limit = MemoryLimitOf(first);
  const int32_t last = GroupOf(first + count - 1);
  for (int32_t i = GroupOf(first) + 1; i <= last; ++i) {
    limit = std::min(limit, groups[i].memory_limit_mib > 0 ? groups[i].memory_limit_mib : memory_limit_mib);
  }
  return limit;
}

double Cluster::TimeScaleOf(int32_t first, int32_t count) const {
  if (groups.empty()) return 1;
  const int32_t from = GroupOf(first), last = GroupOf(first + count - 1);
  double scale = from >= 0 ? groups[from].time_scale : 1;
  for (int32_t i = from + 1; i <= last; ++i) scale = std::max(scale, groups[i].time_scale);
  return scale;
}

Status Validate(const Cluster& cluster) {
  std::vector<std::string> faults;
  const auto require = [&](bool good, std::string text) {
    if (!good) faults.push_back(std::move(text));
  };
  require(cluster.nodes >= 1 && cluster.nodes <= 1 << 16, fmt::format("nodes is {}; allowed: 1 to 65536", cluster.nodes));
  require(cluster.gpus_per_node >= 1 && cluster.gpus_per_node <= 1024,
          fmt::format("gpus_per_node is {}; allowed: 1 to 1024", cluster.gpus_per_node));
  require(cluster.memory_limit_mib > 0 && cluster.memory_limit_mib <= kMostMemoryMib,
          fmt::format("memory_limit_mib is {}; allowed: above 0, up to {:.0f}", cluster.memory_limit_mib, kMostMemoryMib));
  for (const auto& link : {cluster.within_node, cluster.between_nodes}) {
    if (!link) continue;
    require(std::isfinite(link->bytes_per_s) && link->bytes_per_s > 0,
            fmt::format("the speed of a link is {} bytes/s; allowed: above 0", link->bytes_per_s));
    require(std::isfinite(link->latency_us) && link->latency_us >= 0,
            fmt::format("the latency of a link is {} us; allowed: 0 or more", link->latency_us));
  }
  int64_t nodes = 0;
  for (const DeviceGroup& group : cluster.groups) {
    require(group.nodes >= 1, fmt::format("group '{}' has {} nodes; allowed: 1 or more", group.name, group.nodes));
    require(std::isfinite(group.time_scale) && group.time_scale > 0,
            fmt::format("time_scale of group '{}' is {}; allowed: above 0", group.name, group.time_scale));
    nodes += group.nodes;
  }
  require(cluster.groups.empty() || nodes == cluster.nodes,
          fmt::format("the device groups have {} nodes; allowed: {}, as the cluster has", nodes, cluster.nodes));
  return faults.empty() ? Status() : InvalidArgument("{}", JoinText(faults, "; "));
}

}  // namespace tidepool::plan
