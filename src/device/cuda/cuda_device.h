// Entry points of the cuda backend. One source file implements them: no_cuda.cc where the backend is not built.
#pragma once

#include "device/device.h"

namespace tidepool::device {

StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index, const DeviceOptions& options);
StatusOr<std::unique_ptr<Device>> AttachCudaDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd);

}  // namespace tidepool::device
