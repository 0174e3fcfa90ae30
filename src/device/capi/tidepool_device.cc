#include "device/capi/tidepool_device.h"

#include <absl/synchronization/mutex.h>

#include <cmath>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <string>

#include "device/device.h"
#include "device/emulated/emulated_device.h"
#include "device/emulated/spec.h"
#include "profile/open.h"

namespace {

using namespace tidepool;
using device::emulated::CostSource;

// The operation whose time is its batch, in tenths of a microsecond.
constexpr char kFixed[] = "tidepool: fixed time";
constexpr size_t kMostFixed = 65536;
// Tickets that nobody waits for go in the order in which they came.
constexpr size_t kMostTickets = 65536;

class StepCosts final : public CostSource {
 public:
  explicit StepCosts(std::shared_ptr<const profile::Bundle> bundle)
      : bundle_(device::emulated::MakeBundleCosts(std::move(bundle))) {}
  const profile::Manifest& manifest() const override { return bundle_->manifest(); }
  StatusOr<device::emulated::OpTime> TimeOf(const device::Operation& operation) const override {
    if (operation.key.model != kFixed) return bundle_->TimeOf(operation);
    return device::emulated::OpTime{.median_ns = operation.key.batch * 100};
  }
  StatusOr<device::emulated::LinkTime> TimeOf(profile::LinkKind link, bool pinned) const override {
    return bundle_->TimeOf(link, pinned);
  }
  int64_t PinNanos(int64_t size_bytes) const override { return bundle_->PinNanos(size_bytes); }

 private:
  std::unique_ptr<CostSource> bundle_;
};

thread_local std::string last_error;

int Told(const Status& status) {
  if (status.ok()) return 0;
  last_error = ToString(status);
  return static_cast<int>(status.code());
}

}  // namespace

struct tidepool_device {
  std::unique_ptr<device::Device> device;
  std::unique_ptr<device::Stream> compute, to_device, to_host;

  absl::Mutex mutex;
  int64_t next_ticket ABSL_GUARDED_BY(mutex) = 1;
  std::map<int64_t, device::Event> tickets ABSL_GUARDED_BY(mutex);
  std::set<int64_t> fixed ABSL_GUARDED_BY(mutex);
  absl::Time wait_began ABSL_GUARDED_BY(mutex) = absl::InfiniteFuture();

  // Remembers the end of what `stream` was given.
  Status Give(device::Stream* stream, int64_t* ticket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (ticket == nullptr) return {};
    TIDEPOOL_ASSIGN_OR_RETURN(tickets[next_ticket], stream->Record());
    *ticket = next_ticket++;
    if (tickets.size() > kMostTickets) tickets.erase(tickets.begin());
    return {};
  }
  Status Launch(const device::Operation& operation, int64_t* ticket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    TIDEPOOL_RETURN_IF_ERROR(compute->Launch(operation, nullptr));
    return Give(compute.get(), ticket);
  }
};

namespace {

StatusOr<std::unique_ptr<tidepool_device>> Open(const std::string& name) {
  if (!name.starts_with(device::emulated::kPrefix))
    return InvalidArgument("device '{}'; allowed: emulated:NAME, such as emulated:h200", name);
  TIDEPOOL_ASSIGN_OR_RETURN(const device::emulated::Spec spec, device::emulated::ParseSpec(name));
  if (spec.count != 1) return InvalidArgument("device '{}' means {} devices; allowed: one", name, spec.count);
  if (spec.virtual_clock)
    return InvalidArgument("device '{}' has a virtual clock; allowed: real time, which the calling program lives in", name);
  TIDEPOOL_ASSIGN_OR_RETURN(auto bundle, profile::OpenBundle(spec.bundle));
  // Nobody touches the memory: one page is enough.
  device::DeviceOptions options;
  options.name = name + ",mode=timing";
  options.capacity_bytes = options.page_bytes;
  TIDEPOOL_ASSIGN_OR_RETURN(auto devices,
                            device::emulated::OpenEmulatedDevices(options, std::make_shared<StepCosts>(std::move(bundle))));
  auto opened = std::make_unique<tidepool_device>();
  opened->device = std::move(devices[0]);
  TIDEPOOL_ASSIGN_OR_RETURN(opened->compute, opened->device->CreateStream({.name = "compute"}));
  TIDEPOOL_ASSIGN_OR_RETURN(opened->to_device, opened->device->CreateStream({.name = "host to device"}));
  TIDEPOOL_ASSIGN_OR_RETURN(opened->to_host, opened->device->CreateStream({.name = "device to host"}));
  return opened;
}

StatusOr<absl::Time> DeadlineOf(const tidepool_device* device, double seconds) {
  if (!(seconds >= 0)) return InvalidArgument("the timeout is {} s; allowed: 0 or more", seconds);
  return device->device->clock()->Now() + absl::Seconds(seconds);
}

// No exception may reach a program in another language.
template <typename Call>
int Guarded(Call call) {
  try {
    return Told(call());
  } catch (const std::bad_alloc&) {
    return Told(ResourceExhausted("this machine has no memory left"));
  } catch (const std::exception& error) {
    return Told(Internal("{}", error.what()));
  }
}

Status NoDevice() { return InvalidArgument("the device is a null pointer"); }

}  // namespace

const char* tidepool_last_error(void) { return last_error.c_str(); }

int tidepool_device_open(const char* name, tidepool_device** device) {
  return Guarded([&]() -> Status {
    if (name == nullptr || device == nullptr)
      return InvalidArgument("the name of the device, or the place for it, is a null pointer");
    *device = nullptr;
    TIDEPOOL_ASSIGN_OR_RETURN(auto opened, Open(name));
    *device = opened.release();
    return {};
  });
}

void tidepool_device_close(tidepool_device* device) { delete device; }

int tidepool_launch(tidepool_device* device, const char* model, int phase, int64_t batch, int64_t* ticket) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    if (model == nullptr) return InvalidArgument("the model is a null pointer");
    if (phase < TIDEPOOL_FORWARD || phase > TIDEPOOL_OPTIMIZER)
      return InvalidArgument("phase {}; allowed: 0 (forward), 1 (backward), 2 (step), 3 (optimizer)", phase);
    if (batch < 1) return InvalidArgument("batch {}; allowed: 1 or more", batch);
    device::Operation operation;
    operation.key.model = model;
    operation.key.phase = static_cast<profile::Phase>(phase);
    operation.key.batch = batch;
    if (operation.key.model == kFixed) return InvalidArgument("model '{}' is reserved", model);
    absl::MutexLock lock(&device->mutex);
    return device->Launch(operation, ticket);
  });
}

int tidepool_launch_us(tidepool_device* device, double microseconds, int64_t* ticket) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    if (!(microseconds >= 0.1 && microseconds <= 60e6))
      return InvalidArgument("an operation of {} us; allowed: 0.1 to 60000000", microseconds);
    device::Operation operation;
    operation.key.model = kFixed;
    operation.key.batch = std::llround(microseconds * 10);
    absl::MutexLock lock(&device->mutex);
    if (!device->fixed.contains(operation.key.batch) && device->fixed.size() >= kMostFixed)
      return ResourceExhausted("operations of more than {} different lengths; round them", kMostFixed);
    TIDEPOOL_RETURN_IF_ERROR(device->Launch(operation, ticket));
    device->fixed.insert(operation.key.batch);
    return {};
  });
}

int tidepool_copy(tidepool_device* device, int direction, int64_t bytes, int pinned, int64_t* ticket) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    if (direction != TIDEPOOL_HOST_TO_DEVICE && direction != TIDEPOOL_DEVICE_TO_HOST)
      return InvalidArgument("direction {}; allowed: 0 (host to device), 1 (device to host)", direction);
    if (bytes < 1) return InvalidArgument("a copy of {} bytes; allowed: 1 or more", bytes);
    const bool to_device = direction == TIDEPOOL_HOST_TO_DEVICE;
    absl::MutexLock lock(&device->mutex);
    device::Stream* const stream = (to_device ? device->to_device : device->to_host).get();
    if (!to_device) {
      // What comes back was computed by what was queued before.
      TIDEPOOL_ASSIGN_OR_RETURN(const device::Event computed, device->compute->Record());
      TIDEPOOL_RETURN_IF_ERROR(stream->WaitFor(computed));
    }
    TIDEPOOL_RETURN_IF_ERROR(
        stream->Transfer({.engine = to_device ? device::EngineKind::kHostToDevice : device::EngineKind::kDeviceToHost,
                          .size_bytes = bytes,
                          .pinned = pinned != 0}));
    if (to_device) {
      TIDEPOOL_ASSIGN_OR_RETURN(const device::Event arrived, stream->Record());
      TIDEPOOL_RETURN_IF_ERROR(device->compute->WaitFor(arrived));
    }
    return device->Give(stream, ticket);
  });
}

int tidepool_wait(tidepool_device* device, int64_t ticket, double timeout_seconds) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    TIDEPOOL_ASSIGN_OR_RETURN(const absl::Time deadline, DeadlineOf(device, timeout_seconds));
    device::Event event;
    {
      absl::MutexLock lock(&device->mutex);
      const auto found = device->tickets.find(ticket);
      if (found == device->tickets.end())
        return NotFound("ticket {}; it was waited for already, is one of more than {}, or was never given", ticket, kMostTickets);
      event = found->second;
    }
    TIDEPOOL_RETURN_IF_ERROR(event.Wait(deadline));
    absl::MutexLock lock(&device->mutex);
    device->tickets.erase(ticket);
    return {};
  });
}

int tidepool_synchronize(tidepool_device* device, double timeout_seconds) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    TIDEPOOL_ASSIGN_OR_RETURN(const absl::Time deadline, DeadlineOf(device, timeout_seconds));
    for (device::Stream* stream : {device->to_device.get(), device->compute.get(), device->to_host.get()}) {
      TIDEPOOL_RETURN_IF_ERROR(stream->Synchronize(deadline));
    }
    return {};
  });
}

int tidepool_data_wait_begin(tidepool_device* device) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    absl::MutexLock lock(&device->mutex);
    if (device->wait_began != absl::InfiniteFuture()) return FailedPrecondition("a wait for data has begun already");
    device->wait_began = device->device->HostNow();
    return {};
  });
}

int tidepool_data_wait_end(tidepool_device* device) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    absl::MutexLock lock(&device->mutex);
    if (device->wait_began == absl::InfiniteFuture()) return FailedPrecondition("no wait for data has begun");
    device->device->NoteDataWait(device->wait_began, device->device->HostNow());
    device->wait_began = absl::InfiniteFuture();
    return {};
  });
}

int tidepool_device_report(tidepool_device* device, tidepool_report* report) {
  return Guarded([&]() -> Status {
    if (device == nullptr) return NoDevice();
    if (report == nullptr) return InvalidArgument("the place for the report is a null pointer");
    const std::optional<device::TimelineReport> timeline = device->device->timeline();
    if (!timeline.has_value()) return Internal("the device has no timeline");
    const auto busy = [&](device::EngineKind engine) {
      const auto found = timeline->busy.find(engine);
      return found == timeline->busy.end() ? 0.0 : absl::ToDoubleSeconds(found->second);
    };
    *report = {.elapsed_seconds = absl::ToDoubleSeconds(timeline->elapsed),
               .compute_busy_seconds = busy(device::EngineKind::kCompute),
               .copy_busy_seconds = busy(device::EngineKind::kHostToDevice) + busy(device::EngineKind::kDeviceToHost),
               .data_wait_seconds = absl::ToDoubleSeconds(timeline->storage_idle),
               .host_idle_seconds = absl::ToDoubleSeconds(timeline->host_idle),
               .utilisation = timeline->utilisation,
               .lateness_p50_us = absl::ToDoubleMicroseconds(timeline->lateness_p50),
               .lateness_p99_us = absl::ToDoubleMicroseconds(timeline->lateness_p99),
               .lateness_max_us = absl::ToDoubleMicroseconds(timeline->lateness_max),
               .operations = timeline->operations,
               .estimated_operations = timeline->estimated_operations,
               .host_limited = timeline->host_limited ? 1 : 0};
    return {};
  });
}
