#include "cluster/node_status.h"

#include <algorithm>

#include "base/json.h"
#include "device/emulated/emulated_device.h"

namespace tidepool::cluster {
namespace {

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

nlohmann::json LeaseJson(const pool::LeaseStats& lease, int64_t page_bytes) {
  return {{"name", lease.name},
          {"client", lease.client},
          {"pid", lease.pid},
          {"class", pool::Name(lease.lease_class)},
          {"guaranteed_bytes", lease.guaranteed_pages * page_bytes},
          {"limit_bytes", lease.limit_pages * page_bytes},
          {"held_bytes", lease.held_pages * page_bytes}};
}

nlohmann::json PoolJson(const pool::PoolStats& stats) {
  nlohmann::json json = {
      {"page_bytes", stats.page_bytes},           {"total_pages", stats.total},         {"free_pages", stats.free},
      {"granted_pages", stats.granted},           {"returning_pages", stats.returning}, {"dirty_pages", stats.dirty},
      {"peak_granted_pages", stats.peak_granted}, {"violations", stats.violations},     {"fenced", stats.fenced},
      {"leases", nlohmann::json::array()}};
  for (const pool::LeaseStats& lease : stats.leases) json["leases"].push_back(LeaseJson(lease, stats.page_bytes));
  return json;
}

nlohmann::json ModelJson(const serve::ModelStatus& model) {
  return {{"name", model.name},
          {"state", serve::Name(model.state)},
          {"reason", model.reason},
          {"spec", model.spec},
          {"weight_bytes", model.weight_bytes},
          {"resident_bytes", model.resident_bytes},
          {"slo_ms", Milliseconds(model.slo)},
          {"solo_ms", Milliseconds(model.solo_latency)},
          {"requests", model.requests},
          {"failures", model.failures},
          {"within_slo", model.within_slo},
          {"loads", model.loads},
          {"evictions", model.evictions}};
}

nlohmann::json TrainJson(const TrainStatus& status, const std::string& name) {
  return {{"name", name},
          {"state", Name(status.state)},
          {"pid", status.pid},
          {"restarts", status.restarts},
          {"last_error", status.last_error.ok() ? "" : ToString(status.last_error)},
          {"step", status.latest.step},
          {"epoch", status.latest.epoch},
          {"samples", status.latest.samples},
          {"loss", status.latest.loss},
          {"samples_per_s", status.latest.samples_per_s},
          {"micro_batch", status.latest.micro_batch},
          {"aborts", status.latest.aborts},
          {"held_bytes", status.latest.held_bytes},
          {"device_seconds", status.latest.device_seconds},
          {"device_samples_per_s", status.latest.device_samples_per_s}};
}

nlohmann::json EmulationJson(const EmulationStatus& emulation) {
  const device::TimelineReport& report = emulation.report;
  const auto busy = [&](device::EngineKind engine) { return absl::ToDoubleSeconds(report.busy.at(engine)); };
  return {{"profile", emulation.properties.profile},
          {"hardware", emulation.properties.model},
          {"times", emulation.properties.estimated ? "estimated" : "measured"},
          {"source", emulation.properties.profile_source},
          {"results", emulation.properties.computes ? "computed" : "none"},
          {"description", device::emulated::Describe(emulation.properties)},
          {"elapsed_s", absl::ToDoubleSeconds(report.elapsed)},
          {"compute_busy_s", busy(device::EngineKind::kCompute)},
          {"host_to_device_busy_s", busy(device::EngineKind::kHostToDevice)},
          {"device_to_host_busy_s", busy(device::EngineKind::kDeviceToHost)},
          {"overrun_s", absl::ToDoubleSeconds(report.overrun)},
          {"host_limited", report.host_limited},
          {"host_limited_reason", report.host_limited_reason}};
}

// Of all devices: with one, its own.
nlohmann::json PoolsJson(const NodeStatus& status) {
  std::vector<pool::PoolStats> pools;
  for (const DeviceStatus& device : status.devices) pools.push_back(device.pool);
  nlohmann::json json = PoolJson(Together(pools));
  if (pools.size() == 1) return json;
  size_t lease = 0;
  for (size_t i = 0; i < pools.size(); ++i) {
    for (size_t j = 0; j < pools[i].leases.size(); ++j) json["leases"][lease++]["device"] = i;
  }
  return json;
}

nlohmann::json DeviceJson(const NodeStatus& status, size_t index) {
  const DeviceStatus& device = status.devices[index];
  const bool trains = status.options->has_training() && status.options->train_device == static_cast<int>(index);
  nlohmann::json json = {{"device", index},
                         {"ready", device.ready},
                         {"worker_pid", device.worker_pid},
                         {"trains", trains},
                         {"capacity_bytes", status.options->device.capacity_bytes},
                         {"pool", PoolJson(device.pool)}};
  if (device.emulation.has_value()) json["emulation"] = EmulationJson(*device.emulation);
  return json;
}

}  // namespace

pool::PoolStats Together(const std::vector<pool::PoolStats>& pools) {
  pool::PoolStats sum;
  for (const pool::PoolStats& pool : pools) {
    sum.page_bytes = pool.page_bytes;
    sum.total += pool.total;
    sum.free += pool.free;
    sum.granted += pool.granted;
    sum.returning += pool.returning;
    sum.dirty += pool.dirty;
    sum.peak_granted += pool.peak_granted;
    sum.violations += pool.violations;
    sum.grants += pool.grants;
    sum.returns += pool.returns;
    sum.revokes += pool.revokes;
    sum.fenced += pool.fenced;
    sum.zeroed_pages += pool.zeroed_pages;
    sum.leases.insert(sum.leases.end(), pool.leases.begin(), pool.leases.end());
  }
  return sum;
}

std::optional<EmulationStatus> Together(const std::vector<EmulationStatus>& devices) {
  if (devices.empty()) return std::nullopt;
  EmulationStatus sum = devices[0];
  for (size_t i = 1; i < devices.size(); ++i) {
    const device::TimelineReport& report = devices[i].report;
    sum.report.elapsed = std::max(sum.report.elapsed, report.elapsed);
    for (const auto& [engine, busy] : report.busy) sum.report.busy[engine] += busy;
    for (const auto& [engine, busy] : report.own_busy) sum.report.own_busy[engine] += busy;
    sum.report.operations += report.operations;
    sum.report.estimated_operations += report.estimated_operations;
    sum.report.overrun += report.overrun;
    sum.report.behind_max = std::max(sum.report.behind_max, report.behind_max);
    if (report.host_limited && !sum.report.host_limited) {
      sum.report.host_limited = true;
      sum.report.host_limited_reason = report.host_limited_reason;
    }
  }
  return sum;
}

std::string StatusJsonOf(const NodeStatus& status) {
  const bool several = status.devices.size() > 1;
  nlohmann::json json = {{"mode", serve::Name(status.options->server.mode)},
                         {"device", status.options->device.name},
                         {"device_count", status.devices.size()},
                         {"capacity_bytes", status.options->device.capacity_bytes * static_cast<int64_t>(status.devices.size())},
                         {"ready", status.ready},
                         {"runtime_directory", status.runtime_directory},
                         {"pool", PoolsJson(status)},
                         {"devices", nlohmann::json::array()},
                         {"models", nlohmann::json::array()}};
  if (!several) json["worker_pid"] = status.devices[0].worker_pid;
  std::vector<EmulationStatus> emulations;
  for (size_t i = 0; i < status.devices.size(); ++i) {
    json["devices"].push_back(DeviceJson(status, i));
    if (status.devices[i].emulation.has_value()) emulations.push_back(*status.devices[i].emulation);
  }
  for (const serve::ModelStatus& model : status.models) {
    json["models"].push_back(ModelJson(model));
    if (several) json["models"].back()["devices"] = model.devices;
  }
  if (const auto all = Together(emulations); all.has_value()) json["emulation"] = EmulationJson(*all);
  if (status.options->has_training()) {
    json["training"] = TrainJson(status.training, status.options->train.name);
    if (several) json["training"]["device"] = status.options->train_device;
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace tidepool::cluster
