#include "train/reclaimer.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "base/units.h"
#include "pool/broker.h"
#include "train/cpu_yield.h"

namespace tidepool::train {
namespace {

constexpr int64_t kPage = 64 * kKiB;
constexpr int64_t kPages = 64;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(30); }

// A broker, an inference client, and a training lease whose "arithmetic" is the test.
class ReclaimerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    device_ = device::OpenDevice({.name = "host", .capacity_bytes = kPages * kPage, .page_bytes = kPage}).value();
    broker_ = pool::Broker::Start(device_.get(), {.revoke_slack = absl::Seconds(1),
                                                  .on_handover =
                                                      [this](const pool::HandoverRecord& record) {
                                                        absl::MutexLock lock(&mu_);
                                                        handovers_.push_back(record);
                                                      }})
                  .value();
    inference_ = pool::Client::Attach({.connected_socket = broker_->Connect().value(), .name = "inference"}).value();
    model_ = inference_->OpenLease({.name = "model", .burst_pages = kPages}, Soon()).value();
    client_ = pool::Client::Attach({.connected_socket = broker_->Connect().value(), .name = "train"}).value();
    reclaimer_ = std::make_unique<Reclaimer>(client_.get(),
                                             ReclaimerOptions{.policy = {.slack_fraction = 0.5},
                                                              .request_abort = [this] { SetFlag(&abort_requested_, true); },
                                                              .clear_abort = [this] { SetFlag(&abort_requested_, false); },
                                                              .set_urgent = [this](bool urgent) { SetFlag(&urgent_, urgent); }});
    lease_ = client_
                 ->OpenLease({.name = "train:test",
                              .lease_class = pool::LeaseClass::kReclaimable,
                              .guaranteed_pages = 8,
                              .burst_pages = kPages},
                             Soon())
                 .value();
    arena_ = pool::Arena::Create(client_.get(), lease_, {.grow_step_pages = 1});
    reclaimer_->SetArena(arena_.get());
  }
  void TearDown() override {
    reclaimer_->SetArena(nullptr);
    arena_.reset();
    client_.reset();
    reclaimer_.reset();
    inference_.reset();
    broker_.reset();
  }

  void SetFlag(bool* flag, bool value) {
    absl::MutexLock lock(&mu_);
    *flag = value;
  }
  bool AwaitFlag(bool* flag) {
    absl::MutexLock lock(&mu_);
    return Clock::Real()->Await(
        &mu_, [flag] { return *flag; }, Soon());
  }
  // Until a request waits for the main thread.
  bool AwaitWaiting() {
    const absl::Time deadline = Soon();
    while (reclaimer_->stats().waiting == 0) {
      if (Clock::Real()->Now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  // Asks for `pages` as inference does, on a thread of its own.
  std::jthread Demand(int64_t pages) {
    return std::jthread([this, pages] {
      auto grown = inference_->Grow(model_, {.pages = pages}, Soon());
      EXPECT_TRUE(grown.ok()) << ToString(grown.status());
      if (!grown.ok()) return;
      EXPECT_TRUE(inference_->Return(model_, *grown).ok());
    });
  }
  void* Block(int64_t pages) {
    auto block = arena_->Allocate(pages * kPage);
    EXPECT_TRUE(block.ok()) << ToString(block.status());
    return block.ok() ? *block : nullptr;
  }
  pool::HandoverRecord LastHandover() {
    absl::MutexLock lock(&mu_);
    Clock::Real()->Await(
        &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !handovers_.empty(); }, Soon());
    return handovers_.empty() ? pool::HandoverRecord() : handovers_.back();
  }

  absl::Mutex mu_;
  bool abort_requested_ = false, urgent_ = false;
  std::vector<pool::HandoverRecord> handovers_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  std::unique_ptr<pool::Client> inference_;
  pool::LeaseId model_, lease_;
  std::unique_ptr<Reclaimer> reclaimer_;
  std::unique_ptr<pool::Client> client_;
  std::unique_ptr<pool::Arena> arena_;
};

TEST_F(ReclaimerTest, GivesCachedPagesBackWithoutDisturbingTheMicroBatch) {
  arena_->Free(Block(50));
  ASSERT_TRUE(reclaimer_->Begin(Phase::kMicroBatch, false, absl::Seconds(100)));
  Demand(40).join();
  reclaimer_->End();
  // The taker has its pages as soon as they are back, before the giver has said how; the record comes with the answer.
  EXPECT_FALSE(LastHandover().giver_parts.aborted);
  EXPECT_EQ(reclaimer_->stats().cached_enough, 1);
  EXPECT_EQ(reclaimer_->stats().aborts, 0);
}

TEST_F(ReclaimerTest, AbortsAMicroBatchThatWouldTakeTooLong) {
  ASSERT_TRUE(reclaimer_->Begin(Phase::kMicroBatch, false, absl::Seconds(100)));
  void* block = Block(50);
  std::jthread demand = Demand(40);
  ASSERT_TRUE(AwaitFlag(&abort_requested_));
  EXPECT_TRUE(AwaitFlag(&urgent_));
  reclaimer_->Unwinding();
  arena_->Free(block);
  reclaimer_->End();
  demand.join();
  EXPECT_EQ(reclaimer_->stats().aborts, 1);
  EXPECT_FALSE(urgent_);
  EXPECT_FALSE(abort_requested_);
  const pool::HandoverRecord record = LastHandover();
  EXPECT_TRUE(record.giver_parts.aborted);
  EXPECT_GT(record.giver_parts.wait, absl::ZeroDuration());
}

TEST_F(ReclaimerTest, WaitsForANearBoundaryAndSaysSo) {
  ASSERT_TRUE(reclaimer_->Begin(Phase::kMicroBatch, false, absl::Milliseconds(400)));
  void* block = Block(50);
  std::jthread demand = Demand(40);
  ASSERT_TRUE(AwaitWaiting());
  EXPECT_TRUE(AwaitFlag(&urgent_));
  arena_->Free(block);
  reclaimer_->End();
  demand.join();
  EXPECT_FALSE(urgent_);
  EXPECT_EQ(reclaimer_->stats().aborts, 0);
  EXPECT_EQ(reclaimer_->stats().boundary_waits, 1);
  EXPECT_TRUE(LastHandover().giver_parts.boundary);
}

TEST_F(ReclaimerTest, LosesPatienceWithABoundaryThatDoesNotCome) {
  ASSERT_TRUE(reclaimer_->Begin(Phase::kMicroBatch, false, absl::Milliseconds(400)));
  void* block = Block(50);
  std::jthread demand = Demand(40);
  ASSERT_TRUE(AwaitFlag(&abort_requested_));  // half a second after the request
  reclaimer_->Unwinding();
  arena_->Free(block);
  reclaimer_->End();
  demand.join();
  EXPECT_EQ(reclaimer_->stats().aborts, 1);
}

TEST_F(ReclaimerTest, NeverAbortsAnOptimizerStepOrAProtectedRun) {
  const auto enough = [](int64_t limit_bytes) { return limit_bytes >= 50 * kPage; };
  for (const bool optimizer : {true, false}) {
    // What inference returned is told to the trainer a moment later.
    ASSERT_EQ(reclaimer_->AwaitGate(enough, Soon()), Reclaimer::Gate::kGo);
    ASSERT_TRUE(reclaimer_->Begin(optimizer ? Phase::kOptimizer : Phase::kMicroBatch, !optimizer, std::nullopt));
    void* block = Block(50);
    std::jthread demand = Demand(40);
    ASSERT_TRUE(AwaitWaiting());
    EXPECT_FALSE(abort_requested_);
    arena_->Free(block);
    reclaimer_->End();
    demand.join();
  }
  EXPECT_EQ(reclaimer_->stats().aborts, 0);
}

TEST_F(ReclaimerTest, StopsForAPauseAndHoldsTheGateClosed) {
  ASSERT_TRUE(reclaimer_->Begin(Phase::kMicroBatch, false, std::nullopt));
  Status paused;
  std::jthread node([&] { paused = broker_->SetPaused(true, Soon()); });
  ASSERT_TRUE(AwaitFlag(&abort_requested_));  // although it holds no more than it may
  reclaimer_->Unwinding();
  reclaimer_->End();
  node.join();
  EXPECT_TRUE(paused.ok()) << ToString(paused);
  EXPECT_FALSE(reclaimer_->Begin(Phase::kMicroBatch, false, std::nullopt));
  const auto always = [](int64_t) { return true; };
  EXPECT_EQ(reclaimer_->AwaitGate(always, absl::InfinitePast()), Reclaimer::Gate::kTimedOut);
  std::jthread resume([&] { EXPECT_TRUE(broker_->SetPaused(false, Soon()).ok()); });
  EXPECT_EQ(reclaimer_->AwaitGate(always, Soon()), Reclaimer::Gate::kGo);
  resume.join();
}

TEST_F(ReclaimerTest, OpensTheGateWhenTheLimitRises) {
  auto grown = inference_->Grow(model_, {.pages = 40}, Soon());
  ASSERT_TRUE(grown.ok());
  while (client_->limit_pages(lease_) > kPages - 40) std::this_thread::yield();  // told a moment later
  const auto enough = [](int64_t limit_bytes) { return limit_bytes >= 50 * kPage; };
  EXPECT_EQ(reclaimer_->AwaitGate(enough, absl::InfinitePast()), Reclaimer::Gate::kTimedOut);
  std::jthread release([&] { EXPECT_TRUE(inference_->Return(model_, *grown).ok()); });
  EXPECT_EQ(reclaimer_->AwaitGate(enough, Soon()), Reclaimer::Gate::kGo);
  release.join();
}

TEST_F(ReclaimerTest, OpensTheGateForAStopAndForALostBroker) {
  const auto never = [](int64_t) { return false; };
  ASSERT_TRUE(reclaimer_->Begin(Phase::kMicroBatch, false, std::nullopt));
  reclaimer_->RequestStop();
  EXPECT_TRUE(abort_requested_);
  reclaimer_->End();
  EXPECT_EQ(reclaimer_->AwaitGate(never, Soon()), Reclaimer::Gate::kStopped);
  inference_.reset();
  broker_.reset();
  while (client_->connected()) std::this_thread::yield();
  Reclaimer::Gate gate = Reclaimer::Gate::kStopped;
  // A stop is known already, so the loss shows at the gate as soon as the client's thread has told it.
  for (const absl::Time limit = Soon(); gate == Reclaimer::Gate::kStopped && Clock::Real()->Now() < limit;) {
    gate = reclaimer_->AwaitGate(never, Soon());
  }
  EXPECT_EQ(gate, Reclaimer::Gate::kDisconnected);
}

TEST_F(ReclaimerTest, SurvivesRandomDemandsAndPhases) {
  std::atomic<bool> ended{false};
  std::thread demands([&] {
    std::mt19937 random(4);
    while (!ended) {
      auto grown = inference_->Grow(model_, {.pages = 1 + static_cast<int64_t>(random() % 50)}, Soon());
      ASSERT_TRUE(grown.ok()) << ToString(grown.status());
      ASSERT_TRUE(inference_->Return(model_, *grown).ok());
    }
  });
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    if (!reclaimer_->Begin(Phase::kMicroBatch, false, absl::Milliseconds(random() % 2000))) continue;
    std::vector<void*> blocks;
    bool aborted = false;
    for (int j = 0; j < 20 && !aborted; ++j) {
      auto block = arena_->Allocate((1 + random() % 3) * kPage - 100);
      if (block.ok()) blocks.push_back(*block);
      absl::MutexLock lock(&mu_);
      aborted = abort_requested_ || !block.ok();
    }
    if (aborted) reclaimer_->Unwinding();
    for (void* block : blocks) arena_->Free(block);
    reclaimer_->End();
  }
  ended = true;
  demands.join();
  EXPECT_EQ(broker_->Stats().violations, 0);
  EXPECT_EQ(broker_->Stats().fenced, 0);
}

TEST(CpuYield, PutsWorkThreadsIntoTheIdleClassAndOutOfItInUrgency) {
  absl::Mutex mu;
  bool end = false;
  std::atomic<int> service{0}, work{0};
  auto wait = [&](std::atomic<int>* id) {
    *id = static_cast<int>(::gettid());
    absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&end));
  };
  std::thread service_thread(wait, &service), work_thread(wait, &work);
  while (service == 0 || work == 0) std::this_thread::yield();
  std::set<int> all = ThreadsOfThisProcess();
  EXPECT_TRUE(all.contains(service) && all.contains(work));
  // The test's own thread and whatever the sanitizers run stay as they are.
  all.erase(work);
  {
    CpuYield yield(all);
    if (yield.mode() == CpuYield::Mode::kIdleClass) {
      EXPECT_EQ(::sched_getscheduler(work), SCHED_IDLE);
      EXPECT_EQ(::sched_getscheduler(service), SCHED_OTHER);
      yield.SetUrgent(true);
      EXPECT_EQ(::sched_getscheduler(work), SCHED_OTHER);
      yield.SetUrgent(false);
      EXPECT_EQ(::sched_getscheduler(work), SCHED_IDLE);
    } else {
      EXPECT_EQ(::getpriority(PRIO_PROCESS, static_cast<id_t>(work.load())), 19);
    }
  }
  EXPECT_NE(::sched_getscheduler(work), SCHED_IDLE);
  {
    absl::MutexLock lock(&mu);
    end = true;
  }
  service_thread.join();
  work_thread.join();
}

}  // namespace
}  // namespace tidepool::train
