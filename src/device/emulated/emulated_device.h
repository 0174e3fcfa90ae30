// The emulated backend: memory in a file as on the host, but without real memory behind untouched pages; time from a profile
// bundle.
#pragma once

#include "device/device.h"
#include "device/emulated/system.h"

namespace tidepool::device::emulated {

// What ParseSpec's name means; `options.capacity_bytes` per device goes before the name's. RESOURCE_EXHAUSTED in mode=functional
// if the machine has less memory than all of them together.
StatusOr<std::vector<std::unique_ptr<Device>>> OpenEmulatedDevices(const DeviceOptions& options);
// The same with times of another source than the bundle that the name gives; for tests and for sources that are no bundles.
StatusOr<std::vector<std::unique_ptr<Device>>> OpenEmulatedDevices(const DeviceOptions& options,
                                                                   std::shared_ptr<const CostSource> costs);
// The name under which one of several equal devices is opened by itself: where times have jitter each has a seed of its own, or
// all would draw the same times. Other names are left as they are.
std::string NameOfDevice(const std::string& name, int device);
// CheckNodeDevices and CheckOneDevice (device.h) for a name with the prefix.
// `one_copy`: the devices are replicas of each other, and this machine holds the memory of one of them only.
StatusOr<NodeDevices> CheckEmulated(const DeviceOptions& options, int64_t usual_bytes, bool one_copy = false);
StatusOr<OneDevice> CheckOneEmulated(const DeviceOptions& options, int64_t usual_bytes);
// Shares the compute and copy timelines of the device with the other processes that have it. A system of several devices shares
// memory only.
StatusOr<std::unique_ptr<Device>> AttachEmulatedDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd);

// One line for people: "times from profile 'v100', estimated (NVIDIA V100 datasheet); results are computed on this machine".
std::string Describe(const DeviceProperties& properties);

// The system of an emulated device; null for others.
std::shared_ptr<System> SystemOf(Device* device);

}  // namespace tidepool::device::emulated
