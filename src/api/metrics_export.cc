#include "api/metrics_export.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <sstream>
#include <utility>
#include <variant>
#include <vector>

#include "api/front_end.h"
#include "base/metrics.h"

namespace tidepool::api {
namespace {

using Labels = std::vector<std::pair<std::string, std::string>>;

class Families {
 public:
  // Starts a family; the following Add calls belong to it.
  void Counter(const char* name, const char* help) { Begin(name, help, prometheus::MetricType::Counter); }
  void Gauge(const char* name, const char* help) { Begin(name, help, prometheus::MetricType::Gauge); }
  void Add(const Labels& labels, double value) {
    prometheus::ClientMetric metric;
    for (const auto& [label, text] : labels) metric.label.push_back({label, text});
    if (families_.back().type == prometheus::MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    families_.back().metric.push_back(std::move(metric));
  }
  std::string Text() const {
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return out.str();
  }

 private:
  void Begin(const char* name, const char* help, prometheus::MetricType type) { families_.push_back({name, help, type, {}}); }
  std::vector<prometheus::MetricFamily> families_;
};

using Model = serve::ModelStatus;
using ModelField = std::variant<int64_t Model::*, absl::Duration Model::*>;

double ValueOf(const Model& model, const ModelField& field) {
  if (const auto* count = std::get_if<int64_t Model::*>(&field)) return static_cast<double>(model.*(*count));
  return absl::ToDoubleSeconds(model.*std::get<absl::Duration Model::*>(field));
}

struct ModelMetric {
  const char* name;
  const char* help;
  bool counter;
  ModelField field;
};

const ModelMetric kModelMetrics[] = {
    {"tidepool_requests_total", "Inference requests accepted or refused", true, &Model::requests},
    {"tidepool_request_failures_total", "Requests that ended with an error", true, &Model::failures},
    {"tidepool_requests_rejected_total", "Requests refused because the queue was full", true, &Model::rejected},
    {"tidepool_requests_within_slo_total", "Requests answered within their model's objective", true, &Model::within_slo},
    {"tidepool_executions_total", "Batches executed", true, &Model::executions},
    {"tidepool_batched_requests_total", "Requests in executed batches; by executions, the mean batch", true,
     &Model::batched_requests},
    {"tidepool_model_loads_total", "Times the model was made resident", true, &Model::loads},
    {"tidepool_model_evictions_total", "Times the model was evicted", true, &Model::evictions},
    {"tidepool_queue_seconds_total", "Time that requests waited for execution", true, &Model::queue_time},
    {"tidepool_compute_seconds_total", "Time that batches took to execute", true, &Model::compute_time},
    {"tidepool_load_seconds_total", "Time that loads took", true, &Model::load_time},
    {"tidepool_model_weight_bytes", "Size of the model's weights", false, &Model::weight_bytes},
    {"tidepool_model_resident_bytes", "Device memory that the model holds", false, &Model::resident_bytes},
    {"tidepool_model_objective_seconds", "Latency objective of the model; 0 if it has none", false, &Model::slo},
    {"tidepool_model_solo_latency_seconds", "Latency of the model alone; 0 if it was not measured", false, &Model::solo_latency},
};

void AddModels(const std::vector<Model>& models, Families* families) {
  for (const ModelMetric& metric : kModelMetrics) {
    metric.counter ? families->Counter(metric.name, metric.help) : families->Gauge(metric.name, metric.help);
    for (const Model& model : models) families->Add({{"model", model.name}}, ValueOf(model, metric.field));
  }
  families->Gauge("tidepool_model_servable", "1 if the model can be served");
  for (const Model& model : models) families->Add({{"model", model.name}}, model.servable ? 1 : 0);
  families->Gauge("tidepool_model_state", "1 for the state that the model is in");
  for (const Model& model : models) {
    for (const auto state :
         {serve::ModelState::kAbsent, serve::ModelState::kLoading, serve::ModelState::kReady, serve::ModelState::kDraining}) {
      families->Add({{"model", model.name}, {"state", std::string(serve::Name(state))}}, model.state == state ? 1 : 0);
    }
  }
}

// One entry per device.
void AddPools(const std::vector<pool::PoolStats>& pools, Families* families) {
  const auto add = [&](Labels labels, size_t device, double value) {
    if (pools.size() > 1) labels.emplace_back("device", fmt::format("{}", device));
    families->Add(labels, value);
  };
  const auto each = [&](const Labels& labels, int64_t pool::PoolStats::*field) {
    for (size_t i = 0; i < pools.size(); ++i) add(labels, i, static_cast<double>(pools[i].*field));
  };
  families->Gauge("tidepool_pool_pages", "Pages of the device by state");
  each({{"state", "free"}}, &pool::PoolStats::free);
  each({{"state", "granted"}}, &pool::PoolStats::granted);
  each({{"state", "returning"}}, &pool::PoolStats::returning);
  each({{"state", "dirty"}}, &pool::PoolStats::dirty);
  families->Gauge("tidepool_pool_capacity_pages", "Pages of the device");
  each({}, &pool::PoolStats::total);
  families->Gauge("tidepool_pool_page_bytes", "Size of a page");
  each({}, &pool::PoolStats::page_bytes);
  families->Gauge("tidepool_pool_peak_granted_pages", "The most pages that were granted at one time");
  each({}, &pool::PoolStats::peak_granted);
  const std::pair<std::pair<const char*, const char*>, int64_t pool::PoolStats::*> counters[] = {
      {{"tidepool_pool_violations_total", "Transitions after which the page ledger did not add up"},
       &pool::PoolStats::violations},
      {{"tidepool_pool_grants_total", "Grants of pages"}, &pool::PoolStats::grants},
      {{"tidepool_pool_returns_total", "Returns of pages"}, &pool::PoolStats::returns},
      {{"tidepool_pool_revokes_total", "Requests to a tenant to give pages back"}, &pool::PoolStats::revokes},
      {{"tidepool_pool_fenced_total", "Tenants that were killed because they did not give pages back"}, &pool::PoolStats::fenced},
      {{"tidepool_pool_zeroed_pages_total", "Pages cleared for a new owner"}, &pool::PoolStats::zeroed_pages},
  };
  for (const auto& [family, field] : counters) {
    families->Counter(family.first, family.second);
    each({}, field);
  }
  const auto leases = [&](const char* name, const char* help, int64_t pool::LeaseStats::*pages) {
    families->Gauge(name, help);
    for (size_t i = 0; i < pools.size(); ++i) {
      for (const pool::LeaseStats& lease : pools[i].leases) {
        add({{"tenant", lease.name},
             {"lease", fmt::format("{}", lease.id)},
             {"class", std::string(pool::Name(lease.lease_class))}},
            i, static_cast<double>(lease.*pages * pools[i].page_bytes));
      }
    }
  };
  leases("tidepool_lease_held_bytes", "Device memory that a tenant holds", &pool::LeaseStats::held_pages);
  leases("tidepool_lease_guaranteed_bytes", "Device memory that a tenant can always have", &pool::LeaseStats::guaranteed_pages);
  leases("tidepool_lease_limit_bytes", "Device memory that a tenant may hold now", &pool::LeaseStats::limit_pages);
}

// Where several devices serve: how many hold the model. Which ones is in the node's status.
void AddReplicas(const std::vector<Model>& models, Families* families) {
  families->Gauge("tidepool_model_devices", "Devices that hold the model");
  for (const Model& model : models) families->Add({{"model", model.name}}, static_cast<double>(model.devices.size()));
}

void AddTritonNames(const std::vector<Model>& models, Families* families) {
  const auto labels = [](const Model& model) {
    return Labels{{"model", model.name}, {"version", model.versions.empty() ? "" : model.versions.back()}};
  };
  const auto add = [&](const char* name, const char* help, auto value) {
    families->Counter(name, help);
    for (const Model& model : models) families->Add(labels(model), static_cast<double>(value(model)));
  };
  add("nv_inference_request_success", "Requests answered without error",
      [](const Model& m) { return std::max<int64_t>(0, m.requests - m.failures); });
  add("nv_inference_count", "Inferences performed", [](const Model& m) { return m.batched_requests; });
  add("nv_inference_exec_count", "Batches executed", [](const Model& m) { return m.executions; });
  add("nv_inference_request_duration_us", "Queue and compute time in microseconds",
      [](const Model& m) { return absl::ToDoubleMicroseconds(m.queue_time + m.compute_time); });
  add("nv_inference_queue_duration_us", "Queue time in microseconds",
      [](const Model& m) { return absl::ToDoubleMicroseconds(m.queue_time); });
  add("nv_inference_compute_infer_duration_us", "Compute time in microseconds",
      [](const Model& m) { return absl::ToDoubleMicroseconds(m.compute_time); });
  families->Counter("nv_inference_request_failure", "Requests that ended with an error, by reason");
  for (const Model& model : models) {
    Labels with_reason = labels(model);
    with_reason.emplace_back("reason", "REJECTED");
    families->Add(with_reason, static_cast<double>(model.rejected));
    with_reason.back().second = "OTHER";
    families->Add(with_reason, static_cast<double>(std::max<int64_t>(0, model.failures - model.rejected)));
  }
}

}  // namespace

std::string RenderMetrics(serve::Server* server, const std::vector<pool::Broker*>& brokers, const MetricsExportOptions& options) {
  const std::vector<Model> models = server->Models();
  Families families;
  families.Gauge("tidepool_build_info", "1, with the version as a label");
  families.Add({{"version", kServerVersion}}, 1);
  families.Gauge("tidepool_ready", "1 if requests are taken");
  families.Add({}, server->Ready() ? 1 : 0);
  AddModels(models, &families);
  if (brokers.size() > 1) AddReplicas(models, &families);
  std::vector<pool::PoolStats> pools;
  for (pool::Broker* broker : brokers) pools.push_back(broker->Stats());
  if (!pools.empty()) AddPools(pools, &families);
  if (options.triton_names) AddTritonNames(models, &families);
  return Metrics::Default().Render() + families.Text();
}

}  // namespace tidepool::api
