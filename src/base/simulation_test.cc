#include "base/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

namespace tidepool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Outcome = Simulation::Outcome;

TEST(Simulation, RunsByTimeThenActorThenOrderOfScheduling) {
  Simulation simulation;
  const auto a = simulation.AddActor("a"), b = simulation.AddActor("b");
  std::vector<int> seen;
  simulation.Schedule(20, b, [&] { seen.push_back(5); });
  simulation.Schedule(10, b, [&] { seen.push_back(3); });
  simulation.Schedule(10, b, [&] { seen.push_back(4); });
  simulation.Schedule(10, a, [&] { seen.push_back(1); });
  simulation.Schedule(10, a, [&] { seen.push_back(2); });
  EXPECT_EQ(simulation.pending(), 5);
  EXPECT_EQ(simulation.Run(), Outcome::kIdle);
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_EQ(simulation.now_ns(), 20);
  EXPECT_EQ(simulation.events_run(), 5);
  EXPECT_EQ(simulation.pending(), 0);
}

TEST(Simulation, OrderIsThatOfASortForRandomEventsWithCancellations) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::mt19937_64 random(seed);
    Simulation simulation;
    for (int i = 0; i < 8; ++i) simulation.AddActor("x");
    using Key = std::tuple<int64_t, uint32_t, int>;
    std::vector<Key> expected, seen;
    std::vector<std::pair<Key, Simulation::EventId>> open;
    for (int i = 0; i < 2000; ++i) {
      const Key key(static_cast<int64_t>(random() % 300), static_cast<uint32_t>(random() % 8), i);
      open.emplace_back(key, simulation.Schedule(std::get<0>(key), std::get<1>(key), [&seen, key] { seen.push_back(key); }));
      if (random() % 3 == 0) {
        const size_t victim = random() % open.size();
        EXPECT_TRUE(simulation.Cancel(open[victim].second));
        EXPECT_FALSE(simulation.Cancel(open[victim].second));
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(victim));
      }
    }
    // Nearly everything goes, so that the heap is compacted.
    while (open.size() > 200 && seed % 2 == 0) {
      EXPECT_TRUE(simulation.Cancel(open.back().second));
      open.pop_back();
    }
    EXPECT_EQ(simulation.pending(), static_cast<int64_t>(open.size()));
    for (const auto& [key, id] : open) expected.push_back(key);
    std::sort(expected.begin(), expected.end());
    simulation.Run();
    ASSERT_EQ(seen, expected) << "seed " << seed;
    for (const auto& [key, id] : open) EXPECT_FALSE(simulation.Cancel(id));
  }
}

TEST(Simulation, CallbackSchedulesAtItsOwnTimeAndCannotCancelItself) {
  Simulation simulation;
  const auto a = simulation.AddActor("a");
  int runs = 0;
  bool cancelled = true;
  Simulation::EventId self;
  self = simulation.Schedule(5, a, [&] {
    cancelled = simulation.Cancel(self);
    simulation.ScheduleAfter(0, a, [&] { ++runs; });
  });
  simulation.Run();
  EXPECT_FALSE(cancelled);
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(simulation.now_ns(), 5);
}

TEST(Simulation, StopsAtADeadlineAtACountAndWhenAsked) {
  Simulation simulation({.start_ns = 100});
  const auto a = simulation.AddActor("a");
  int runs = 0;
  for (int64_t at = 110; at <= 150; at += 10) simulation.Schedule(at, a, [&] { ++runs; });
  EXPECT_EQ(simulation.Run(125), Outcome::kDeadline);
  EXPECT_EQ(simulation.now_ns(), 125);
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(simulation.Run(Simulation::kNever, 1), Outcome::kEvents);
  EXPECT_EQ(runs, 3);
  simulation.Schedule(135, a, [&] { simulation.Stop(); });
  EXPECT_EQ(simulation.Run(), Outcome::kStopped);
  EXPECT_EQ(simulation.now_ns(), 135);
  EXPECT_EQ(simulation.NextEventNs(), 140);
  EXPECT_EQ(simulation.Run(), Outcome::kIdle);
  EXPECT_EQ(runs, 5);
}

TEST(Simulation, TimesBeyondTheRangeNeverCome) {
  Simulation simulation({.start_ns = 10});
  const auto a = simulation.AddActor("a");
  bool ran = false;
  simulation.ScheduleAfter(Simulation::kNever - 5, a, [&] { ran = true; });
  EXPECT_EQ(simulation.Run(), Outcome::kIdle);
  EXPECT_FALSE(ran);
  EXPECT_EQ(simulation.now_ns(), 10);
}

TEST(Simulation, DestroysWhatItHoldsExactlyOnce) {
  auto counted = std::make_shared<int>(0);
  {
    Simulation simulation;
    const auto a = simulation.AddActor("a");
    std::array<char, 200> large{};
    simulation.Schedule(1, a, [counted] { ++*counted; });
    simulation.Schedule(1, a, [counted, large] { *counted += 1 + large[0]; });
    const auto dropped = simulation.Schedule(2, a, [counted] { *counted += 100; });
    const auto dropped_large = simulation.Schedule(2, a, [counted, large] { *counted += 100 + large[0]; });
    simulation.Schedule(1000, a, [counted] { *counted += 100; });
    simulation.Schedule(1000, a, [counted, large] { *counted += 100 + large[0]; });
    EXPECT_EQ(counted.use_count(), 7);
    simulation.Cancel(dropped);
    simulation.Cancel(dropped_large);
    EXPECT_EQ(counted.use_count(), 5);
    simulation.Run(10);
    EXPECT_EQ(counted.use_count(), 3);
    EXPECT_EQ(*counted, 2);
  }
  EXPECT_EQ(counted.use_count(), 1);
}

// A little model whose course depends on the random numbers of its actors.
uint64_t HashOfARun(uint64_t seed, uint32_t kind) {
  Simulation simulation({.seed = seed});
  struct Walker {
    Simulation* simulation;
    Simulation::ActorId id;
    std::mt19937_64 random;
    uint32_t kind;
    void Step() {
      if (simulation->now_ns() > 100'000) return;
      simulation->ScheduleAfter(
          static_cast<int64_t>(random() % 1000), id, [this] { Step(); }, kind);
    }
  };
  std::vector<std::unique_ptr<Walker>> walkers;
  for (int i = 0; i < 10; ++i) {
    const auto id = simulation.AddActor("walker");
    walkers.push_back(std::make_unique<Walker>(Walker{&simulation, id, std::mt19937_64(simulation.SeedOf(id)), kind}));
    walkers.back()->Step();
  }
  simulation.Run();
  EXPECT_GT(simulation.events_run(), 1000);
  return simulation.hash();
}

TEST(Simulation, HashIsThatOfTheSeed) {
  EXPECT_EQ(HashOfARun(1, 0), HashOfARun(1, 0));
  EXPECT_NE(HashOfARun(1, 0), HashOfARun(2, 0));
  EXPECT_NE(HashOfARun(1, 0), HashOfARun(1, 1));
}

TEST(Simulation, ClockRunsTheSimulationForWhoWaitsInIt) {
  Simulation simulation({.start_ns = 1000});
  Clock* clock = simulation.clock();
  const auto a = simulation.AddActor("a");
  EXPECT_EQ(clock->Now(), absl::FromUnixNanos(1000));
  int runs = 0;
  for (int64_t at = 2000; at <= 6000; at += 1000) simulation.Schedule(at, a, [&] { ++runs; });
  clock->SleepUntil(absl::FromUnixNanos(2500));
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(simulation.now_ns(), 2500);
  absl::Mutex mu;
  absl::MutexLock lock(&mu);
  EXPECT_TRUE(clock->Await(
      &mu, [&] { return runs == 3; }, absl::InfiniteFuture()));
  EXPECT_EQ(simulation.now_ns(), 4000);
  EXPECT_FALSE(clock->Await(
      &mu, [&] { return runs == 5; }, absl::FromUnixNanos(5500)));
  EXPECT_EQ(simulation.now_ns(), 5500);
  // Without a deadline, a condition that no event can make true ends the wait too.
  EXPECT_FALSE(clock->Await(
      &mu, [&] { return runs == 99; }, absl::InfiniteFuture()));
  EXPECT_EQ(runs, 5);
  clock->SleepFor(absl::Nanoseconds(7));
  EXPECT_EQ(simulation.now_ns(), 6007);
}

TEST(Simulation, DeadlockReportNamesWhoWaitsForWhatAndTheCycle) {
  Simulation simulation;
  const auto loader = simulation.AddActor("loader"), cache = simulation.AddActor("cache"), disk = simulation.AddActor("disk"),
             trainer = simulation.AddActor("trainer");
  EXPECT_TRUE(simulation.CheckDeadlock().ok());
  const auto served = simulation.BeginWait(disk, "a request");
  simulation.Schedule(30, loader, [&] {
    simulation.BeginWait(trainer, "a batch", loader);
    simulation.BeginWait(loader, "a free buffer", cache);
    simulation.BeginWait(cache, "an eviction", loader);
    simulation.EndWait(served);
  });
  EXPECT_TRUE(simulation.CheckDeadlock().ok()) << "an event is still to come";
  simulation.Run();
  const Status status = simulation.CheckDeadlock();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(status), HasSubstr("deadlock at 30 ns"));
  EXPECT_THAT(MessageOf(status), HasSubstr("'trainer' waits for a batch of 'loader' since 30 ns"));
  EXPECT_THAT(MessageOf(status), HasSubstr("they wait for each other: "));
  EXPECT_THAT(MessageOf(status), testing::Not(HasSubstr("'disk'")));
}

TEST(SimulationDeathTest, TimeCanBeMovedUpToTheNextEventOnly) {
  Simulation simulation;
  const auto a = simulation.AddActor("a");
  simulation.Schedule(50, a, [] {});
  simulation.AdvanceTo(50);
  simulation.AdvanceTo(20);
  EXPECT_EQ(simulation.now_ns(), 50);
  EXPECT_EQ(simulation.events_run(), 0);
  EXPECT_DEATH(simulation.AdvanceTo(51), "time 51 ns lies behind the next event, at 50 ns");
}

TEST(SimulationDeathTest, SchedulingInThePastIsABug) {
  Simulation simulation({.start_ns = 50});
  const auto a = simulation.AddActor("late");
  EXPECT_DEATH(simulation.Schedule(49, a, [] {}), "event of 'late' at 49 ns; the time is 50 ns");
}

TEST(SimulationDeathTest, WaitingInsideACallbackIsABug) {
  Simulation simulation;
  simulation.Schedule(1, simulation.AddActor("a"), [&] { simulation.clock()->SleepFor(absl::Seconds(1)); });
  EXPECT_DEATH(simulation.Run(), "must not run or wait");
}

}  // namespace
}  // namespace tidepool
