#include "device/cuda/cuda_device.h"

namespace tidepool::device {
namespace {

Status Missing(const std::string& name) {
  return Unimplemented("device '{}': this build has no CUDA backend; available: host", name);
}

}  // namespace

StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int, const DeviceOptions& options) { return Missing(options.name); }

StatusOr<std::unique_ptr<Device>> AttachCudaDevice(const DeviceInfo& info, MappingMode, UniqueFd) { return Missing(info.name); }

}  // namespace tidepool::device
