#include "train/device_time.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "model/cost.h"

namespace tidepool::train {
namespace {

// How soon a wait for the device notices that it is broken off.
constexpr absl::Duration kLookEvery = absl::Milliseconds(1);
// No pass of any network takes an emulated device as long as this.
constexpr absl::Duration kLongestWait = absl::Minutes(10);

class OneDeviceTime final : public DeviceTime {
 public:
  OneDeviceTime(device::Device* device, const model::Graph& graph, Options options)
      : device_(device), graph_(graph), options_(std::move(options)) {}
  ~OneDeviceTime() override {
    Computed();
    stream_.reset();
  }

  Status OpenStream() {
    TIDEPOOL_ASSIGN_OR_RETURN(stream_, device_->CreateStream({.name = "train"}));
    return {};
  }
  Status Begin(std::span<const profile::Phase> phases, int64_t batch) override;
  Status BeginUpdate() override {
    const profile::Phase pass[] = {profile::Phase::kOptimizer};
    return Begin(pass, 1);
  }
  Status End(const std::function<bool()>& broken_off) override;
  void BreakOff() override {
    Computed();
    stream_.reset();  // drops what is queued; the next Begin opens another one
  }
  absl::Duration total() const override { return device_->timeline()->own_busy.at(device::EngineKind::kCompute); }
  std::string host_limited() const override { return device_->timeline()->host_limited_reason; }

 private:
  void Computed() {
    absl::MutexLock lock(&mu_);
    computing_ = false;
  }

  device::Device* const device_;
  const model::Graph& graph_;
  const Options options_;
  device::Event ended_;
  absl::Mutex mu_;
  bool computing_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<device::Stream> stream_;  // its thread uses what stands above
};

Status OneDeviceTime::Begin(std::span<const profile::Phase> phases, int64_t batch) {
  if (stream_ == nullptr) TIDEPOOL_RETURN_IF_ERROR(OpenStream());
  {
    absl::MutexLock lock(&mu_);
    computing_ = true;
  }
  for (size_t i = 0; i < phases.size(); ++i) {
    const device::Operation pass{.key = {.model = options_.model, .phase = phases[i], .batch = batch},
                                 .cost = model::CostOf(graph_, phases[i], options_.optimizer_states)};
    std::function<Status()> work;
    if (i + 1 == phases.size()) {
      // Stands for the arithmetic, so that the device knows how much longer than itself it took.
      work = [this] {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(
            +[](OneDeviceTime* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return !self->computing_; }, this));
        return Status();
      };
    }
    TIDEPOOL_RETURN_IF_ERROR(stream_->Launch(pass, std::move(work)));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(ended_, stream_->Record());
  return {};
}

Status OneDeviceTime::End(const std::function<bool()>& broken_off) {
  Computed();
  Clock* clock = device_->clock();
  const absl::Time deadline = clock->Now() + kLongestWait;
  while (true) {
    const absl::Time now = clock->Now();
    const Status ended = ended_.Wait(std::min(deadline, now + kLookEvery));
    if (ended.ok()) return {};
    if (ended.code() != StatusCode::kDeadlineExceeded) return ended;
    if (broken_off && broken_off()) return Aborted("broken off while the emulated device was at it");
    if (now >= deadline) {
      return Unavailable("the emulated device has not come to the end of a pass within {}", absl::FormatDuration(kLongestWait));
    }
  }
}

}  // namespace

StatusOr<std::unique_ptr<DeviceTime>> DeviceTime::Create(device::Device* device, const model::Graph& graph, Options options) {
  if (device->info().kind != "emulated") return std::unique_ptr<DeviceTime>();
  if (!device->properties().computes) {
    return FailedPrecondition("device '{}' only keeps time, and training computes its results; allowed: mode=functional",
                              device->info().name);
  }
  auto time = std::make_unique<OneDeviceTime>(device, graph, std::move(options));
  TIDEPOOL_RETURN_IF_ERROR(time->OpenStream());
  return time;
}

}  // namespace tidepool::train
