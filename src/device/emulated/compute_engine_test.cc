#include "device/emulated/compute_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

namespace tidepool::device::emulated {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

struct Ends final : TaskSink {
  void TaskStarted(uint64_t tag, int64_t start_ns) override { starts[tag] = start_ns; }
  void TaskEnded(uint64_t tag, int64_t end_ns) override { ends[tag] = end_ns; }
  std::map<uint64_t, int64_t> starts, ends;
};

struct Rig {
  explicit Rig(ComputeEngine::Options options) {
    options.sink = &sink;
    engine = std::make_unique<ComputeEngine>(&simulation, actor, options);
  }
  // Job and tag are the same number unless a tag is given.
  void At(int64_t at_ns, int32_t job, int64_t work_ns, uint64_t tag) {
    simulation.Schedule(at_ns, actor, [=, this] { engine->Submit(job, tag, work_ns, at_ns); });
  }
  void At(int64_t at_ns, int32_t job, int64_t work_ns) { At(at_ns, job, work_ns, static_cast<uint64_t>(job)); }

  Simulation simulation;
  Simulation::ActorId actor = simulation.AddActor("engine");
  Ends sink;
  std::unique_ptr<ComputeEngine> engine;
};

TEST(ComputeEngine, FifoRunsEachTaskToItsEndInOrderOfArrival) {
  Rig rig({.sharing = Sharing::kFifo});
  rig.At(0, 1, 100);
  rig.At(10, 2, 50);
  rig.At(20, 3, 1);
  rig.At(500, 4, 5);
  rig.simulation.Run();
  EXPECT_THAT(rig.sink.ends, ElementsAre(Pair(1, 100), Pair(2, 150), Pair(3, 151), Pair(4, 505)));
  EXPECT_THAT(rig.sink.starts, ElementsAre(Pair(1, 0), Pair(2, 100), Pair(3, 150), Pair(4, 500)));
  EXPECT_EQ(rig.engine->busy_ns(), 156);
  EXPECT_EQ(rig.engine->BusyOf(2), 50);
}

// Jobs of 5, 3 and 1 quanta that come together: A B C A B A B A A.
TEST(ComputeEngine, RoundRobinGivesQuantaInTurn) {
  Rig rig({.sharing = Sharing::kRoundRobin, .quantum_ns = 10});
  rig.At(0, 1, 50);
  rig.At(0, 2, 30);
  rig.At(0, 3, 10);
  rig.simulation.Run();
  EXPECT_THAT(rig.sink.ends, ElementsAre(Pair(1, 90), Pair(2, 70), Pair(3, 30)));
}

TEST(ComputeEngine, RoundRobinOfEqualJobsEndsThemOneQuantumApart) {
  constexpr int64_t kQuantum = 7, kRounds = 9;
  constexpr int kJobs = 5;
  Rig rig({.sharing = Sharing::kRoundRobin, .quantum_ns = kQuantum});
  for (int job = 0; job < kJobs; ++job) rig.At(0, job, kQuantum * kRounds);
  rig.simulation.Run();
  for (int job = 0; job < kJobs; ++job) {
    EXPECT_EQ(rig.sink.ends[static_cast<uint64_t>(job)], kQuantum * ((kRounds - 1) * kJobs + job + 1)) << job;
  }
}

TEST(ComputeEngine, RoundRobinRunsAJobAloneUntilItsQuantumEndsAfterAnotherCame) {
  Rig rig({.sharing = Sharing::kRoundRobin, .quantum_ns = 10});
  rig.At(0, 1, 100);  // alone; its quantum was renewed at 10 and 20
  rig.At(25, 2, 15);  // waits until 30: 30..40, 50..55
  rig.simulation.Run();
  EXPECT_EQ(rig.sink.ends[2], 55);
  EXPECT_EQ(rig.sink.ends[1], 115);
}

TEST(ComputeEngine, RoundRobinDividesAmongJobsNotTasks) {
  Rig rig({.sharing = Sharing::kRoundRobin, .quantum_ns = 10});
  for (uint64_t task = 0; task < 4; ++task) rig.At(0, 1, 10, 10 + task);
  rig.At(0, 2, 40, 20);
  rig.simulation.Run();
  EXPECT_THAT(rig.sink.ends, ElementsAre(Pair(10, 10), Pair(11, 30), Pair(12, 50), Pair(13, 70), Pair(20, 80)));
}

TEST(ComputeEngine, ShortestRemainingPreempts) {
  Rig rig({.sharing = Sharing::kShortestRemaining});
  rig.At(0, 1, 100);
  rig.At(10, 2, 50);  // 50 < 90: 10..20, 25..65
  rig.At(20, 3, 5);   // 5 < 40
  rig.At(30, 4, 60);  // 60 > 35, and less than the 90 of job 1
  rig.simulation.Run();
  EXPECT_THAT(rig.sink.ends, ElementsAre(Pair(1, 215), Pair(2, 65), Pair(3, 25), Pair(4, 125)));
  EXPECT_EQ(rig.engine->busy_ns(), 215);
}

TEST(ComputeEngine, ShortestRemainingGoesByWhatAJobSaysItHasLeft) {
  Rig rig({.sharing = Sharing::kShortestRemaining});
  rig.engine->SetRemaining(1, 1000);
  rig.engine->SetRemaining(2, 200);
  rig.At(0, 1, 10, 1);
  rig.At(5, 2, 100, 2);  // a longer task of the shorter job
  rig.simulation.Run();
  EXPECT_EQ(rig.sink.ends[2], 105);
  EXPECT_EQ(rig.sink.ends[1], 110);
}

TEST(ComputeEngine, SwitchingBetweenJobsCosts) {
  Rig rig({.sharing = Sharing::kRoundRobin, .quantum_ns = 10, .switch_ns = 1});
  rig.At(0, 1, 20);
  rig.At(0, 2, 20);
  rig.simulation.Run();
  EXPECT_EQ(rig.sink.ends[1], 32);  // 0..10, 11..21, 22..32, 33..43
  EXPECT_EQ(rig.sink.ends[2], 43);
  EXPECT_EQ(rig.engine->switches(), 3);
  EXPECT_EQ(rig.engine->busy_ns(), 40);
}

TEST(ComputeEngine, ShortestRemainingMinimisesTheMeanCompletionTime) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    double mean[3] = {0, 0, 0};
    int64_t last[3] = {0, 0, 0};
    for (const Sharing sharing : {Sharing::kFifo, Sharing::kRoundRobin, Sharing::kShortestRemaining}) {
      std::mt19937 random(seed);
      Rig rig({.sharing = sharing, .quantum_ns = 50});
      for (int job = 0; job < 30; ++job) rig.At(random() % 2000, job, 1 + random() % 300);
      rig.simulation.Run();
      ASSERT_EQ(rig.sink.ends.size(), 30u);
      for (const auto& [job, end] : rig.sink.ends) {
        mean[static_cast<int>(sharing)] += static_cast<double>(end) / 30;
        last[static_cast<int>(sharing)] = std::max(last[static_cast<int>(sharing)], end);
      }
    }
    EXPECT_LE(mean[2], mean[0]);
    EXPECT_LE(mean[2], mean[1]);
    EXPECT_EQ(last[0], last[1]) << "no policy leaves the engine idle";
    EXPECT_EQ(last[0], last[2]);
  }
}

TEST(ComputeEngine, TaskThatWasNoticedLateBeginsWhenItWasReady) {
  Rig rig({.sharing = Sharing::kFifo});
  rig.simulation.Schedule(100, rig.actor, [&] { rig.engine->Submit(1, 1, 50, 90); });
  rig.simulation.Schedule(200, rig.actor, [&] { rig.engine->Submit(1, 2, 50, 120); });  // the engine was busy until 140
  rig.simulation.Run();
  EXPECT_THAT(rig.sink.ends, ElementsAre(Pair(1, 140), Pair(2, 190)));
  EXPECT_THAT(rig.sink.starts, ElementsAre(Pair(1, 90), Pair(2, 140)));
}

TEST(Sharing, IsReadByName) {
  EXPECT_EQ(ParseSharing("round-robin").value(), Sharing::kRoundRobin);
  EXPECT_THAT(MessageOf(ParseSharing("lottery").status()),
              ::testing::HasSubstr("'lottery'; allowed: fifo, round-robin, shortest-remaining"));
}

}  // namespace
}  // namespace tidepool::device::emulated
