#include "base/clock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/testing.h"

namespace tidepool {
namespace {

using ::testing::ElementsAre;

absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

TEST(RealClock, GoesForwardWithTheMonotonicClock) {
  Clock* clock = Clock::Real();
  const int64_t ns = MonotonicNanos();
  const absl::Time before = clock->Now();
  clock->SleepFor(absl::Milliseconds(2));
  EXPECT_GE(clock->Now() - before, absl::Milliseconds(2));
  EXPECT_GE(MonotonicNanos() - ns, 2'000'000);
}

TEST(RealClock, DoesNotWaitForThePast) {
  Clock::Real()->SleepUntil(absl::InfinitePast());
  Clock::Real()->SleepUntil(absl::UnixEpoch());
  absl::Mutex mu;
  absl::MutexLock lock(&mu);
  EXPECT_FALSE(Clock::Real()->Await(
      &mu, [] { return false; }, absl::InfinitePast()));
  EXPECT_TRUE(Clock::Real()->Await(
      &mu, [] { return true; }, absl::InfinitePast()));
}

TEST(RealClock, SeesAConditionThatAnotherThreadMakesTrue) {
  absl::Mutex mu;
  bool ready = false;
  std::thread other([&] {
    absl::MutexLock lock(&mu);
    ready = true;
  });
  {
    absl::MutexLock lock(&mu);
    EXPECT_TRUE(Clock::Real()->Await(
        &mu, [&] { return ready; }, absl::InfiniteFuture()));
  }
  other.join();
}

TEST(VirtualClock, StandsStillWithoutActors) {
  VirtualClock clock(At(5));
  EXPECT_EQ(clock.Now(), At(5));
  clock.Advance(absl::Seconds(2));
  EXPECT_EQ(clock.Now(), At(7));
  clock.AdvanceTo(At(1));
  EXPECT_EQ(clock.Now(), At(7));
}

TEST(VirtualClock, JumpsWhenItsOnlyActorSleeps) {
  VirtualClock clock;
  VirtualClock::Actor actor(&clock);
  clock.SleepFor(absl::Hours(1000));
  EXPECT_EQ(clock.Now(), absl::UnixEpoch() + absl::Hours(1000));
  absl::Mutex mu;
  absl::MutexLock lock(&mu);
  EXPECT_FALSE(clock.Await(
      &mu, [] { return false; }, clock.Now() + absl::Hours(1)));
  EXPECT_EQ(clock.Now(), absl::UnixEpoch() + absl::Hours(1001));
}

// Several actors that sleep for different times: every run gives the same moments in the same order.
std::vector<std::string> RunSleepers() {
  VirtualClock clock;
  clock.ExpectActors(3);
  absl::Mutex mu;
  std::vector<std::string> events;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    absl::Mutex start_mu;
    bool registered = false;
    threads.emplace_back([&, i] {
      VirtualClock::Actor actor(&clock);
      {
        absl::MutexLock lock(&start_mu);
        registered = true;
      }
      for (int step = 0; step < 4; ++step) {
        clock.SleepFor(absl::Seconds(i + 1));
        absl::MutexLock lock(&mu);
        events.push_back(fmt::format("{}@{}", i, absl::ToUnixSeconds(clock.Now())));
      }
    });
    absl::MutexLock lock(&start_mu);
    start_mu.Await(absl::Condition(&registered));
  }
  for (std::thread& thread : threads) thread.join();
  return events;
}

TEST(VirtualClock, RunsActorsInOrderOfTimeAndThenOfRegistration) {
  const std::vector<std::string> wanted = {"0@1", "0@2", "1@2", "0@3", "2@3", "0@4", "1@4", "1@6", "2@6", "1@8", "2@9", "2@12"};
  for (int run = 0; run < 50; ++run) ASSERT_EQ(RunSleepers(), wanted) << "run " << run;
}

// A producer and a consumer of a queue: the consumer sees each item at the moment at which it was put there.
TEST(VirtualClock, ShowsAConditionAtTheMomentItBecomesTrue) {
  for (int run = 0; run < 50; ++run) {
    VirtualClock clock;
    clock.ExpectActors(2);
    absl::Mutex mu;
    std::deque<int> queue;
    std::vector<int64_t> seen_at;
    std::thread consumer([&] {
      VirtualClock::Actor actor(&clock);
      for (int i = 0; i < 5; ++i) {
        absl::MutexLock lock(&mu);
        ASSERT_TRUE(clock.Await(
            &mu, [&] { return !queue.empty(); }, absl::InfiniteFuture()));
        queue.pop_front();
        seen_at.push_back(absl::ToUnixSeconds(clock.Now()));
      }
    });
    std::thread producer([&] {
      VirtualClock::Actor actor(&clock);
      for (int i = 1; i <= 5; ++i) {
        clock.SleepUntil(At(i * i));
        absl::MutexLock lock(&mu);
        queue.push_back(i);
      }
    });
    consumer.join();
    producer.join();
    EXPECT_THAT(seen_at, ElementsAre(1, 4, 9, 16, 25));
  }
}

TEST(VirtualClock, EndsAnAwaitAtItsDeadline) {
  VirtualClock clock;
  clock.ExpectActors(2);
  absl::Mutex mu;
  bool ready = false;
  std::thread late([&] {
    VirtualClock::Actor actor(&clock);
    clock.SleepUntil(At(10));
    absl::MutexLock lock(&mu);
    ready = true;
  });
  std::thread waiter([&] {
    VirtualClock::Actor actor(&clock);
    absl::MutexLock lock(&mu);
    EXPECT_FALSE(clock.Await(
        &mu, [&] { return ready; }, At(9)));
    EXPECT_EQ(clock.Now(), At(9));
    EXPECT_TRUE(clock.Await(
        &mu, [&] { return ready; }, At(11)));
    EXPECT_EQ(clock.Now(), At(10));
  });
  late.join();
  waiter.join();
}

TEST(VirtualClock, AThreadOutsideCanEndAWaitWithoutMovingTime) {
  VirtualClock clock;
  absl::Mutex mu;
  bool ready = false;
  std::thread waiter([&] {
    VirtualClock::Actor actor(&clock);
    absl::MutexLock lock(&mu);
    EXPECT_TRUE(clock.Await(
        &mu, [&] { return ready; }, absl::InfiniteFuture()));
  });
  {
    absl::MutexLock lock(&mu);
    ready = true;
  }
  waiter.join();
  EXPECT_EQ(clock.Now(), absl::UnixEpoch());
}

TEST(VirtualClock, AdvancingByHandWakesSleepersAndAwaits) {
  VirtualClock clock;
  absl::Mutex mu;
  std::thread sleeper([&] { clock.SleepUntil(At(5)); });
  std::thread waiter([&] {
    absl::MutexLock lock(&mu);
    EXPECT_FALSE(clock.Await(
        &mu, [] { return false; }, At(5)));
  });
  clock.AdvanceTo(At(5));
  sleeper.join();
  waiter.join();
  EXPECT_EQ(clock.Now(), At(5));
}

TEST(VirtualClock, GoesOnWhenAnActorLeaves) {
  VirtualClock clock;
  clock.ExpectActors(2);
  std::thread sleeper([&] {
    VirtualClock::Actor actor(&clock);
    clock.SleepUntil(At(3));
  });
  { VirtualClock::Actor actor(&clock); }
  sleeper.join();
  EXPECT_EQ(clock.Now(), At(3));
}

// Many actors that wake each other by one condition: nobody is lost, and each hand-over is seen at its own moment.
TEST(VirtualClock, PassesATokenRoundManyActors) {
  constexpr int kActors = 8, kRounds = 40;
  VirtualClock clock;
  clock.ExpectActors(kActors);
  absl::Mutex mu;
  int turn = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kActors; ++i) {
    threads.emplace_back([&, i] {
      VirtualClock::Actor actor(&clock);
      for (int round = 0; round < kRounds; ++round) {
        {
          absl::MutexLock lock(&mu);
          ASSERT_TRUE(clock.Await(
              &mu, [&] { return turn % kActors == i; }, absl::InfiniteFuture()));
          ASSERT_EQ(absl::ToUnixSeconds(clock.Now()), turn);
        }
        clock.SleepFor(absl::Seconds(1));
        absl::MutexLock lock(&mu);
        ++turn;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(turn, kActors * kRounds);
}

}  // namespace
}  // namespace tidepool
