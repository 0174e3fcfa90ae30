#include "data/stalls/step_device.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/units.h"
#include "device/emulated/emulated_device.h"

namespace tidepool::data::stalls {
namespace {

// Every operation is a step; a copy takes a nanosecond a byte.
class StepCosts final : public device::emulated::CostSource {
 public:
  explicit StepCosts(double compute_seconds) {
    copy_.bytes_per_s = 1e9;
    step_.median_ns = std::llround(compute_seconds * 1e9);
    manifest_.name = manifest_.hardware.name = "step";
  }
  const profile::Manifest& manifest() const override { return manifest_; }
  StatusOr<device::emulated::OpTime> TimeOf(const device::Operation&) const override { return step_; }
  StatusOr<device::emulated::LinkTime> TimeOf(profile::LinkKind, bool) const override { return copy_; }
  int64_t PinNanos(int64_t) const override { return 0; }

 private:
  profile::Manifest manifest_;
  device::emulated::LinkTime copy_;
  device::emulated::OpTime step_;
};

}  // namespace

StatusOr<std::unique_ptr<StepDevice>> StepDevice::Open(double copy_seconds, double compute_seconds) {
  std::unique_ptr<StepDevice> self(new StepDevice());
  const device::DeviceOptions options{.name = "emulated:step,mode=timing", .capacity_bytes = 2 * kMiB};
  TIDEPOOL_ASSIGN_OR_RETURN(auto devices,
                            device::emulated::OpenEmulatedDevices(options, std::make_shared<StepCosts>(compute_seconds)));
  self->copy_seconds_ = copy_seconds;
  self->device_ = std::move(devices[0]);
  TIDEPOOL_ASSIGN_OR_RETURN(self->copies_, self->device_->CreateStream({.name = "copies"}));
  TIDEPOOL_ASSIGN_OR_RETURN(self->steps_stream_, self->device_->CreateStream({.name = "steps"}));
  return self;
}

StatusOr<device::Event> StepDevice::Submit(double copy_seconds) {
  TIDEPOOL_RETURN_IF_ERROR(copies_->Transfer({.size_bytes = std::max<int64_t>(1, std::llround(copy_seconds * 1e9))}));
  TIDEPOOL_ASSIGN_OR_RETURN(const device::Event copied, copies_->Record());
  TIDEPOOL_RETURN_IF_ERROR(steps_stream_->WaitFor(copied));
  TIDEPOOL_RETURN_IF_ERROR(steps_stream_->Launch({.key = {.model = "step"}}, nullptr));
  return steps_stream_->Record();
}

Status StepDevice::Finish(const device::Event& step, absl::Duration limit) {
  TIDEPOOL_RETURN_IF_ERROR(step.Wait(device_->clock()->Now() + limit));
  TIDEPOOL_ASSIGN_OR_RETURN(last_end_, step.ReachedAt());
  if (steps_++ == 0) first_end_ = last_end_;
  return {};
}

StatusOr<absl::Time> StepDevice::RunAlone(double before_seconds, absl::Duration limit) {
  TIDEPOOL_ASSIGN_OR_RETURN(const device::Event step, Submit(before_seconds));
  TIDEPOOL_RETURN_IF_ERROR(step.Wait(device_->clock()->Now() + limit));
  return step.ReachedAt();
}

Status StepDevice::Run(const std::function<StatusOr<bool>()>& next, absl::Duration limit) {
  steps_ = 0;
  std::optional<device::Event> running;
  while (true) {
    const absl::Time asked = device_->HostNow();
    TIDEPOOL_ASSIGN_OR_RETURN(const bool more, next());
    if (!more) break;
    device_->NoteDataWait(asked, device_->HostNow());
    TIDEPOOL_ASSIGN_OR_RETURN(const device::Event step, Submit(copy_seconds_));
    // Two batches are on the device: this one is copied while the one before is computed.
    if (running.has_value()) TIDEPOOL_RETURN_IF_ERROR(Finish(*running, limit));
    running = step;
  }
  return running.has_value() ? Finish(*running, limit) : Status();
}

}  // namespace tidepool::data::stalls
