// What a node says of itself: the JSON of GET /v2/tidepool/status, and numbers of several devices put together.
#pragma once

#include <string>
#include <vector>

#include "cluster/node.h"

namespace tidepool::cluster {

struct DeviceStatus {
  bool ready = false;
  int worker_pid = 0;
  pool::PoolStats pool;
  std::optional<EmulationStatus> emulation;
};

struct NodeStatus {
  const NodeOptions* options = nullptr;  // with the device settled
  std::string runtime_directory;
  bool ready = false;
  std::vector<DeviceStatus> devices;  // at least one
  std::vector<serve::ModelStatus> models;
  TrainStatus training;
};

// docs/cluster.md lists the keys.
std::string StatusJsonOf(const NodeStatus& status);

// Sums; the peak is the sum of the peaks, which need not have been at one time. Leases stand one device after the other.
pool::PoolStats Together(const std::vector<pool::PoolStats>& pools);
// Busy times and overruns are sums, the time elapsed is the longest; limited by the host if any is. Nothing of no devices.
std::optional<EmulationStatus> Together(const std::vector<EmulationStatus>& devices);

}  // namespace tidepool::cluster
