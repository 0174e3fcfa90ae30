// An emulated accelerator that does nothing but steps of a fixed time, and the training loop that feeds it. Internal to
// hybrid.cc and real_time.cc.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <memory>

#include "base/status.h"
#include "device/device.h"

namespace tidepool::data::stalls {

// Thread-compatible.
class StepDevice {
 public:
  static StatusOr<std::unique_ptr<StepDevice>> Open(double copy_seconds, double compute_seconds);

  // Calls `next` for each batch until it says that there is none, and gives each to the device; returns when the last step has
  // ended. `next` has waited for data for as long as it ran.
  Status Run(const std::function<StatusOr<bool>()>& next, absl::Duration limit);
  // One step on a device that does nothing else: a copy that takes `before_seconds`, then the computation. Returns when it has
  // ended, and at which time of the device.
  StatusOr<absl::Time> RunAlone(double before_seconds, absl::Duration limit);

  // Ends of the first and last step of the last Run, and how many there were.
  int64_t steps() const { return steps_; }
  absl::Duration between_first_and_last() const { return last_end_ - first_end_; }
  // The calling thread's time on the device's timeline.
  absl::Time HostNow() { return device_->HostNow(); }
  device::TimelineReport timeline() { return device_->timeline().value_or(device::TimelineReport()); }

 private:
  StepDevice() = default;
  StatusOr<device::Event> Submit(double copy_seconds);
  Status Finish(const device::Event& step, absl::Duration limit);

  double copy_seconds_ = 0;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<device::Stream> copies_, steps_stream_;
  int64_t steps_ = 0;
  absl::Time first_end_, last_end_;
};

}  // namespace tidepool::data::stalls
