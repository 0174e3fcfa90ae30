// Which of a node's equal devices answers a request. Pure: states of the model and free memory come in, an index goes out; it
// counts what is outstanding where. Thread-compatible.
//
// Among the devices where the model is ready the one with the fewest outstanding requests; if there is none, one to which the
// model is coming; else a place for it is looked for. A model whose wait on its best device takes more than half of its objective
// gets a replica on a device that has nothing to do. A place: the fewest outstanding requests first, then one with free room,
// then one that does not train, then the most free memory; where a model must go for it, the devices take turns.
#pragma once

#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "serve/server.h"

namespace tidepool::serve {

class Placement {
 public:
  // One device as it looks when a request comes.
  struct View {
    bool takes_requests = true;  // false: its worker is being started again; used if no device takes any
    ModelState state = ModelState::kAbsent;
    int64_t free_bytes = 0;  // that need not be taken from training; looked at only if WantsMemory
  };
  struct Model {
    std::string key;  // name and version
    int64_t weight_bytes = 0;
    absl::Duration solo_latency, slo;  // zero while unknown
  };
  // One request, or load, that is counted. End it exactly once.
  struct Ticket {
    int device = 0;
    std::string key;
    absl::Duration expected;
  };

  // `train_device` is avoided where others are as good; negative: no device trains.
  explicit Placement(int devices, int train_device = -1);

  // Whether Begin would have to look for a place. `views` has one entry per device.
  bool WantsMemory(const Model& model, absl::Span<const View> views) const;
  // Chooses, and counts the request out to the device.
  Ticket Begin(const Model& model, absl::Span<const View> views);
  void End(const Ticket& ticket);

  int outstanding(int device) const { return devices_[static_cast<size_t>(device)].outstanding; }
  int outstanding() const;  // on all devices

 private:
  // Without an objective or a latency alone a queue is long from here on: half of four times the latency alone.
  static constexpr int kLongQueue = 2;

  struct Device {
    int outstanding = 0;
    absl::Duration backlog;  // of these, by latencies alone
    std::map<std::string, int> by_model;
    int64_t placed = 0;  // when a place was found here last
  };
  struct Choice {
    int device = -1;
    bool place = false;  // a place has to be found, among the devices that take requests (and are idle, if `idle`)
    bool idle = false;
  };
  Choice Choose(const Model& model, absl::Span<const View> views) const;
  bool TooLong(const Device& device, const Model& model) const;
  int FindPlace(const Model& model, absl::Span<const View> views, bool idle) const;
  static bool Usable(absl::Span<const View> views, size_t device);

  const int train_device_;
  int64_t last_placed_ = 0;
  std::vector<Device> devices_;
};

}  // namespace tidepool::serve
