#include "data/storage_model.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace tidepool::data {
namespace {

constexpr int kMostDepth = 65536;

absl::Duration Seconds(double amount, double rate) { return absl::Seconds(amount / rate); }

}  // namespace

absl::Time TokenBucket::Take(absl::Time now, double amount) {
  last_ = now = std::max(now, last_);
  full_at_ = std::max(full_at_, now) + Seconds(amount, rate_);
  return std::max(now, full_at_ - Seconds(burst_, rate_));
}

Status StorageSpec::Validate() const {
  const auto bad = [this](const char* what, double value, const char* allowed) {
    return InvalidArgument("storage '{}': {} {}; allowed: {}", name, what, value, allowed);
  };
  if (!(bytes_per_s > 0) || !std::isfinite(bytes_per_s)) return bad("rate in bytes per second", bytes_per_s, "above 0");
  for (const absl::Duration latency : {random_latency, sequential_latency}) {
    if (latency < absl::ZeroDuration() || latency > absl::Hours(1)) {
      return bad("latency in seconds", absl::ToDoubleSeconds(latency), "0 to 3600");
    }
  }
  if (depth < 1 || depth > kMostDepth) return bad("depth", depth, "1 to 65536");
  if (!(ops_per_s >= 0) || !std::isfinite(ops_per_s)) return bad("operations per second", ops_per_s, "0 (no limit) or more");
  if (!(sustained_bytes_per_s >= 0) || !std::isfinite(sustained_bytes_per_s)) {
    return bad("sustained bytes per second", sustained_bytes_per_s, "0 (as the link) or more");
  }
  if (!(burst_bytes >= 0) || !std::isfinite(burst_bytes)) return bad("burst in bytes", burst_bytes, "0 or more");
  if (burst_bytes > 0 && sustained_bytes_per_s == 0) return bad("burst without a sustained rate, in bytes", burst_bytes, "0");
  return {};
}

StorageModel::StorageModel(const StorageSpec& spec)
    : spec_(spec),
      slots_(spec.depth, absl::InfinitePast()),
      ops_(spec.ops_per_s, 0),
      link_(spec.bytes_per_s, 0),
      credits_(spec.sustained_bytes_per_s, spec.burst_bytes) {}

absl::Time StorageModel::Submit(absl::Time now, int64_t bytes, bool sequential) {
  last_ = now = std::max(now, last_);
  const auto later = std::greater<absl::Time>();
  std::pop_heap(slots_.begin(), slots_.end(), later);
  absl::Time start = std::max(now, slots_.back());
  // The first operation passes at once; the next one 1 / iops later.
  if (spec_.ops_per_s > 0) start = ops_.Take(start, 1) - Seconds(1, spec_.ops_per_s);
  const absl::Time ready = start + (sequential ? spec_.sequential_latency : spec_.random_latency);
  absl::Time done = link_.Take(ready, static_cast<double>(bytes));
  if (spec_.sustained_bytes_per_s > 0) done = std::max(done, credits_.Take(ready, static_cast<double>(bytes)));
  // A device with one slot is busy to the last byte; more slots hide latencies behind the transfers of others.
  slots_.back() = spec_.depth == 1 ? done : ready;
  std::push_heap(slots_.begin(), slots_.end(), later);
  ++counts_.ops;
  counts_.sequential_ops += sequential ? 1 : 0;
  counts_.bytes += bytes;
  return done;
}

}  // namespace tidepool::data
