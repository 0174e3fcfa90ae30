#include "device/emulated/emulated_device.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/units.h"
#include "device/emulated/emulated_stream.h"
#include "device/host/host_device.h"
#include "profile/open.h"

namespace tidepool::device::emulated {
namespace {

// Real time may be this far ahead of a timeline, plus a share of what has passed, before results count as limited by the host.
constexpr absl::Duration kBehindSlack = absl::Milliseconds(20);
constexpr double kBehindShare = 0.05;

DeviceProperties PropertiesOf(const System& system) {
  const profile::Manifest& manifest = system.costs().manifest();
  const auto rate = [&](profile::LinkKind link) {
    const auto time = system.costs().TimeOf(link, true);
    return time.ok() ? time->bytes_per_s : 0;
  };
  return {.model = manifest.hardware.name,
          .peak_flops = manifest.hardware.peak_flops,
          .memory_bytes_per_s = manifest.hardware.memory_bytes_per_s,
          .host_to_device_bytes_per_s = rate(profile::LinkKind::kHostToDevice),
          .device_to_host_bytes_per_s = rate(profile::LinkKind::kDeviceToHost),
          .peer_bytes_per_s = rate(profile::LinkKind::kPeer),
          .computes = system.spec().functional,
          .estimated = !manifest.measured,
          .profile = manifest.name,
          .profile_source = manifest.source};
}

void MarkHostLimited(TimelineReport* report) {
  const absl::Duration allowed = kBehindSlack + report->elapsed * kBehindShare;
  const auto mark = [&](std::string_view what, absl::Duration seen) {
    if (seen <= allowed || report->host_limited) return;
    report->host_limited = true;
    report->host_limited_reason = fmt::format("{} {} after {}; allowed: {}", what, tidepool::FormatDuration(seen),
                                              tidepool::FormatDuration(report->elapsed), tidepool::FormatDuration(allowed));
  };
  mark("this machine was behind the emulated device by", report->behind_max);
  mark("results took longer to compute on this machine than on the emulated device, in sum by", report->overrun);
}

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(std::shared_ptr<System> system, DeviceInfo info, int32_t index_in_system, const PinnedOptions& pinned,
                 std::unique_ptr<HostMemory> memory)
      : system_(std::move(system)),
        info_(std::move(info)),
        index_(index_in_system),
        properties_(PropertiesOf(*system_)),
        opened_ns_(system_->driver().NowNs()),
        memory_(std::move(memory)),
        allocator_(fmt::format("device '{}'", info_.name), memory_->base(), info_.capacity_bytes),
        pinned_(info_.name, pinned, [this](int64_t bytes) { ChargePinning(bytes); }) {
    system_->SetMemory(index_, memory_->base(), info_.capacity_bytes);
  }

  const DeviceInfo& info() const override { return info_; }
  const DeviceProperties& properties() const override { return properties_; }
  Clock* clock() const override { return system_->clock(); }
  PageMemory& memory() override { return *memory_; }
  StatusOr<std::unique_ptr<Stream>> CreateStream(const StreamOptions& options) override {
    return CreateEmulatedStream(system_, index_, &pinned_, options);
  }
  Allocator& allocator() override { return allocator_; }
  PinnedPool& pinned() override { return pinned_; }

  absl::Time HostNow() override { return system_->driver().TimeOf(system_->driver().ThreadNs()); }

  void NoteDataWait(absl::Time begin, absl::Time end) override {
    Driver& driver = system_->driver();
    absl::MutexLock lock(driver.mu());
    system_->emulation().utilisation(index_).AddDataWait(driver.NanosOf(begin), driver.NanosOf(end));
  }

  std::optional<TimelineReport> timeline() override {
    Driver& driver = system_->driver();
    absl::MutexLock lock(driver.mu());
    driver.CatchUp();
    Emulation& emulation = system_->emulation();
    TimelineReport report;
    report.elapsed = absl::Nanoseconds(driver.ThreadNs() - opened_ns_);
    for (const EngineKind engine :
         {EngineKind::kCompute, EngineKind::kHostToDevice, EngineKind::kDeviceToHost, EngineKind::kPeer}) {
      report.busy[engine] = absl::Nanoseconds(emulation.BusyNs(index_, engine));
    }
    report.own_busy = report.busy;
    report.operations = emulation.operations(index_);
    report.estimated_operations = emulation.estimated_operations(index_);
    const UtilisationMeter& meter = emulation.utilisation(index_);
    report.storage_idle = absl::Nanoseconds(meter.storage_idle_ns());
    report.host_idle = absl::Nanoseconds(meter.host_idle_ns());
    report.utilisation = meter.score();
    report.lateness_p50 = absl::Nanoseconds(driver.lateness().Quantile(0.5));
    report.lateness_p99 = absl::Nanoseconds(driver.lateness().Quantile(0.99));
    report.lateness_max = absl::Nanoseconds(driver.lateness().max_ns());
    report.behind_max = absl::Nanoseconds(driver.behind_max_ns());
    report.overrun = absl::Nanoseconds(emulation.overrun_ns(index_));
    if (const SharedTimeline* shared = system_->shared(); shared != nullptr) {
      for (auto& [engine, busy] : report.busy) {
        if (engine != EngineKind::kPeer) busy = absl::Nanoseconds(shared->busy_ns(static_cast<int>(engine)));
      }
      report.behind_max = std::max(report.behind_max, absl::Nanoseconds(shared->behind_max_ns()));
      report.overrun = absl::Nanoseconds(shared->overrun_ns());
    }
    MarkHostLimited(&report);
    return report;
  }

  const std::shared_ptr<System>& system() const { return system_; }

 private:
  void ChargePinning(int64_t bytes) {
    Driver& driver = system_->driver();
    // The call itself took a part of it; the whole counts from now, which is right to a page fault's cost.
    driver.Charge(driver.ThreadNs(), system_->costs().PinNanos(bytes));
  }

  const std::shared_ptr<System> system_;
  const DeviceInfo info_;
  const int32_t index_;
  const DeviceProperties properties_;
  const int64_t opened_ns_;
  const std::unique_ptr<HostMemory> memory_;
  Allocator allocator_;
  PinnedPool pinned_;
};

StatusOr<std::shared_ptr<const CostSource>> CostsOf(const Spec& spec) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto bundle, profile::OpenBundle(spec.bundle));
  return std::shared_ptr<const CostSource>(MakeBundleCosts(std::move(bundle)));
}

StatusOr<int64_t> CapacityOf(const DeviceOptions& options, const Spec& spec, const profile::Hardware& hardware) {
  int64_t capacity = options.capacity_bytes > 0 ? options.capacity_bytes : spec.capacity_bytes;
  if (capacity == 0) capacity = static_cast<int64_t>(hardware.memory_bytes);
  if (capacity < options.page_bytes) {
    return InvalidArgument("device '{}': its capacity is {} bytes; allowed: at least one page of {}; say capacity=SIZE",
                           options.name, capacity, options.page_bytes);
  }
  if (hardware.memory_bytes > 0 && static_cast<double>(capacity) > hardware.memory_bytes) {
    return InvalidArgument("device '{}': its capacity is {}; allowed: at most the {} of the hardware '{}'", options.name,
                           FormatBytes(capacity), FormatBytes(static_cast<int64_t>(hardware.memory_bytes)), hardware.name);
  }
  return capacity / options.page_bytes * options.page_bytes;
}

// What computes results is really held; what only keeps time takes no memory.
Status CheckAvailable(const std::string& name, const Spec& spec, int64_t capacity) {
  if (!spec.functional) return {};
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t available, AvailableMemoryBytes());
  if (capacity <= available / spec.count) return {};
  return ResourceExhausted(
      "device '{}' computes real results and needs {} of memory; {} is available. Give it a capacity (capacity=SIZE), or "
      "mode=timing, which keeps time only",
      name, FormatBytes(capacity * spec.count), FormatBytes(available));
}

// One of the devices that `name` means, for processes with other working folders.
StatusOr<std::string> NameEverywhere(const std::string& name, const Spec& spec) {
  TIDEPOOL_ASSIGN_OR_RETURN(const profile::BundlePlace place, profile::FindBundle(spec.bundle));
  std::string bundle = spec.bundle;
  if (!place.path.empty()) {
    std::error_code error;
    const std::string path = std::filesystem::absolute(place.path, error).lexically_normal().string();
    if (error) return ErrnoError(error.value(), fmt::format("finding the folder of '{}'", place.path));
    if (path.find(',') == std::string::npos) bundle = path;  // no name can hold another path
  }
  const size_t comma = name.find(',');
  const std::string keys = comma == std::string::npos ? "" : name.substr(comma);
  const std::string one = fmt::format("{}{}{}", kPrefix, bundle, keys);
  // A bundle whose own name ends like a number of devices.
  const auto parsed = ParseSpec(one);
  return parsed.ok() && parsed->bundle == bundle ? one : fmt::format("{}{}x1{}", kPrefix, bundle, keys);
}

}  // namespace

std::string NameOfDevice(const std::string& name, int device) {
  const auto spec = ParseSpec(name);
  if (device == 0 || !spec.ok() || spec->emulation.jitter == Jitter::kNone) return name;
  constexpr std::string_view kKey = ",seed=";
  std::string own = name;
  if (const size_t seed = own.find(kKey); seed != std::string::npos) {
    own.erase(seed, own.find(',', seed + 1) - seed);
  }
  return fmt::format("{}{}{}", own, kKey, spec->seed + static_cast<uint64_t>(device));
}

StatusOr<NodeDevices> CheckEmulated(const DeviceOptions& options, int64_t usual_bytes, bool one_copy) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(options.name));
  if (spec.count > kMostNodeDevices) {
    return InvalidArgument("device '{}' means {} devices; allowed on a node: 1 to {}", options.name, spec.count,
                           kMostNodeDevices);
  }
  if (spec.virtual_clock) {
    return InvalidArgument("device '{}': clock is 'virtual', which sockets and other processes cannot follow; allowed here: real",
                           options.name);
  }
  if (spec.emulation.sharing != Sharing::kFifo) {
    return InvalidArgument("device '{}': share is '{}'; allowed where several processes use a device: fifo", options.name,
                           NameOf(spec.emulation.sharing));
  }
  if (options.capacity_bytes > 0 && spec.capacity_bytes > 0 && options.capacity_bytes != spec.capacity_bytes) {
    return InvalidArgument("device '{}': its name says a capacity of {}, and {} is asked for beside it; allowed: one of them",
                           options.name, FormatBytes(spec.capacity_bytes), FormatBytes(options.capacity_bytes));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const auto bundle, profile::OpenBundle(spec.bundle));
  const profile::Hardware& hardware = bundle->manifest.hardware;
  NodeDevices devices{.options = options, .count = spec.count, .computes = spec.functional};
  TIDEPOOL_ASSIGN_OR_RETURN(devices.options.name, NameEverywhere(options.name, spec));
  if (options.capacity_bytes == 0 && spec.capacity_bytes == 0) {
    devices.options.capacity_bytes =
        hardware.memory_bytes > 0 ? std::min(usual_bytes, static_cast<int64_t>(hardware.memory_bytes)) : usual_bytes;
  }
  TIDEPOOL_ASSIGN_OR_RETURN(devices.options.capacity_bytes, CapacityOf(devices.options, spec, hardware));
  // One device says so itself when it is opened; of several, each one would fit.
  if (spec.count > 1 && !one_copy) {
    TIDEPOOL_RETURN_IF_ERROR(CheckAvailable(options.name, spec, devices.options.capacity_bytes));
  }
  return devices;
}

StatusOr<OneDevice> CheckOneEmulated(const DeviceOptions& options, int64_t usual_bytes) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(options.name));
  if (spec.count != 1) {
    return InvalidArgument("device '{}' means {} devices; allowed here: one, '{}{}'", options.name, spec.count, kPrefix,
                           spec.bundle);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(NodeDevices devices, CheckEmulated(options, usual_bytes));
  return OneDevice{.options = std::move(devices.options), .computes = devices.computes};
}

StatusOr<std::vector<std::unique_ptr<Device>>> OpenEmulatedDevices(const DeviceOptions& options) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(options.name));
  TIDEPOOL_ASSIGN_OR_RETURN(auto costs, CostsOf(spec));
  return OpenEmulatedDevices(options, std::move(costs));
}

StatusOr<std::vector<std::unique_ptr<Device>>> OpenEmulatedDevices(const DeviceOptions& options,
                                                                   std::shared_ptr<const CostSource> costs) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(options.name));
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t capacity, CapacityOf(options, spec, costs->manifest().hardware));
  TIDEPOOL_RETURN_IF_ERROR(CheckAvailable(options.name, spec, capacity));
  std::vector<UniqueFd> files;
  for (int32_t i = 0; i < spec.count; ++i) {
    TIDEPOOL_ASSIGN_OR_RETURN(UniqueFd fd,
                              CreateMemFd(fmt::format("tidepool-emulated-{}", i), capacity + SharedTimeline::kBytes));
    files.push_back(std::move(fd));
  }
  System::Parts parts{.spec = spec, .costs = std::move(costs), .clock = options.clock};
  const bool shareable =
      spec.count == 1 && !spec.virtual_clock && options.clock == Clock::Real() && spec.emulation.sharing == Sharing::kFifo;
  if (shareable) {
    TIDEPOOL_ASSIGN_OR_RETURN(parts.shared, SharedTimeline::Create(files[0].get(), capacity, MonotonicNanos()));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const std::shared_ptr<System> system, System::Create(std::move(parts)));
  std::vector<std::unique_ptr<Device>> devices;
  for (int32_t i = 0; i < spec.count; ++i) {
    DeviceInfo info{.name = options.name,
                    .kind = "emulated",
                    .capacity_bytes = capacity,
                    .page_bytes = options.page_bytes,
                    .mapping = options.mapping,
                    .index = i};
    TIDEPOOL_ASSIGN_OR_RETURN(auto memory, HostMemory::Create(std::move(files[static_cast<size_t>(i)]), info.page_bytes,
                                                              static_cast<int32_t>(capacity / info.page_bytes), Access::kLazy));
    devices.push_back(std::make_unique<EmulatedDevice>(system, std::move(info), i, options.pinned, std::move(memory)));
  }
  return devices;
}

StatusOr<std::unique_ptr<Device>> AttachEmulatedDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd) {
  TIDEPOOL_ASSIGN_OR_RETURN(Spec spec, ParseSpec(info.name));
  if (spec.virtual_clock) {
    return InvalidArgument("device '{}': another process cannot follow its virtual clock; allowed: clock=real", info.name);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(auto costs, CostsOf(spec));
  System::Parts parts{.spec = spec, .costs = std::move(costs)};
  parts.spec.count = parts.spec.emulation.topology.devices_per_node = 1;
  if (spec.count == 1 && spec.emulation.sharing == Sharing::kFifo) {
    TIDEPOOL_ASSIGN_OR_RETURN(parts.shared, SharedTimeline::Open(memory_fd.get(), info.capacity_bytes));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(auto memory, AttachHostMemory(info, mapping, std::move(memory_fd), true));
  TIDEPOOL_ASSIGN_OR_RETURN(auto system, System::Create(std::move(parts)));
  DeviceInfo attached = info;
  attached.mapping = mapping;
  return std::make_unique<EmulatedDevice>(std::move(system), std::move(attached), 0, PinnedOptions(), std::move(memory));
}

std::string Describe(const device::DeviceProperties& properties) {
  std::string_view source = properties.profile_source;
  constexpr std::string_view kSaidAlready = "estimated from: ";
  if (properties.estimated && source.starts_with(kSaidAlready)) source.remove_prefix(kSaidAlready.size());
  return fmt::format("times from profile '{}', {}{}; {}", properties.profile, properties.estimated ? "estimated" : "measured",
                     source.empty() ? "" : fmt::format(" ({})", source),
                     properties.computes ? "results are computed on this machine" : "results are zeros");
}

std::shared_ptr<System> SystemOf(Device* device) {
  const auto* emulated = dynamic_cast<EmulatedDevice*>(device);
  return emulated == nullptr ? nullptr : emulated->system();
}

}  // namespace tidepool::device::emulated
