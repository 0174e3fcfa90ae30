// The time of data-parallel training on several equal emulated devices, each with a replica of the network.
//
// Replicas have the same parameters, and gradients of micro-batches add up (docs/train.md). So the arithmetic of all of them runs
// on this machine once, one micro-batch after the other, in the memory of one device; only the time is that of several. It comes
// from a device::emulated::Emulation of the devices and the links between them, which is moved from here: on its timeline passes
// of different replicas run side by side, however long this machine took for each.
//
//   a micro-batch   its passes on the compute engine that is free first; of several, that of the lowest index
//   an update       an all-reduce of the gradients, which begins when the last replica has ended its passes, then the optimizer
//                   on each
//
// What is broken off is not charged. After Settle, and at the end of an update, real time has come as far as the timeline: a step
// takes as long as the slower of this machine and the devices.
//
// Owned by the trainer's main thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "device/device.h"
#include "model/graph.h"
#include "train/device_time.h"

namespace tidepool::train {

// CheckNodeDevices for replicas: one of them alone holds memory that this machine has.
StatusOr<device::NodeDevices> CheckReplicas(const device::DeviceOptions& options, int64_t usual_bytes);

struct ReplicaTimeOptions {
  DeviceTime::Options pass;
  Clock* clock = Clock::Real();
  std::function<bool()> stopped;  // ends waits for real time early; may be null
};

// `devices` from CheckReplicas, emulated ones. `graph` outlives it. INVALID_ARGUMENT and NOT_FOUND for a profile that has changed
// since.
StatusOr<std::unique_ptr<DeviceTime>> CreateReplicaTime(const device::NodeDevices& devices, const model::Graph& graph,
                                                        ReplicaTimeOptions options);

}  // namespace tidepool::train
