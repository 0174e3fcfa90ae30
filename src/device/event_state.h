// What a backend provides behind an Event. Only backends include this.
#pragma once

#include <functional>

#include "device/device.h"

namespace tidepool::device {

// Thread-safe.
struct Event::State {
  virtual ~State() = default;
  virtual bool Done() = 0;
  virtual Status Wait(absl::Time deadline) = 0;
  virtual StatusOr<absl::Time> ReachedAt() = 0;
  // Calls `reached` exactly once with the event's status: now if it is reached already, else on a thread of the backend. It must
  // not block.
  virtual void OnDone(std::function<void(const Status&)> reached) = 0;
};

}  // namespace tidepool::device
