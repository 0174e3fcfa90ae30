#include "train/replica_time.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/simulation.h"
#include "base/units.h"
#include "device/emulated/cost_source.h"
#include "device/emulated/emulated_device.h"
#include "device/emulated/emulation.h"
#include "device/emulated/spec.h"
#include "model/cost.h"
#include "model/weights.h"
#include "profile/open.h"

namespace tidepool::train {
namespace {

using device::emulated::Command;
using device::emulated::Emulation;
using device::emulated::OpTime;
using device::emulated::StreamId;
using profile::Phase;

// How soon a wait for real time notices that training is to stop.
constexpr absl::Duration kLookEvery = absl::Milliseconds(10);
// As an emulated device marks itself (docs/device.md, Real time).
constexpr absl::Duration kBehindSlack = absl::Milliseconds(20);
constexpr double kBehindShare = 0.05;

int64_t GradientBytes(const model::Graph& graph) {
  int64_t bytes = 0;
  for (const model::Param& param : graph.params) {
    if (param.kind == model::ParamKind::kWeight) bytes += model::BytesOf(param);
  }
  return bytes;
}

class ReplicaTime final : public DeviceTime, private device::emulated::EmulationSink {
 public:
  ReplicaTime(const model::Graph& graph, ReplicaTimeOptions options, uint64_t seed,
              std::shared_ptr<const device::emulated::CostSource> costs)
      : graph_(graph),
        options_(std::move(options)),
        gradient_bytes_(GradientBytes(graph)),
        costs_(std::move(costs)),
        simulation_({.seed = seed}) {}

  Status Open(const device::emulated::EmulationOptions& options) {
    TIDEPOOL_ASSIGN_OR_RETURN(emulation_, Emulation::Create(&simulation_, costs_.get(), options));
    TIDEPOOL_ASSIGN_OR_RETURN(group_, emulation_->GroupOf("gradients"));
    for (int32_t i = 0; i < emulation_->devices(); ++i) {
      streams_.push_back(emulation_->AddStream(i, 0, fmt::format("replica{}", i), this));
    }
    return {};
  }

  Status Begin(std::span<const Phase> phases, int64_t batch) override {
    TIDEPOOL_RETURN_IF_ERROR(BeginPasses(phases, batch));
    update_ = false;
    return {};
  }
  Status BeginUpdate() override {
    const Phase pass[] = {Phase::kOptimizer};
    TIDEPOOL_RETURN_IF_ERROR(BeginPasses(pass, 1));
    update_ = true;
    return {};
  }
  // Never breaks off: the arithmetic is done, and its time only passes on the timeline here.
  Status End(const std::function<bool()>&) override {
    if (update_) return Update();
    // The first of those that are free at the same time.
    const auto first =
        std::min_element(streams_.begin(), streams_.end(), [this](StreamId a, StreamId b) { return FreeNs(a) < FreeNs(b); });
    Launch(*first);
    return Ran();
  }
  void BreakOff() override { passes_.clear(); }
  void Settle() override;

  absl::Duration total() const override { return absl::Nanoseconds(LastEndNs()); }
  absl::Duration communication() const override { return absl::Nanoseconds(communication_ns_); }
  int devices() const override { return emulation_->devices(); }
  std::string host_limited() const override {
    const absl::Duration allowed = kBehindSlack + elapsed_ * kBehindShare;
    if (behind_ <= allowed) return "";
    return fmt::format(
        "results took longer to compute on this machine than on {} emulated devices, in sum by {} after {}; "
        "allowed: {}",
        devices(), tidepool::FormatDuration(behind_), tidepool::FormatDuration(elapsed_), tidepool::FormatDuration(allowed));
  }

 private:
  Status BeginPasses(std::span<const Phase> phases, int64_t batch);
  void Launch(StreamId stream);
  Status Update();
  Status Ran();
  int64_t FreeNs(StreamId stream) const { return std::max(settled_ns_, emulation_->LastEndNs(stream)); }
  int64_t LastEndNs() const {
    int64_t last_ns = settled_ns_;
    for (const StreamId stream : streams_) last_ns = std::max(last_ns, FreeNs(stream));
    return last_ns;
  }

  void WorkBegins(StreamId, uint64_t) override {}
  void Ended(StreamId, uint64_t, int64_t, int64_t, const Status& status) override {
    if (!status.ok() && failed_.ok()) failed_ = status;
  }

  const model::Graph& graph_;
  const ReplicaTimeOptions options_;
  const int64_t gradient_bytes_;
  const std::shared_ptr<const device::emulated::CostSource> costs_;
  Simulation simulation_;
  std::unique_ptr<Emulation> emulation_;
  std::vector<StreamId> streams_;  // by device
  int32_t group_ = 0;              // of the all-reduce

  std::vector<const OpTime*> passes_;  // of what has begun
  bool update_ = false;                // and whether that is an update
  Status failed_;
  int64_t settled_ns_ = 0;  // nothing that is submitted begins before
  int64_t communication_ns_ = 0;

  // Real time beside the timeline since it was last settled.
  bool under_way_ = false;
  absl::Time began_;
  absl::Duration late_;  // of the last wait for real time: it is not charged to what follows
  absl::Duration behind_, elapsed_;
};

Status ReplicaTime::BeginPasses(std::span<const Phase> phases, int64_t batch) {
  passes_.clear();
  for (const Phase phase : phases) {
    const device::Operation pass{.key = {.model = options_.pass.model, .phase = phase, .batch = batch},
                                 .cost = model::CostOf(graph_, phase, options_.pass.optimizer_states)};
    TIDEPOOL_ASSIGN_OR_RETURN(const OpTime* time, emulation_->Intern(pass));
    passes_.push_back(time);
  }
  if (!std::exchange(under_way_, true)) began_ = options_.clock->Now() - late_;
  return {};
}

void ReplicaTime::Launch(StreamId stream) {
  for (const OpTime* pass : passes_) {
    emulation_->Submit(stream, {.type = Command::Type::kLaunch, .time = pass, .submit_ns = settled_ns_});
  }
}

// Moves the timeline to the end of everything that was submitted.
Status ReplicaTime::Ran() {
  simulation_.Run();
  passes_.clear();
  return std::exchange(failed_, Status());
}

Status ReplicaTime::Update() {
  const int64_t ready_ns = LastEndNs();
  for (const StreamId stream : streams_) {
    const Command all_reduce{.type = Command::Type::kCollective,
                             .collective = profile::CollectiveKind::kAllReduce,
                             .ranks = static_cast<int32_t>(streams_.size()),
                             .group = group_,
                             .bytes = static_cast<double>(gradient_bytes_),
                             .submit_ns = settled_ns_};
    TIDEPOOL_RETURN_IF_ERROR(emulation_->Check(stream, all_reduce));
    emulation_->Submit(stream, all_reduce);
  }
  simulation_.Run();
  communication_ns_ += LastEndNs() - ready_ns;
  for (const StreamId stream : streams_) Launch(stream);
  TIDEPOOL_RETURN_IF_ERROR(Ran());
  Settle();
  return {};
}

void ReplicaTime::Settle() {
  const absl::Duration took = absl::Nanoseconds(LastEndNs() - settled_ns_);
  settled_ns_ = LastEndNs();
  if (!std::exchange(under_way_, false)) return;
  Clock& clock = *options_.clock;
  const absl::Time due = began_ + took;
  absl::Time now = clock.Now();
  elapsed_ += std::max(now, due) - began_;
  if (now > due) {
    behind_ += now - due;
    late_ = absl::ZeroDuration();
    return;
  }
  while (now < due && !(options_.stopped && options_.stopped())) {
    clock.SleepUntil(std::min(due, now + kLookEvery));
    now = clock.Now();
  }
  late_ = std::max(absl::ZeroDuration(), now - due);
}

}  // namespace

StatusOr<device::NodeDevices> CheckReplicas(const device::DeviceOptions& options, int64_t usual_bytes) {
  if (!options.name.starts_with(device::emulated::kPrefix) || options.capacity_bytes < 0) {
    return device::CheckNodeDevices(options, usual_bytes);
  }
  return device::emulated::CheckEmulated(options, usual_bytes, /*one_copy=*/true);
}

StatusOr<std::unique_ptr<DeviceTime>> CreateReplicaTime(const device::NodeDevices& devices, const model::Graph& graph,
                                                        ReplicaTimeOptions options) {
  TIDEPOOL_ASSIGN_OR_RETURN(device::emulated::Spec spec, device::emulated::ParseSpec(devices.options.name));
  TIDEPOOL_ASSIGN_OR_RETURN(auto bundle, profile::OpenBundle(spec.bundle));
  spec.emulation.topology.devices_per_node = devices.count;
  auto time =
      std::make_unique<ReplicaTime>(graph, std::move(options), spec.seed, device::emulated::MakeBundleCosts(std::move(bundle)));
  TIDEPOOL_RETURN_IF_ERROR(time->Open(spec.emulation));
  return time;
}

}  // namespace tidepool::train
