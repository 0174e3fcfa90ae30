// Several equal devices as one server: each has a server of its own, with its own worker and memory, that knows of no other. The
// group routes requests (placement.h) and puts the states of the devices together.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "serve/placement.h"
#include "serve/server.h"

namespace tidepool::serve {

// Thread-safe.
class DeviceGroup : public Server {
 public:
  struct Member {
    std::unique_ptr<Server> server;
    // Memory that a model could get without taking any from training. May block for a moment; asked when a model needs a place.
    std::function<int64_t()> free_bytes;
    int64_t limit_bytes = std::numeric_limits<int64_t>::max();  // larger models are not sent there
  };
  struct Options {
    int train_device = -1;                         // placement prefers others; negative: none trains
    absl::Duration ask_limit = absl::Seconds(30);  // for a member to take over measured latencies
    Clock* clock = Clock::Real();
  };

  // At least one member; the index of a member is that of its device.
  DeviceGroup(std::vector<Member> members, const Options& options);
  ~DeviceGroup() override;

  std::shared_ptr<InferHandle> Infer(InferRequest request, InferCallback done) override;
  bool Live() override;
  // Whether any device takes requests.
  bool Ready() override;
  // Counters, bytes and times are sums; the state is that of the device that is readiest.
  StatusOr<ModelStatus> Model(const std::string& name) override;
  std::vector<ModelStatus> Models() override;
  StatusOr<ModelPresence> Presence(const std::string& model, const std::string& version) override;
  Status Rescan() override;
  // On one device; OK at once if it is resident somewhere.
  Status Load(const std::string& model, absl::Time deadline) override;
  // On all devices: the bytes of all, or the first error.
  StatusOr<int64_t> Unload(const std::string& model, absl::Time deadline) override;
  // On one device, for all: they are equal.
  Status MeasureSoloLatencies(absl::Time deadline) override;
  SoloLatencies solo_latencies() override;
  Status SetSoloLatencies(const SoloLatencies& latencies, absl::Time deadline) override;
  void Drain() override;
  int worker_pid() override;  // of the first device
  // Each event says its device. Events of different devices come on different threads.
  void SetEventListener(std::function<void(const ServeEvent&)> listener) override;

  int size() const { return static_cast<int>(members_.size()); }
  Server& member(int device) { return *members_.at(static_cast<size_t>(device)).server; }
  // Requests and loads that were sent to a device and have not ended.
  int outstanding(int device);

 private:
  struct State;
  // Nothing if no device knows the model.
  std::optional<Placement::Ticket> Route(const std::string& model, const std::string& version);

  const Options options_;
  const std::shared_ptr<State> state_;  // callbacks hold it
  std::vector<Member> members_;
};

// Starts one server per broker, all at the same time: a worker takes a while to come up. The first error, if there is any.
StatusOr<std::vector<std::unique_ptr<Server>>> StartServers(const std::vector<std::pair<pool::Broker*, ServerOptions>>& servers);

}  // namespace tidepool::serve
