// Whole-system tests: real binaries on loopback, killed at awkward moments.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <csignal>
#include <random>

#include "base/fd.h"
#include "running_node.h"

namespace tidepool::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

bool Trains(const json& status, int64_t above_step) {
  return status["training"]["state"] == "running" && status["training"]["step"] > above_step;
}

TEST(System, AnswersOverRestAndEndsGracefullyOnSigterm) {
  auto node = RunningNode::Start({}, /*with_training=*/false);
  ASSERT_TRUE(node);
  for (const char* model : {"small-a", "small-b", "words"}) {
    const Status status = node->Infer(model);
    EXPECT_TRUE(status.ok()) << model << ": " << ToString(status);
  }
  EXPECT_TRUE(PagesAddUp(node->Status()));
  const int worker = node->Status()["worker_pid"];
  const std::string directory = node->Status()["runtime_directory"];
  EXPECT_TRUE(std::filesystem::exists(directory));
  ASSERT_TRUE(node->process().Signal(SIGTERM).ok());
  const auto exit = node->process().Wait(Clock::Real()->Now() + kPatience);
  ASSERT_TRUE(exit.ok()) << ToString(exit.status());
  EXPECT_TRUE(exit->ok()) << exit->Describe();
  EXPECT_TRUE(AwaitEnd(worker, Clock::Real()->Now() + kPatience));
  EXPECT_FALSE(std::filesystem::exists(directory));
}

TEST(System, StaysUpWhateverClientsSend) {
  auto node = RunningNode::Start({}, false);
  ASSERT_TRUE(node);
  EXPECT_TRUE(absl::IsNotFound(node->Infer("no-such-model")));
  const auto bad = node->client().Infer("words", "{\"inputs\": 7}");
  EXPECT_TRUE(absl::IsInvalidArgument(bad.status())) << ToString(bad.status());
  const auto text = node->client().Infer("words", "this is no JSON");
  EXPECT_TRUE(absl::IsInvalidArgument(text.status())) << ToString(text.status());
  // A client that goes away in the middle of its request.
  const std::string& url = node->client().url;
  const int port = std::stoi(url.substr(url.rfind(':') + 1));
  for (const char* part :
       {"GET /v2/hea", "POST /v2/models/words/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{\"inp",
        "\x16\x03\x01\x02"}) {
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{
        .sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    ASSERT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_GT(::send(fd.get(), part, strlen(part), MSG_NOSIGNAL), 0);
  }
  EXPECT_TRUE(node->Infer("words").ok());
  EXPECT_TRUE(PagesAddUp(node->Status()));
}

TEST(System, GivesTheMemoryOfAKilledWorkerBackAndServesAgain) {
  auto node = RunningNode::Start({}, /*with_training=*/true);
  ASSERT_TRUE(node);
  ASSERT_TRUE(node->InferUntilOk("small-a"));
  ASSERT_TRUE(node->AwaitStatus([](const json& status) { return Trains(status, 0); }));
  const json before = node->Status();
  const int worker = before["worker_pid"];
  ASSERT_GT(HeldBy(before, worker), 0) << before.dump(2);
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  const auto took = node->AwaitStatus([&](const json& status) { return HeldBy(status, worker) == 0; });
  ASSERT_TRUE(took);
  RecordProperty("pages_back_ms", static_cast<int>(absl::ToInt64Milliseconds(*took)));
  // Training does not notice.
  EXPECT_TRUE(node->AwaitStatus([&](const json& status) { return Trains(status, before["training"]["step"].get<int64_t>()); }));
  EXPECT_EQ(node->Status()["training"]["restarts"], 0);
  EXPECT_TRUE(node->InferUntilOk("small-a"));
  EXPECT_NE(node->Status()["worker_pid"], worker);
  EXPECT_TRUE(PagesAddUp(node->Status()));
}

TEST(System, SeveralDevicesServeAsOneAndOneOfThemTrains) {
  auto node = RunningNode::Start({"--device", "emulated:v100x2", "--train-device", "1"}, /*with_training=*/true);
  ASSERT_TRUE(node);
  ASSERT_TRUE(node->InferUntilOk("small-a"));
  ASSERT_TRUE(node->AwaitStatus([](const json& status) { return Trains(status, 0); }));
  const json before = node->Status();
  ASSERT_EQ(before["devices"].size(), 2u) << before.dump(2);
  EXPECT_EQ(before["training"]["device"], 1);
  for (const json& lease : before["pool"]["leases"]) {
    const bool trains = lease["pid"] == before["training"]["pid"];
    EXPECT_TRUE(!trains || lease["device"] == 1) << lease.dump();
  }
  const std::vector<int> workers = {before["devices"][0]["worker_pid"], before["devices"][1]["worker_pid"]};
  EXPECT_NE(workers[0], workers[1]);
  ASSERT_EQ(::kill(workers[0], SIGKILL), 0);
  for (const char* model : {"small-a", "small-b", "words"}) EXPECT_TRUE(node->InferUntilOk(model));
  EXPECT_TRUE(node->AwaitStatus([&](const json& status) {
    const int now = status["devices"][0]["worker_pid"];
    return now > 1 && now != workers[0] && Trains(status, before["training"]["step"].get<int64_t>());
  }));
  const json after = node->Status();
  EXPECT_EQ(after["training"]["restarts"], 0);
  EXPECT_EQ(after["devices"][1]["worker_pid"], workers[1]);
  EXPECT_TRUE(PagesAddUp(after));
  for (const json& device : after["devices"]) EXPECT_TRUE(PagesAddUp(device));
  ASSERT_TRUE(node->process().Signal(SIGTERM).ok());
  const auto exit = node->process().Wait(Clock::Real()->Now() + kPatience);
  ASSERT_TRUE(exit.ok()) << ToString(exit.status());
  EXPECT_TRUE(exit->ok()) << exit->Describe();
  EXPECT_TRUE(AwaitEnd(workers[1], Clock::Real()->Now() + kPatience));
}

TEST(System, GivesTheMemoryOfAKilledTrainerBackAndResumesIt) {
  auto node = RunningNode::Start({}, true);
  ASSERT_TRUE(node);
  std::mt19937 random(1);
  int64_t step = 0;
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(node->AwaitStatus([&](const json& status) { return Trains(status, step); }));
    const json before = node->Status();
    const int trainer = before["training"]["pid"];
    // Requests make training shrink and grow; the kill falls anywhere in that.
    for (unsigned i = 0; i < random() % 4; ++i) EXPECT_TRUE(node->Infer("small-a").ok());
    ASSERT_EQ(::kill(trainer, SIGKILL), 0);
    const auto took = node->AwaitStatus([&](const json& status) { return HeldBy(status, trainer) == 0; });
    ASSERT_TRUE(took);
    RecordProperty("pages_back_ms_" + std::to_string(round), static_cast<int>(absl::ToInt64Milliseconds(*took)));
    EXPECT_TRUE(node->Infer("small-b").ok());
    // It goes on where its last checkpoint was, at most one step earlier.
    ASSERT_TRUE(node->AwaitStatus([&](const json& status) { return Trains(status, 0) && status["training"]["pid"] != trainer; }));
    step = before["training"]["step"];
    EXPECT_EQ(node->Status()["training"]["restarts"], round + 1);
    EXPECT_TRUE(PagesAddUp(node->Status()));
  }
  ASSERT_TRUE(node->process().Signal(SIGTERM).ok());
  const auto exit = node->process().Wait(Clock::Real()->Now() + kPatience);
  ASSERT_TRUE(exit.ok()) << ToString(exit.status());
  EXPECT_TRUE(exit->ok()) << exit->Describe();
}

TEST(System, LeavesNoProcessBehindWhenTheNodeIsKilled) {
  auto node = RunningNode::Start({}, true);
  ASSERT_TRUE(node);
  ASSERT_TRUE(node->AwaitStatus([](const json& status) { return Trains(status, 0); }));
  const json status = node->Status();
  const int worker = status["worker_pid"], trainer = status["training"]["pid"];
  const std::string url = node->client().url;
  ASSERT_TRUE(node->process().Signal(SIGKILL).ok());
  const absl::Time deadline = Clock::Real()->Now() + kPatience;
  EXPECT_TRUE(AwaitEnd(worker, deadline));
  EXPECT_TRUE(AwaitEnd(trainer, deadline));
  ASSERT_TRUE(node->process().Wait(deadline).ok());
  std::filesystem::remove_all(status["runtime_directory"].get<std::string>());  // a killed node cannot

  auto next = RunningNode::Start({"--http-port", url.substr(url.rfind(':') + 1)}, false);
  ASSERT_TRUE(next);
  EXPECT_TRUE(next->Infer("words").ok());
}

TEST(System, GoesOnServingWhenTrainingCannotStart) {
  auto node = RunningNode::Start({"--data", "imagefolder:/proc/no-such-folder"}, true);
  ASSERT_TRUE(node);
  ASSERT_TRUE(node->AwaitStatus([](const json& status) { return status["training"]["state"] == "failed"; }));
  EXPECT_THAT(node->Status()["training"]["last_error"].get<std::string>(), HasSubstr("no-such-folder"));
  EXPECT_TRUE(node->Infer("words").ok());
}

TEST(System, NamesEveryFaultOfItsConfigurationAndDoesNotStart) {
  ProcessOptions options{
      .command = {"/bin/sh", "-c",
                  kTidepool + " up --capacity 1KiB --static-train-fraction 7 --model-repository /proc/no-such-folder 2>&1"},
      .capture_stdout = true};
  auto process = ChildProcess::Start(options);
  ASSERT_TRUE(process.ok());
  const auto exit = process->Wait(Clock::Real()->Now() + kPatience);
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->code, 2);
  char text[8192] = {};
  EXPECT_GT(::read(process->stdout_fd(), text, sizeof(text) - 1), 0);
  EXPECT_THAT(text, HasSubstr("node.capacity"));
  EXPECT_THAT(text, HasSubstr("static_train_fraction is 7"));
}

TEST(System, DemoEndsWithEveryFigureAndWithoutErrorOrViolation) {
  const std::string folder = TheSmallData().root + "/demo";
  ProcessOptions options{
      .command = {kTidepool, "demo", "--seconds", "6", "--report", folder, "--json", folder + "-figures.json"}};
  auto process = ChildProcess::Start(options);
  ASSERT_TRUE(process.ok());
  const auto exit = process->Wait(Clock::Real()->Now() + absl::Seconds(280));
  ASSERT_TRUE(exit.ok()) << ToString(exit.status());
  EXPECT_TRUE(exit->ok()) << exit->Describe();
  const auto text = ReadFile(folder + "-figures.json", 1 << 20);
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  const json figures = json::parse(*text, nullptr, false);
  ASSERT_TRUE(figures.is_object());
  EXPECT_EQ(figures["memory"]["violations"], 0);
  EXPECT_EQ(figures["infer"]["errors"], 0);
  EXPECT_GT(figures["infer"]["requests"], 0);
  EXPECT_GT(figures["train"]["samples_per_s"], 0.0);
  EXPECT_GE(figures["slo_attainment"], 0.0);
  for (const char* key : {"p50_ms", "p99_ms"}) EXPECT_TRUE(figures["infer"][key].is_number()) << key;
  for (const char* key : {"loss_first", "loss_last", "accuracy_first", "accuracy_last"})
    EXPECT_TRUE(figures["train"][key].is_number()) << key;
  for (const char* key : {"count", "p50_ms", "p99_ms"}) EXPECT_TRUE(figures["handover"][key].is_number()) << key;
  EXPECT_TRUE(figures["handover"]["parts_ms"].is_object());
  EXPECT_LE(figures["memory"]["peak_granted_bytes"], figures["memory"]["capacity_bytes"]);
  for (const char* file : {"/report.html", "/trace.json", "/demo.json"})
    EXPECT_TRUE(std::filesystem::exists(folder + file)) << file;
}

class Cleanup : public ::testing::Environment {
 public:
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(TheSmallData().root, ignored);
  }
};
[[maybe_unused]] const auto* const kCleanup = ::testing::AddGlobalTestEnvironment(new Cleanup);

}  // namespace
}  // namespace tidepool::testing
