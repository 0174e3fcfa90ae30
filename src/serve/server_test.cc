// The server with its real worker process on a real pool.
#include "serve/server.h"

#include <gmock/gmock.h>
#include <signal.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <thread>

#include "base/units.h"
#include "serve/server_test_fixture.h"

namespace tidepool::serve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(ServerTest, GivesTheEnginesResultsToTheBit) {
  Create("resnet", kTinyResNet, 1);
  Create("gpt", kTinyGpt, 2);
  Create("bert", kTinyBert, 3);
  Start(64 * kMiB);
  for (const std::string model : {"resnet", "gpt", "bert"}) {
    for (int64_t batch : {1, 3}) {
      const InferRequest request = Request(model, static_cast<uint64_t>(batch), batch);
      const auto response = Infer(request);
      ASSERT_TRUE(response.ok()) << ToString(response.status());
      const auto direct = Direct(request);
      ASSERT_EQ(response->outputs.size(), direct.size());
      for (size_t i = 0; i < direct.size(); ++i) {
        EXPECT_EQ(response->outputs[i].data, direct[i]) << model << " batch " << batch;
        EXPECT_EQ(response->outputs[i].shape[0], batch);
      }
      EXPECT_EQ(response->model, model);
      EXPECT_EQ(response->version, "1");
      EXPECT_EQ(response->id, request.id);
      const RequestTimes& times = response->times;
      EXPECT_LE(times.received, times.dispatched);
      EXPECT_LE(times.dispatched, times.compute_start);
      EXPECT_LE(times.compute_start, times.compute_end);
      EXPECT_LE(times.compute_end, times.finished);
    }
  }
}

// Where the file system has no direct reads, through the page cache after all.
TEST_F(ServerTest, WeightsReadPastThePageCacheGiveTheSameResults) {
  Create("resnet", kTinyResNet, 1);
  Create("bert", kTinyBert, 3);
  Start(64 * kMiB, {.direct_io = true});
  for (const std::string model : {"resnet", "bert"}) {
    const InferRequest request = Request(model, 5);
    const auto response = Infer(request);
    ASSERT_TRUE(response.ok()) << ToString(response.status());
    EXPECT_EQ(response->outputs[0].data, Direct(request)[0]) << model;
  }
}

TEST_F(ServerTest, BatchesAndGivesEveryRequestItsOwnResult) {
  Create("resnet", kTinyResNet, 1);
  Start(64 * kMiB);
  Answers answers(server_.get());
  std::vector<std::vector<std::string>> direct;
  for (uint64_t i = 0; i < 24; ++i) answers.Submit(Request("resnet", i, 1 + static_cast<int64_t>(i % 3)));
  ASSERT_TRUE(answers.WaitAll());
  for (uint64_t i = 0; i < 24; ++i) {
    const auto& response = answers.at(i);
    ASSERT_TRUE(response.ok()) << ToString(response.status());
    const std::string expected = Direct(Request("resnet", i, 1 + static_cast<int64_t>(i % 3)))[0];
    const std::string& got = response->outputs[0].data;
    ASSERT_EQ(got.size(), expected.size());
    for (size_t at = 0; at < got.size(); at += sizeof(float)) {
      float a, b;
      std::memcpy(&a, &got[at], sizeof(a));
      std::memcpy(&b, &expected[at], sizeof(b));
      ASSERT_NEAR(a, b, 1e-3 * std::max(1.0f, std::fabs(b))) << "request " << i;
    }
  }
  const auto status = server_->Model("resnet");
  EXPECT_LT(status->executions, 24);
  EXPECT_EQ(status->batched_requests, 24);
  EXPECT_EQ(status->requests, 24);
  EXPECT_EQ(status->failures, 0);
}

TEST_F(ServerTest, ServesMoreModelsThanThePoolHolds) {
  // The weights of one take 11 pages.
  for (int i = 0; i < 6; ++i) Create(fmt::format("m{}", i), kTinyResNet, static_cast<uint64_t>(i));
  Start(30 * kTestPageBytes);
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 60; ++i) answers.Submit(Request(fmt::format("m{}", i % 6), i));
  ASSERT_TRUE(answers.WaitAll());
  for (size_t i = 0; i < answers.size(); ++i) ASSERT_TRUE(answers.at(i).ok()) << ToString(answers.at(i).status());
  int64_t evictions = 0;
  for (const ModelStatus& status : server_->Models()) evictions += status.evictions;
  EXPECT_GT(evictions, 0);
  EXPECT_LE(broker_->Stats().peak_granted, 30);
}

TEST_F(ServerTest, TwoHundredLoadsAndUnloadsLeaveNoPageBehind) {
  Create("resnet", kTinyResNet, 1);
  Create("gpt", kTinyGpt, 1);
  Start(64 * kMiB);
  const absl::Time limit = Clock::Real()->Now() + absl::Minutes(2);
  const auto granted = [&] { return broker_->Stats().granted; };
  ASSERT_EQ(granted(), 0);
  for (int cycle = 0; cycle < 200; ++cycle) {
    const std::string name = cycle % 2 == 0 ? "resnet" : "gpt";
    const Status loaded = server_->Load(name, limit);
    ASSERT_TRUE(loaded.ok()) << ToString(loaded);
    const int64_t held = granted();
    ASSERT_GT(held, 0);
    const auto freed = server_->Unload(name, limit);
    ASSERT_TRUE(freed.ok()) << ToString(freed.status());
    ASSERT_EQ(*freed, held * kTestPageBytes);
    ASSERT_EQ(granted(), 0) << "after cycle " << cycle;
  }
  EXPECT_EQ(broker_->Stats().violations, 0);
  EXPECT_EQ(server_->Model("resnet")->loads, 100);
}

TEST_F(ServerTest, SurvivesTheDeathOfItsWorkerInTheMiddleOfRequests) {
  Create("resnet", kTinyResNet, 1);
  Create("gpt", kTinyGpt, 1);
  Start(64 * kMiB);
  ASSERT_TRUE(Infer(Request("resnet", 1)).ok());
  const int first = server_->worker_pid();
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 200; ++i) answers.Submit(Request(i % 2 == 0 ? "resnet" : "gpt", i));
  ASSERT_TRUE(Eventually([&] { return answers.answered() > 5; }));
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  ASSERT_TRUE(answers.WaitAll());
  for (size_t i = 0; i < answers.size(); ++i) EXPECT_TRUE(answers.at(i).ok()) << ToString(answers.at(i).status());
  EXPECT_NE(server_->worker_pid(), first);
  EXPECT_TRUE(server_->Ready());
  EXPECT_EQ(broker_->Stats().violations, 0);
}

TEST_F(ServerTest, ABrokenFileLeavesTheOthersServedAndIsServedOnceMended) {
  Create("good", kTinyResNet, 1);
  Create("bad", kTinyResNet, 2);
  Create("late", kTinyResNet, 3);
  std::filesystem::resize_file(WeightsFile("bad"), 100);
  Start(64 * kMiB);
  const auto bad = server_->Model("bad");
  ASSERT_TRUE(bad.ok());
  EXPECT_FALSE(bad->servable);
  EXPECT_FALSE(bad->reason.empty());
  const auto refused = Infer({.model = "bad"});
  EXPECT_EQ(refused.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr("model 'bad' version 1 cannot be served: "));
  EXPECT_TRUE(Infer(Request("good", 1)).ok());

  // This one breaks after the scan: the load finds out.
  std::filesystem::resize_file(WeightsFile("late"), 5000);
  const auto failed = Infer(Request("late", 1));
  EXPECT_FALSE(failed.ok());
  EXPECT_THAT(MessageOf(failed.status()), HasSubstr("model 'late' could not be loaded: "));
  EXPECT_TRUE(Infer(Request("good", 2)).ok());

  ASSERT_TRUE(
      model::CreateModel({.repository = repository_, .name = "late", .spec = kTinyResNet, .seed = 3, .overwrite = true}).ok());
  ASSERT_TRUE(
      model::CreateModel({.repository = repository_, .name = "bad", .spec = kTinyResNet, .seed = 2, .overwrite = true}).ok());
  ASSERT_TRUE(server_->Rescan().ok());
  EXPECT_TRUE(Infer(Request("late", 1)).ok());
  EXPECT_TRUE(Infer(Request("bad", 1)).ok());
}

TEST_F(ServerTest, AFullSlabMakesRequestsWaitNotFail) {
  // A sample has 12 KiB; a batch of 32 needs 400 KiB and three of those more than the slab has.
  Create("resnet", kTinyResNet, 1, {.max_batch_size = 128});
  Start(64 * kMiB, {.shared_memory_bytes = kMiB});
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 12; ++i) answers.Submit(Request("resnet", i, 32));
  const size_t too_large = answers.Submit(Request("resnet", 99, 100));
  ASSERT_TRUE(answers.WaitAll());
  for (size_t i = 0; i < 12; ++i) EXPECT_TRUE(answers.at(i).ok()) << ToString(answers.at(i).status());
  EXPECT_EQ(answers.at(too_large).status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(answers.at(too_large).status()), HasSubstr("of shared memory for its inputs and results; allowed: 1"));
  EXPECT_GE(server_->Model("resnet")->executions, 6);
}

TEST_F(ServerTest, CancelsWhatStillWaits) {
  Create("resnet", kTinyResNet, 1);
  Start(64 * kMiB);
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 50; ++i) answers.Submit(Request("resnet", i));
  for (size_t i = 20; i < 50; ++i) answers.Cancel(i);
  ASSERT_TRUE(answers.WaitAll());
  int cancelled = 0;
  for (size_t i = 0; i < 50; ++i) {
    const Status status = answers.at(i).status();
    if (status.ok()) continue;
    ++cancelled;
    EXPECT_GE(i, 20u);
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << ToString(status);
  }
  EXPECT_GT(cancelled, 0) << "the model was absent: nothing can have run before the first cancellations";
  answers.Cancel(0);  // long answered: nothing happens
  EXPECT_TRUE(Infer(Request("resnet", 1)).ok());
}

TEST_F(ServerTest, NamesEveryFaultOfARequest) {
  Create("bert", kTinyBert, 1);
  Start(64 * kMiB);
  EXPECT_EQ(Infer({.model = "brt"}).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(Infer({.model = "brt"}).status()), HasSubstr("did you mean 'bert'?"));
  InferRequest request = Request("bert", 1);
  request.version = "7";
  EXPECT_THAT(MessageOf(Infer(request).status()), HasSubstr("model 'bert' has no version '7'; allowed: 1"));
  request.version = "1";
  EXPECT_TRUE(Infer(request).ok());
  request.inputs[0].shape[1] = 7;
  request.inputs[1].datatype = DType::kF32;
  request.inputs[2].name = "mask";
  request.outputs = {"nothing"};
  const Status status = Infer(request).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), AllOf(HasSubstr("input 'input_ids' has shape [1,7]; allowed: [-1,16]"),
                                       HasSubstr("input 'token_type_ids' has datatype FP32; allowed: INT64"),
                                       HasSubstr("input 'mask' is unknown; allowed: input_ids, token_type_ids, attention_mask"),
                                       HasSubstr("input 'attention_mask' is missing"), HasSubstr("output 'nothing' is unknown")));
  request = Request("bert", 1, 9);
  EXPECT_THAT(MessageOf(Infer(request).status()), HasSubstr("has batch size 9; allowed: 1 to 8"));
  request = Request("bert", 1);
  request.inputs[0].data.resize(5);
  EXPECT_THAT(MessageOf(Infer(request).status()), HasSubstr("input 'input_ids' has 5 bytes of data; allowed: 128"));
  request = Request("bert", 1);
  request.inputs.push_back(request.inputs[0]);
  EXPECT_THAT(MessageOf(Infer(request).status()), HasSubstr("input 'input_ids' is given twice"));
}

TEST_F(ServerTest, BadDataFailsAloneAndTheWorkerLivesOn) {
  Create("gpt", kTinyGpt, 1);
  Start(64 * kMiB);
  const int worker = server_->worker_pid();
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 8; ++i) {
    InferRequest request = Request("gpt", i);
    if (i == 3) {
      const int64_t outside = 1000;  // the vocabulary has 61
      std::memcpy(&request.inputs[0].data[0], &outside, sizeof(outside));
    }
    answers.Submit(std::move(request));
  }
  ASSERT_TRUE(answers.WaitAll());
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(answers.at(i).ok(), i != 3) << i << ": " << ToString(answers.at(i).status());
  EXPECT_NE(answers.at(3).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(server_->worker_pid(), worker);
}

TEST_F(ServerTest, RefusesMoreThanItsQueuesHold) {
  Create("plain", kTinyResNet, 1);
  Create("narrow", kTinyResNet, 1, {.queue_limit = 2});
  Start(64 * kMiB, {.queue_limit = 5});
  for (const auto& [model, limit] : {std::pair("plain", 5), std::pair("narrow", 2)}) {
    Answers answers(server_.get());
    for (uint64_t i = 0; i < 40; ++i) answers.Submit(Request(model, i));
    ASSERT_TRUE(answers.WaitAll());
    int refused = 0;
    for (size_t i = 0; i < 40; ++i) {
      const Status status = answers.at(i).status();
      if (status.ok()) continue;
      ++refused;
      EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
      EXPECT_THAT(MessageOf(status), HasSubstr(fmt::format("is full: {} requests wait; allowed: {}", limit, limit)));
    }
    EXPECT_GT(refused, 0) << "the model was absent when they came";
    EXPECT_EQ(server_->Model(model)->rejected, refused);
  }
}

TEST_F(ServerTest, RefusesWhatComesTooLate) {
  Create("resnet", kTinyResNet, 1);
  Start(64 * kMiB);
  InferRequest request = Request("resnet", 1);
  request.deadline = Clock::Real()->Now() - absl::Seconds(1);
  EXPECT_EQ(Infer(request).status().code(), StatusCode::kDeadlineExceeded);
  request.deadline = Clock::Real()->Now() + absl::Seconds(30);
  EXPECT_TRUE(Infer(request).ok());
}

TEST_F(ServerTest, AModelLargerThanThePoolIsRefusedAndTheOthersAreServed) {
  Create("large", "resnet18:image=32,small_stem=true,width=64,classes=4", 1);
  Create("small", kTinyResNet, 1);
  Start(4 * kMiB);
  const auto large = Infer(Request("large", 1));
  EXPECT_EQ(large.status().code(), StatusCode::kResourceExhausted) << ToString(large.status());
  EXPECT_THAT(MessageOf(large.status()), HasSubstr("model 'large' needs"));
  EXPECT_TRUE(Infer(Request("small", 1)).ok());
}

TEST_F(ServerTest, ABatchThatDoesNotFitIsCutInPieces) {
  Create("resnet", "resnet18:image=64,small_stem=true,width=8,classes=4", 1, {.max_batch_size = 16});
  Start(64 * kMiB, {.idle_eviction = absl::Minutes(5)});
  const auto whole = Infer(Request("resnet", 5, 16));
  ASSERT_TRUE(whole.ok()) << ToString(whole.status());
  const auto workspace = [&] {
    for (const auto& lease : broker_->Stats().leases) {
      if (lease.name == "workspace") return lease.held_pages;
    }
    return int64_t{-1};
  };
  const int64_t needed = workspace();
  ASSERT_GT(needed, 8);
  ASSERT_TRUE(Eventually([&] { return workspace() == 0; }));  // trimmed when idle
  pool::ClientOptions options;
  auto socket = broker_->Connect();
  ASSERT_TRUE(socket.ok());
  options.connected_socket = std::move(socket).value();
  options.name = "hog";
  auto hog = pool::Client::Attach(std::move(options));
  ASSERT_TRUE(hog.ok());
  const pool::PoolStats stats = broker_->Stats();
  const int64_t pages = stats.total - stats.granted - needed / 2;
  const absl::Time limit = Clock::Real()->Now() + absl::Seconds(10);
  auto lease = (*hog)->OpenLease({.name = "hog", .burst_pages = pages}, limit);
  ASSERT_TRUE(lease.ok()) << ToString(lease.status());
  ASSERT_TRUE((*hog)->Grow(*lease, {.pages = pages}, limit).ok());

  const auto pieces = Infer(Request("resnet", 5, 16));
  ASSERT_TRUE(pieces.ok()) << ToString(pieces.status());
  EXPECT_LE(workspace(), needed / 2);
  ASSERT_EQ(pieces->outputs[0].data.size(), whole->outputs[0].data.size());
  for (size_t at = 0; at < whole->outputs[0].data.size(); at += sizeof(float)) {
    float a, b;
    std::memcpy(&a, &pieces->outputs[0].data[at], sizeof(a));
    std::memcpy(&b, &whole->outputs[0].data[at], sizeof(b));
    ASSERT_NEAR(a, b, 1e-3 * std::max(1.0f, std::fabs(b)));
  }
}

TEST_F(ServerTest, TakesOverAChangedRepository) {
  Create("a", kTinyResNet, 1);
  Create("b", kTinyResNet, 2);
  Start(64 * kMiB);
  const InferRequest request = Request("a", 1);
  const auto before = Infer(request);
  ASSERT_TRUE(before.ok());
  ASSERT_TRUE(Infer(Request("b", 1)).ok());
  ASSERT_TRUE(
      model::CreateModel({.repository = repository_, .name = "a", .spec = kTinyResNet, .seed = 77, .overwrite = true}).ok());
  std::filesystem::remove_all(repository_ + "/b");
  Create("c", kTinyGpt, 3);
  ASSERT_TRUE(server_->Rescan().ok());
  const auto after = Infer(request);
  ASSERT_TRUE(after.ok()) << ToString(after.status());
  EXPECT_NE(after->outputs[0].data, before->outputs[0].data) << "the old weights are still served";
  EXPECT_EQ(after->outputs[0].data, Direct(request)[0]);
  EXPECT_EQ(Infer({.model = "b"}).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(Infer(Request("c", 1)).ok());
  // The old copy of "a" and "b" are gone from the pool.
  EXPECT_TRUE(Eventually([&] {
    int models = 0;
    for (const auto& lease : broker_->Stats().leases) models += lease.name.starts_with("model:") ? 1 : 0;
    return models == 2;
  }));
}

TEST_F(ServerTest, ServesAnOlderVersionWhenAsked) {
  Create("a", kTinyResNet, 1);
  ASSERT_TRUE(model::CreateModel({.repository = repository_, .name = "a", .spec = kTinyResNet, .seed = 2, .version = 2}).ok());
  Start(64 * kMiB);
  InferRequest request = Request("a", 1);
  const auto highest = Infer(request);
  ASSERT_TRUE(highest.ok()) << ToString(highest.status());
  EXPECT_EQ(highest->version, "2");
  request.version = "1";
  const auto older = Infer(request);
  ASSERT_TRUE(older.ok()) << ToString(older.status());
  EXPECT_EQ(older->version, "1");
  EXPECT_EQ(older->outputs[0].data, Direct(request)[0]);
  EXPECT_NE(older->outputs[0].data, highest->outputs[0].data);
  EXPECT_EQ(server_->Model("a")->requests, 2);
}

TEST_F(ServerTest, ReplicasShareAFileAndHaveLeasesOfTheirOwn) {
  Create("a[2]", kTinyResNet, 1);
  Start(64 * kMiB);
  const auto first = Infer(Request("a", 1));
  ASSERT_TRUE(first.ok()) << ToString(first.status());
  const auto second = Infer(Request("a-1", 1));
  ASSERT_TRUE(second.ok()) << ToString(second.status());
  EXPECT_EQ(first->outputs[0].data, second->outputs[0].data);
  int leases = 0;
  for (const auto& lease : broker_->Stats().leases) leases += lease.name.starts_with("model:a") ? 1 : 0;
  EXPECT_EQ(leases, 2);
}

TEST_F(ServerTest, MeasuresSoloLatenciesAndSetsObjectives) {
  Create("a", kTinyResNet, 1);
  Create("b", kTinyGpt, 1, {.slo = absl::Milliseconds(123)});
  Start(64 * kMiB, {.slo_factor = 3});
  ASSERT_TRUE(server_->MeasureSoloLatencies(Clock::Real()->Now() + absl::Seconds(60)).ok());
  const auto a = server_->Model("a"), b = server_->Model("b");
  EXPECT_GT(a->solo_latency, absl::ZeroDuration());
  EXPECT_EQ(a->slo, 3 * a->solo_latency);
  EXPECT_EQ(b->slo, absl::Milliseconds(123));
  EXPECT_GT(b->solo_latency, absl::ZeroDuration());
}

TEST_F(ServerTest, EvictsIdleModelsForTrainingAndTrimsItsWorkspace) {
  Create("a", kTinyResNet, 1);
  Start(64 * kMiB, {.idle_eviction = absl::Milliseconds(200)});
  ASSERT_TRUE(Infer(Request("a", 1)).ok());
  pool::ClientOptions options;
  auto socket = broker_->Connect();
  ASSERT_TRUE(socket.ok());
  options.connected_socket = std::move(socket).value();
  options.name = "train";
  auto trainer = pool::Client::Attach(std::move(options));
  ASSERT_TRUE(trainer.ok());
  const absl::Time limit = Clock::Real()->Now() + absl::Seconds(10);
  const int64_t pages = broker_->Stats().total;
  auto lease =
      (*trainer)->OpenLease({.name = "train", .lease_class = pool::LeaseClass::kReclaimable, .burst_pages = pages}, limit);
  ASSERT_TRUE(lease.ok()) << ToString(lease.status());
  ASSERT_TRUE((*trainer)->SetPreferred(*lease, pages, limit).ok());
  EXPECT_TRUE(Eventually([&] { return broker_->Stats().granted == 0; }));
  EXPECT_TRUE(Eventually([&] { return server_->Model("a")->state == ModelState::kAbsent; }));
  EXPECT_EQ(server_->Model("a")->resident_bytes, 0);
  EXPECT_TRUE(Infer(Request("a", 1)).ok());
}

TEST_F(ServerTest, DrainFinishesWhatItAcceptedAndRefusesTheRest) {
  Create("a", kTinyResNet, 1);
  Start(64 * kMiB);
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 20; ++i) answers.Submit(Request("a", i));
  const InferRequest late = Request("a", 99);
  server_->Drain();
  EXPECT_EQ(answers.answered(), 20u);
  for (size_t i = 0; i < 20; ++i) EXPECT_TRUE(answers.at(i).ok());
  EXPECT_EQ(Infer(late).status().code(), StatusCode::kUnavailable);
  EXPECT_FALSE(server_->Ready());
  EXPECT_TRUE(server_->Live());
}

TEST_F(ServerTest, AnswersEverybodyWhenItIsDestroyed) {
  Create("a", kTinyResNet, 1);
  Start(64 * kMiB);
  Answers answers(server_.get());
  for (uint64_t i = 0; i < 100; ++i) answers.Submit(Request("a", i));
  server_.reset();
  EXPECT_EQ(answers.answered(), 100u);
  answers.Cancel(5);  // a handle may outlive the server
}

TEST_F(ServerTest, TaskSwitchPausesTrainingForTheTimeOfABurst) {
  Create("a", kTinyResNet, 1);
  absl::Mutex mu;
  std::vector<ServeEvent> events;
  Start(64 * kMiB, {.mode = Mode::kTaskSwitch});
  server_->SetEventListener([&](const ServeEvent& event) {
    absl::MutexLock lock(&mu);
    events.push_back(event);
  });
  const auto count = [&](ServeEvent::Kind kind) {
    absl::MutexLock lock(&mu);
    return std::count_if(events.begin(), events.end(), [&](const ServeEvent& event) { return event.kind == kind; });
  };
  for (int burst = 1; burst <= 3; ++burst) {
    ASSERT_TRUE(Infer(Request("a", 1)).ok());
    ASSERT_TRUE(Eventually([&] { return count(ServeEvent::Kind::kResume) == burst; }));
    EXPECT_EQ(count(ServeEvent::Kind::kPause), burst);
    EXPECT_EQ(count(ServeEvent::Kind::kEvict), burst);
    EXPECT_EQ(server_->Model("a")->state, ModelState::kAbsent);
  }
  server_->SetEventListener(nullptr);
}

TEST_F(ServerTest, SaysWhyItCannotStart) {
  Create("a", kTinyResNet, 1);
  auto device = device::OpenDevice({.capacity_bytes = kMiB, .page_bytes = kTestPageBytes});
  ASSERT_TRUE(device.ok());
  device_ = std::move(device).value();
  auto broker = pool::Broker::Start(device_.get(), {});
  ASSERT_TRUE(broker.ok());
  broker_ = std::move(broker).value();
  ServerOptions options{.repository = repository_, .worker_binary = "/bin/false"};
  const Status ended = Server::Start(broker_.get(), options).status();
  EXPECT_EQ(ended.code(), StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(ended), HasSubstr("the device worker '/bin/false' ended before it was ready: it exited with code 1"));
  options.worker_binary = "/nowhere";
  options.queue_limit = 0;
  EXPECT_THAT(MessageOf(Server::Start(broker_.get(), options).status()),
              AllOf(HasSubstr("worker_binary is '/nowhere'"), HasSubstr("queue_limit is 0; allowed: 1 or more")));
  options = {.repository = repository_ + "/nothing", .worker_binary = WorkerBinary()};
  EXPECT_FALSE(Server::Start(broker_.get(), options).ok());
}

TEST(ParseMode, NamesWhatIsAllowed) {
  for (Mode mode : {Mode::kColocate, Mode::kStatic, Mode::kTaskSwitch}) EXPECT_EQ(*ParseMode(Name(mode)), mode);
  EXPECT_THAT(MessageOf(ParseMode("both").status()), HasSubstr("mode is 'both'; allowed: colocate, static, task-switch"));
}

}  // namespace
}  // namespace tidepool::serve
