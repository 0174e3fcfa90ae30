// What the machine itself does: the rates that the hardware description of a measured bundle states.
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "cli/profile_runner.h"
#include "engine/inference.h"
#include "model/graph_builder.h"

namespace tidepool::cli {
namespace {

using model::GraphBuilder;
using profile::LinkKind;
using Progress = std::function<void(const std::string&)>;

constexpr int64_t kGemmSide = 1024;
constexpr int64_t kLargestStream = 128 * kMiB;
constexpr int kChain = 64;  // ops in a row, for the time to start one
constexpr absl::Duration kCopyTimeout = absl::Seconds(30);
constexpr int64_t kSmallestCopy = 4 * kKiB, kLargestCopy = 64 * kMiB;
constexpr int64_t kSmallestPin = 64 * kKiB, kLargestPin = 64 * kMiB;

// Runs `graph` on its batch; the samples are of whole runs.
StatusOr<Samples> TimeGraph(MeasuringPool* pool, StatusOr<model::Graph> built, int64_t batch, int repeats) {
  if (!built.ok()) return built.status();
  const auto graph = std::make_shared<const model::Graph>(std::move(*built));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto arena, pool->MakeArena());
  ArenaTensors weights(arena.get()), inputs(arena.get());
  TIDEPOOL_RETURN_IF_ERROR(weights.AddParams(*graph));
  TIDEPOOL_RETURN_IF_ERROR(inputs.AddInputs(*graph, batch));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto module, engine::InferenceModule::Bind(graph, weights.views()));
  const engine::MemoryScope memory(arena.get());
  Samples samples;
  for (int run = 0; run <= repeats; ++run) {
    const int64_t start_ns = MonotonicNanos();
    TIDEPOOL_RETURN_IF_ERROR(module->Run(inputs.views(), {}).status());
    samples.Add(MonotonicNanos() - start_ns, run == 0);
  }
  return samples;
}

Status MeasureRates(MeasuringPool* pool, int repeats, profile::Hardware* hardware) {
  const int64_t memory_bytes = pool->device().info().capacity_bytes;
  hardware->memory_bytes = static_cast<double>(memory_bytes);

  // One product of square matrices; smaller where the device has no room for three of them.
  int64_t side = kGemmSide;
  while (side > 64 && 4 * side * side * 4 > memory_bytes) side /= 2;
  GraphBuilder gemm("gemm", "probe", {});
  const model::ValueId product = gemm.Linear("product", gemm.Input("x", DType::kF32, {model::kBatchDim, side}),
                                             {.out_features = side, .bias = false, .weight_init = model::NormalInit(0.01)});
  TIDEPOOL_ASSIGN_OR_RETURN(const Samples gemm_times, TimeGraph(pool, gemm.Finish({product}), side, repeats));
  const auto cube = static_cast<double>(side * side * side);
  hardware->peak_flops[DType::kF32] = 2 * cube / gemm_times.Percentile(0.1) * 1e6;

  const int64_t stream_bytes = std::min(kLargestStream, memory_bytes / 4);
  const int64_t row = 16 * kKiB;  // elements
  GraphBuilder stream("stream", "probe", {});
  const model::ValueId copied = stream.Relu("relu", stream.Input("x", DType::kF32, {model::kBatchDim, row}));
  const int64_t rows = std::max<int64_t>(1, stream_bytes / 4 / row);
  TIDEPOOL_ASSIGN_OR_RETURN(const Samples stream_times, TimeGraph(pool, stream.Finish({copied}), rows, repeats));
  // Read once, written once.
  hardware->memory_bytes_per_s = 2.0 * 4 * static_cast<double>(rows * row) / stream_times.Percentile(0.1) * 1e6;

  GraphBuilder chain("chain", "probe", {});
  model::ValueId last = chain.Input("x", DType::kF32, {model::kBatchDim, 1});
  for (int i = 0; i < kChain; ++i) last = chain.Relu(fmt::format("relu{}", i), last);
  TIDEPOOL_ASSIGN_OR_RETURN(const Samples chain_times, TimeGraph(pool, chain.Finish({last}), 1, repeats));
  hardware->launch_us = chain_times.Percentile(0.5) / kChain;
  return {};
}

// Anonymous memory of the host, resident; pinned if that was asked for and is allowed.
class HostBuffer {
 public:
  HostBuffer(int64_t size_bytes, bool pinned) : size_(static_cast<size_t>(size_bytes)) {
    void* mapped = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return;
    data_ = mapped;
    if (pinned) pinned_ = ::mlock(data_, size_) == 0;
    std::memset(data_, 1, size_);
  }
  ~HostBuffer() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  HostBuffer(const HostBuffer&) = delete;
  void* data() const { return data_; }
  bool pinned() const { return pinned_; }

 private:
  size_t size_;
  void* data_ = nullptr;
  bool pinned_ = false;
};

StatusOr<double> CopyMedianUs(device::Stream* stream, void* target, const void* source, int64_t size_bytes, int repeats) {
  Samples samples;
  for (int run = 0; run <= repeats; ++run) {
    const int64_t start_ns = MonotonicNanos();
    TIDEPOOL_RETURN_IF_ERROR(stream->CopyAsync(target, source, size_bytes));
    TIDEPOOL_RETURN_IF_ERROR(stream->Synchronize(Clock::Real()->Now() + kCopyTimeout));
    samples.Add(MonotonicNanos() - start_ns, run == 0);
  }
  return samples.Percentile(0.5);
}

Status MeasureLinks(MeasuringPool* pool, int repeats, profile::Bundle* bundle) {
  profile::Hardware& hardware = bundle->manifest.hardware;
  TIDEPOOL_ASSIGN_OR_RETURN(const auto arena, pool->MakeArena());
  TIDEPOOL_ASSIGN_OR_RETURN(const auto stream, pool->device().CreateStream({.name = "profile"}));
  const int64_t largest = std::min(kLargestCopy, pool->device().info().capacity_bytes / 4);
  for (int64_t size = kSmallestCopy; size <= largest; size *= 4) {
    ArenaTensors block(arena.get());
    TIDEPOOL_ASSIGN_OR_RETURN(const engine::TensorView view, block.Add(DType::kU8, {size}));
    for (const bool pinned : {true, false}) {
      const HostBuffer host(size, pinned);
      if (host.data() == nullptr) return ResourceExhausted("the host has no {} for a copy", FormatBytes(size));
      if (pinned && !host.pinned()) continue;
      for (const LinkKind kind : {LinkKind::kHostToDevice, LinkKind::kDeviceToHost}) {
        const bool to_device = kind == LinkKind::kHostToDevice;
        void* target = to_device ? static_cast<void*>(view.data) : host.data();
        const void* source = to_device ? host.data() : static_cast<const void*>(view.data);
        TIDEPOOL_ASSIGN_OR_RETURN(const double us, CopyMedianUs(stream.get(), target, source, size, repeats));
        const auto bytes = static_cast<double>(size);
        bundle->links.push_back({kind, pinned, bytes, us});
        double& rate = hardware.link_bytes_per_s[kind];
        rate = std::max(rate, bytes / us * 1e6);
        if (size == kSmallestCopy) hardware.link_latency_us[kind] = us;
      }
    }
  }
  return {};
}

void MeasurePinning(int repeats, const Progress& progress, profile::Bundle* bundle) {
  for (int64_t size = kSmallestPin; size <= kLargestPin; size *= 4) {
    Samples samples;
    for (int run = 0; run <= repeats; ++run) {
      const auto bytes = static_cast<size_t>(size);
      void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) return;
      const int64_t start_ns = MonotonicNanos();
      const bool locked = ::mlock(mapped, bytes) == 0;
      const int error = errno;
      samples.Add(MonotonicNanos() - start_ns, run == 0);
      ::munmap(mapped, bytes);
      if (!locked) {
        progress(
            fmt::format("pinning of {} and more is left out: {} (see 'ulimit -l')", FormatBytes(size), std::strerror(error)));
        return;
      }
    }
    bundle->pins.push_back({static_cast<double>(size), samples.Percentile(0.5)});
  }
}

}  // namespace

Status MeasureMachine(MeasuringPool* pool, int repeats, const Progress& progress, profile::Bundle* bundle) {
  profile::Hardware& hardware = bundle->manifest.hardware;
  const Status rates = MeasureRates(pool, repeats, &hardware);
  if (!rates.ok()) return Annotate(rates, "measuring the rates of the machine");
  const Status links = MeasureLinks(pool, repeats, bundle);
  if (!links.ok()) return Annotate(links, "measuring copies");
  MeasurePinning(repeats, progress, bundle);
  progress(fmt::format("machine: {:.4g} GFLOP/s, memory {:.3g} GB/s, {:.2f} us per launch, copies {:.3g} GB/s",
                       hardware.peak_flops[DType::kF32] / 1e9, hardware.memory_bytes_per_s / 1e9, hardware.launch_us,
                       hardware.link_bytes_per_s[LinkKind::kHostToDevice] / 1e9));
  return {};
}

}  // namespace tidepool::cli
