// The whole serving state machine in virtual time, against a worker that loads, fails, runs out of memory and dies.
#include "serve/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace tidepool::serve {
namespace {

using ::testing::HasSubstr;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

// A worker and a pool of `total` pages in virtual time. Checks the orders that it gets.
class World {
 public:
  struct Settings {
    CoreOptions core;
    int64_t total_pages = 20;
    int models = 4;
    int64_t model_pages = 5;
    int max_batch = 4;
    int queue_limit = 16;
    int64_t training_prefers = 0;  // pages
  };
  World(const Settings& settings, uint64_t seed) : settings_(settings), random_(seed), core_(settings.core) {
    for (int m = 1; m <= settings.models; ++m) {
      ModelTraits traits{.name = fmt::format("m{}", m), .pages = settings.model_pages, .workspace_pages = 1};
      traits.queue = {.name = traits.name, .limit = settings.queue_limit, .max_batch_size = settings.max_batch};
      traits.slo = absl::Milliseconds(50);
      core_.AddModel(ModelId(static_cast<uint32_t>(m)), traits);
    }
    core_.OnWorkerUp();
  }

  int Pick(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  RequestId Submit(uint32_t model, absl::Duration deadline = absl::InfiniteDuration(), int batch = 1) {
    const RequestId id(++last_request_);
    QueuedRequest request{.id = id, .model = ModelId(model), .received = now_, .batch = batch, .slab_bytes = 10};
    if (deadline != absl::InfiniteDuration()) request.deadline = now_ + deadline;
    const Status status = core_.Submit(request, now_);
    model_of_[id] = model;
    if (status.ok()) {
      inside_.insert(id);
    } else {
      answers_[id] = status;
    }
    Step();
    return id;
  }
  void Cancel(RequestId id) {
    if (core_.Cancel(ModelId(model_of_[id]), id).ok()) Leave(id, Cancelled("dropped"));
    Step();
  }
  void Kill() {
    worker_up_ = false;
    std::erase_if(events_, [](const auto& event) { return event.second.of_worker; });
    resident_.clear();
    core_.OnWorkerLost("was killed by signal 9", now_);
    events_.emplace(now_ + absl::Milliseconds(100), Event{false, [this] {
                                                            worker_up_ = true;
                                                            core_.OnWorkerUp();
                                                          }});
    Step();
  }
  // Runs until nothing is left to do before `end`.
  void RunUntil(absl::Time end) {
    while (true) {
      absl::Time next = wake_;
      if (!events_.empty()) next = std::min(next, events_.begin()->first);
      if (next > end) break;
      ASSERT_LT(++steps_, 1'000'000) << "the machine spins";
      now_ = std::max(now_, next);
      while (!events_.empty() && events_.begin()->first <= now_) {
        const auto event = std::move(events_.begin()->second);
        events_.erase(events_.begin());
        event.run();
      }
      Step();
    }
    now_ = std::max(now_, end);
    Step();
  }
  void RunFor(absl::Duration duration) { RunUntil(now_ + duration); }

  void Step() {
    while (true) {
      Actions actions = core_.Step(now_, 1000, [this] {
        return pool::PinnedRoom{.pages = Available(), .spare_pages = Available() - settings_.training_prefers};
      });
      wake_ = actions.wake;
      if (actions.empty()) break;
      ASSERT_LT(++steps_, 1'000'000) << "the machine spins";
      Perform(actions);
    }
    // Of one execution at a time, and of no answers for the dead.
    ASSERT_LE(running_, 1);
  }

  int64_t Held() const { return static_cast<int64_t>(resident_.size()) * settings_.model_pages; }
  int64_t Available() const { return settings_.total_pages - Held(); }

  Settings settings_;
  std::mt19937_64 random_;
  Core core_;
  absl::Time now_ = kStart, wake_ = absl::InfiniteFuture();
  struct Event {
    bool of_worker = true;  // dies with it
    std::function<void()> run;
  };
  std::multimap<absl::Time, Event> events_;
  std::map<JobId, ModelId> resident_;  // holds pages: loading, ready or unloading
  std::set<RequestId> inside_;
  std::map<RequestId, Status> answers_;
  std::map<RequestId, uint32_t> model_of_;
  uint64_t last_request_ = 0;
  int running_ = 0, executions_ = 0, loads_ = 0, unloads_ = 0, pauses_ = 0, resumes_ = 0;
  int64_t steps_ = 0;
  bool worker_up_ = true, paused_ = false;
  // Faults.
  int load_failure_percent = 0, execute_failure_percent = 0;
  Status load_failure = ResourceExhausted("no room");
  std::set<RequestId> poison;  // makes the batch it is in fail

 private:
  void At(absl::Time time, std::function<void()> run) { events_.emplace(time, Event{true, std::move(run)}); }
  void Leave(RequestId id, const Status& status) {
    ASSERT_EQ(inside_.erase(id), 1u) << "request " << id << " was answered twice or never accepted";
    answers_[id] = status;
  }

  void Perform(const Actions& actions) {
    for (const auto& answer : actions.answers) {
      ASSERT_FALSE(answer.status.ok());
      Leave(answer.request, answer.status);
    }
    for (const auto& load : actions.loads) {
      ASSERT_TRUE(worker_up_);
      ++loads_;
      ASSERT_GT(load.grow_slack, absl::ZeroDuration());
      ASSERT_TRUE(settings_.core.mode != Mode::kTaskSwitch || paused_);
      const bool fails = Pick(100) < load_failure_percent;
      resident_[load.job] = load.model;
      ASSERT_GE(Available(), 0) << "a load was ordered without room";
      At(now_ + absl::Milliseconds(1 + Pick(20)), [this, load, fails] {
        if (fails) resident_.erase(load.job);
        core_.OnLoadDone(load.job, fails ? load_failure : Status(), settings_.model_pages, absl::Milliseconds(5), now_);
      });
    }
    for (const auto& unload : actions.unloads) {
      ++unloads_;
      ASSERT_EQ(resident_.count(unload.instance), 1u);
      At(now_ + absl::Milliseconds(1), [this, unload] {
        resident_.erase(unload.instance);
        core_.OnUnloadDone(unload.job, Status(), settings_.model_pages << 21);
      });
    }
    for (const auto& execute : actions.executions) {
      ASSERT_EQ(running_, 0);
      ASSERT_EQ(resident_.count(execute.instance), 1u) << "of a model that is not there";
      ASSERT_EQ(resident_[execute.instance], execute.batch.model);
      ASSERT_LE(execute.batch.size, settings_.max_batch);
      ASSERT_TRUE(settings_.core.mode != Mode::kTaskSwitch || paused_);
      ++running_;
      ++executions_;
      Status status;
      for (const auto& request : execute.batch.requests) {
        ASSERT_EQ(inside_.count(request.id), 1u);
        if (poison.contains(request.id)) status = InvalidArgument("token 99 is out of range");
      }
      if (Pick(100) < execute_failure_percent) status = ResourceExhausted("no room for activations");
      At(now_ + absl::Milliseconds(2 + 2 * execute.batch.size), [this, execute, status] {
        --running_;
        auto result = core_.OnExecuteDone(execute.job, status, absl::Milliseconds(2 + 2 * execute.batch.size), 1, 1, now_);
        ASSERT_TRUE(result.ok());
        for (const auto& done : result->done) {
          Leave(done.request.id, Status());
          core_.OnAnswered(done.request.model, now_ - done.request.received);
        }
        for (const auto& failed : result->failed) Leave(failed.request, failed.status);
      });
    }
    if (actions.task_switch != TaskSwitch::Action::kNone) {
      const bool pause = actions.task_switch == TaskSwitch::Action::kPause;
      events_.emplace(now_ + absl::Milliseconds(3), Event{false, [this, pause] {
                                                            paused_ = pause;
                                                            ++(pause ? pauses_ : resumes_);
                                                            if (pause) {
                                                              core_.OnPaused(Status(), now_);
                                                            } else {
                                                              EXPECT_EQ(Held(), 0)
                                                                  << "training resumed while models are resident";
                                                              core_.OnResumed(Status(), now_);
                                                            }
                                                          }});
    }
    if (!actions.kill_worker.empty()) Kill();
  }
  friend class CoreTest;
};

TEST(Core, LoadsOnDemandBatchesAndEvictsWhenIdleForTraining) {
  World world({.training_prefers = 20}, 1);
  for (int i = 0; i < 4; ++i) world.Submit(1);
  EXPECT_EQ(world.core_.state(ModelId(1)), ModelState::kLoading);
  world.RunFor(absl::Milliseconds(100));
  EXPECT_TRUE(world.inside_.empty());
  EXPECT_EQ(world.executions_, 1) << "all four waited for the load and share a batch";
  const ModelCounters& counters = world.core_.counters(ModelId(1));
  EXPECT_EQ(counters.requests, 4);
  EXPECT_EQ(counters.batched_requests, 4);
  EXPECT_EQ(counters.within_slo, 4);
  EXPECT_EQ(world.core_.state(ModelId(1)), ModelState::kReady);
  world.RunFor(absl::Seconds(4));
  EXPECT_EQ(world.core_.state(ModelId(1)), ModelState::kAbsent);
  EXPECT_EQ(counters.evictions, 1);
  EXPECT_EQ(world.Held(), 0);
}

TEST(Core, AnIdleModelKeepsMemoryThatNobodyMisses) {
  World world({.training_prefers = 15}, 1);
  world.Submit(1);
  world.RunFor(absl::Minutes(10));
  EXPECT_EQ(world.core_.state(ModelId(1)), ModelState::kReady);
  EXPECT_EQ(world.Held(), 5);
}

TEST(Core, OneBadRequestFailsAloneAndItsBatchMatesSucceed) {
  World world({}, 1);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(world.Submit(1));
  world.poison = {ids[2]};
  world.RunFor(absl::Milliseconds(200));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(world.answers_[ids[static_cast<size_t>(i)]].ok(), i != 2);
  EXPECT_THAT(MessageOf(world.answers_[ids[2]]), HasSubstr("token 99"));
}

TEST(Core, ARequestSurvivesOneDeathOfTheWorkerAndIsToldOfTheSecond) {
  World world({}, 1);
  const RequestId id = world.Submit(1);
  for (int death = 0; death < 2; ++death) {
    while (world.running_ == 0) world.RunFor(absl::Milliseconds(1));
    world.running_ = 0;
    world.Kill();
  }
  ASSERT_EQ(world.answers_.count(id), 1u);
  EXPECT_EQ(world.answers_[id].code(), StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(world.answers_[id]),
              HasSubstr("the device worker was lost (was killed by signal 9) while it ran the request, in 2 of 2 attempts"));
  EXPECT_TRUE(world.inside_.empty());
}

TEST(Core, ABrokenModelAnswersItsRequestsWithTheReasonAndLeavesOthersServed) {
  World world({}, 1);
  world.load_failure_percent = 100;
  world.load_failure = InvalidArgument("header of 'x' is 3 bytes long");
  const RequestId waiting = world.Submit(1);
  world.RunFor(absl::Milliseconds(30));
  EXPECT_THAT(MessageOf(world.answers_[waiting]), HasSubstr("model 'm1' could not be loaded: header of 'x'"));
  const RequestId refused = world.Submit(1);
  EXPECT_THAT(MessageOf(world.answers_[refused]), HasSubstr("next try in"));
  EXPECT_EQ(world.answers_[refused].code(), StatusCode::kInvalidArgument);
  world.load_failure_percent = 0;
  const RequestId other = world.Submit(2);
  world.RunFor(absl::Milliseconds(50));
  EXPECT_TRUE(world.answers_[other].ok());
  world.RunFor(absl::Seconds(1));
  const RequestId again = world.Submit(1);
  world.RunFor(absl::Milliseconds(50));
  EXPECT_TRUE(world.answers_[again].ok()) << "the file was mended";
}

TEST(Core, AWaitForALoadEndsWithTheReason) {
  World world({.core = {.load_deadline = absl::Seconds(2)}}, 1);
  world.load_failure_percent = 100;
  const RequestId id = world.Submit(1);
  world.RunFor(absl::Milliseconds(1999));
  EXPECT_EQ(world.answers_.count(id), 0u) << "a shortage of memory may pass";
  world.RunFor(absl::Milliseconds(2));
  EXPECT_EQ(world.answers_[id].code(), StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(world.answers_[id]), HasSubstr("model 'm1' was not resident within 2.00 s: RESOURCE_EXHAUSTED: no room"));
}

TEST(Core, AModelLargerThanThePoolIsRefusedWithNumbers) {
  World world({.total_pages = 4}, 1);
  const RequestId id = world.Submit(1);
  world.RunFor(absl::Seconds(2));
  EXPECT_EQ(world.answers_[id].code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(world.answers_[id]), HasSubstr("needs 5 pages"));
  EXPECT_EQ(world.loads_, 0);
}

TEST(Core, TwoBusyModelsThatDoNotFitTogetherBothGetTheirTurn) {
  World world({.total_pages = 7, .models = 2}, 1);
  for (int round = 0; round < 400; ++round) {
    world.Submit(1);
    world.Submit(2);
    world.RunFor(absl::Milliseconds(10));
  }
  world.RunFor(absl::Seconds(30));
  EXPECT_TRUE(world.inside_.empty());
  EXPECT_GT(world.core_.counters(ModelId(1)).batched_requests, 50);
  EXPECT_GT(world.core_.counters(ModelId(2)).batched_requests, 50);
}

TEST(Core, ABurstOnOneModelBringsBackTheOthersThatBurstsAskFor) {
  World::Settings settings{.models = 3};
  settings.core.residency.idle_eviction = absl::Milliseconds(200);
  settings.training_prefers = 18;
  World world(settings, 1);
  const auto burst = [&](std::initializer_list<uint32_t> models) {
    for (int round = 0; round < 10; ++round) {
      for (uint32_t model : models) world.Submit(model);
      world.RunFor(absl::Milliseconds(15));
    }
  };
  burst({1, 2, 3});
  EXPECT_EQ(world.loads_, 3);
  world.RunFor(absl::Seconds(5));
  EXPECT_EQ(world.Held(), 0) << "training misses their memory";
  burst({1});
  world.RunFor(absl::Milliseconds(50));
  EXPECT_EQ(world.Held(), 15);
  world.RunFor(absl::Seconds(5));
  EXPECT_EQ(world.Held(), 0);
  world.core_.UnloadModel(ModelId(3), 1, world.now_ + absl::Seconds(1));
  burst({1});
  world.RunFor(absl::Milliseconds(50));
  EXPECT_EQ(world.Held(), 10) << "a user has unloaded the third";
}

TEST(Core, CancellingDropsAQueuedRequestAndStopsAnExecutionThatNobodyWaitsFor) {
  World world({}, 1);
  const RequestId queued = world.Submit(1);
  world.Cancel(queued);
  EXPECT_EQ(world.answers_[queued].code(), StatusCode::kCancelled);
  const RequestId running = world.Submit(1);
  while (world.running_ == 0) world.RunFor(absl::Milliseconds(1));
  EXPECT_EQ(world.core_.Cancel(ModelId(1), running).code(), StatusCode::kFailedPrecondition);
  const Actions actions = world.core_.Step(world.now_, 1000, [] { return pool::PinnedRoom{.pages = 100, .spare_pages = 100}; });
  EXPECT_EQ(actions.cancels.size(), 1u);
  world.RunFor(absl::Milliseconds(50));
  EXPECT_TRUE(world.answers_[running].ok()) << "it was too late: the result is delivered";
}

TEST(Core, ExplicitLoadAndUnloadAnswerTheirCallers) {
  World world({}, 1);
  std::map<WaiterId, StatusOr<int64_t>> done;
  const auto step = [&] {
    for (int i = 0; i < 50; ++i) {
      Actions actions = world.core_.Step(
          world.now_, 1000, [&] { return pool::PinnedRoom{.pages = world.Available(), .spare_pages = world.Available()}; });
      for (auto& waiter : actions.waiters) done.emplace(waiter.waiter, waiter.result);
      for (const auto& load : actions.loads) world.core_.OnLoadDone(load.job, Status(), 5, absl::Milliseconds(1), world.now_);
      for (const auto& unload : actions.unloads) world.core_.OnUnloadDone(unload.job, Status(), 12345);
    }
  };
  world.core_.LoadModel(ModelId(1), 7, world.now_ + absl::Seconds(1), world.now_);
  step();
  ASSERT_EQ(done.count(7), 1u);
  EXPECT_TRUE(done.at(7).ok());
  world.core_.UnloadModel(ModelId(1), 8, world.now_ + absl::Seconds(1));
  step();
  ASSERT_EQ(done.count(8), 1u);
  EXPECT_EQ(*done.at(8), 12345);
  world.core_.UnloadModel(ModelId(1), 9, world.now_ + absl::Seconds(1));
  step();
  EXPECT_EQ(*done.at(9), 0) << "nothing was loaded";
}

TEST(Core, ARetiredModelFinishesItsWorkAndTakesNoMore) {
  World world({}, 1);
  world.Submit(1);
  world.RunFor(absl::Milliseconds(50));
  const RequestId last = world.Submit(1);
  world.core_.RetireModel(ModelId(1), NotFound("model 'm1' is gone"));
  QueuedRequest late{.id = RequestId(1000), .model = ModelId(1), .received = world.now_};
  EXPECT_EQ(world.core_.Submit(late, world.now_).code(), StatusCode::kNotFound);
  world.RunFor(absl::Milliseconds(50));
  EXPECT_TRUE(world.answers_[last].ok());
  EXPECT_EQ(world.Held(), 0);
  EXPECT_EQ(world.core_.Submit(late, world.now_).code(), StatusCode::kNotFound);
}

TEST(Core, ASilentWorkerIsKilled) {
  World world({}, 1);
  world.Submit(1);
  while (world.running_ == 0) world.RunFor(absl::Milliseconds(1));
  world.events_.clear();  // its answer never comes
  world.now_ += absl::Seconds(60);
  const Actions actions = world.core_.Step(world.now_, 1000, [] { return pool::PinnedRoom{.pages = 100, .spare_pages = 100}; });
  EXPECT_THAT(actions.kill_worker, HasSubstr("execution of model 'm1' gave no answer for"));
}

TEST(Core, TaskSwitchServesOnlyWhileTrainingIsStopped) {
  World world({.core = {.mode = Mode::kTaskSwitch}}, 1);
  for (int burst = 0; burst < 5; ++burst) {
    for (uint32_t model = 1; model <= 3; ++model) world.Submit(model);
    world.RunFor(absl::Milliseconds(300));
  }
  EXPECT_TRUE(world.inside_.empty());
  EXPECT_EQ(world.pauses_, 5);
  EXPECT_EQ(world.resumes_, 5);
  for (const auto& [id, status] : world.answers_) EXPECT_TRUE(status.ok()) << ToString(status);
}

// Everything at once: each request is answered exactly once whatever happens, and the machine comes to rest.
TEST(CoreProperty, AnswersEveryRequestExactlyOnceUnderFaults) {
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    World::Settings settings;
    settings.core.mode = seed % 3 == 0 ? Mode::kTaskSwitch : seed % 3 == 1 ? Mode::kStatic : Mode::kColocate;
    if (settings.core.mode == Mode::kStatic) settings.core.residency.serving_limit_pages = 12;
    settings.core.load_deadline = absl::Seconds(3);
    settings.total_pages = 7 + static_cast<int64_t>(seed % 5) * 4;
    settings.queue_limit = 6;
    World world(settings, seed);
    world.load_failure_percent = seed % 2 == 0 ? 10 : 0;
    world.execute_failure_percent = seed % 5 == 0 ? 10 : 0;
    for (int i = 0; i < 300 && !::testing::Test::HasFatalFailure(); ++i) {
      const int what = world.Pick(100);
      if (what < 70) {
        const auto deadline = world.Pick(3) == 0 ? absl::Milliseconds(world.Pick(200)) : absl::InfiniteDuration();
        const RequestId id = world.Submit(1 + static_cast<uint32_t>(world.Pick(4)), deadline, 1 + world.Pick(4));
        if (world.Pick(20) == 0) world.poison.insert(id);
      } else if (what < 80 && !world.inside_.empty()) {
        world.Cancel(*world.inside_.begin());
      } else if (what < 82 && world.worker_up_) {
        world.running_ = 0;
        world.Kill();
      } else {
        world.RunFor(absl::Milliseconds(world.Pick(20)));
      }
    }
    world.RunFor(absl::Seconds(60));
    EXPECT_TRUE(world.inside_.empty()) << world.inside_.size() << " requests are lost";
    EXPECT_EQ(world.answers_.size(), world.last_request_);
    EXPECT_EQ(world.core_.outstanding(), 0);
    int64_t answered = 0;
    for (uint32_t m = 1; m <= 4; ++m) answered += world.core_.counters(ModelId(m)).requests;
    EXPECT_EQ(answered, static_cast<int64_t>(world.last_request_));
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace tidepool::serve
