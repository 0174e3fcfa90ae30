// The group over servers that answer when the test says so.
#include "serve/device_group.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "base/testing.h"

namespace tidepool::serve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kWeights = 100;

// A server whose models are loaded by their first request, at once, and whose requests wait for Answer. Thread-safe.
class StubServer : public Server {
 public:
  std::shared_ptr<InferHandle> Infer(InferRequest request, InferCallback done) override {
    const auto handle = std::make_shared<Handle>(this);
    if (!Presence(request.model, "").ok()) {
      done(NotFound("there is no model '{}'", request.model));
      return handle;
    }
    {
      absl::MutexLock lock(&mu_);
      if (models_[request.model] == ModelState::kAbsent) ++loads_;
      models_[request.model] = ModelState::kReady;
      ++requests_;
      handle->key = ++last_;
      waiting_.emplace(handle->key, std::pair(request.model, std::move(done)));
    }
    return handle;
  }
  bool Live() override { return true; }
  bool Ready() override {
    absl::MutexLock lock(&mu_);
    return ready_;
  }
  StatusOr<ModelStatus> Model(const std::string& name) override {
    absl::MutexLock lock(&mu_);
    const auto found = models_.find(name);
    if (found == models_.end()) return NotFound("there is no model '{}'", name);
    return StatusOf(name, found->second);
  }
  std::vector<ModelStatus> Models() override {
    absl::MutexLock lock(&mu_);
    std::vector<ModelStatus> models;
    for (const auto& [name, state] : models_) models.push_back(StatusOf(name, state));
    return models;
  }
  StatusOr<ModelPresence> Presence(const std::string& model, const std::string&) override {
    absl::MutexLock lock(&mu_);
    const auto found = models_.find(model);
    if (found == models_.end()) return NotFound("there is no model '{}'", model);
    const absl::Duration solo = latencies_.contains(model) ? latencies_.at(model) : absl::ZeroDuration();
    return ModelPresence{.state = found->second, .weight_bytes = kWeights, .solo_latency = solo, .slo = 4 * solo};
  }
  Status Rescan() override {
    absl::MutexLock lock(&mu_);
    models_.emplace("new", ModelState::kAbsent);
    return rescanned_;
  }
  Status Load(const std::string& model, absl::Time) override {
    absl::MutexLock lock(&mu_);
    models_.at(model) = ModelState::kReady;
    return {};
  }
  StatusOr<int64_t> Unload(const std::string& model, absl::Time) override {
    absl::MutexLock lock(&mu_);
    return std::exchange(models_.at(model), ModelState::kAbsent) == ModelState::kAbsent ? 0 : kWeights;
  }
  Status MeasureSoloLatencies(absl::Time) override {
    absl::MutexLock lock(&mu_);
    measured_ = true;
    for (const auto& [name, state] : models_) latencies_[name] = absl::Milliseconds(5);
    return {};
  }
  SoloLatencies solo_latencies() override {
    absl::MutexLock lock(&mu_);
    return latencies_;
  }
  Status SetSoloLatencies(const SoloLatencies& latencies, absl::Time) override {
    absl::MutexLock lock(&mu_);
    latencies_ = latencies;
    return {};
  }
  // As a real one: what it has accepted and cannot finish is answered.
  void Drain() override {
    SetReady(false);
    AnswerAll(Unavailable("draining"));
  }
  int worker_pid() override { return 7; }
  void SetEventListener(std::function<void(const ServeEvent&)> listener) override {
    absl::MutexLock lock(&mu_);
    listener_ = std::move(listener);
  }

  // For tests.
  void SetReady(bool ready) {
    absl::MutexLock lock(&mu_);
    ready_ = ready;
  }
  void Set(const std::string& model, ModelState state) {
    absl::MutexLock lock(&mu_);
    models_[model] = state;
  }
  void FailRescan(Status status) {
    absl::MutexLock lock(&mu_);
    rescanned_ = std::move(status);
  }
  // The worker dies: models are gone and what was accepted gets an error.
  void Die() {
    SetReady(false);
    {
      absl::MutexLock lock(&mu_);
      for (auto& [name, state] : models_) state = ModelState::kAbsent;
    }
    AnswerAll(Unavailable("the device worker was lost"));
  }
  int waiting() {
    absl::MutexLock lock(&mu_);
    return static_cast<int>(waiting_.size());
  }
  bool measured() {
    absl::MutexLock lock(&mu_);
    return measured_;
  }
  bool AnswerOne(const Status& status = {}) {
    std::pair<std::string, InferCallback> answered;
    {
      absl::MutexLock lock(&mu_);
      if (waiting_.empty()) return false;
      answered = std::move(waiting_.begin()->second);
      waiting_.erase(waiting_.begin());
    }
    if (status.ok()) {
      answered.second(InferResponse{.model = answered.first});
    } else {
      answered.second(status);
    }
    return true;
  }
  void AnswerAll(const Status& status = {}) {
    while (AnswerOne(status)) {
    }
  }
  void Tell(const ServeEvent& event) {
    std::function<void(const ServeEvent&)> listener;
    {
      absl::MutexLock lock(&mu_);
      listener = listener_;
    }
    if (listener) listener(event);
  }

 private:
  struct Handle : InferHandle {
    explicit Handle(StubServer* owner) : server(owner) {}
    void Cancel() override {
      InferCallback done;
      {
        absl::MutexLock lock(&server->mu_);
        const auto found = server->waiting_.find(key);
        if (found == server->waiting_.end()) return;
        done = std::move(found->second.second);
        server->waiting_.erase(found);
      }
      done(Cancelled("cancelled"));
    }
    StubServer* server;
    uint64_t key = 0;
  };
  ModelStatus StatusOf(const std::string& name, ModelState state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return {.name = name,
            .state = state,
            .weight_bytes = kWeights,
            .resident_bytes = state == ModelState::kAbsent ? 0 : kWeights,
            .requests = requests_,
            .loads = loads_,
            .last_used_ago = absl::Seconds(requests_ + 1)};
  }

  absl::Mutex mu_;
  bool ready_ ABSL_GUARDED_BY(mu_) = true, measured_ ABSL_GUARDED_BY(mu_) = false;
  Status rescanned_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, ModelState> models_ ABSL_GUARDED_BY(mu_) = {{"a", ModelState::kAbsent}, {"b", ModelState::kAbsent}};
  SoloLatencies latencies_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, std::pair<std::string, InferCallback>> waiting_ ABSL_GUARDED_BY(mu_);
  std::function<void(const ServeEvent&)> listener_ ABSL_GUARDED_BY(mu_);
  int64_t requests_ ABSL_GUARDED_BY(mu_) = 0, loads_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t last_ ABSL_GUARDED_BY(mu_) = 0;
};

class DeviceGroupTest : public ::testing::Test {
 protected:
  void Make(int devices, int train_device = -1) {
    std::vector<DeviceGroup::Member> members;
    for (int i = 0; i < devices; ++i) {
      auto server = std::make_unique<StubServer>();
      stubs_.push_back(server.get());
      members.push_back({.server = std::move(server), .free_bytes = [] { return int64_t{1000}; }});
    }
    group_ = std::make_unique<DeviceGroup>(std::move(members), DeviceGroup::Options{.train_device = train_device});
  }
  std::shared_ptr<InferHandle> Send(const std::string& model) {
    return group_->Infer({.model = model}, [this](StatusOr<InferResponse> response) {
      absl::MutexLock lock(&mu_);
      codes_[response.status().code()]++;
    });
  }
  int Answered(StatusCode code) {
    absl::MutexLock lock(&mu_);
    return codes_[code];
  }
  std::vector<int> Outstanding() {
    std::vector<int> out;
    for (int i = 0; i < group_->size(); ++i) out.push_back(group_->outstanding(i));
    return out;
  }
  static absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(10); }

  absl::Mutex mu_;
  std::map<StatusCode, int> codes_ ABSL_GUARDED_BY(mu_);
  std::vector<StubServer*> stubs_;
  std::unique_ptr<DeviceGroup> group_;
};

TEST_F(DeviceGroupTest, SendsRequestsWhereTheirModelsAre) {
  Make(2);
  Send("a");
  Send("b");
  EXPECT_THAT(Outstanding(), ElementsAre(1, 1));
  stubs_[0]->AnswerAll();
  stubs_[1]->AnswerAll();
  EXPECT_EQ(Answered(StatusCode::kOk), 2);
  EXPECT_THAT(Outstanding(), ElementsAre(0, 0));
  for (int i = 0; i < 2; ++i) Send("b");
  EXPECT_THAT(Outstanding(), ElementsAre(0, 2));
  EXPECT_THAT(group_->Model("a")->devices, ElementsAre(0));
  EXPECT_THAT(group_->Model("b")->devices, ElementsAre(1));
  EXPECT_EQ(group_->Presence("b", "")->state, ModelState::kReady);
  group_->Drain();
  EXPECT_EQ(Answered(StatusCode::kUnavailable), 2);
  EXPECT_FALSE(group_->Ready());
}

TEST_F(DeviceGroupTest, CountsACancelledRequestOutOnce) {
  Make(2);
  const auto handle = Send("a");
  EXPECT_THAT(Outstanding(), ElementsAre(1, 0));
  handle->Cancel();
  handle->Cancel();
  EXPECT_EQ(Answered(StatusCode::kCancelled), 1);
  EXPECT_THAT(Outstanding(), ElementsAre(0, 0));
}

TEST_F(DeviceGroupTest, GoesOnWithTheOtherDevicesWhenAWorkerDies) {
  Make(2);
  Send("a");
  Send("a");
  stubs_[0]->Die();
  EXPECT_EQ(Answered(StatusCode::kUnavailable), 2) << "what it had lost is that server's own business";
  EXPECT_TRUE(group_->Ready());
  for (int i = 0; i < 3; ++i) Send("a");
  EXPECT_THAT(Outstanding(), ElementsAre(0, 3));
  stubs_[0]->SetReady(true);
  stubs_[1]->AnswerAll();
  EXPECT_EQ(Answered(StatusCode::kOk), 3);
}

TEST_F(DeviceGroupTest, AHotModelSpreadsOverIdleDevices) {
  Make(3);
  ASSERT_TRUE(group_->MeasureSoloLatencies(Soon()).ok());
  for (int i = 0; i < 12; ++i) Send("a");
  EXPECT_THAT(group_->Model("a")->devices, ElementsAre(0, 1, 2));
  EXPECT_THAT(Outstanding(), ElementsAre(4, 4, 4));
}

TEST_F(DeviceGroupTest, MeasuresOnOneDeviceForAllAndNotOnTheOneThatTrains) {
  Make(3, /*train_device=*/0);
  ASSERT_TRUE(group_->MeasureSoloLatencies(Soon()).ok());
  EXPECT_FALSE(stubs_[0]->measured());
  EXPECT_TRUE(stubs_[1]->measured());
  EXPECT_FALSE(stubs_[2]->measured());
  for (StubServer* stub : stubs_) EXPECT_EQ(stub->Presence("a", "")->solo_latency, absl::Milliseconds(5));
  EXPECT_EQ(group_->solo_latencies().size(), 2u);
}

TEST_F(DeviceGroupTest, PutsTheStatesOfAllDevicesTogether) {
  Make(3);
  stubs_[1]->Set("a", ModelState::kLoading);
  stubs_[2]->Set("a", ModelState::kDraining);
  ModelStatus status = *group_->Model("a");
  EXPECT_EQ(status.state, ModelState::kLoading);
  EXPECT_THAT(status.devices, ElementsAre(1, 2));
  EXPECT_EQ(status.resident_bytes, 2 * kWeights);
  EXPECT_EQ(status.weight_bytes, kWeights);
  stubs_[0]->Set("a", ModelState::kReady);
  stubs_[2]->Set("c", ModelState::kReady);  // a repository that is being read again
  const std::vector<ModelStatus> models = group_->Models();
  ASSERT_EQ(models.size(), 3u);
  EXPECT_EQ(models[0].state, ModelState::kReady);
  EXPECT_THAT(models[2].devices, ElementsAre(2));
  Send("c");
  EXPECT_THAT(Outstanding(), ElementsAre(0, 0, 1));
  stubs_[2]->AnswerAll();
  EXPECT_THAT(group_->Model("c")->devices, ElementsAre(2));
  EXPECT_EQ(group_->Presence("c", "")->state, ModelState::kReady);
  EXPECT_EQ(group_->Model("nothing").status().code(), StatusCode::kNotFound);
}

TEST_F(DeviceGroupTest, LoadsOnOneDeviceAndUnloadsFromAll) {
  Make(2);
  stubs_[1]->Set("b", ModelState::kReady);
  ASSERT_TRUE(group_->Load("b", Soon()).ok());
  EXPECT_THAT(group_->Model("b")->devices, ElementsAre(1)) << "it was resident";
  ASSERT_TRUE(group_->Load("a", Soon()).ok());
  EXPECT_THAT(group_->Model("a")->devices, ElementsAre(0));
  stubs_[1]->Set("a", ModelState::kReady);
  EXPECT_EQ(*group_->Unload("a", Soon()), 2 * kWeights);
  EXPECT_THAT(Outstanding(), ElementsAre(0, 0));
}

TEST_F(DeviceGroupTest, ReadsTheRepositoryOnAllDevicesAndSaysWhatFailed) {
  Make(2);
  ASSERT_TRUE(group_->Rescan().ok());
  EXPECT_TRUE(stubs_[0]->Model("new").ok());
  EXPECT_TRUE(stubs_[1]->Model("new").ok());
  stubs_[1]->FailRescan(Internal("the disk is gone"));
  EXPECT_THAT(MessageOf(group_->Rescan()), HasSubstr("the disk is gone"));
}

TEST_F(DeviceGroupTest, AnUnknownModelGetsOneDevicesAnswer) {
  Make(2);
  Send("nothing");
  EXPECT_EQ(Answered(StatusCode::kNotFound), 1);
  EXPECT_THAT(Outstanding(), ElementsAre(0, 0));
}

TEST_F(DeviceGroupTest, EventsSayTheirDevice) {
  Make(2);
  std::vector<std::pair<std::string, int>> seen;
  group_->SetEventListener([&](const ServeEvent& event) { seen.emplace_back(event.model, event.device); });
  stubs_[1]->Tell({.kind = ServeEvent::Kind::kLoad, .model = "a"});
  stubs_[0]->Tell({.kind = ServeEvent::Kind::kEvict, .model = "b"});
  group_->SetEventListener(nullptr);
  stubs_[0]->Tell({.model = "unheard"});
  EXPECT_THAT(seen, ElementsAre(std::pair("a", 1), std::pair("b", 0)));
}

// Threads that send, cancel and answer, and workers that come and go.
TEST_F(DeviceGroupTest, EveryRequestOfManyThreadsIsAnsweredAndCountedOutOnce) {
  Make(3);
  constexpr int kSenders = 4, kEach = 300;
  std::vector<std::thread> senders;
  for (uint64_t sender = 0; sender < kSenders; ++sender) {
    senders.emplace_back([this, sender] {
      std::mt19937_64 random(sender);
      for (int i = 0; i < kEach; ++i) {
        const auto handle = Send(random() % 2 == 0 ? "a" : "b");
        if (random() % 4 == 0) handle->Cancel();
        StubServer* stub = stubs_[random() % 3];
        if (random() % 50 == 0) {
          stub->Die();
          stub->SetReady(true);
        }
        stub->AnswerOne(random() % 8 == 0 ? Internal("no luck") : Status());
      }
    });
  }
  for (std::thread& sender : senders) sender.join();
  for (StubServer* stub : stubs_) stub->AnswerAll();
  int answered = 0;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [code, count] : codes_) answered += count;
  }
  EXPECT_EQ(answered, kSenders * kEach);
  EXPECT_THAT(Outstanding(), ElementsAre(0, 0, 0));
}

}  // namespace
}  // namespace tidepool::serve
