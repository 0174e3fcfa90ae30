#include "device/device.h"

#include <limits>

#include "base/units.h"
#include "device/cuda/cuda_device.h"
#include "device/event_state.h"
#include "device/host/host_device.h"

namespace tidepool::device {
namespace {

constexpr std::string_view kAllowedNames = "host, cuda:<index>, emulated:<profile>";
constexpr int64_t kSmallestPage = 4096;
constexpr int64_t kLargestPage = kGiB;

Status CheckSizes(const std::string& name, int64_t capacity_bytes, int64_t page_bytes) {
  if (page_bytes < kSmallestPage || page_bytes > kLargestPage || (page_bytes & (page_bytes - 1)) != 0) {
    return InvalidArgument("device '{}': page size is {} bytes; allowed: a power of two from {} to {}", name, page_bytes,
                           kSmallestPage, kLargestPage);
  }
  const int64_t most = page_bytes * std::numeric_limits<PageIndex>::max();
  if (capacity_bytes < page_bytes || capacity_bytes > most) {
    return InvalidArgument("device '{}': capacity is {} bytes; allowed: {} (one page) to {}", name, capacity_bytes, page_bytes, most);
  }
  return {};
}

StatusOr<int> IndexOf(const std::string& name) {
  constexpr std::string_view kPrefix = "cuda:";
  int index = 0;
  const std::string_view digits = std::string_view(name).substr(kPrefix.size());
  if (digits.empty() || digits.size() > 3) return InvalidArgument("device name '{}' is unknown; allowed: {}", name, kAllowedNames);
  for (const char digit : digits) {
    if (digit < '0' || digit > '9') return InvalidArgument("device name '{}' is unknown; allowed: {}", name, kAllowedNames);
    index = index * 10 + (digit - '0');
  }
  return index;
}

Status EmulatedIsMissing(const std::string& name) {
  return Unimplemented("device '{}': this build has no emulated backend; available: host", name);
}

}  // namespace

bool Event::Done() const { return state_ == nullptr || state_->Done(); }

Status Event::Wait(absl::Time deadline) const { return state_ == nullptr ? Status() : state_->Wait(deadline); }

StatusOr<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options) {
  if (options.name == "host") {
    TIDEPOOL_RETURN_IF_ERROR(CheckSizes(options.name, options.capacity_bytes, options.page_bytes));
    return OpenHostDevice(options);
  }
  if (options.name.starts_with("cuda:")) {
    TIDEPOOL_ASSIGN_OR_RETURN(const int index, IndexOf(options.name));
    return OpenCudaDevice(index, options);
  }
  if (options.name.starts_with("emulated:")) return EmulatedIsMissing(options.name);
  return InvalidArgument("device name '{}' is unknown; allowed: {}", options.name, kAllowedNames);
}

StatusOr<std::unique_ptr<Device>> AttachDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd) {
  if (info.kind == "host") {
    TIDEPOOL_RETURN_IF_ERROR(CheckSizes(info.name, info.capacity_bytes, info.page_bytes));
    return AttachHostDevice(info, mapping, std::move(memory_fd));
  }
  if (info.kind == "cuda") return AttachCudaDevice(info, mapping, std::move(memory_fd));
  if (info.kind == "emulated") return EmulatedIsMissing(info.name);
  return InvalidArgument("device kind '{}' is unknown; allowed: host, cuda, emulated", info.kind);
}

}  // namespace tidepool::device
