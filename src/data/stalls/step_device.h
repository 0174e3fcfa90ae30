// An emulated accelerator that does nothing but steps of a fixed time, and the training loop that feeds it. Internal to
// hybrid.cc.
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
  // Ends of the first and last step of the last Run, and how many there were.
  int64_t steps() const { return steps_; }
  absl::Duration between_first_and_last() const { return last_end_ - first_end_; }
  device::TimelineReport timeline() { return device_->timeline().value_or(device::TimelineReport()); }

 private:
  StepDevice() = default;
  StatusOr<device::Event> Submit();
  Status Finish(const device::Event& step, absl::Duration limit);

  std::unique_ptr<device::Device> device_;
  std::unique_ptr<device::Stream> copies_, steps_stream_;
  int64_t steps_ = 0;
  absl::Time first_end_, last_end_;
};

}  // namespace tidepool::data::stalls
