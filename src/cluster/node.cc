#include "cluster/node.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/metrics.h"
#include "base/units.h"
#include "cluster/runtime_directory.h"
#include "cluster/train_supervisor.h"
#include "device/emulated/emulated_device.h"

namespace tidepool::cluster {
namespace {

// Completes what the options leave to the node.
NodeOptions Complete(NodeOptions options, const std::string& directory) {
  options.server.clock = options.clock;
  if (options.server.worker_binary.empty()) options.server.worker_binary = DefaultWorkerBinary();
  options.train.pool_socket = directory + "/pool.sock";
  if (options.train.checkpoint.empty()) options.train.checkpoint = directory + "/checkpoint";
  return options;
}

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

nlohmann::json PoolJson(const pool::PoolStats& stats) {
  nlohmann::json json = {
      {"page_bytes", stats.page_bytes},           {"total_pages", stats.total},         {"free_pages", stats.free},
      {"granted_pages", stats.granted},           {"returning_pages", stats.returning}, {"dirty_pages", stats.dirty},
      {"peak_granted_pages", stats.peak_granted}, {"violations", stats.violations},     {"fenced", stats.fenced},
      {"leases", nlohmann::json::array()}};
  for (const pool::LeaseStats& lease : stats.leases) {
    json["leases"].push_back({{"name", lease.name},
                              {"client", lease.client},
                              {"pid", lease.pid},
                              {"class", pool::Name(lease.lease_class)},
                              {"guaranteed_bytes", lease.guaranteed_pages * stats.page_bytes},
                              {"limit_bytes", lease.limit_pages * stats.page_bytes},
                              {"held_bytes", lease.held_pages * stats.page_bytes}});
  }
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

class NodeImpl : public Node {
 public:
  explicit NodeImpl(NodeOptions options) : options_(std::move(options)) {}
  ~NodeImpl() override {
    collector_.reset();
    supervisor_.reset();
    EndSampler();
    server_.reset();
    broker_.reset();
  }

  Status Open() {
    TIDEPOOL_RETURN_IF_ERROR(options_.Validate());
    TIDEPOOL_ASSIGN_OR_RETURN(directory_, RuntimeDirectory::Open(options_.runtime_directory));
    options_ = Complete(std::move(options_), directory_->path());
    TIDEPOOL_ASSIGN_OR_RETURN(device::OneDevice settled, device::CheckOneDevice(options_.device, kUsualCapacityBytes));
    options_.device = std::move(settled.options);
    TIDEPOOL_ASSIGN_OR_RETURN(device_, device::OpenDevice(options_.device));
    const int64_t pages = device_->info().capacity_bytes / device_->info().page_bytes;
    pool::BrokerOptions broker{.socket_path = options_.train.pool_socket,
                               .fit = options_.fit,
                               .reserve_pages = CeilDiv(options_.reserve_bytes, device_->info().page_bytes),
                               .fence_after = options_.fence_after,
                               .clock = options_.clock,
                               .on_handover = [this](const pool::HandoverRecord& record) { timeline_.AddHandover(record); }};
    if (options_.server.mode == serve::Mode::kStatic) {
      broker.static_reclaimable_pages = static_cast<int64_t>(static_cast<double>(pages) * options_.static_train_fraction);
      options_.server.serving_limit_pages = pages - broker.static_reclaimable_pages;
    }
    TIDEPOOL_ASSIGN_OR_RETURN(broker_, pool::Broker::Start(device_.get(), std::move(broker)));
    TIDEPOOL_ASSIGN_OR_RETURN(server_, serve::Server::Start(broker_.get(), options_.server));
    server_->SetEventListener([this](const serve::ServeEvent& event) { timeline_.AddServeEvent(event); });
    if (options_.measure_solo) {
      TIDEPOOL_RETURN_IF_ERROR(server_->MeasureSoloLatencies(options_.clock->Now() + options_.measure_limit));
      // What was measured last still lies in the device; the training job would find too little to begin with.
      if (options_.has_training()) {
        for (const serve::ModelStatus& model : server_->Models()) {
          server_->Unload(model.name, options_.clock->Now() + options_.server.drain_limit).IgnoreError();
        }
      }
    }
    supervisor_ = std::make_unique<TrainSupervisor>(TrainSupervisorOptions{
        .train = options_.train,
        .worker_binary = options_.server.worker_binary,
        .restarts = options_.train_restarts,
        .backoff = options_.train_backoff,
        .stop_limit = options_.train_stop_limit,
        .on_progress = [this](const train::TrainProgress& progress) { timeline_.AddTrainProgress(progress); },
        .clock = options_.clock});
    sampler_ = std::thread([this] { Sample(); });
    if (options_.has_training()) collector_ = Metrics::Default().AddCollector([this] { Collect(); });
    return {};
  }

  serve::Server& server() override { return *server_; }
  pool::Broker& broker() override { return *broker_; }
  const NodeOptions& options() const override { return options_; }
  const std::string& runtime_directory() const override { return directory_->path(); }
  const Timeline& timeline() const override { return timeline_; }
  std::optional<EmulationStatus> emulation() override {
    const auto report = device_->timeline();
    if (!report.has_value()) return std::nullopt;
    return EmulationStatus{.properties = device_->properties(), .report = *report};
  }

  Status StartTraining() override {
    if (!options_.has_training()) return FailedPrecondition("no training job is configured: train.data is empty");
    return supervisor_->Start();
  }
  Status StopTraining() override { return supervisor_->Stop(); }
  TrainStatus training() override { return supervisor_->status(); }
  Status WaitForTraining(absl::Time deadline) override { return supervisor_->WaitUntilEnded(deadline); }

  std::string StatusJson() override {
    nlohmann::json json = {{"mode", serve::Name(options_.server.mode)},
                           {"device", options_.device.name},
                           {"capacity_bytes", options_.device.capacity_bytes},
                           {"ready", server_->Ready()},
                           {"worker_pid", server_->worker_pid()},
                           {"runtime_directory", directory_->path()},
                           {"pool", PoolJson(broker_->Stats())},
                           {"models", nlohmann::json::array()}};
    for (const serve::ModelStatus& model : server_->Models()) json["models"].push_back(ModelJson(model));
    if (const auto emulated = emulation(); emulated.has_value()) json["emulation"] = EmulationJson(*emulated);
    if (options_.has_training()) json["training"] = TrainJson(supervisor_->status(), options_.train.name);
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  Status Stop() override {
    std::call_once(stop_once_, [this] {
      // Both take their time at once: training writes its checkpoint while requests drain.
      Status trained;
      std::thread training([&] { trained = supervisor_->Stop(); });
      server_->Drain();
      training.join();
      EndSampler();
      stopped_ = trained;
    });
    return stopped_;
  }

 private:
  void Sample() {
    absl::Time next = options_.clock->Now();
    while (true) {
      timeline_.AddMemory(options_.clock->Now(), broker_->Stats());
      next = std::max(next + options_.sample_interval, options_.clock->Now());
      absl::MutexLock lock(&mu_);
      if (options_.clock->Await(
              &mu_, [this] { return end_sampling_; }, next))
        return;
    }
  }

  void EndSampler() {
    {
      absl::MutexLock lock(&mu_);
      end_sampling_ = true;
    }
    if (sampler_.joinable()) sampler_.join();
  }

  void Collect() {
    const TrainStatus status = supervisor_->status();
    const MetricLabels labels = {{"job", options_.train.name}};
    const auto set = [&](const char* name, const char* help, double value) {
      Metrics::Default().Gauge(name, help, labels).Set(value);
    };
    set("tidepool_train_running", "1 while the training process runs", status.state == TrainState::kRunning ? 1 : 0);
    set("tidepool_train_restarts", "Restarts of the training job since the node started", status.restarts);
    set("tidepool_train_step", "Optimizer steps done", static_cast<double>(status.latest.step));
    set("tidepool_train_samples", "Samples trained", static_cast<double>(status.latest.samples));
    set("tidepool_train_samples_per_second", "Samples trained per second", status.latest.samples_per_s);
    set("tidepool_train_loss", "Mean loss of the last global batch", status.latest.loss);
    set("tidepool_train_micro_batch_samples", "Size of the present micro-batch", static_cast<double>(status.latest.micro_batch));
    set("tidepool_train_aborted_micro_batches", "Micro-batches thrown away to give memory back",
        static_cast<double>(status.latest.aborts));
    set("tidepool_train_held_bytes", "Device memory that the job holds", static_cast<double>(status.latest.held_bytes));
  }

  NodeOptions options_;
  std::unique_ptr<RuntimeDirectory> directory_;
  Timeline timeline_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  std::unique_ptr<serve::Server> server_;
  std::unique_ptr<TrainSupervisor> supervisor_;
  absl::Mutex mu_;
  bool end_sampling_ = false;
  std::thread sampler_;
  std::shared_ptr<void> collector_;
  std::once_flag stop_once_;
  Status stopped_;
};

}  // namespace

StatusOr<std::unique_ptr<Node>> Node::Start(NodeOptions options) {
  auto node = std::make_unique<NodeImpl>(std::move(options));
  TIDEPOOL_RETURN_IF_ERROR(node->Open());
  return std::unique_ptr<Node>(std::move(node));
}

}  // namespace tidepool::cluster
