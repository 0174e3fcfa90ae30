#include "device/emulated/emulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <vector>

#include "device/emulated/testing.h"

namespace tidepool::device::emulated {
namespace {

using profile::CollectiveKind;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMs = 1'000'000;

// Devices with planted costs, and streams whose commands end into a log.
class EmulationTest : public ::testing::Test, public EmulationSink {
 protected:
  EmulationTest() {
    costs_.ops["a"] = {.median_ns = 10 * kMs};
    costs_.ops["b"] = {.median_ns = 4 * kMs};
    costs_.ops["guess"] = {.median_ns = kMs, .origin = profile::Origin::kEstimated};
    costs_.ops["warm"] = {.median_ns = 2 * kMs, .first_ns = 50 * kMs};
    costs_.ops["noisy"] = {.median_ns = 1000 * kMs, .p10_ns = 900 * kMs, .p90_ns = 1200 * kMs};
  }
  void Make(EmulationOptions options, uint64_t seed = 0) {
    emulation_.reset();
    simulation_ = std::make_unique<Simulation>(Simulation::Options{.seed = seed});
    auto made = Emulation::Create(simulation_.get(), &costs_, options);
    ASSERT_TRUE(made.ok()) << ToString(made.status());
    emulation_ = std::move(*made);
    ends_.clear();
  }
  StreamId NewStream(int32_t device = 0, int32_t job = 0) {
    return emulation_->AddStream(device, job, fmt::format("s{}", device), this);
  }

  void Launch(StreamId stream, const std::string& op, bool has_work = false) {
    Submit(stream,
           {.type = Command::Type::kLaunch, .has_work = has_work, .time = emulation_->Intern({.key = {.model = op}}).value()});
  }
  void Copy(StreamId stream, EngineKind engine, double bytes, int32_t peer = 0, bool pinned = true) {
    Submit(stream, {.type = Command::Type::kCopy, .pinned = pinned, .engine = engine, .peer = peer, .bytes = bytes});
  }
  void Collect(StreamId stream, double bytes, int32_t ranks, const std::string& group = "g",
               CollectiveKind kind = CollectiveKind::kAllReduce) {
    Submit(stream, {.type = Command::Type::kCollective,
                    .collective = kind,
                    .ranks = ranks,
                    .group = emulation_->GroupOf(group).value(),
                    .bytes = bytes});
  }
  std::shared_ptr<TimelinePoint> Record(StreamId stream) {
    auto point = std::make_shared<TimelinePoint>();
    Submit(stream, {.type = Command::Type::kRecord, .point = point});
    return point;
  }
  void Wait(StreamId stream, std::shared_ptr<TimelinePoint> point) {
    Submit(stream, {.type = Command::Type::kWait, .point = std::move(point)});
  }
  void Submit(StreamId stream, Command command) {
    command.submit_ns = submit_ns_ >= 0 ? submit_ns_ : simulation_->now_ns();
    ASSERT_TRUE(emulation_->Check(stream, command).ok());
    emulation_->Submit(stream, std::move(command));
  }

  void WorkBegins(StreamId stream, uint64_t) override { working_.push_back(stream); }
  void Ended(StreamId stream, uint64_t, int64_t, int64_t end_ns, const Status& status) override {
    ends_[stream].push_back(end_ns);
    if (!status.ok()) failures_.push_back(MessageOf(status));
  }

  testing::PlantedCosts costs_;
  std::unique_ptr<Simulation> simulation_;
  std::unique_ptr<Emulation> emulation_;
  std::map<StreamId, std::vector<int64_t>> ends_;
  std::vector<StreamId> working_;
  std::vector<std::string> failures_;
  int64_t submit_ns_ = -1;
};

TEST_F(EmulationTest, StreamRunsInOrderAndStreamsShareTheEngine) {
  Make({});
  const StreamId first = NewStream(), second = NewStream();
  Launch(first, "a");
  Launch(first, "b");
  Launch(second, "b");
  simulation_->Run();
  EXPECT_THAT(ends_[first], ElementsAre(10 * kMs, 18 * kMs));  // the other stream came first to the queue of the engine
  EXPECT_THAT(ends_[second], ElementsAre(14 * kMs));
  EXPECT_EQ(emulation_->BusyNs(0, EngineKind::kCompute), 18 * kMs);
  EXPECT_EQ(emulation_->operations(0), 3);
}

TEST_F(EmulationTest, CopiesAndComputeOverlapAndEachCopyEngineRunsOneCopy) {
  Make({});
  const StreamId compute = NewStream(), in = NewStream(), in2 = NewStream(), out = NewStream();
  Launch(compute, "a");
  Copy(in, EngineKind::kHostToDevice, 3e6);   // 1 GB/s
  Copy(in2, EngineKind::kHostToDevice, 2e6);  // waits for the engine, does not share the link
  Copy(out, EngineKind::kDeviceToHost, 8e6);  // 2 GB/s
  simulation_->Run();
  EXPECT_THAT(ends_[compute], ElementsAre(10 * kMs));
  EXPECT_THAT(ends_[in], ElementsAre(3 * kMs));
  EXPECT_THAT(ends_[in2], ElementsAre(5 * kMs));
  EXPECT_THAT(ends_[out], ElementsAre(4 * kMs));
  EXPECT_EQ(emulation_->BusyNs(0, EngineKind::kHostToDevice), 5 * kMs);
}

TEST_F(EmulationTest, PageableCopiesAndLatencyTakeTheirTime) {
  costs_.links[{profile::LinkKind::kHostToDevice, true}].latency_ns = 7000;
  Make({});
  const StreamId stream = NewStream();
  Copy(stream, EngineKind::kHostToDevice, 1e6, 0, false);
  Copy(stream, EngineKind::kHostToDevice, 0);
  simulation_->Run();
  EXPECT_THAT(ends_[stream], ElementsAre(2 * kMs + 7000, 2 * kMs + 14000));
}

TEST_F(EmulationTest, StreamWaitsForThePointOfAnother) {
  Make({});
  const StreamId first = NewStream(), second = NewStream();
  Launch(first, "a");
  const auto point = Record(first);
  Copy(second, EngineKind::kHostToDevice, 1e6);
  Wait(second, point);
  Copy(second, EngineKind::kHostToDevice, 1e6);
  simulation_->Run();
  EXPECT_THAT(ends_[second], ElementsAre(kMs, 10 * kMs, 11 * kMs));
  EXPECT_TRUE(point->reached);
  EXPECT_EQ(point->at_ns, 10 * kMs);
  Wait(first, point);  // long ago: no time
  simulation_->Run();
  EXPECT_EQ(ends_[first].back(), 11 * kMs) << "when it was submitted";
}

TEST_F(EmulationTest, DoubleBufferedTrainingHidesTheCopy) {
  Make({});
  const StreamId in = NewStream(), compute = NewStream();
  for (int step = 0; step < 100; ++step) {
    Copy(in, EngineKind::kHostToDevice, 3e6);
    Wait(compute, Record(in));
    Launch(compute, "a");
  }
  simulation_->Run();
  EXPECT_EQ(ends_[compute].back(), 3 * kMs + 100 * 10 * kMs);
}

TEST_F(EmulationTest, DevicesBehindOneSwitchShareIt) {
  Make({.topology = {.devices_per_node = 4, .devices_per_switch = 2}});
  std::vector<StreamId> streams;
  for (int32_t device = 0; device < 3; ++device) {
    streams.push_back(NewStream(device));
    Copy(streams.back(), EngineKind::kHostToDevice, 1e6);
  }
  simulation_->Run();
  EXPECT_THAT(ends_[streams[0]], ElementsAre(2 * kMs));
  EXPECT_THAT(ends_[streams[1]], ElementsAre(2 * kMs));
  EXPECT_THAT(ends_[streams[2]], ElementsAre(kMs)) << "alone behind its switch";
}

TEST_F(EmulationTest, PeerCopiesIntoOneDeviceShareItsPort) {
  Make({.topology = {.devices_per_node = 3}});
  const StreamId a = NewStream(0), b = NewStream(1);
  Copy(a, EngineKind::kPeer, 10e6, 2);  // 10 GB/s per port
  Copy(b, EngineKind::kPeer, 10e6, 2);
  simulation_->Run();
  EXPECT_THAT(ends_[a], ElementsAre(2 * kMs));
  EXPECT_THAT(ends_[b], ElementsAre(2 * kMs));
}

TEST_F(EmulationTest, CollectiveBeginsWithTheLastRankAndTakesItsClosedForm) {
  Make({.topology = {.devices_per_node = 4}, .algorithm = CollectiveAlgorithm::kRing});
  std::vector<StreamId> ranks;
  for (int32_t device = 0; device < 4; ++device) {
    ranks.push_back(NewStream(device));
    Launch(ranks.back(), device == 2 ? "a" : "b");
    Collect(ranks.back(), 40e6, 4);  // 2 * 3/4 * 40 MB / 10 GB/s = 6 ms
    Launch(ranks.back(), "b");
  }
  simulation_->Run();
  for (const StreamId rank : ranks) EXPECT_THAT(ends_[rank], ElementsAre(::testing::_, 16 * kMs, 20 * kMs));
}

TEST_F(EmulationTest, TreeRunsItsRoundsOneAfterTheOther) {
  costs_.links[{profile::LinkKind::kPeer, true}].latency_ns = 1000;
  Make({.topology = {.devices_per_node = 4}, .algorithm = CollectiveAlgorithm::kTree});
  StreamId last = 0;
  for (int32_t device = 0; device < 4; ++device) {
    last = NewStream(device);
    Collect(last, 10e6, 4);
  }
  simulation_->Run();
  EXPECT_THAT(ends_[last], ElementsAre(4 * (kMs + 1000)));
}

TEST_F(EmulationTest, CollectivesAcrossNodesAreAsFastAsTheirSlowestLink) {
  Make({.topology = {.nodes = 2, .devices_per_node = 2}, .algorithm = CollectiveAlgorithm::kRing});
  StreamId last = 0;
  for (int32_t device = 0; device < 4; ++device) {
    last = NewStream(device);
    Collect(last, 4e6, 4);  // 6 MB per device over 1 GB/s
  }
  simulation_->Run();
  EXPECT_THAT(ends_[last], ElementsAre(6 * kMs));
}

TEST_F(EmulationTest, TwoCollectivesShareTheLinksAndRoundsOfOneGroupFollowEachOther) {
  Make({.topology = {.devices_per_node = 2}, .algorithm = CollectiveAlgorithm::kRing});
  const StreamId a0 = NewStream(0), a1 = NewStream(1), b0 = NewStream(0), b1 = NewStream(1);
  for (int round = 0; round < 2; ++round) {
    Collect(a0, 10e6, 2, "a");
    Collect(a1, 10e6, 2, "a");
  }
  Collect(b0, 20e6, 2, "b");
  Collect(b1, 20e6, 2, "b");
  simulation_->Run();
  EXPECT_THAT(ends_[a0], ElementsAre(2 * kMs, 4 * kMs));
  EXPECT_THAT(ends_[b0], ElementsAre(4 * kMs));
}

TEST_F(EmulationTest, RanksThatDoNotAgreeFailAllOfThem) {
  Make({.topology = {.devices_per_node = 2}});
  const StreamId a = NewStream(0), b = NewStream(1), c = NewStream(0);
  Collect(a, 10, 2);
  Collect(b, 11, 2);
  simulation_->Run();
  ASSERT_EQ(failures_.size(), 2u);
  EXPECT_THAT(failures_[0],
              HasSubstr("the ranks of a collective do not agree: all-reduce of 10 bytes on 2 ranks, and all-reduce of 11 bytes"));
  failures_.clear();
  Collect(a, 10, 2);
  Collect(c, 10, 2);
  simulation_->Run();
  ASSERT_EQ(failures_.size(), 2u);
  EXPECT_THAT(failures_[1], HasSubstr("device 0 takes part in a collective twice"));
  Collect(a, 10, 2);
  Collect(b, 10, 2);
  simulation_->Run();
  EXPECT_EQ(failures_.size(), 2u) << "the group works again";
}

TEST_F(EmulationTest, RankThatLeavesBeforeTheOthersCameIsNotCounted) {
  Make({.topology = {.devices_per_node = 2}, .algorithm = CollectiveAlgorithm::kRing});
  const StreamId gone = NewStream(0), b = NewStream(1);
  Collect(gone, 10e6, 2);
  emulation_->RemoveStream(gone);
  Collect(b, 10e6, 2);
  simulation_->Run();
  EXPECT_TRUE(ends_[b].empty()) << "one rank of two is there";
  const StreamId a = NewStream(0);
  Collect(a, 10e6, 2);
  simulation_->Run();
  EXPECT_THAT(ends_[b], ElementsAre(kMs));
  EXPECT_THAT(failures_, ::testing::IsEmpty());
}

TEST_F(EmulationTest, GroupsHaveALimit) {
  Make({});
  Status status;
  for (int i = 0; i <= 1 << 16 && status.ok(); ++i) status = emulation_->GroupOf(std::to_string(i)).status();
  EXPECT_THAT(MessageOf(status), HasSubstr("met 65536 groups of collectives; allowed: 65536"));
  EXPECT_EQ(emulation_->GroupOf("7").value(), 7) << "known names go on";
}

TEST_F(EmulationTest, WorkDelaysTheEndOfACommandButNotTheTimeline) {
  Make({});
  const StreamId stream = NewStream();
  Launch(stream, "b", true);
  Launch(stream, "b", true);
  simulation_->Run();
  EXPECT_THAT(working_, ElementsAre(stream));
  EXPECT_TRUE(ends_[stream].empty()) << "the work is not done";
  simulation_->clock()->SleepUntil(absl::FromUnixNanos(100 * kMs));
  emulation_->WorkDone(stream, 96 * kMs);
  EXPECT_THAT(ends_[stream], ElementsAre(4 * kMs));
  EXPECT_EQ(emulation_->overrun_ns(0), 92 * kMs);
  emulation_->WorkDone(stream, 0);  // before the engine is done
  simulation_->Run();
  EXPECT_THAT(ends_[stream], ElementsAre(4 * kMs, 8 * kMs)) << "the second follows the first on the timeline";
}

TEST_F(EmulationTest, HostWorkTakesTheTimeThatItTook) {
  Make({});
  const StreamId stream = NewStream();
  Submit(stream, {.type = Command::Type::kHost, .has_work = true});
  Launch(stream, "b");
  emulation_->WorkDone(stream, 3 * kMs);
  simulation_->Run();
  EXPECT_THAT(ends_[stream], ElementsAre(3 * kMs, 7 * kMs));
}

TEST_F(EmulationTest, WhatIsSubmittedLateCountsFromTheMomentItBelongsTo) {
  Make({});
  const StreamId stream = NewStream(), other = NewStream();
  for (int step = 0; step < 1000; ++step) {
    // Real time is noticed 7 ms late at each step; the steps still follow each other without a gap.
    simulation_->clock()->SleepUntil(absl::FromUnixNanos((step + 1) * 4 * kMs + 3 * kMs));
    submit_ns_ = step * 4 * kMs;
    Launch(stream, "b");
    Copy(other, EngineKind::kHostToDevice, 1e6);
  }
  simulation_->Run();
  EXPECT_EQ(ends_[stream].back(), 1000 * 4 * kMs);
  EXPECT_EQ(ends_[other].back(), 999 * 4 * kMs + kMs);
}

TEST_F(EmulationTest, FirstRunIsSlowerPerDeviceWhereWarmUpIsWanted) {
  for (const bool warm_up : {false, true}) {
    Make({.topology = {.devices_per_node = 2}, .warm_up = warm_up});
    const StreamId a = NewStream(0), b = NewStream(1);
    Launch(a, "warm");
    Launch(a, "warm");
    Launch(b, "warm");
    simulation_->Run();
    const int64_t first = warm_up ? 50 * kMs : 2 * kMs;
    EXPECT_THAT(ends_[a], ElementsAre(first, first + 2 * kMs));
    EXPECT_THAT(ends_[b], ElementsAre(first));
  }
}

TEST_F(EmulationTest, EstimatesAreCounted) {
  Make({});
  const StreamId stream = NewStream();
  Launch(stream, "guess");
  Launch(stream, "a");
  simulation_->Run();
  EXPECT_EQ(emulation_->estimated_operations(0), 1);
  EXPECT_EQ(emulation_->Intern({.key = {.model = "nothing"}}).status().code(), StatusCode::kNotFound);
}

TEST_F(EmulationTest, JobsShareTheComputeEngineInTurn) {
  Make({.sharing = Sharing::kRoundRobin, .quantum_ns = kMs});
  const StreamId a = NewStream(0, 1), b = NewStream(0, 2);
  Launch(a, "a");
  Launch(b, "b");
  simulation_->Run();
  EXPECT_THAT(ends_[b], ElementsAre(8 * kMs));
  EXPECT_THAT(ends_[a], ElementsAre(14 * kMs));
}

TEST_F(EmulationTest, RemovedStreamIsHeardOfNoMoreAndOthersGoOn) {
  Make({});
  const StreamId gone = NewStream(), other = NewStream();
  Launch(gone, "a");
  Launch(gone, "a");
  Copy(other, EngineKind::kHostToDevice, 1e6);
  Launch(other, "b");
  simulation_->Run(kMs);
  emulation_->RemoveStream(gone);
  const StreamId reused = NewStream();
  EXPECT_EQ(reused, gone);
  Launch(reused, "b");
  simulation_->Run();
  EXPECT_THAT(ends_[other], ElementsAre(kMs, 14 * kMs)) << "what ran when the stream ended still ends";
  EXPECT_THAT(ends_[reused], ElementsAre(18 * kMs));
}

TEST_F(EmulationTest, CommandsThatCanNeverRunAreRefused) {
  Make({.topology = {.devices_per_node = 2}});
  const StreamId stream = NewStream(1);
  const auto message = [&](const Command& command) { return MessageOf(emulation_->Check(stream, command)); };
  EXPECT_THAT(message({.type = Command::Type::kCopy, .bytes = -1}), HasSubstr("-1 bytes; allowed: 0 or more"));
  EXPECT_THAT(message({.type = Command::Type::kCopy, .engine = EngineKind::kPeer, .peer = 1}),
              HasSubstr("a copy to device 1; allowed: another one of 0 to 1"));
  EXPECT_THAT(message({.type = Command::Type::kCopy, .engine = EngineKind::kPeer, .peer = 2}), HasSubstr("a copy to device 2"));
  EXPECT_THAT(message({.type = Command::Type::kCollective, .ranks = 3}), HasSubstr("a collective of 3 ranks; allowed: 1 to 2"));
}

TEST_F(EmulationTest, DeadlockReportNamesTheStreamsThatWait) {
  Make({.topology = {.devices_per_node = 2}});
  const StreamId a = NewStream(0), b = NewStream(1);
  Collect(a, 10, 2);
  Wait(b, std::make_shared<TimelinePoint>());
  simulation_->Run();
  const Status status = simulation_->CheckDeadlock();
  EXPECT_THAT(MessageOf(status), HasSubstr("'s0' waits for the other ranks of a collective of group 'g'"));
  EXPECT_THAT(MessageOf(status), HasSubstr("'s1' waits for an event"));
  emulation_->RemoveStream(a);
  emulation_->RemoveStream(b);
  EXPECT_TRUE(simulation_->CheckDeadlock().ok());
}

// A random load on eight devices: every command ends, and a second run of the same seed is the same to the event.
TEST_F(EmulationTest, SameSeedGivesTheSameEventsAndAnotherSeedOthers) {
  const auto run = [this](uint64_t seed, uint64_t load_seed) {
    Make({.topology = {.devices_per_node = 8, .devices_per_switch = 4},
          .sharing = Sharing::kRoundRobin,
          .jitter = Jitter::kLognormal},
         seed);
    std::mt19937 random(load_seed);
    std::vector<StreamId> streams;
    for (int i = 0; i < 16; ++i) streams.push_back(NewStream(i % 8, i / 8));
    std::vector<std::shared_ptr<TimelinePoint>> points;
    size_t commands = 0;
    for (int i = 0; i < 2000; ++i, ++commands) {
      const StreamId stream = streams[random() % streams.size()];
      switch (random() % 6) {
        case 0: Launch(stream, "a"); break;
        case 1: Launch(stream, "noisy"); break;
        case 2: Copy(stream, EngineKind::kHostToDevice, random() % 10'000'000); break;
        case 3:
          Copy(stream, EngineKind::kPeer, random() % 10'000'000, (stream + 1 + static_cast<int32_t>(random() % 7)) % 8);
          break;
        case 4: points.push_back(Record(stream)); break;
        default:
          if (!points.empty())
            Wait(stream, points[random() % points.size()]);
          else
            --commands;
      }
    }
    simulation_->Run();
    size_t ended = 0;
    for (const auto& [stream, ends] : ends_) {
      ended += ends.size();
      EXPECT_TRUE(std::is_sorted(ends.begin(), ends.end()));
    }
    EXPECT_EQ(ended, commands);
    EXPECT_TRUE(simulation_->CheckDeadlock().ok());
    return simulation_->hash();
  };
  for (uint64_t load = 0; load < 5; ++load) {
    const uint64_t hash = run(1, load);
    EXPECT_EQ(run(1, load), hash);
    EXPECT_NE(run(2, load), hash);
  }
}

class JitterTest : public ::testing::Test {
 protected:
  static std::vector<double> Draws(Jitter jitter, const OpTime& time, uint64_t seed = 1) {
    DurationSampler sampler(jitter, seed);
    std::vector<double> draws;
    for (int i = 0; i < 20'000; ++i) draws.push_back(static_cast<double>(sampler.Draw(time)));
    std::sort(draws.begin(), draws.end());
    return draws;
  }
  const OpTime time_{.median_ns = 1'000'000, .p10_ns = 900'000, .p90_ns = 1'200'000};
};

TEST_F(JitterTest, NoneIsTheMedian) {
  const auto draws = Draws(Jitter::kNone, time_);
  EXPECT_EQ(draws.front(), 1e6);
  EXPECT_EQ(draws.back(), 1e6);
}

TEST_F(JitterTest, ResampleHasTheMeasuredQuantiles) {
  const auto draws = Draws(Jitter::kResample, time_);
  EXPECT_NEAR(draws[2000], 0.9e6, 5e3);
  EXPECT_NEAR(draws[10'000], 1e6, 5e3);
  EXPECT_NEAR(draws[18'000], 1.2e6, 1e4);
}

TEST_F(JitterTest, LognormalHasTheMeasuredMedianAndSpread) {
  const auto draws = Draws(Jitter::kLognormal, time_);
  EXPECT_NEAR(draws[10'000], 1e6, 5e3);
  EXPECT_NEAR(draws[18'000] / draws[2000], 1.2 / 0.9, 0.01);
}

TEST_F(JitterTest, SpreadThatWasNotRecordedIsTheUsualOne) {
  const auto draws = Draws(Jitter::kLognormal, {.median_ns = 1'000'000});
  EXPECT_NEAR(draws[18'000] / draws[2000], (1 + kUsualSpread) / (1 - kUsualSpread), 3e-4);
  EXPECT_EQ(Draws(Jitter::kLognormal, time_, 3), Draws(Jitter::kLognormal, time_, 3));
  EXPECT_NE(Draws(Jitter::kLognormal, time_, 3), Draws(Jitter::kLognormal, time_, 4));
}

}  // namespace
}  // namespace tidepool::device::emulated
