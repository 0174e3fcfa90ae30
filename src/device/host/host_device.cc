#include "device/host/host_device.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/units.h"
#include "device/host/host_memory.h"
#include "device/host/host_stream.h"

namespace tidepool::device {
namespace {

class HostDevice final : public Device {
 public:
  HostDevice(DeviceInfo info, const PinnedOptions& pinned, std::unique_ptr<HostMemory> memory)
      : info_(std::move(info)),
        memory_(std::move(memory)),
        allocator_(fmt::format("device '{}'", info_.name), memory_->base(), info_.capacity_bytes),
        pinned_(info_.name, pinned) {
    properties_.model = "host";
  }
  const DeviceInfo& info() const override { return info_; }
  const DeviceProperties& properties() const override { return properties_; }
  Clock* clock() const override { return Clock::Real(); }
  PageMemory& memory() override { return *memory_; }
  StatusOr<std::unique_ptr<Stream>> CreateStream(const StreamOptions& options) override { return CreateHostStream(options); }
  Allocator& allocator() override { return allocator_; }
  PinnedPool& pinned() override { return pinned_; }

 private:
  const DeviceInfo info_;
  DeviceProperties properties_;
  std::unique_ptr<HostMemory> memory_;
  Allocator allocator_;
  PinnedPool pinned_;
};

// The number after `key` (or at the start if it is empty); nothing for "max" and for a file that is not there.
std::optional<int64_t> NumberIn(const std::string& path, std::string_view key) {
  auto content = ReadFile(path, 1 << 20);
  if (!content.ok()) return std::nullopt;
  std::string_view text = *content;
  const size_t at = text.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  text.remove_prefix(at + key.size());
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  int64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc()) return std::nullopt;
  return value;
}

}  // namespace

StatusOr<int64_t> AvailableMemoryBytes(const std::string& root) {
  const auto available_kib = NumberIn(root + "/proc/meminfo", "MemAvailable:");
  if (!available_kib) return NotFound("'{}/proc/meminfo' has no MemAvailable", root);
  int64_t available = *available_kib * kKiB;
  const std::string group = root + "/sys/fs/cgroup";
  for (const auto& [limit_path, used_path] :
       {std::pair(group + "/memory.max", group + "/memory.current"),
        std::pair(group + "/memory/memory.limit_in_bytes", group + "/memory/memory.usage_in_bytes")}) {
    const auto limit = NumberIn(limit_path, "");
    const auto used = NumberIn(used_path, "");
    if (limit && used) available = std::min(available, std::max<int64_t>(0, *limit - *used));
  }
  return available;
}

StatusOr<std::unique_ptr<Device>> OpenHostDevice(const DeviceOptions& options) {
  const int64_t pages = options.capacity_bytes / options.page_bytes;
  DeviceInfo info{.name = options.name,
                  .kind = "host",
                  .capacity_bytes = pages * options.page_bytes,
                  .page_bytes = options.page_bytes,
                  .mapping = options.mapping};
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t available, AvailableMemoryBytes());
  if (info.capacity_bytes > available) {
    return ResourceExhausted("device '{}' needs {} of memory and {} is available; give it a smaller capacity", info.name,
                             FormatBytes(info.capacity_bytes), FormatBytes(available));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(UniqueFd fd, CreateMemFd("tidepool-" + info.name, info.capacity_bytes));
  TIDEPOOL_ASSIGN_OR_RETURN(auto memory,
                            HostMemory::Create(std::move(fd), info.page_bytes, static_cast<int32_t>(pages), Access::kAll));
  return std::make_unique<HostDevice>(std::move(info), options.pinned, std::move(memory));
}

StatusOr<std::unique_ptr<HostMemory>> AttachHostMemory(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd,
                                                       bool lazy) {
  struct stat file {};
  if (::fstat(memory_fd.get(), &file) != 0) return ErrnoError(errno, fmt::format("reading the size of device '{}'", info.name));
  if (file.st_size < info.capacity_bytes || info.capacity_bytes % info.page_bytes != 0) {
    return InvalidArgument("device '{}': its memory has {} bytes; {} in pages of {} were announced", info.name, file.st_size,
                           info.capacity_bytes, info.page_bytes);
  }
  // Without the seal the other side could shrink the file, and a page of it would then fault.
  const int seals = ::fcntl(memory_fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return InvalidArgument("device '{}': its memory is not a memory file that is sealed against shrinking", info.name);
  }
  const Access access = mapping == MappingMode::kStrict ? Access::kOwned : lazy ? Access::kLazy : Access::kAll;
  return HostMemory::Create(std::move(memory_fd), info.page_bytes, static_cast<int32_t>(info.capacity_bytes / info.page_bytes),
                            access);
}

StatusOr<std::unique_ptr<Device>> AttachHostDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto memory, AttachHostMemory(info, mapping, std::move(memory_fd), false));
  DeviceInfo attached = info;
  attached.mapping = mapping;
  return std::make_unique<HostDevice>(std::move(attached), PinnedOptions(), std::move(memory));
}

}  // namespace tidepool::device
