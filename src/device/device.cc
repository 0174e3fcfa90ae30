#include "device/device.h"

#include <limits>

#include "base/units.h"
#include "device/cuda/cuda_device.h"
#include "device/emulated/emulated_device.h"
#include "device/emulated/spec.h"
#include "device/event_state.h"
#include "device/host/host_device.h"
#include "profile/open.h"

namespace tidepool::device {
namespace {

constexpr std::string_view kAllowedNames = "host, cuda:<index>, emulated:<profile>";
constexpr int64_t kSmallestPage = 4096;
constexpr int64_t kLargestPage = kGiB;

Status CheckPage(const std::string& name, int64_t page_bytes) {
  if (page_bytes < kSmallestPage || page_bytes > kLargestPage || (page_bytes & (page_bytes - 1)) != 0) {
    return InvalidArgument("device '{}': page size is {} bytes; allowed: a power of two from {} to {}", name, page_bytes,
                           kSmallestPage, kLargestPage);
  }
  return {};
}

Status CheckSizes(const std::string& name, int64_t capacity_bytes, int64_t page_bytes) {
  TIDEPOOL_RETURN_IF_ERROR(CheckPage(name, page_bytes));
  const int64_t most = page_bytes * std::numeric_limits<PageIndex>::max();
  if (capacity_bytes < page_bytes || capacity_bytes > most) {
    return InvalidArgument("device '{}': capacity is {} bytes; allowed: {} (one page) to {}", name, capacity_bytes, page_bytes,
                           most);
  }
  return {};
}

StatusOr<int> IndexOf(const std::string& name) {
  constexpr std::string_view kPrefix = "cuda:";
  int index = 0;
  const std::string_view digits = std::string_view(name).substr(kPrefix.size());
  if (digits.empty() || digits.size() > 3)
    return InvalidArgument("device name '{}' is unknown; allowed: {}", name, kAllowedNames);
  for (const char digit : digits) {
    if (digit < '0' || digit > '9') return InvalidArgument("device name '{}' is unknown; allowed: {}", name, kAllowedNames);
    index = index * 10 + (digit - '0');
  }
  return index;
}

Status CheckAsked(const DeviceOptions& options) {
  if (options.capacity_bytes >= 0) return {};
  return InvalidArgument("device '{}': capacity is {} bytes; allowed: 0 and above", options.name, options.capacity_bytes);
}

}  // namespace

bool Event::Done() const { return state_ == nullptr || state_->Done(); }

Status Event::Wait(absl::Time deadline) const { return state_ == nullptr ? Status() : state_->Wait(deadline); }

StatusOr<absl::Time> Event::ReachedAt() const {
  if (state_ == nullptr) return FailedPrecondition("an empty event has no time");
  return state_->ReachedAt();
}

std::string_view NameOf(EngineKind engine) {
  switch (engine) {
    case EngineKind::kCompute: return "compute";
    case EngineKind::kHostToDevice: return "host-to-device";
    case EngineKind::kDeviceToHost: return "device-to-host";
    case EngineKind::kPeer: return "peer";
  }
  return "?";
}

StatusOr<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto devices, OpenDevices(options));
  if (devices.size() == 1) return std::move(devices.front());
  return InvalidArgument("device '{}' means {} devices; allowed here: one", options.name, devices.size());
}

StatusOr<std::vector<std::unique_ptr<Device>>> OpenDevices(const DeviceOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(CheckPage(options.name, options.page_bytes));
  if (options.name.starts_with(emulated::kPrefix)) {
    if (options.capacity_bytes != 0)
      TIDEPOOL_RETURN_IF_ERROR(CheckSizes(options.name, options.capacity_bytes, options.page_bytes));
    return emulated::OpenEmulatedDevices(options);
  }
  std::vector<std::unique_ptr<Device>> devices(1);
  if (options.name == "host") {
    TIDEPOOL_RETURN_IF_ERROR(CheckSizes(options.name, options.capacity_bytes, options.page_bytes));
    TIDEPOOL_ASSIGN_OR_RETURN(devices[0], OpenHostDevice(options));
    return devices;
  }
  if (options.name.starts_with("cuda:")) {
    TIDEPOOL_ASSIGN_OR_RETURN(const int index, IndexOf(options.name));
    TIDEPOOL_ASSIGN_OR_RETURN(devices[0], OpenCudaDevice(index, options));
    return devices;
  }
  return InvalidArgument("device name '{}' is unknown; allowed: {}", options.name, kAllowedNames);
}

StatusOr<NodeDevices> CheckNodeDevices(const DeviceOptions& options, int64_t usual_bytes) {
  TIDEPOOL_RETURN_IF_ERROR(CheckAsked(options));
  if (options.name.starts_with(emulated::kPrefix)) return emulated::CheckEmulated(options, usual_bytes);
  if (options.name.starts_with("cuda:")) {
    TIDEPOOL_RETURN_IF_ERROR(IndexOf(options.name).status());
  } else if (options.name != "host") {
    // The name of a profile alone is what people try first.
    const auto spec = emulated::ParseSpec(fmt::format("{}{}", emulated::kPrefix, options.name));
    const bool profile = spec.ok() && profile::FindBundle(spec->bundle).ok();
    return InvalidArgument("device name '{}' is unknown; allowed: {}{}", options.name, kAllowedNames,
                           profile ? fmt::format("; did you mean 'emulated:{}'?", options.name) : "");
  }
  NodeDevices devices{.options = options};
  if (options.capacity_bytes == 0) devices.options.capacity_bytes = usual_bytes;
  return devices;
}

StatusOr<std::unique_ptr<Device>> AttachDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd) {
  if (info.kind == "cuda") return AttachCudaDevice(info, mapping, std::move(memory_fd));
  if (info.kind != "host" && info.kind != "emulated") {
    return InvalidArgument("device kind '{}' is unknown; allowed: host, cuda, emulated", info.kind);
  }
  TIDEPOOL_RETURN_IF_ERROR(CheckSizes(info.name, info.capacity_bytes, info.page_bytes));
  if (info.kind == "host") return AttachHostDevice(info, mapping, std::move(memory_fd));
  return emulated::AttachEmulatedDevice(info, mapping, std::move(memory_fd));
}

}  // namespace tidepool::device
