// What runs in the measuring process: real networks through the engine on a pool of its own, and what the machine itself does.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/profile_measure.h"
#include "device/device.h"
#include "engine/runtime.h"
#include "model/graph.h"
#include "pool/arena.h"
#include "pool/broker.h"
#include "pool/client.h"
#include "profile/bundle.h"

namespace tidepool::cli {

// Measures all of it. The runtime is initialised already. `progress` gets a line of text for each row of a network, and for what
// was left out. NOT_FOUND or INVALID_ARGUMENT for a model that cannot be built, before anything is measured.
StatusOr<profile::Bundle> MeasureDevice(const MeasureOptions& options, const std::function<void(const std::string&)>& progress);

// --- parts, shared by the files of the runner ---

// Device, broker and client in this process. Thread-compatible.
class MeasuringPool {
 public:
  static StatusOr<std::unique_ptr<MeasuringPool>> Open(int64_t memory_bytes);
  // A lease of its own over the whole device; one at a time.
  StatusOr<std::unique_ptr<pool::Arena>> MakeArena();
  device::Device& device() { return client_->device(); }

 private:
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  std::unique_ptr<pool::Client> client_;
};

// Tensors in blocks of an arena, which outlives them.
class ArenaTensors {
 public:
  explicit ArenaTensors(pool::Arena* arena) : arena_(arena) {}
  ~ArenaTensors();
  ArenaTensors(const ArenaTensors&) = delete;
  // Uninitialised, aligned to 64 bytes. RESOURCE_EXHAUSTED if the device is full.
  StatusOr<engine::TensorView> Add(DType dtype, std::vector<int64_t> shape);
  // Seeded weights, one per parameter of the graph.
  Status AddParams(const model::Graph& graph);
  // What the network reads, for `batch` samples: random numbers, tokens of its vocabulary, an open mask.
  Status AddInputs(const model::Graph& graph, int64_t batch);
  const std::vector<engine::TensorView>& views() const { return views_; }

 private:
  pool::Arena* arena_;
  std::vector<void*> blocks_;
  std::vector<engine::TensorView> views_;
};

// Times of one row.
struct Samples {
  double first_us = 0;
  std::vector<double> later_us;
  void Add(int64_t nanoseconds, bool first);
  double Percentile(double share) const;
  // Fills repeats and times.
  void Fill(profile::OpRow* row) const;
};

// Rates of the machine: arithmetic, memory, launch, copies, pinning. Adds link and pin rows, and fills the hardware description
// but for its name.
Status MeasureMachine(MeasuringPool* pool, int repeats, const std::function<void(const std::string&)>& progress,
                      profile::Bundle* bundle);

}  // namespace tidepool::cli
