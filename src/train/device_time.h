// The time that training takes on an emulated device. The arithmetic runs on the trainer's thread; the device is told before it
// which passes begin, and waited for after it. So a micro-batch takes as long as the slower of the two, its passes share the
// device's compute engine with the executions of inference, and what this machine took longer counts as the device's overrun.
//
//   Begin -> (arithmetic) -> End        or        Begin -> (arithmetic fails) -> BreakOff
//
// Owned by the trainer's main thread.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"
#include "model/graph.h"

namespace tidepool::train {

class DeviceTime {
 public:
  struct Options {
    std::string model;         // the network as profiles name it
    int optimizer_states = 1;  // numbers that the optimizer keeps per weight
  };
  // Null for a device that is not emulated. `device` and `graph` outlive it. FAILED_PRECONDITION for a device that only keeps
  // time.
  static StatusOr<std::unique_ptr<DeviceTime>> Create(device::Device* device, const model::Graph& graph, Options options);
  ~DeviceTime();
  DeviceTime(const DeviceTime&) = delete;

  // The passes begin, one after the other. NOT_FOUND if the profile has no time for one and cannot estimate it. After any error:
  // BreakOff.
  Status Begin(std::span<const profile::Phase> phases, int64_t batch);
  // The arithmetic is done: returns when the device's time is over too. ABORTED as soon as `broken_off` (may be null) says so.
  Status End(const std::function<bool()>& broken_off);
  // What has not begun on the device does not happen; a pass that runs is charged to its end.
  void BreakOff();

  // What this process has had of the device's compute engine so far, without its waits for the work of others.
  absl::Duration total() const { return device_->timeline()->own_busy.at(device::EngineKind::kCompute); }

 private:
  DeviceTime(device::Device* device, const model::Graph& graph, Options options)
      : device_(device), graph_(graph), options_(std::move(options)) {}
  Status OpenStream();
  void Computed();

  device::Device* const device_;
  const model::Graph& graph_;
  const Options options_;
  device::Event ended_;
  absl::Mutex mu_;
  bool computing_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<device::Stream> stream_;  // its thread uses what stands above
};

}  // namespace tidepool::train
