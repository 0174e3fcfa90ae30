#include "device/emulated/driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "device/emulated/emulated_device.h"
#include "device/emulated/testing.h"

namespace tidepool::device::emulated {
namespace {

using ::testing::ElementsAre;

constexpr absl::Duration kStep = absl::Microseconds(300);
constexpr absl::Time kStart = absl::UnixEpoch();

// A virtual clock in which whoever sleeps or waits until a deadline wakes `late` after it, as on a busy machine.
class LateClock final : public Clock {
 public:
  LateClock(VirtualClock* inner, absl::Duration late) : inner_(inner), late_(late) {}
  absl::Time Now() override { return inner_->Now(); }
  void SleepUntil(absl::Time wake) override {
    if (wake > Now()) inner_->SleepUntil(wake + late_);
  }
  bool Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) override {
    if (inner_->Await(mu, condition, deadline)) return true;
    mu->Unlock();
    inner_->SleepUntil(deadline + late_);
    mu->Lock();
    return condition();
  }

 private:
  VirtualClock* const inner_;
  const absl::Duration late_;
};

// One device whose operation "step" takes kStep, in mode=timing, beside a clock that wakes its threads late.
struct Rig {
  explicit Rig(absl::Duration late, const std::string& name = "emulated:planted,mode=timing") : clock(&time, late) {
    auto planted = std::make_shared<testing::PlantedCosts>();
    planted->ops["step"] = {.median_ns = absl::ToInt64Nanoseconds(kStep)};
    auto opened = OpenEmulatedDevices(
        {.name = name, .capacity_bytes = 1 << 21, .clock = late == absl::ZeroDuration() ? static_cast<Clock*>(&time) : &clock},
        planted);
    EXPECT_TRUE(opened.ok()) << ToString(opened.status());
    devices = std::move(*opened);
    stream = std::move(devices[0]->CreateStream({})).value();
  }
  Status Launch() { return stream->Launch({.key = {.model = "step"}}, nullptr); }
  absl::Time LastEnd() {
    auto event = stream->Record();
    EXPECT_TRUE(event.ok() && event->Wait(absl::InfiniteFuture()).ok());
    return event->ReachedAt().value();
  }
  VirtualClock time;
  LateClock clock;
  std::vector<std::unique_ptr<Device>> devices;
  std::unique_ptr<Stream> stream;
};

TEST(Pacing, LatenessNeverAddsUp) {
  Rig rig(absl::Microseconds(80));
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 1000; ++step) {
    ASSERT_TRUE(rig.Launch().ok());
    ASSERT_TRUE(rig.stream->Synchronize(absl::InfiniteFuture()).ok());
  }
  EXPECT_EQ(rig.time.Now() - kStart, 1000 * kStep + absl::Microseconds(80)) << "only the last one is late";
  EXPECT_EQ(rig.LastEnd() - kStart, 1000 * kStep);
  const TimelineReport report = *rig.devices[0]->timeline();
  EXPECT_EQ(report.busy.at(EngineKind::kCompute), 1000 * kStep);
  EXPECT_GE(report.lateness_p50, absl::Microseconds(80));
  EXPECT_LE(report.lateness_p99, absl::Microseconds(90));
  EXPECT_EQ(report.utilisation, 1);
  EXPECT_EQ(report.host_idle, absl::ZeroDuration());
  EXPECT_FALSE(report.host_limited) << report.host_limited_reason;
}

TEST(Pacing, WakingLaterThanAStepIsMadeUpFor) {
  // Each wake-up is longer than three steps, but the thread that wakes finds its next steps over already.
  Rig rig(absl::Microseconds(1000));
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 1000; ++step) {
    ASSERT_TRUE(rig.Launch().ok());
    ASSERT_TRUE(rig.stream->Synchronize(absl::InfiniteFuture()).ok());
  }
  EXPECT_EQ(rig.LastEnd() - kStart, 1000 * kStep);
  EXPECT_LE(rig.time.Now() - kStart, 1000 * kStep + absl::Microseconds(1000));
}

TEST(Pacing, WhatTheHostDoesBetweenStepsIsCharged) {
  Rig rig(absl::Microseconds(80));
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 100; ++step) {
    rig.time.SleepFor(absl::Microseconds(100));
    ASSERT_TRUE(rig.Launch().ok());
    ASSERT_TRUE(rig.stream->Synchronize(absl::InfiniteFuture()).ok());
  }
  EXPECT_EQ(rig.LastEnd() - kStart, 100 * (kStep + absl::Microseconds(100)));
  EXPECT_EQ(rig.devices[0]->timeline()->host_idle, 99 * absl::Microseconds(100));
}

TEST(Pacing, WaitingForDataIsTheStoragesFaultAndHostCodeIsNot) {
  Rig rig(absl::Microseconds(80));
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 100; ++step) {
    const absl::Time begin = rig.devices[0]->HostNow();
    rig.time.SleepFor(absl::Microseconds(100));  // storage
    rig.devices[0]->NoteDataWait(begin, rig.devices[0]->HostNow());
    rig.time.SleepFor(absl::Microseconds(20));  // the host's own code
    ASSERT_TRUE(rig.Launch().ok());
    ASSERT_TRUE(rig.stream->Synchronize(absl::InfiniteFuture()).ok());
  }
  const TimelineReport report = *rig.devices[0]->timeline();
  EXPECT_EQ(report.storage_idle, 99 * absl::Microseconds(100));
  EXPECT_EQ(report.host_idle, 99 * absl::Microseconds(20));
  EXPECT_NEAR(report.utilisation, 30'000.0 / (30'000 + 9900), 1e-9);
}

TEST(Pacing, InfinitelyFastStorageScoresFullHoweverShortTheSteps) {
  Rig rig(absl::Microseconds(80));
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 1000; ++step) {
    const absl::Time begin = rig.devices[0]->HostNow();
    rig.devices[0]->NoteDataWait(begin, rig.devices[0]->HostNow());
    rig.time.SleepFor(absl::Microseconds(30));  // ten per cent of host code
    ASSERT_TRUE(rig.Launch().ok());
    ASSERT_TRUE(rig.stream->Synchronize(absl::InfiniteFuture()).ok());
  }
  EXPECT_EQ(rig.devices[0]->timeline()->utilisation, 1);
  EXPECT_NEAR(absl::ToDoubleSeconds(rig.devices[0]->timeline()->host_idle), 999 * 30e-6, 1e-9);
}

TEST(Pacing, HostThatCannotKeepUpIsNamed) {
  Rig rig(absl::ZeroDuration(), "emulated:planted");
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 20; ++step) {
    const auto work = [&] {
      rig.time.SleepFor(10 * kStep);  // the result takes ten times as long as the device
      return Status();
    };
    ASSERT_TRUE(rig.stream->Launch({.key = {.model = "step"}}, work).ok());
    ASSERT_TRUE(rig.stream->Synchronize(absl::InfiniteFuture()).ok());
  }
  EXPECT_EQ(rig.LastEnd() - kStart, 20 * kStep) << "the timeline is the device's";
  EXPECT_EQ(rig.time.Now() - kStart, 20 * 10 * kStep);
  const TimelineReport report = *rig.devices[0]->timeline();
  EXPECT_TRUE(report.host_limited);
  EXPECT_THAT(report.host_limited_reason, ::testing::HasSubstr("behind the emulated device by"));
  EXPECT_EQ(report.overrun, 20 * 9 * kStep);
  EXPECT_EQ(report.behind_max, 20 * 9 * kStep);
}

// Nobody waits for the device, so nobody is ever behind it; the results are late all the same.
TEST(Pacing, ResultsThatTakeLongerThanTheDeviceAreNamedWhoeverWaits) {
  Rig rig(absl::ZeroDuration(), "emulated:planted");
  const VirtualClock::Actor actor(&rig.time);
  for (int step = 0; step < 20; ++step) {
    const auto work = [&] {
      rig.time.SleepFor(10 * kStep);
      return Status();
    };
    ASSERT_TRUE(rig.stream->Launch({.key = {.model = "step"}}, work).ok());
    rig.time.SleepFor(20 * kStep);
  }
  const TimelineReport report = *rig.devices[0]->timeline();
  EXPECT_EQ(report.behind_max, absl::ZeroDuration());
  EXPECT_EQ(report.overrun, 20 * 9 * kStep);
  EXPECT_TRUE(report.host_limited);
  EXPECT_THAT(report.host_limited_reason, ::testing::HasSubstr("results took longer to compute on this machine"));
}

TEST(Pacing, PinningTakesItsTimeOnceAndKeptBuffersNone) {
  Rig rig(absl::Microseconds(80));
  const VirtualClock::Actor actor(&rig.time);
  const absl::Time begin = rig.devices[0]->HostNow();
  { auto buffer = rig.devices[0]->pinned().Allocate(1'000'000); }  // 1 GB/s is planted
  EXPECT_EQ(rig.devices[0]->HostNow() - begin, absl::Milliseconds(1));
  { auto buffer = rig.devices[0]->pinned().Allocate(1'000'000); }
  EXPECT_EQ(rig.devices[0]->HostNow() - begin, absl::Milliseconds(1));
}

TEST(Pacing, ThreadsThatWaitForDifferentDevicesEachWakeInTime) {
  Rig rig(absl::ZeroDuration(), "emulated:plantedx4,mode=timing");
  // Devices are opened before there are actors; time stands still until all have registered, the driver's own thread among them.
  rig.time.ExpectActors(5);
  std::vector<std::thread> threads;
  std::vector<absl::Duration> took(4);
  for (size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const VirtualClock::Actor actor(&rig.time);
      auto stream = std::move(rig.devices[i]->CreateStream({})).value();
      const absl::Time begin = rig.time.Now();
      for (int step = 0; step < 200; ++step) {
        if (i == 3) rig.time.SleepFor(absl::Microseconds(50));
        EXPECT_TRUE(stream->Launch({.key = {.model = "step"}}, nullptr).ok());
        EXPECT_TRUE(stream->Synchronize(absl::InfiniteFuture()).ok());
      }
      took[i] = rig.time.Now() - begin;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(took, ElementsAre(200 * kStep, 200 * kStep, 200 * kStep, 200 * (kStep + absl::Microseconds(50))));
}

TEST(Pacing, WaitThatCannotEndSaysWhoWaitsForWhat) {
  Rig rig(absl::ZeroDuration(), "emulated:plantedx2,mode=timing");
  const VirtualClock::Actor actor(&rig.time);
  ASSERT_TRUE(rig.stream->Collective({.size_bytes = 1000, .group = "all", .ranks = 2}).ok());
  const Status status = rig.stream->Synchronize(rig.time.Now() + absl::Seconds(5));
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(status),
              ::testing::HasSubstr("1 operations to go; deadlock at 0 ns: nothing is scheduled any more, but 'stream' waits for "
                                   "the other ranks of a collective of group 'all'"));
}

TEST(LatenessHistogram, QuantilesAreRightToOneBucket) {
  LatenessHistogram histogram;
  EXPECT_EQ(histogram.Quantile(0.5), 0);
  for (int64_t i = 1; i <= 100'000; ++i) histogram.Add(i * 1000);
  EXPECT_NEAR(static_cast<double>(histogram.Quantile(0.5)), 50e6, 50e6 * 0.13);
  EXPECT_NEAR(static_cast<double>(histogram.Quantile(0.99)), 99e6, 99e6 * 0.13);
  EXPECT_GE(histogram.Quantile(0.5), 50'000'000);
  EXPECT_EQ(histogram.Quantile(1), 100'000'000);
  EXPECT_EQ(histogram.max_ns(), 100'000'000);
  histogram.Add(-5);
  histogram.Add(INT64_MAX);
  EXPECT_EQ(histogram.max_ns(), INT64_MAX);
}

}  // namespace
}  // namespace tidepool::device::emulated
