#include "cluster/node.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/metrics.h"
#include "base/units.h"
#include "cluster/node_status.h"
#include "cluster/runtime_directory.h"
#include "cluster/train_supervisor.h"
#include "device/emulated/emulated_device.h"
#include "serve/device_group.h"

namespace tidepool::cluster {
namespace {

std::string SocketPath(const std::string& directory, int device) {
  return device == 0 ? directory + "/pool.sock" : fmt::format("{}/pool-{}.sock", directory, device);
}

// Completes what the options leave to the node.
NodeOptions Complete(NodeOptions options, const std::string& directory, const device::NodeDevices& devices) {
  options.device = devices.options;
  options.server.clock = options.clock;
  if (options.server.worker_binary.empty()) options.server.worker_binary = DefaultWorkerBinary();
  if (options.server.worker_threads == 0 && devices.count > 1) {
    options.server.worker_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / devices.count);
  }
  options.train.pool_socket = SocketPath(directory, options.train_device);
  if (options.train.checkpoint.empty()) options.train.checkpoint = directory + "/checkpoint";
  return options;
}

class NodeImpl : public Node {
 public:
  explicit NodeImpl(NodeOptions options) : options_(std::move(options)) {}
  ~NodeImpl() override {
    collector_.reset();
    supervisor_.reset();
    EndSampler();
    server_.reset();
    for (Part& part : parts_) part.broker.reset();
  }

  Status Open() {
    TIDEPOOL_RETURN_IF_ERROR(options_.Validate());
    TIDEPOOL_ASSIGN_OR_RETURN(directory_, RuntimeDirectory::Open(options_.runtime_directory));
    TIDEPOOL_ASSIGN_OR_RETURN(device::NodeDevices settled, device::CheckNodeDevices(options_.device, kUsualCapacityBytes));
    options_ = Complete(std::move(options_), directory_->path(), settled);
    for (int i = 0; i < settled.count; ++i) TIDEPOOL_RETURN_IF_ERROR(OpenDevice(i));
    TIDEPOOL_RETURN_IF_ERROR(StartServers());
    server_->SetEventListener([this](const serve::ServeEvent& event) { timeline_.AddServeEvent(event); });
    if (options_.measure_solo) {
      TIDEPOOL_RETURN_IF_ERROR(server_->MeasureSoloLatencies(options_.clock->Now() + options_.measure_limit));
      // What was measured last still lies in the device; the training job would find too little to begin with. Of several devices
      // another one has measured.
      if (options_.has_training() && device_count() == 1) {
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
  int device_count() const override { return static_cast<int>(parts_.size()); }
  pool::Broker& broker(int device) override { return *parts_.at(static_cast<size_t>(device)).broker; }
  const NodeOptions& options() const override { return options_; }
  const std::string& runtime_directory() const override { return directory_->path(); }
  const Timeline& timeline() const override { return timeline_; }
  std::optional<EmulationStatus> emulation() override {
    std::vector<EmulationStatus> all;
    for (const Part& part : parts_) {
      if (auto one = EmulationOf(*part.device); one.has_value()) all.push_back(*std::move(one));
    }
    return Together(all);
  }

  Status StartTraining() override {
    if (!options_.has_training()) return FailedPrecondition("no training job is configured: train.data is empty");
    return supervisor_->Start();
  }
  Status StopTraining() override { return supervisor_->Stop(); }
  TrainStatus training() override { return supervisor_->status(); }
  Status WaitForTraining(absl::Time deadline) override { return supervisor_->WaitUntilEnded(deadline); }

  std::string StatusJson() override {
    NodeStatus status{.options = &options_,
                      .runtime_directory = directory_->path(),
                      .ready = server_->Ready(),
                      .models = server_->Models(),
                      .training = supervisor_->status()};
    for (const Part& part : parts_) {
      status.devices.push_back({.ready = part.server->Ready(),
                                .worker_pid = part.server->worker_pid(),
                                .pool = part.broker->Stats(),
                                .emulation = EmulationOf(*part.device)});
    }
    return StatusJsonOf(status);
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
  // One device with what belongs to it.
  struct Part {
    std::unique_ptr<device::Device> device;
    std::unique_ptr<pool::Broker> broker;
    serve::Server* server = nullptr;  // of server_
    int64_t serving_limit_pages = -1;
  };

  static std::optional<EmulationStatus> EmulationOf(device::Device& device) {
    const auto report = device.timeline();
    if (!report.has_value()) return std::nullopt;
    return EmulationStatus{.properties = device.properties(), .report = *report};
  }

  Status OpenDevice(int index) {
    Part part;
    device::DeviceOptions one = options_.device;
    one.name = device::emulated::NameOfDevice(one.name, index);
    TIDEPOOL_ASSIGN_OR_RETURN(part.device, device::OpenDevice(one));
    const device::DeviceInfo& info = part.device->info();
    const bool trains = index == options_.train_device;
    pool::BrokerOptions broker{.socket_path = SocketPath(directory_->path(), index),
                               .fit = options_.fit,
                               .reserve_pages = trains ? CeilDiv(options_.reserve_bytes, info.page_bytes) : 0,
                               .fence_after = options_.fence_after,
                               .clock = options_.clock,
                               .on_handover = [this](const pool::HandoverRecord& record) { timeline_.AddHandover(record); }};
    if (trains && options_.server.mode == serve::Mode::kStatic) {
      const int64_t pages = info.capacity_bytes / info.page_bytes;
      broker.static_reclaimable_pages = static_cast<int64_t>(static_cast<double>(pages) * options_.static_train_fraction);
      part.serving_limit_pages = pages - broker.static_reclaimable_pages;
    }
    TIDEPOOL_ASSIGN_OR_RETURN(part.broker, pool::Broker::Start(part.device.get(), std::move(broker)));
    parts_.push_back(std::move(part));
    return {};
  }

  Status StartServers() {
    std::vector<std::pair<pool::Broker*, serve::ServerOptions>> wanted;
    for (size_t i = 0; i < parts_.size(); ++i) {
      serve::ServerOptions options = options_.server;
      options.serving_limit_pages = parts_[i].serving_limit_pages;
      // What the modes settle between training and serving concerns the device that has both.
      if (static_cast<int>(i) != options_.train_device) options.mode = serve::Mode::kColocate;
      wanted.emplace_back(parts_[i].broker.get(), std::move(options));
    }
    TIDEPOOL_ASSIGN_OR_RETURN(auto servers, serve::StartServers(wanted));
    for (size_t i = 0; i < parts_.size(); ++i) parts_[i].server = servers[i].get();
    if (servers.size() == 1) {
      server_ = std::move(servers[0]);
      return {};
    }
    std::vector<serve::DeviceGroup::Member> members;
    for (size_t i = 0; i < parts_.size(); ++i) {
      const int64_t page_bytes = options_.device.page_bytes, limit_pages = parts_[i].serving_limit_pages;
      serve::DeviceGroup::Member member{.server = std::move(servers[i]),
                                        .free_bytes = [broker = parts_[i].broker.get(), page_bytes] {
                                          return std::max<int64_t>(0, broker->RoomForPinned().spare_pages) * page_bytes;
                                        }};
      if (limit_pages >= 0) member.limit_bytes = limit_pages * page_bytes;
      members.push_back(std::move(member));
    }
    server_ = std::make_unique<serve::DeviceGroup>(
        std::move(members), serve::DeviceGroup::Options{.train_device = options_.has_training() ? options_.train_device : -1,
                                                        .clock = options_.clock});
    return {};
  }

  void Sample() {
    absl::Time next = options_.clock->Now();
    while (true) {
      for (size_t i = 0; i < parts_.size(); ++i) {
        timeline_.AddMemory(options_.clock->Now(), parts_[i].broker->Stats(), static_cast<int>(i));
      }
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
  std::vector<Part> parts_;
  std::unique_ptr<serve::Server> server_;  // of the one device, or the group
  std::unique_ptr<TrainSupervisor> supervisor_;
  absl::Mutex mu_;
  bool end_sampling_ = false;
  std::thread sampler_;
  std::shared_ptr<void> collector_;
  std::once_flag stop_once_;
  Status stopped_;
};

}  // namespace

std::vector<pool::Broker*> Node::brokers() {
  std::vector<pool::Broker*> all;
  for (int i = 0; i < device_count(); ++i) all.push_back(&broker(i));
  return all;
}

std::vector<pool::PoolStats> Node::PoolStats() {
  std::vector<pool::PoolStats> all;
  for (pool::Broker* broker : brokers()) all.push_back(broker->Stats());
  return all;
}

StatusOr<std::unique_ptr<Node>> Node::Start(NodeOptions options) {
  auto node = std::make_unique<NodeImpl>(std::move(options));
  TIDEPOOL_RETURN_IF_ERROR(node->Open());
  return std::unique_ptr<Node>(std::move(node));
}

}  // namespace tidepool::cluster
