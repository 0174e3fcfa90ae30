#include "cluster/timeline.h"

#include <algorithm>

namespace tidepool::cluster {
namespace {

template <typename T>
void Keep(std::deque<T>* records, T record, int64_t limit, int64_t* dropped) {
  records->push_back(std::move(record));
  while (static_cast<int64_t>(records->size()) > std::max<int64_t>(1, limit)) {
    records->pop_front();
    ++*dropped;
  }
}

// Names come from tenants: a client that opens leases under ever new names must not grow the table without bound.
constexpr size_t kMaxTenants = 1024;

}  // namespace

void Timeline::AddMemory(absl::Time now, const pool::PoolStats& stats, int device) {
  MemorySample sample{.time = now,
                      .device = device,
                      .free = stats.free,
                      .granted = stats.granted,
                      .returning = stats.returning,
                      .dirty = stats.dirty};
  absl::MutexLock lock(&mu_);
  data_.page_bytes = stats.page_bytes;
  data_.total_pages = stats.total;
  data_.devices = std::max(data_.devices, device + 1);
  for (const pool::LeaseStats& lease : stats.leases) {
    if (lease.lease_class == pool::LeaseClass::kReclaimable) {
      sample.train_limit = std::max<int64_t>(sample.train_limit, 0) + lease.limit_pages;
    }
    if (lease.held_pages == 0) continue;
    const auto found = std::find(data_.tenants.begin(), data_.tenants.end(), lease.name);
    auto index = static_cast<uint32_t>(found - data_.tenants.begin());
    if (found == data_.tenants.end()) {
      if (data_.tenants.size() >= kMaxTenants) {
        index = kMaxTenants - 1;
      } else {
        data_.tenants.push_back(data_.tenants.size() + 1 == kMaxTenants ? "others" : lease.name);
      }
    }
    const auto held =
        std::find_if(sample.held.begin(), sample.held.end(), [index](const auto& one) { return one.first == index; });
    if (held == sample.held.end()) {
      sample.held.emplace_back(index, lease.held_pages);
    } else {
      held->second += lease.held_pages;
    }
  }
  Keep(&data_.memory, std::move(sample), limits_.memory_samples * data_.devices, &data_.dropped_memory);
}

void Timeline::AddHandover(const pool::HandoverRecord& record) {
  absl::MutexLock lock(&mu_);
  Keep(&data_.handovers, record, limits_.handovers, &data_.dropped_handovers);
}

void Timeline::AddServeEvent(const serve::ServeEvent& event) {
  absl::MutexLock lock(&mu_);
  Keep(&data_.serve, event, limits_.serve_events, &data_.dropped_serve);
}

void Timeline::AddTrainProgress(const train::TrainProgress& progress) {
  absl::MutexLock lock(&mu_);
  Keep(&data_.train, progress, limits_.train_events, &data_.dropped_train);
}

TimelineData Timeline::Snapshot() const {
  absl::MutexLock lock(&mu_);
  return data_;
}

}  // namespace tidepool::cluster
