#include "train/device_time.h"

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

}  // namespace

StatusOr<std::unique_ptr<DeviceTime>> DeviceTime::Create(device::Device* device, const model::Graph& graph, Options options) {
  if (device->info().kind != "emulated") return std::unique_ptr<DeviceTime>();
  if (!device->properties().computes) {
    return FailedPrecondition("device '{}' only keeps time, and training computes its results; allowed: mode=functional",
                              device->info().name);
  }
  std::unique_ptr<DeviceTime> time(new DeviceTime(device, graph, std::move(options)));
  TIDEPOOL_RETURN_IF_ERROR(time->OpenStream());
  return time;
}

DeviceTime::~DeviceTime() {
  Computed();
  stream_.reset();
}

Status DeviceTime::OpenStream() {
  TIDEPOOL_ASSIGN_OR_RETURN(stream_, device_->CreateStream({.name = "train"}));
  return {};
}

Status DeviceTime::Begin(std::span<const profile::Phase> phases, int64_t batch) {
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
            +[](DeviceTime* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return !self->computing_; }, this));
        return Status();
      };
    }
    TIDEPOOL_RETURN_IF_ERROR(stream_->Launch(pass, std::move(work)));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(ended_, stream_->Record());
  return {};
}

void DeviceTime::Computed() {
  absl::MutexLock lock(&mu_);
  computing_ = false;
}

Status DeviceTime::End(const std::function<bool()>& broken_off) {
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

void DeviceTime::BreakOff() {
  Computed();
  stream_.reset();  // drops what is queued; the next Begin opens another one
}

}  // namespace tidepool::train
