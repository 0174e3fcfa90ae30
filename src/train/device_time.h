// The time that training takes on emulated devices. The trainer tells what begins before the arithmetic and when that is done:
//
//   Begin or BeginUpdate -> (arithmetic) -> End        or        Begin -> (arithmetic fails) -> BreakOff
//
// DeviceTime::Create is for the one device of a pool. The device is told before the arithmetic which passes begin, and waited for
// after it. So a micro-batch takes as long as the slower of the two, its passes share the device's compute engine with the
// executions of inference, and what this machine took longer counts as the device's overrun. replica_time.h is for several.
//
// Owned by the trainer's main thread.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <memory>
#include <span>
#include <string>

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
  virtual ~DeviceTime() = default;

  // The passes of a micro-batch begin, one after the other. NOT_FOUND if the profile has no time for one and cannot estimate it.
  // After any error: BreakOff.
  virtual Status Begin(std::span<const profile::Phase> phases, int64_t batch) = 0;
  // The optimizer begins, with what has to come before it.
  virtual Status BeginUpdate() = 0;
  // The arithmetic is done: returns when the device's time is over too. ABORTED as soon as `broken_off` (may be null) says so.
  virtual Status End(const std::function<bool()>& broken_off) = 0;
  // What has not begun on the device does not happen; a pass that runs is charged to its end.
  virtual void BreakOff() = 0;
  // What comes next does not begin before everything so far has ended.
  virtual void Settle() {}

  // What this process has had of the compute time so far, without its waits for the work of others. Of several devices: until the
  // last of them had ended.
  virtual absl::Duration total() const = 0;
  // The part of it in which devices exchanged data.
  virtual absl::Duration communication() const { return absl::ZeroDuration(); }
  virtual int devices() const { return 1; }
  // Why the pace on this machine is not that of the devices; empty if it is.
  virtual std::string host_limited() const = 0;
};

}  // namespace tidepool::train
