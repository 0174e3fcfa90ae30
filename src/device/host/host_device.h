// The host backend: memory is one memfd whose pages exist from the start, streams are threads.
#pragma once

#include "device/device.h"
#include "device/host/host_memory.h"

namespace tidepool::device {

// Makes and pre-faults the memory. RESOURCE_EXHAUSTED if the machine has less available than the capacity.
StatusOr<std::unique_ptr<Device>> OpenHostDevice(const DeviceOptions& options);
StatusOr<std::unique_ptr<Device>> AttachHostDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd);

// The memory of a device that another process made, after checking it. `lazy`: pages need not exist yet.
StatusOr<std::unique_ptr<HostMemory>> AttachHostMemory(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd,
                                                       bool lazy);

// Bytes this process could still allocate: the kernel's estimate, and the memory cgroup's limit if that is less. Reads
// <root>/proc/meminfo and <root>/sys/fs/cgroup.
StatusOr<int64_t> AvailableMemoryBytes(const std::string& root = "");

}  // namespace tidepool::device
