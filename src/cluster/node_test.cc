// A node with its real worker process, on emulated devices of planted times.
#include "cluster/node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstring>
#include <filesystem>

#include "base/fd.h"
#include "base/json.h"
#include "base/testing.h"
#include "data/jpeg.h"
#include "model/repository.h"
#include "profile/planted.h"

namespace tidepool::cluster {
namespace {

using profile::Phase;
using ::testing::HasSubstr;

constexpr char kSpec[] = "resnet18:image=32,small_stem=true,width=8,classes=4";
constexpr absl::Duration kForward = absl::Milliseconds(30);

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(120); }

class EmulatedNodeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(Repository());
    const Status created = model::CreateModel({.repository = Repository(), .name = "small", .spec = kSpec, .seed = 1});
    ASSERT_TRUE(created.ok()) << ToString(created);
    std::vector<profile::OpRow> rows = {{.key = {.model = kSpec}, .median_us = absl::ToDoubleMicroseconds(kForward)},
                                        {.key = {.model = kSpec, .phase = Phase::kOptimizer}, .median_us = 500}};
    rows.push_back({.key = {.model = kSpec, .phase = Phase::kBackward}, .median_us = 1000});
    device_ = profile::testing::WritePlantedBundle(folder_.path(), rows);
  }
  std::string Repository() const { return folder_.File("models"); }

  NodeOptions Options(const std::string& device) {
    NodeOptions options;
    options.device = {.name = device, .capacity_bytes = 64 << 20, .page_bytes = 64 << 10};
    options.server.repository = Repository();
    options.server.worker_threads = 1;
    options.server.idle_eviction = absl::Hours(1);
    options.measure_solo = false;
    return options;
  }
  static std::unique_ptr<Node> Start(NodeOptions options) {
    auto node = Node::Start(std::move(options));
    EXPECT_TRUE(node.ok()) << ToString(node.status());
    return node.ok() ? std::move(*node) : nullptr;
  }
  // The bytes of the answers to requests with the same picture each time.
  static std::string Infer(Node* node) { return InferAtOnce(node, 1).at(0); }
  static std::vector<std::string> InferAtOnce(Node* node, size_t count) {
    serve::InferRequest request{.model = "small", .id = "r"};
    serve::Tensor picture{
        .name = node->server().Model("small")->inputs.at(0).name, .datatype = DType::kF32, .shape = {1, 3, 32, 32}};
    for (int i = 0; i < 3 * 32 * 32; ++i) {
      const float value = static_cast<float>(i % 100) / 50 - 1;
      picture.data.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    request.inputs.push_back(std::move(picture));
    struct Answers {
      absl::Mutex mu;
      std::vector<std::string> bytes;
      size_t answered = 0;
    };
    const auto answers = std::make_shared<Answers>();
    answers->bytes.resize(count);
    for (size_t i = 0; i < count; ++i) {
      node->server().Infer(request, [answers, i](StatusOr<serve::InferResponse> response) {
        EXPECT_TRUE(response.ok()) << ToString(response.status());
        absl::MutexLock lock(&answers->mu);
        if (response.ok()) answers->bytes[i] = response->outputs.at(0).data;
        ++answers->answered;
      });
    }
    absl::MutexLock lock(&answers->mu);
    const bool all = Clock::Real()->Await(
        &answers->mu, [&] { return answers->answered == count; }, Soon());
    EXPECT_TRUE(all) << answers->answered << " answers";
    return answers->bytes;
  }
  static absl::Duration Busy(Node* node, device::EngineKind engine) { return node->emulation()->report.busy.at(engine); }

  testing::TempDir folder_;
  std::string device_;
};

TEST_F(EmulatedNodeTest, ChargesWhatTheProfileSaysAndComputesTheSameAnswers) {
  const auto host = Start(Options("host"));
  ASSERT_NE(host, nullptr);
  EXPECT_FALSE(host->emulation().has_value());
  const std::string expected = Infer(host.get());
  ASSERT_EQ(expected.size(), 4 * sizeof(float));

  const auto node = Start(Options(device_));
  ASSERT_NE(node, nullptr);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Infer(node.get()), expected);
  EXPECT_EQ(Busy(node.get(), device::EngineKind::kCompute), 3 * kForward);
  const serve::ModelStatus model = *node->server().Model("small");
  EXPECT_EQ(model.loads, 1);
  EXPECT_EQ(Busy(node.get(), device::EngineKind::kHostToDevice), absl::Microseconds(100) + absl::Nanoseconds(model.weight_bytes));
  EXPECT_GE(model.compute_time, 3 * kForward);
  EXPECT_FALSE(node->emulation()->properties.estimated);
  for (const char* part : {R"("profile":"planted")", R"("times":"measured")", R"("results":"computed")", R"("source":"a test")",
                           R"("compute_busy_s":0.09)"}) {
    EXPECT_THAT(node->StatusJson(), HasSubstr(part));
  }
}

TEST_F(EmulatedNodeTest, ThatOnlyKeepsTimeAnswersZeros) {
  const auto node = Start(Options(device_ + ",mode=timing"));
  ASSERT_NE(node, nullptr);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Infer(node.get()), std::string(4 * sizeof(float), '\0'));
  EXPECT_EQ(Busy(node.get(), device::EngineKind::kCompute), 3 * kForward);
  EXPECT_GE(node->server().Model("small")->compute_time, 3 * kForward);
  EXPECT_THAT(node->StatusJson(), HasSubstr(R"("results":"none")"));
}

TEST_F(EmulatedNodeTest, SeveralDevicesServeAsOneAndGoOnWithoutAWorkerThatDied) {
  NodeOptions options = Options(device_ + "x2,mode=timing");
  options.measure_solo = true;
  const auto node = Start(std::move(options));
  ASSERT_NE(node, nullptr);
  ASSERT_EQ(node->device_count(), 2);
  EXPECT_NE(node->broker(0).socket_path(), node->broker(1).socket_path());
  const auto status = [&] { return nlohmann::json::parse(node->StatusJson()); };
  EXPECT_EQ(status()["capacity_bytes"], 128 << 20);
  ASSERT_EQ(status()["devices"].size(), 2u);
  EXPECT_GE(node->server().Model("small")->solo_latency, kForward);
  EXPECT_THAT(node->server().Model("small")->devices, ::testing::ElementsAre(0)) << "it was measured there";
  // More at once than half of the objective allows: the other device gets a replica.
  const std::vector<std::string> zeros(8, std::string(4 * sizeof(float), '\0'));
  const absl::Time deadline = Soon();
  do {
    EXPECT_EQ(InferAtOnce(node.get(), zeros.size()), zeros);
  } while (node->server().Model("small")->devices.size() < 2 && Clock::Real()->Now() < deadline);
  EXPECT_THAT(node->server().Model("small")->devices, ::testing::ElementsAre(0, 1));
  EXPECT_EQ(node->server().Model("small")->failures, 0);
  for (const nlohmann::json& device : status()["devices"]) EXPECT_GT(device["emulation"]["compute_busy_s"], 0.0);

  const int pid = status()["devices"][0]["worker_pid"];
  ASSERT_GT(pid, 1);
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  EXPECT_EQ(InferAtOnce(node.get(), 4), std::vector<std::string>(zeros.begin(), zeros.begin() + 4));
  EXPECT_TRUE(node->server().Ready());
  for (const pool::PoolStats& pool : node->PoolStats()) EXPECT_EQ(pool.violations, 0);
  const auto new_pid = [&] { return status()["devices"][0]["worker_pid"].get<int>(); };
  while ((new_pid() == 0 || new_pid() == pid) && Clock::Real()->Now() < deadline) {
    Clock::Real()->SleepFor(absl::Milliseconds(10));
  }
  EXPECT_TRUE(new_pid() > 1 && new_pid() != pid) << "a new worker runs";
  EXPECT_TRUE(node->Stop().ok());
  const TimelineData timeline = node->timeline().Snapshot();
  EXPECT_EQ(timeline.devices, 2);
  EXPECT_TRUE(
      std::any_of(timeline.serve.begin(), timeline.serve.end(), [](const serve::ServeEvent& e) { return e.device == 1; }));
}

TEST_F(EmulatedNodeTest, ChargesTrainingOnTheSameDevice) {
  for (int i = 0; i < 8; ++i) {
    const std::string folder = folder_.File("pictures/class" + std::to_string(i % 4));
    std::filesystem::create_directories(folder);
    const std::vector<uint8_t> grey(40 * 40 * 3, static_cast<uint8_t>(20 * i));
    const auto jpeg = data::EncodeJpeg(grey, 40, 40, 90);
    ASSERT_TRUE(jpeg.ok());
    ASSERT_TRUE(WriteFileAtomically(fmt::format("{}/{}.jpg", folder, i), *jpeg).ok());
  }
  NodeOptions options = Options(device_);
  options.train.model = kSpec;
  options.train.data = "imagefolder:" + folder_.File("pictures");
  options.train.global_batch = 2;
  options.train.max_micro_batch = 1;
  options.train.epochs = 1;
  options.train.threads = 1;
  options.train.seed = 1;
  options.train.yield_cpu = false;
  const auto node = Start(std::move(options));
  ASSERT_NE(node, nullptr);
  ASSERT_FALSE(Infer(node.get()).empty());
  ASSERT_TRUE(node->StartTraining().ok());
  const Status ended = node->WaitForTraining(Soon());
  ASSERT_TRUE(ended.ok()) << ToString(ended);
  const train::TrainProgress trained = node->training().latest;
  EXPECT_EQ(trained.samples, 8);
  // Eight samples and one that is tried before; micro-batches that gave memory back come on top.
  const absl::Duration at_least = 9 * (kForward + absl::Milliseconds(1)) + 4 * absl::Microseconds(500);
  EXPECT_GE(absl::Seconds(trained.device_seconds), at_least);
  EXPECT_EQ(trained.aborts, 0) << "nothing wanted its memory";
  EXPECT_EQ(Busy(node.get(), device::EngineKind::kCompute), kForward + at_least);
  EXPECT_GT(trained.device_samples_per_s, 0);
}

}  // namespace
}  // namespace tidepool::cluster
