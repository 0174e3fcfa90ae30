// What the devices of one emulated system share: the profile, the clock, the driver and the emulation.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "device/emulated/cost_source.h"
#include "device/emulated/driver.h"
#include "device/emulated/emulation.h"
#include "device/emulated/shared_timeline.h"
#include "device/emulated/spec.h"

namespace tidepool::device::emulated {

// Thread-safe where it says nothing else.
class System {
 public:
  struct Parts {
    Spec spec;
    std::shared_ptr<const CostSource> costs;
    Clock* clock = Clock::Real();            // unless the spec asks for a virtual one
    std::unique_ptr<SharedTimeline> shared;  // may be null
  };
  static StatusOr<std::shared_ptr<System>> Create(Parts parts);
  ~System();

  const Spec& spec() const { return spec_; }
  const CostSource& costs() const { return *costs_; }
  Driver& driver() { return *driver_; }
  Clock* clock() const { return driver_->clock(); }
  SharedTimeline* shared() const { return shared_.get(); }  // null: no other process uses the device's timeline
  // Guarded by driver().mu().
  Emulation& emulation() ABSL_EXCLUSIVE_LOCKS_REQUIRED(driver().mu()) { return *emulation_; }

  // Where the devices' memory lies, for copies. Set before there are streams.
  void SetMemory(int32_t device, const std::byte* base, int64_t size_bytes);
  // The device whose memory holds the address; -1: the host.
  int32_t DeviceAt(const void* address) const;

 private:
  System() = default;
  Spec spec_;
  std::shared_ptr<const CostSource> costs_;
  std::unique_ptr<VirtualClock> virtual_clock_;
  std::unique_ptr<SharedTimeline> shared_;
  std::unique_ptr<Driver> driver_;
  std::unique_ptr<Emulation> emulation_;
  std::vector<std::pair<const std::byte*, int64_t>> memory_;
};

}  // namespace tidepool::device::emulated
