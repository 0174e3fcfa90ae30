#include "device/emulated/system.h"

namespace tidepool::device::emulated {
namespace {

// When Clock::Real() was at `monotonic_ns`, right to a microsecond: the two differ by a constant, which is read between two looks
// at the other one that lie close together.
absl::Time RealTimeOf(int64_t monotonic_ns) {
  constexpr int64_t kClose = 1000;
  int64_t before, after;
  absl::Time now;
  int tries = 0;
  do {
    before = MonotonicNanos();
    now = Clock::Real()->Now();
    after = MonotonicNanos();
  } while (after - before > kClose && ++tries < 1000);
  return now - absl::Nanoseconds(before + (after - before) / 2 - monotonic_ns);
}

}  // namespace

StatusOr<std::shared_ptr<System>> System::Create(Parts parts) {
  std::shared_ptr<System> system(new System);
  system->spec_ = std::move(parts.spec);
  system->costs_ = std::move(parts.costs);
  system->shared_ = std::move(parts.shared);
  Clock* clock = parts.clock;
  if (system->spec_.virtual_clock) {
    system->virtual_clock_ = std::make_unique<VirtualClock>();
    clock = system->virtual_clock_.get();
  }
  // Processes that share a timeline count from one moment of the machine's monotonic clock.
  const absl::Time zero = system->shared_ != nullptr ? RealTimeOf(system->shared_->epoch_ns()) : clock->Now();
  system->driver_ = std::make_unique<Driver>(
      Driver::Options{.clock = clock, .seed = system->spec_.seed, .zero = zero, .spin_ns = system->spec_.spin_ns});
  EmulationOptions options = system->spec_.emulation;
  options.shared = system->shared_.get();
  absl::MutexLock lock(system->driver_->mu());
  TIDEPOOL_ASSIGN_OR_RETURN(system->emulation_, Emulation::Create(system->driver_->simulation(), system->costs_.get(), options));
  system->memory_.resize(static_cast<size_t>(system->emulation_->devices()));
  return system;
}

System::~System() {
  if (driver_ != nullptr) driver_->Stop();
}

void System::SetMemory(int32_t device, const std::byte* base, int64_t size_bytes) {
  memory_[static_cast<size_t>(device)] = {base, size_bytes};
}

int32_t System::DeviceAt(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (size_t i = 0; i < memory_.size(); ++i) {
    const auto begin = reinterpret_cast<uintptr_t>(memory_[i].first);
    if (memory_[i].second > 0 && at >= begin && at - begin < static_cast<uintptr_t>(memory_[i].second))
      return static_cast<int32_t>(i);
  }
  return -1;
}

}  // namespace tidepool::device::emulated
