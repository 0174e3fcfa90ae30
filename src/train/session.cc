#include "train/session.h"

#include <cstring>

#include "base/log.h"
#include "base/units.h"
#include "model/families.h"
#include "model/safetensors.h"
#include "model/weights.h"

namespace tidepool::train {
namespace {

constexpr absl::Duration kPoolTimeout = absl::Seconds(10);

std::string SpecText(const model::Spec& spec) {
  std::string text = spec.family;
  char separator = ':';
  for (const auto& [key, value] : spec.config) {
    text += fmt::format("{}{}={}", separator, key, value);
    separator = ',';
  }
  return text;
}

std::span<const std::byte> BytesOf(const engine::TensorView& view) { return {view.data, static_cast<size_t>(view.size_bytes())}; }

// The data set's samples are what the network reads, and its classes are among those that it tells apart.
Status CheckDataFits(const model::Graph& graph, const data::Dataset& dataset, const std::string& name) {
  if (graph.inputs.size() != 1) {
    return InvalidArgument("model '{}' has {} inputs; training takes networks with one", graph.name, graph.inputs.size());
  }
  const model::Value& input = graph.values[graph.inputs[0]];
  const model::Shape shape(input.shape.begin() + 1, input.shape.end());
  if (dataset.input().shape != shape || dataset.input().dtype != input.dtype) {
    return InvalidArgument("data '{}' has samples {} [{}]; model '{}' reads {} [{}]", name,
                           SafetensorsName(dataset.input().dtype), fmt::join(dataset.input().shape, ", "), graph.name,
                           SafetensorsName(input.dtype), fmt::join(shape, ", "));
  }
  const int64_t classes = graph.values[graph.outputs[0]].shape.back();
  if (dataset.classes() > classes) {
    return InvalidArgument("data '{}' has {} classes; model '{}' tells {} apart", name, dataset.classes(), graph.name, classes);
  }
  return {};
}

StatusOr<std::unique_ptr<data::Dataset>> OpenFor(const model::Graph& graph, const std::string& uri,
                                                 const data::WrapOptions& wrap = {}) {
  if (graph.inputs.empty()) return InvalidArgument("model '{}' has no input", graph.name);
  TIDEPOOL_ASSIGN_OR_RETURN(auto dataset, data::OpenDataset(uri, graph.values[graph.inputs[0]].shape, wrap));
  TIDEPOOL_RETURN_IF_ERROR(CheckDataFits(graph, *dataset, uri));
  return dataset;
}

}  // namespace

StatusOr<std::unique_ptr<Session>> Session::Open(const TrainOptions& options, const TrainerHooks& hooks, StopToken* stop) {
  std::unique_ptr<Session> session(new Session(options, hooks, stop));
  TIDEPOOL_RETURN_IF_ERROR(session->OpenData());
  TIDEPOOL_RETURN_IF_ERROR(session->OpenPool());
  TIDEPOOL_RETURN_IF_ERROR(session->OpenLease());
  TIDEPOOL_RETURN_IF_ERROR(session->BuildModule());
  TIDEPOOL_RETURN_IF_ERROR(session->LoadState());
  return session;
}

Session::~Session() {
  stop_->OnStop(nullptr);
  {
    absl::MutexLock lock(&mu_);
    abortable_ = nullptr;
    urgent_ = nullptr;
  }
  yield.reset();
  device_time.reset();
  module.reset();
  if (reclaimer != nullptr) reclaimer->SetArena(nullptr);
  arena.reset();
  client.reset();
  reclaimer.reset();
}

Status Session::OpenData() {
  TIDEPOOL_ASSIGN_OR_RETURN(const model::Spec parsed, model::ParseSpec(options_.model));
  spec = SpecText(parsed);
  TIDEPOOL_ASSIGN_OR_RETURN(model::Graph built, model::BuildGraph(parsed));
  graph = std::make_shared<const model::Graph>(std::move(built));
  TIDEPOOL_ASSIGN_OR_RETURN(dataset, OpenFor(*graph, options_.data, options_.wrap));
  if (!options_.evaluation_data.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(evaluation, OpenFor(*graph, options_.evaluation_data));
  }
  if (options_.checkpoint.empty()) return {};
  TIDEPOOL_ASSIGN_OR_RETURN(resumed, FindCheckpoint(options_.checkpoint));
  if (resumed.has_value()) return resumed->CheckFits(Identity(), options_.checkpoint);
  return {};
}

Status Session::OpenPool() {
  // Threads that exist now (of the arithmetic) or are made after the pool (of the loader) do the work; those made in between
  // serve.
  const std::set<int> before = ThreadsOfThisProcess();
  pool::ClientOptions attach{.name = fmt::format("train:{}", options_.name), .clock = hooks_.clock};
  pool::Broker* inherited = hooks_.broker;
  device::NodeDevices own;
  if (inherited == nullptr && options_.pool_socket.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(own,
                              CheckReplicas({.name = options_.device, .capacity_bytes = options_.pool_bytes}, kUsualPoolBytes));
    own.options.capacity_bytes = RoundUp(own.options.capacity_bytes, own.options.page_bytes);
    TIDEPOOL_ASSIGN_OR_RETURN(device, device::OpenDevice(own.options));
    TIDEPOOL_ASSIGN_OR_RETURN(broker, pool::Broker::Start(device.get(), {.clock = hooks_.clock}));
    inherited = broker.get();
  }
  if (inherited != nullptr) {
    TIDEPOOL_ASSIGN_OR_RETURN(attach.connected_socket, inherited->Connect());
  } else {
    attach.socket_path = options_.pool_socket;
  }
  TIDEPOOL_ASSIGN_OR_RETURN(client, pool::Client::Attach(std::move(attach)));
  page_bytes = client->device().memory().page_bytes();
  TIDEPOOL_RETURN_IF_ERROR(OpenDeviceTime(own));
  reclaimer = std::make_unique<Reclaimer>(
      client.get(), ReclaimerOptions{.clock = hooks_.clock,
                                     .request_abort =
                                         [this] {
                                           absl::MutexLock lock(&mu_);
                                           if (abortable_ != nullptr) abortable_->abort_token().Request();
                                         },
                                     .clear_abort =
                                         [this] {
                                           absl::MutexLock lock(&mu_);
                                           if (abortable_ != nullptr) abortable_->abort_token().Clear();
                                         },
                                     .set_urgent =
                                         [this](bool urgent) {
                                           absl::MutexLock lock(&mu_);
                                           if (urgent_ != nullptr) urgent_->SetUrgent(urgent);
                                         },
                                     .longest_operator =
                                         [this] {
                                           absl::MutexLock lock(&mu_);
                                           if (abortable_ == nullptr) return absl::ZeroDuration();
                                           return absl::Nanoseconds(abortable_->abort_token().longest_gap_ns());
                                         }});
  stop_->OnStop([this] { reclaimer->RequestStop(); });
  if (!options_.yield_cpu) return {};
  std::set<int> service = ThreadsOfThisProcess();
  for (const int thread : before) service.erase(thread);
  service.insert(hooks_.service_threads.begin(), hooks_.service_threads.end());
  yield = std::make_unique<CpuYield>(std::move(service));
  absl::MutexLock lock(&mu_);
  urgent_ = yield.get();
  return {};
}

Status Session::OpenDeviceTime(const device::NodeDevices& own) {
  DeviceTime::Options pass{.model = options_.model, .optimizer_states = options_.optimizer == "adamw" ? 2 : 1};
  if (own.count == 1) {
    TIDEPOOL_ASSIGN_OR_RETURN(device_time, DeviceTime::Create(&client->device(), *graph, std::move(pass)));
  } else {
    TIDEPOOL_ASSIGN_OR_RETURN(device_time,
                              CreateReplicaTime(own, *graph, {.pass = std::move(pass), .clock = hooks_.clock, .stopped = [this] {
                                                                return stop_->stopped();
                                                              }}));
  }
  return {};
}

// Parameters, accumulated gradients and optimizer state, and a copy of the buffers.
int64_t Session::PersistentBytes() const {
  const int64_t copies = options_.optimizer == "adamw" ? 4 : options_.momentum > 0 ? 3 : 2;
  int64_t bytes = 0;
  for (const model::Param& param : graph->params) {
    bytes += RoundUp(model::BytesOf(param), 64) * (param.kind == model::ParamKind::kWeight ? copies : 2);
  }
  return bytes;
}

Status Session::OpenLease() {
  const int64_t total = client->device().memory().page_count();
  burst_pages = options_.burst_bytes == 0 ? total : std::min(total, options_.burst_bytes / page_bytes);
  guaranteed_pages = CeilDiv(PersistentBytes(), page_bytes) + 1;
  if (guaranteed_pages > burst_pages) {
    return ResourceExhausted("training '{}' keeps {} (parameters, gradients, optimizer state), but may hold {} only",
                             options_.name, FormatBytes(guaranteed_pages * page_bytes), FormatBytes(burst_pages * page_bytes));
  }
  auto opened = client->OpenLease({.name = fmt::format("train:{}", options_.name),
                                   .lease_class = pool::LeaseClass::kReclaimable,
                                   .guaranteed_pages = guaranteed_pages,
                                   .burst_pages = burst_pages,
                                   .placement = pool::Placement::kHigh},
                                  hooks_.clock->Now() + kPoolTimeout);
  if (!opened.ok()) {
    return Annotate(opened.status(), fmt::format("training '{}' needs {} guaranteed (parameters, gradients, optimizer state)",
                                                 options_.name, FormatBytes(guaranteed_pages * page_bytes)));
  }
  lease = *opened;
  arena = pool::Arena::Create(client.get(), lease, {.grow_timeout = absl::Seconds(1), .placement = pool::Placement::kHigh});
  reclaimer->SetArena(arena.get());
  return {};
}

Status Session::SetGuaranteed(int64_t pages) {
  pages = std::min(pages, burst_pages);
  const Status set = client->SetGuaranteed(lease, pages, hooks_.clock->Now() + kPoolTimeout);
  if (!set.ok()) {
    return Annotate(set, fmt::format("training '{}' needs {} guaranteed (its state and a micro-batch of one sample)",
                                     options_.name, FormatBytes(pages * page_bytes)));
  }
  guaranteed_pages = pages;
  return {};
}

Status Session::BuildModule() {
  // Initial weights pass through ordinary memory once; the module copies them into the pool.
  std::vector<std::vector<std::byte>> storage;
  std::vector<engine::TensorView> views;
  std::unique_ptr<model::SafetensorsFile> file;
  if (!options_.initial_weights.empty() && !resumed.has_value()) {
    TIDEPOOL_ASSIGN_OR_RETURN(file, model::SafetensorsFile::Open(options_.initial_weights));
  }
  for (const model::Param& param : graph->params) {
    std::vector<std::byte>& bytes = storage.emplace_back(model::BytesOf(param));
    if (file != nullptr) {
      TIDEPOOL_ASSIGN_OR_RETURN(const model::TensorEntry* entry, file->Find(param.name));
      if (entry->dtype != param.dtype || entry->shape != param.shape) {
        return InvalidArgument("{}: tensor '{}' is {} [{}]; model '{}' has {} [{}]", file->path(), param.name,
                               SafetensorsName(entry->dtype), fmt::join(entry->shape, ", "), graph->name,
                               SafetensorsName(param.dtype), fmt::join(param.shape, ", "));
      }
      TIDEPOOL_RETURN_IF_ERROR(file->Read(*entry, bytes));
    } else {
      TIDEPOOL_RETURN_IF_ERROR(model::FillSeeded(param, options_.seed, 0, bytes));
    }
    views.push_back({bytes.data(), param.dtype, param.shape});
  }
  engine::TrainingOptions training{.optimizer = {.kind = options_.optimizer == "adamw" ? engine::OptimizerOptions::Kind::kAdamW
                                                                                       : engine::OptimizerOptions::Kind::kSgd,
                                                 .learning_rate = options_.learning_rate,
                                                 .momentum = options_.momentum,
                                                 .weight_decay = options_.weight_decay},
                                   .seed = options_.seed};
  auto created = engine::TrainingModule::Create(graph, views, arena.get(), training);
  if (!created.ok()) return Annotate(created.status(), fmt::format("building '{}'", graph->name));
  module = std::move(*created);
  absl::MutexLock lock(&mu_);
  abortable_ = module.get();
  return {};
}

Status Session::LoadState() {
  if (!resumed.has_value()) return {};
  std::vector<TensorToLoad> tensors;
  for (const engine::NamedTensor& tensor : module->State()) {
    tensors.push_back({.name = tensor.name,
                       .dtype = tensor.view.dtype,
                       .shape = tensor.view.shape,
                       .data = {tensor.view.data, static_cast<size_t>(tensor.view.size_bytes())}});
  }
  TIDEPOOL_RETURN_IF_ERROR(LoadCheckpoint(options_.checkpoint, *resumed, tensors));
  module->SetSteps(resumed->step);
  Log(LogLevel::kInfo, "training goes on from its checkpoint", {{"directory", options_.checkpoint}, {"step", resumed->step}});
  return {};
}

CheckpointManifest Session::Identity() const {
  return {.model = spec,
          .optimizer = options_.optimizer,
          .seed = options_.seed,
          .global_batch = options_.global_batch,
          .dataset_size = dataset->size()};
}

Status Session::Save(CheckpointManifest manifest) const {
  std::vector<model::TensorToWrite> tensors;
  for (const engine::NamedTensor& tensor : module->State()) {
    tensors.push_back(
        {.name = tensor.name, .dtype = tensor.view.dtype, .shape = tensor.view.shape, .data = BytesOf(tensor.view)});
  }
  return SaveCheckpoint(options_.checkpoint, std::move(manifest), tensors);
}

Status Session::SaveWeights(const std::string& path) const {
  std::vector<model::TensorToWrite> tensors;
  for (const engine::NamedTensor& tensor : module->State()) {
    if (tensor.name.starts_with("optimizer.")) continue;
    tensors.push_back(
        {.name = tensor.name, .dtype = tensor.view.dtype, .shape = tensor.view.shape, .data = BytesOf(tensor.view)});
  }
  return model::WriteSafetensors(path, tensors, {{"model", spec}, {"step", fmt::format("{}", module->steps())}});
}

}  // namespace tidepool::train
