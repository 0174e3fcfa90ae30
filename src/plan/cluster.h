// The machines that a plan is for. Device i of the cluster is device i % gpus_per_node of node i / gpus_per_node; stages take
// consecutive devices in order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidepool::plan {

enum class LinkClass : uint8_t { kWithinNode = 0, kBetweenNodes = 1 };
inline constexpr int kLinkClasses = 2;

struct LinkSpeed {
  double bytes_per_s = 0;
  double latency_us = 0;
};

// Nodes whose devices differ from those that the profile was measured on.
struct DeviceGroup {
  std::string name;
  int32_t nodes = 1;            // groups take consecutive nodes, in order
  double time_scale = 1;        // times of ops are multiplied by it
  double memory_limit_mib = 0;  // of one device; 0: the cluster's
};

inline constexpr double kMostMemoryMib = 1e9;  // a petabyte: no device has more

struct Cluster {
  int32_t nodes = 1;
  int32_t gpus_per_node = 8;
  double memory_limit_mib = 0;  // of one device; above 0, up to kMostMemoryMib
  // Instead of the speeds in the profile. The parity model refuses these and device groups.
  std::optional<LinkSpeed> within_node, between_nodes;
  std::vector<DeviceGroup> groups;  // empty: all devices are alike

  int32_t gpus() const { return nodes * gpus_per_node; }
  // The link that a transfer uses between the devices below `gpu` and those from it on.
  LinkClass LinkAt(int32_t gpu) const {
    return gpu > 0 && gpu % gpus_per_node == 0 ? LinkClass::kBetweenNodes : LinkClass::kWithinNode;
  }
  // Whether a stage may have the devices [first, first + count): all on one node, or whole nodes.
  bool IsStageRange(int32_t first, int32_t count) const;
  // The group of the device, or -1 if there are no groups.
  int32_t GroupOf(int32_t gpu) const;
  double MemoryLimitOf(int32_t gpu) const;
  // The least of the devices [first, first + count).
  double MemoryLimitOf(int32_t first, int32_t count) const;
  // The largest time_scale of the devices [first, first + count); 1 if there are no groups.
  double TimeScaleOf(int32_t first, int32_t count) const;
};

// Reports every fault at once.
Status Validate(const Cluster& cluster);

}  // namespace tidepool::plan
