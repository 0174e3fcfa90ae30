#include "serve/server_test_fixture.h"

#include <cstring>
#include <random>

#include "model/families.h"
#include "model/safetensors.h"
#include "serve/weights.h"

namespace tidepool::serve {
namespace {

// As the worker sets them: results are compared to the bit.
class RuntimeEnvironment final : public ::testing::Environment {
  void SetUp() override { ASSERT_TRUE(engine::InitRuntime({.threads = 2}).ok()); }
};
const auto* const kEnvironment = ::testing::AddGlobalTestEnvironment(new RuntimeEnvironment);

}  // namespace

size_t Answers::Submit(InferRequest request) {
  size_t index;
  {
    absl::MutexLock lock(&state_->mu);
    index = state_->slots.size();
    state_->slots.push_back(std::make_unique<Slot>());
  }
  handles_.push_back(server_->Infer(std::move(request), [state = state_, index](StatusOr<InferResponse> response) {
    absl::MutexLock lock(&state->mu);
    Slot& slot = *state->slots[index];
    EXPECT_EQ(++slot.calls, 1) << "a second answer";
    slot.response = std::move(response);
    ++state->answered;
  }));
  return index;
}

bool Answers::WaitAll(absl::Duration limit) {
  absl::MutexLock lock(&state_->mu);
  return Clock::Real()->Await(
      &state_->mu, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return state_->answered == state_->slots.size(); },
      Clock::Real()->Now() + limit);
}

size_t Answers::answered() {
  absl::MutexLock lock(&state_->mu);
  return state_->answered;
}

const StatusOr<InferResponse>& Answers::at(size_t index) {
  absl::MutexLock lock(&state_->mu);
  return state_->slots[index]->response;
}

void ServerTest::SetUp() {
  char path[] = "/tmp/tidepool-serve-test-XXXXXX";
  ASSERT_NE(::mkdtemp(path), nullptr);
  repository_ = path;
}

void ServerTest::TearDown() {
  server_.reset();
  if (broker_ != nullptr) {
    ExpectPagesBack();
    EXPECT_EQ(broker_->Stats().violations, 0);
  }
  broker_.reset();
  device_.reset();
  std::filesystem::remove_all(repository_);
}

void ServerTest::Create(const std::string& name, const std::string& spec, uint64_t seed, model::ServingConfig serving) {
  const Status created =
      model::CreateModel({.repository = repository_, .name = name, .spec = spec, .seed = seed, .serving = serving});
  ASSERT_TRUE(created.ok()) << ToString(created);
}

void ServerTest::Start(int64_t pool_bytes, ServerOptions options) {
  auto device = device::OpenDevice({.capacity_bytes = pool_bytes, .page_bytes = kTestPageBytes});
  ASSERT_TRUE(device.ok()) << ToString(device.status());
  device_ = std::move(device).value();
  auto broker = pool::Broker::Start(device_.get(), {});
  ASSERT_TRUE(broker.ok()) << ToString(broker.status());
  broker_ = std::move(broker).value();
  options.repository = repository_;
  if (options.worker_binary.empty()) options.worker_binary = WorkerBinary();
  options.worker_threads = 2;
  auto server = Server::Start(broker_.get(), options);
  ASSERT_TRUE(server.ok()) << ToString(server.status());
  server_ = std::move(server).value();
}

InferRequest ServerTest::Request(const std::string& model, uint64_t seed, int64_t batch) {
  InferRequest request{.model = model, .id = fmt::format("r{}", seed)};
  const auto status = server_->Model(model);
  EXPECT_TRUE(status.ok()) << ToString(status.status());
  if (!status.ok()) return request;
  std::mt19937_64 random(seed);
  for (const TensorMetadata& metadata : status->inputs) {
    Tensor tensor{.name = metadata.name, .datatype = metadata.datatype, .shape = metadata.shape};
    tensor.shape[0] = batch;
    int64_t elements = 1;
    for (int64_t dimension : tensor.shape) elements *= dimension;
    for (int64_t i = 0; i < elements; ++i) {
      if (metadata.datatype == DType::kF32) {
        const float value = static_cast<float>(random() % 1000) / 500 - 1;
        tensor.data.append(reinterpret_cast<const char*>(&value), sizeof(value));
      } else {
        const int64_t value = static_cast<int64_t>(random() % 2);
        tensor.data.append(reinterpret_cast<const char*>(&value), sizeof(value));
      }
    }
    request.inputs.push_back(std::move(tensor));
  }
  return request;
}

StatusOr<InferResponse> ServerTest::Infer(InferRequest request) {
  Answers answers(server_.get());
  answers.Submit(std::move(request));
  if (!answers.WaitAll()) return DeadlineExceeded("the test got no answer");
  return answers.at(0);
}

std::vector<std::string> ServerTest::Direct(const InferRequest& request) {
  const auto model = server_->Model(request.model);
  EXPECT_TRUE(model.ok());
  auto graph = model::BuildGraph(model->spec);
  EXPECT_TRUE(graph.ok());
  const auto shared = std::make_shared<const model::Graph>(std::move(graph).value());
  auto file = model::SafetensorsFile::Open(WeightsFile(request.model));
  EXPECT_TRUE(file.ok()) << ToString(file.status());
  auto weights = MatchWeights(*shared, **file);
  EXPECT_TRUE(weights.ok());
  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<engine::TensorView> params;
  const auto aligned = [&](int64_t bytes) {
    memory.push_back(std::make_unique<std::byte[]>(static_cast<size_t>(bytes) + 64));
    const auto address = reinterpret_cast<uintptr_t>(memory.back().get());
    return memory.back().get() + (64 - address % 64) % 64;
  };
  for (const model::TensorEntry& entry : weights->tensors) {
    std::byte* data = aligned(entry.size_bytes);
    EXPECT_TRUE((*file)->Read(entry, {data, static_cast<size_t>(entry.size_bytes)}).ok());
    params.push_back({data, entry.dtype, entry.shape});
  }
  auto module = engine::InferenceModule::Bind(shared, params);
  EXPECT_TRUE(module.ok()) << ToString(module.status());
  std::vector<engine::TensorView> inputs;
  for (const Tensor& tensor : request.inputs) {
    std::byte* data = aligned(static_cast<int64_t>(tensor.data.size()));
    std::memcpy(data, tensor.data.data(), tensor.data.size());
    inputs.push_back({data, tensor.datatype, tensor.shape});
  }
  auto outputs = (*module)->Run(inputs, {});
  EXPECT_TRUE(outputs.ok()) << ToString(outputs.status());
  std::vector<std::string> bytes;
  for (const engine::TensorView& view : (*outputs)->views()) {
    bytes.emplace_back(reinterpret_cast<const char*>(view.data), static_cast<size_t>(view.size_bytes()));
  }
  return bytes;
}

bool ServerTest::Eventually(const std::function<bool()>& condition, absl::Duration limit) {
  // State of another process has no event to wait for here; the deadline bounds the polling.
  const absl::Time end = Clock::Real()->Now() + limit;
  while (!condition()) {
    if (Clock::Real()->Now() > end) return false;
    Clock::Real()->SleepFor(absl::Milliseconds(2));
  }
  return true;
}

void ServerTest::ExpectPagesBack(absl::Duration limit) {
  const bool back = Eventually(
      [&] {
        const pool::PoolStats stats = broker_->Stats();
        return stats.granted == 0 && stats.free + stats.dirty + stats.returning == stats.total;
      },
      limit);
  EXPECT_TRUE(back) << broker_->Stats().granted << " pages are still granted";
}

}  // namespace tidepool::serve
