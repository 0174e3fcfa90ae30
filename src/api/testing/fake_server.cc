#include "api/testing/fake_server.h"

#include <cctype>
#include <cstring>
#include <utility>

#include "api/tensor_codec.h"

namespace tidepool::api {

using serve::InferCallback;
using serve::InferRequest;
using serve::InferResponse;
using serve::ModelStatus;
using serve::Tensor;

struct FakeServer::Held {
  InferRequest request;
  InferCallback done;
};

struct FakeServer::State {
  absl::Mutex mu;
  bool ready ABSL_GUARDED_BY(mu) = true;
  std::map<std::string, ModelStatus> models ABSL_GUARDED_BY(mu);
  std::map<uint64_t, Held> held ABSL_GUARDED_BY(mu);
  uint64_t next_held ABSL_GUARDED_BY(mu) = 0;
  int cancelled ABSL_GUARDED_BY(mu) = 0;
  absl::Time last_deadline ABSL_GUARDED_BY(mu);

  void Cancel(uint64_t key) {
    InferCallback done;
    {
      absl::MutexLock lock(&mu);
      const auto it = held.find(key);
      if (it == held.end()) return;
      done = std::move(it->second.done);
      held.erase(it);
      ++cancelled;
    }
    done(Cancelled("the request was cancelled"));
  }
};

namespace {

ModelStatus MakeModel(const std::string& name, serve::TensorMetadata input, serve::TensorMetadata output) {
  ModelStatus model;
  model.name = name;
  model.versions = {"1", "2"};
  model.platform = "tidepool_graph";
  model.family = "fake";
  model.spec = "fake:" + name;
  model.state = serve::ModelState::kReady;
  model.inputs = {std::move(input)};
  model.outputs = {std::move(output)};
  model.weight_bytes = 1 << 20;
  model.resident_bytes = 1 << 20;
  model.max_batch_size = 8;
  return model;
}

Status CheckInputs(const ModelStatus& model, const InferRequest& request) {
  for (const Tensor& input : request.inputs) {
    if (input.name != model.inputs[0].name) {
      return InvalidArgument("model '{}' has no input '{}'; it has: {}", model.name, input.name, model.inputs[0].name);
    }
  }
  if (request.inputs.size() != 1) {
    return InvalidArgument("model '{}' got {} inputs; allowed: 1", model.name, request.inputs.size());
  }
  const Tensor& input = request.inputs[0];
  const serve::TensorMetadata& wanted = model.inputs[0];
  if (input.datatype != wanted.datatype) {
    return InvalidArgument("input '{}' is of type {}; allowed: {}", input.name, InferenceName(input.datatype),
                           InferenceName(wanted.datatype));
  }
  if (input.shape.size() != 2 || input.shape[0] < 1 || input.shape[0] > model.max_batch_size ||
      (wanted.shape[1] >= 0 && input.shape[1] != wanted.shape[1])) {
    return InvalidArgument("input '{}' has shape {}; allowed: {} with a batch of 1 to {}", input.name, ShapeText(input.shape),
                           ShapeText(wanted.shape), model.max_batch_size);
  }
  for (const std::string& output : request.outputs) {
    if (output != model.outputs[0].name) {
      return InvalidArgument("model '{}' has no output '{}'; it has: {}", model.name, output, model.outputs[0].name);
    }
  }
  return absl::OkStatus();
}

template <typename Element>
std::vector<Element> Elements(const std::string& data) {
  std::vector<Element> elements(data.size() / sizeof(Element));
  std::memcpy(elements.data(), data.data(), data.size());
  return elements;
}

InferResponse Compute(const InferRequest& request) {
  const Tensor& input = request.inputs[0];
  InferResponse response{.model = request.model, .version = request.version.empty() ? "2" : request.version, .id = request.id};
  Tensor output{.name = "y", .datatype = input.datatype, .shape = input.shape};
  if (input.datatype == DType::kF32) {
    for (const float x : Elements<float>(input.data)) {
      const float y = 2 * x;
      output.data.append(reinterpret_cast<const char*>(&y), sizeof(y));
    }
  } else if (input.datatype == DType::kI64) {
    output.name = "sum";
    output.shape = {input.shape[0], 1};
    const std::vector<int64_t> ids = Elements<int64_t>(input.data);
    for (int64_t row = 0; row < input.shape[0]; ++row) {
      int64_t sum = 0;
      for (int64_t i = 0; i < input.shape[1]; ++i) sum += ids[static_cast<size_t>(row * input.shape[1] + i)];
      output.data.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
    }
  } else if (input.datatype == DType::kBytes) {
    output.name = "upper";
    const StatusOr<std::vector<std::string_view>> elements = BytesElements(input.name, input.data);
    for (const std::string_view element : elements.value()) {
      std::string upper(element);
      for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
      AppendBytesElement(upper, &output.data);
    }
  } else {
    output.data = input.data;
  }
  response.outputs.push_back(std::move(output));
  return response;
}

}  // namespace

FakeServer::FakeServer() : state_(std::make_shared<State>()) {
  absl::MutexLock lock(&state_->mu);
  const auto add = [this](ModelStatus model) ABSL_NO_THREAD_SAFETY_ANALYSIS { state_->models[model.name] = std::move(model); };
  for (const char* name : {"scale", "held", "full", "broken"}) {
    add(MakeModel(name, {"x", DType::kF32, {-1, 4}}, {"y", DType::kF32, {-1, 4}}));
  }
  add(MakeModel("tokens", {"input_ids", DType::kI64, {-1, 8}}, {"sum", DType::kI64, {-1, 1}}));
  add(MakeModel("text", {"text", DType::kBytes, {-1, 1}}, {"upper", DType::kBytes, {-1, 1}}));
  add(MakeModel("half", {"x", DType::kF16, {-1, 2}}, {"y", DType::kF16, {-1, 2}}));
  add(MakeModel("copy", {"x", DType::kU8, {-1, -1}}, {"y", DType::kU8, {-1, -1}}));
  state_->models["broken"].servable = false;
  state_->models["broken"].state = serve::ModelState::kAbsent;
  state_->models["broken"].reason = "model.toml: spec 'nonsense' is not known";
}

FakeServer::~FakeServer() {
  while (true) {
    uint64_t key = 0;
    {
      absl::MutexLock lock(&state_->mu);
      if (state_->held.empty()) return;
      key = state_->held.begin()->first;
    }
    state_->Cancel(key);
  }
}

std::shared_ptr<serve::InferHandle> FakeServer::Infer(InferRequest request, InferCallback done) {
  struct Handle : serve::InferHandle {
    std::weak_ptr<State> state;
    uint64_t key = 0;
    void Cancel() override {
      if (const auto locked = state.lock()) locked->Cancel(key);
    }
  };
  auto handle = std::make_shared<Handle>();
  Status status;
  bool hold = false;
  {
    absl::MutexLock lock(&state_->mu);
    state_->last_deadline = request.deadline;
    const auto it = state_->models.find(request.model);
    if (it == state_->models.end()) {
      status = NotFound("model '{}' is not in the repository", request.model);
    } else if (ModelStatus& model = it->second; !model.servable) {
      status = FailedPrecondition("model '{}' cannot be served: {}", request.model, model.reason);
    } else if (request.model == "full") {
      ++model.rejected;
      status = ResourceExhausted("the queue of model 'full' has 256 requests; allowed: 256");
    } else if (!request.version.empty() && request.version != "1" && request.version != "2") {
      status = NotFound("model '{}' has no version '{}'; it has: 1, 2", request.model, request.version);
    } else {
      status = CheckInputs(model, request);
      ++model.requests;
      if (!status.ok()) ++model.failures;
      if (status.ok()) ++model.executions, ++model.batched_requests;
      hold = status.ok() && request.model == "held";
    }
    if (hold) {
      handle->state = state_;
      handle->key = state_->next_held++;
      state_->held[handle->key] = {std::move(request), std::move(done)};
      return handle;
    }
  }
  if (status.ok()) {
    done(Compute(request));
  } else {
    done(status);
  }
  return handle;
}

bool FakeServer::Ready() {
  absl::MutexLock lock(&state_->mu);
  return state_->ready;
}

StatusOr<ModelStatus> FakeServer::Model(const std::string& name) {
  absl::MutexLock lock(&state_->mu);
  const auto it = state_->models.find(name);
  if (it == state_->models.end()) return NotFound("model '{}' is not in the repository", name);
  return it->second;
}

std::vector<ModelStatus> FakeServer::Models() {
  absl::MutexLock lock(&state_->mu);
  std::vector<ModelStatus> models;
  for (const auto& [name, model] : state_->models) models.push_back(model);
  return models;
}

StatusOr<serve::ModelPresence> FakeServer::Presence(const std::string& model, const std::string&) {
  TIDEPOOL_ASSIGN_OR_RETURN(const ModelStatus status, Model(model));
  return serve::ModelPresence{
      .state = status.state, .weight_bytes = status.weight_bytes, .solo_latency = status.solo_latency, .slo = status.slo};
}

Status FakeServer::Load(const std::string& model, absl::Time) {
  absl::MutexLock lock(&state_->mu);
  const auto it = state_->models.find(model);
  if (it == state_->models.end()) return NotFound("model '{}' is not in the repository", model);
  if (!it->second.servable) return FailedPrecondition("model '{}' cannot be served: {}", model, it->second.reason);
  it->second.state = serve::ModelState::kReady;
  it->second.resident_bytes = it->second.weight_bytes;
  ++it->second.loads;
  return absl::OkStatus();
}

StatusOr<int64_t> FakeServer::Unload(const std::string& model, absl::Time) {
  absl::MutexLock lock(&state_->mu);
  const auto it = state_->models.find(model);
  if (it == state_->models.end()) return NotFound("model '{}' is not in the repository", model);
  it->second.state = serve::ModelState::kAbsent;
  ++it->second.evictions;
  return std::exchange(it->second.resident_bytes, 0);
}

void FakeServer::SetReady(bool ready) {
  absl::MutexLock lock(&state_->mu);
  state_->ready = ready;
}

void FakeServer::SetSlo(const std::string& model, absl::Duration slo, absl::Duration solo) {
  absl::MutexLock lock(&state_->mu);
  state_->models[model].slo = slo;
  state_->models[model].solo_latency = solo;
}

void FakeServer::Release() {
  std::map<uint64_t, Held> held;
  {
    absl::MutexLock lock(&state_->mu);
    held.swap(state_->held);
  }
  for (auto& [key, entry] : held) entry.done(Compute(entry.request));
}

bool FakeServer::WaitForHeld(int count, absl::Duration limit) {
  absl::MutexLock lock(&state_->mu);
  const auto reached = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return static_cast<int>(state_->held.size()) >= count; };
  return state_->mu.AwaitWithTimeout(absl::Condition(&reached), limit);
}

bool FakeServer::WaitForCancelled(int count, absl::Duration limit) {
  absl::MutexLock lock(&state_->mu);
  const auto reached = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return state_->cancelled >= count; };
  return state_->mu.AwaitWithTimeout(absl::Condition(&reached), limit);
}

absl::Time FakeServer::last_deadline() {
  absl::MutexLock lock(&state_->mu);
  return state_->last_deadline;
}

}  // namespace tidepool::api
