#include "device/emulated/emulated_device.h"

#include <unistd.h>

#include <filesystem>
#include <thread>

#include "base/testing.h"
#include "device/device_contract.h"
#include "device/emulated/testing.h"
#include "device/host/host_device.h"
#include "profile/planted.h"

namespace tidepool::device::emulated {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

StatusOr<std::unique_ptr<Device>> OpenIt(const std::string& name, int64_t capacity_bytes, int64_t page_bytes) {
  return OpenDevice({.name = name, .capacity_bytes = capacity_bytes, .page_bytes = page_bytes});
}

// A device as another process has it; the one that made the memory is kept no longer than the descriptor.
StatusOr<std::unique_ptr<Device>> AttachIt(int64_t capacity_bytes, int64_t page_bytes, MappingMode mapping) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto maker, OpenIt("emulated:h200", capacity_bytes, page_bytes));
  return AttachDevice(maker->info(), mapping, UniqueFd(::dup(maker->memory().shared_fd())));
}

std::vector<std::unique_ptr<Device>> OpenPlanted(const std::string& name, std::shared_ptr<testing::PlantedCosts> costs,
                                                 int64_t capacity_bytes = 4 << 20) {
  auto devices = OpenEmulatedDevices({.name = name, .capacity_bytes = capacity_bytes}, std::move(costs));
  EXPECT_TRUE(devices.ok()) << ToString(devices.status());
  return std::move(*devices);
}

absl::Time Soon(const Device& device) { return device.clock()->Now() + absl::Seconds(60); }

TEST(EmulatedDevice, CopyBetweenDevicesMovesTheBytesInTheTimeOfThePeerLink) {
  auto devices = OpenPlanted("emulated:plantedx2,clock=virtual", std::make_shared<testing::PlantedCosts>());
  const VirtualClock::Actor actor(static_cast<VirtualClock*>(devices[0]->clock()));
  constexpr int64_t kSize = 1'000'000;
  std::memset(devices[0]->memory().base(), 7, kSize);
  auto push = std::move(devices[0]->CreateStream({})).value();
  auto pull = std::move(devices[0]->CreateStream({})).value();
  ASSERT_TRUE(push->CopyAsync(devices[1]->memory().base(), devices[0]->memory().base(), kSize).ok());  // 10 GB/s
  ASSERT_TRUE(push->Synchronize(Soon(*devices[0])).ok());
  EXPECT_EQ(devices[1]->memory().base()[kSize - 1], std::byte{7});
  EXPECT_EQ(devices[0]->timeline()->busy.at(EngineKind::kPeer), absl::Microseconds(100));
  std::memset(devices[1]->memory().base(), 8, kSize);
  ASSERT_TRUE(pull->CopyAsync(devices[0]->memory().base(), devices[1]->memory().base(), kSize).ok());
  ASSERT_TRUE(pull->Synchronize(Soon(*devices[0])).ok());
  EXPECT_EQ(devices[0]->memory().base()[0], std::byte{8});
  const Status refused = pull->CopyAsync(devices[1]->memory().base() + kSize, devices[1]->memory().base(), 10);
  EXPECT_THAT(MessageOf(refused), HasSubstr("a copy from device 1 to device 1 (-1: the host); allowed: its own device"));
}

// In real time too: the sums are of the timeline, however late the machine is.
TEST(EmulatedDevice, PinnedMemoryIsCopiedFasterThanPageableMemory) {
  for (const std::string name : {"emulated:planted", "emulated:planted,clock=virtual"}) {
    auto devices = OpenPlanted(name, std::make_shared<testing::PlantedCosts>());
    Device& device = *devices[0];
    constexpr int64_t kSize = 1'000'000;
    auto pinned = device.pinned().Allocate(kSize);
    ASSERT_TRUE(pinned.ok());
    std::vector<std::byte> pageable(kSize);
    auto stream = std::move(device.CreateStream({})).value();
    ASSERT_TRUE(stream->CopyAsync(device.memory().base(), pinned->data(), kSize).ok());
    ASSERT_TRUE(stream->CopyAsync(device.memory().base(), pageable.data(), kSize).ok());
    ASSERT_TRUE(stream->CopyAsync(pinned->data(), device.memory().base(), kSize).ok());
    ASSERT_TRUE(stream->CopyAsync(pageable.data(), device.memory().base(), kSize).ok());
    ASSERT_TRUE(stream->Synchronize(Soon(device)).ok());
    const TimelineReport report = *device.timeline();
    EXPECT_EQ(report.busy.at(EngineKind::kHostToDevice), absl::Milliseconds(1 + 2)) << name;
    EXPECT_EQ(report.busy.at(EngineKind::kDeviceToHost), absl::Microseconds(500 + 2000)) << name;
  }
}

TEST(EmulatedDevice, TimingOnlyKeepsTimeAndComputesNothing) {
  for (const std::string name : {"emulated:planted,mode=timing,clock=virtual", "emulated:planted,clock=virtual"}) {
    auto costs = std::make_shared<testing::PlantedCosts>();
    costs->ops["step"] = {.median_ns = 5'000'000};
    auto devices = OpenPlanted(name, costs);
    const VirtualClock::Actor actor(static_cast<VirtualClock*>(devices[0]->clock()));
    const bool computes = devices[0]->properties().computes;
    auto stream = std::move(devices[0]->CreateStream({})).value();
    int ran = 0;
    const auto work = [&ran] {
      ++ran;
      return Status();
    };
    const absl::Time begin = devices[0]->clock()->Now();
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(stream->Launch({.key = {.model = "step"}}, work).ok());
    ASSERT_TRUE(stream->Synchronize(Soon(*devices[0])).ok());
    EXPECT_EQ(ran, computes ? 3 : 0);
    EXPECT_EQ(devices[0]->clock()->Now() - begin, absl::Milliseconds(15));
    EXPECT_EQ(computes, name.find("timing") == std::string::npos);
  }
}

// Two devices behind one link of 1 GB/s, and a third with a link of its own.
TEST(EmulatedDevice, CopiesOverOneLinkShareIt) {
  auto devices =
      OpenPlanted("emulated:plantedx3,clock=virtual,pcie-group=2,mode=timing", std::make_shared<testing::PlantedCosts>());
  const VirtualClock::Actor actor(static_cast<VirtualClock*>(devices[0]->clock()));
  const absl::Time begin = devices[0]->clock()->Now();
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<Event> events;
  for (const auto& device : devices) {
    streams.push_back(std::move(device->CreateStream({})).value());
    ASSERT_TRUE(streams.back()->Transfer({.size_bytes = 3'000'000}).ok());
    events.push_back(streams.back()->Record().value());
  }
  std::vector<absl::Duration> took;
  for (const Event& event : events) {
    ASSERT_TRUE(event.Wait(Soon(*devices[0])).ok());
    took.push_back(event.ReachedAt().value() - begin);
  }
  EXPECT_THAT(took, ElementsAre(absl::Milliseconds(6), absl::Milliseconds(6), absl::Milliseconds(3)));
}

TEST(EmulatedDevice, JobsShareOneDeviceByTheChosenPolicy) {
  const std::map<std::string, std::vector<int>> expected_ms = {
      {"fifo", {10, 12}}, {"round-robin", {12, 4}}, {"shortest-remaining", {12, 2}}};
  for (const auto& [policy, ms] : expected_ms) {
    auto costs = std::make_shared<testing::PlantedCosts>();
    costs->ops["long"] = {.median_ns = 10'000'000};
    costs->ops["short"] = {.median_ns = 2'000'000};
    auto devices = OpenPlanted("emulated:planted,clock=virtual,mode=timing,quantum=1ms,share=" + policy, costs);
    const VirtualClock::Actor actor(static_cast<VirtualClock*>(devices[0]->clock()));
    const absl::Time begin = devices[0]->clock()->Now();
    auto first = std::move(devices[0]->CreateStream({.name = "a", .job = 1})).value();
    auto second = std::move(devices[0]->CreateStream({.name = "b", .job = 2})).value();
    ASSERT_TRUE(first->Launch({.key = {.model = "long"}}, nullptr).ok());
    ASSERT_TRUE(second->Launch({.key = {.model = "short"}}, nullptr).ok());
    const std::vector<Event> events = {first->Record().value(), second->Record().value()};
    std::vector<absl::Duration> took;
    for (const Event& event : events) {
      ASSERT_TRUE(event.Wait(Soon(*devices[0])).ok());
      took.push_back(event.ReachedAt().value() - begin);
    }
    EXPECT_THAT(took, ElementsAre(absl::Milliseconds(ms[0]), absl::Milliseconds(ms[1]))) << policy;
  }
}

// The classic one: two ranks that enter two collectives in opposite order.
TEST(EmulatedDevice, DeadlockOfCollectivesIsReportedWithBothRanks) {
  auto devices = OpenPlanted("emulated:plantedx2,clock=virtual,mode=timing", std::make_shared<testing::PlantedCosts>());
  const VirtualClock::Actor actor(static_cast<VirtualClock*>(devices[0]->clock()));
  std::vector<std::unique_ptr<Stream>> ranks;
  for (size_t i = 0; i < 2; ++i) {
    ranks.push_back(std::move(devices[i]->CreateStream({.name = fmt::format("rank{}", i)})).value());
    for (size_t j = 0; j < 2; ++j) {
      const std::string group = i == j ? "weights" : "gradients";
      ASSERT_TRUE(ranks[i]->Collective({.size_bytes = 1000, .group = group, .ranks = 2}).ok());
    }
  }
  const Status stuck = ranks[0]->Synchronize(Soon(*devices[0]));
  EXPECT_EQ(stuck.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(stuck), HasSubstr("'rank0' waits for the other ranks of a collective of group 'weights'"));
  EXPECT_THAT(MessageOf(stuck), HasSubstr("'rank1' waits for the other ranks of a collective of group 'gradients'"));
  EXPECT_THAT(MessageOf(ranks[1]->Record()->Wait(Soon(*devices[0]))), HasSubstr("deadlock at"));
}

TEST(EmulatedDevice, CapacityBeyondTheHardwareOrTheMachineIsRefused) {
  const auto message = [](const std::string& name, int64_t capacity_bytes) {
    return MessageOf(OpenDevice({.name = name, .capacity_bytes = capacity_bytes}).status());
  };
  EXPECT_THAT(message("emulated:t4", int64_t{17} << 30), HasSubstr("its capacity is 17.0 GiB; allowed: at most the"));
  EXPECT_THAT(message("emulated:h200x64", 0), HasSubstr("is available. Give it a capacity (capacity=SIZE), or mode=timing"));
  EXPECT_THAT(message("emulated:h200x2,capacity=4MiB", 0), HasSubstr("means 2 devices; allowed here: one"));
  EXPECT_THAT(message("emulated:nothing-like-this", 1 << 22), HasSubstr("nothing-like-this"));
  auto whole = OpenDevice({.name = "emulated:h200,mode=timing"});
  ASSERT_TRUE(whole.ok()) << ToString(whole.status());
  EXPECT_GT((*whole)->info().capacity_bytes, int64_t{130'000'000'000}) << "pages that nobody touches cost nothing";
}

TEST(EmulatedDevice, SaysWhereItsTimesComeFrom) {
  DeviceProperties properties{.estimated = true, .profile = "v100", .profile_source = "estimated from: a datasheet"};
  EXPECT_EQ(Describe(properties), "times from profile 'v100', estimated (a datasheet); results are computed on this machine");
  properties = {.computes = false, .profile = "mine"};
  EXPECT_EQ(Describe(properties), "times from profile 'mine', measured; results are zeros");
}

TEST(CheckNodeDevices, SettlesTheCapacity) {
  const auto capacity = [](const std::string& name, int64_t asked_bytes) {
    const auto device = CheckNodeDevices({.name = name, .capacity_bytes = asked_bytes}, 2 << 20);
    EXPECT_TRUE(device.ok()) << ToString(device.status());
    return device.ok() ? device->options.capacity_bytes : -1;
  };
  EXPECT_EQ(capacity("host", 0), 2 << 20);
  EXPECT_EQ(capacity("host", 6 << 20), 6 << 20);
  EXPECT_EQ(capacity("emulated:v100", 0), 2 << 20);
  EXPECT_EQ(capacity("emulated:v100,capacity=4MiB", 0), 4 << 20);
  EXPECT_EQ(capacity("emulated:v100,capacity=4MiB", 4 << 20), 4 << 20);
  EXPECT_EQ(capacity("emulated:v100", 6 << 20), 6 << 20);
  EXPECT_EQ(CheckNodeDevices({.name = "emulated:t4"}, int64_t{1} << 40)->options.capacity_bytes >> 20, 16'000'000'000 >> 20);
  EXPECT_TRUE(CheckNodeDevices({.name = "emulated:v100"}, 2 << 20)->computes);
  EXPECT_FALSE(CheckNodeDevices({.name = "emulated:v100,mode=timing"}, 2 << 20)->computes);
}

TEST(CheckNodeDevices, SaysWhatIsAllowedInsteadOfWrongNames) {
  const auto message = [](const std::string& name, int64_t asked_bytes = 0) {
    return MessageOf(CheckNodeDevices({.name = name, .capacity_bytes = asked_bytes}, 2 << 20).status());
  };
  EXPECT_THAT(message("tpu"), HasSubstr("device name 'tpu' is unknown; allowed: host, cuda:<index>, emulated:<profile>"));
  EXPECT_THAT(message("v100"), HasSubstr("did you mean 'emulated:v100'?"));
  EXPECT_THAT(message("cuda:x"), HasSubstr("'cuda:x' is unknown"));
  EXPECT_THAT(message("emulated:h200,clock=virtual"),
              HasSubstr("clock is 'virtual', which sockets and other processes cannot follow; allowed here: real"));
  EXPECT_THAT(message("emulated:h200,share=round-robin"),
              HasSubstr("share is 'round-robin'; allowed where several processes use a device: fifo"));
  EXPECT_THAT(message("emulated:h200,mode=fast"), HasSubstr("mode is 'fast'; allowed: timing, functional"));
  EXPECT_THAT(message("emulated:h2000"), HasSubstr("did you mean 'h200'?"));
  EXPECT_THAT(message("emulated:v100,capacity=4MiB", 6 << 20),
              HasSubstr("its name says a capacity of 4.00 MiB, and 6.00 MiB is asked for beside it"));
  EXPECT_THAT(message("emulated:t4", int64_t{17} << 30), HasSubstr("its capacity is 17.0 GiB; allowed: at most the"));
  EXPECT_THAT(message("host", -1), HasSubstr("capacity is -1 bytes; allowed: 0 and above"));
}

TEST(CheckNodeDevices, NamesAProfilesFolderSoThatEveryProcessFindsIt) {
  tidepool::testing::TempDir folder;
  const std::string name = profile::testing::WritePlantedBundle(folder.path(), {});
  const std::string path = name.substr(kPrefix.size());
  const std::string relative = std::filesystem::relative(path).string();
  ASSERT_THAT(relative, HasSubstr("/"));
  const auto device = CheckNodeDevices({.name = fmt::format("{}{},mode=timing,seed=3", kPrefix, relative)}, 2 << 20);
  ASSERT_TRUE(device.ok()) << ToString(device.status());
  EXPECT_EQ(device->options.name, fmt::format("{},mode=timing,seed=3", name));
}

TEST(CheckNodeDevices, GivesTheNameOfOneAndHowManyThereAre) {
  const auto check = [](const std::string& name) {
    auto devices = CheckNodeDevices({.name = name, .capacity_bytes = 4 << 20}, 2 << 20);
    EXPECT_TRUE(devices.ok()) << ToString(devices.status());
    return devices.ok() ? *devices : NodeDevices{.count = -1};
  };
  EXPECT_EQ(check("host").count, 1);
  EXPECT_EQ(check("host").options.name, "host");
  EXPECT_EQ(check("emulated:h200").count, 1);
  const NodeDevices several = check("emulated:h200x8,seed=3,mode=timing");
  EXPECT_EQ(several.count, 8);
  EXPECT_EQ(several.options.name, "emulated:h200,seed=3,mode=timing");
  EXPECT_EQ(several.options.capacity_bytes, 4 << 20) << "of each one";
  EXPECT_FALSE(several.computes);
  EXPECT_TRUE(check("emulated:v100x2").computes);
  EXPECT_EQ(check("emulated:h200x16,mode=timing").count, 16);
  EXPECT_EQ(CheckNodeDevices({.name = "emulated:t4x3,mode=timing"}, int64_t{1} << 40)->options.capacity_bytes >> 20,
            16'000'000'000 >> 20);
  for (const NodeDevices& one : {several, check("emulated:v100x2")}) {
    EXPECT_TRUE(CheckNodeDevices(one.options, 0).ok()) << one.options.name;
    EXPECT_TRUE(OpenDevice(one.options).ok()) << one.options.name;
  }
}

TEST(NameOfDevice, GivesEachItsOwnSeedWhereTimesHaveJitter) {
  EXPECT_EQ(NameOfDevice("host", 3), "host");
  EXPECT_EQ(NameOfDevice("emulated:h200,seed=3", 2), "emulated:h200,seed=3");
  EXPECT_EQ(NameOfDevice("emulated:h200,jitter=resample", 0), "emulated:h200,jitter=resample");
  EXPECT_EQ(NameOfDevice("emulated:h200,jitter=resample", 2), "emulated:h200,jitter=resample,seed=2");
  EXPECT_EQ(NameOfDevice("emulated:h200,seed=3,jitter=lognormal", 2), "emulated:h200,jitter=lognormal,seed=5");
  EXPECT_EQ(NameOfDevice("emulated:h200,jitter=lognormal,seed=3", 1), "emulated:h200,jitter=lognormal,seed=4");
}

TEST(CheckNodeDevices, SaysWhatIsAllowedInstead) {
  const auto message = [](const std::string& name, int64_t asked_bytes = 2 << 20) {
    return MessageOf(CheckNodeDevices({.name = name, .capacity_bytes = asked_bytes}, 2 << 20).status());
  };
  EXPECT_THAT(message("emulated:h200x17"), HasSubstr("means 17 devices; allowed on a node: 1 to 16"));
  EXPECT_THAT(message("emulated:h200x0"), HasSubstr("the number of devices is '0'; allowed: 1 to 64"));
  EXPECT_THAT(message("emulated:h200x2,clock=virtual"), HasSubstr("allowed here: real"));
  EXPECT_THAT(message("emulated:h200x2,share=round-robin"), HasSubstr("share is 'round-robin'"));
  EXPECT_THAT(message("emulated:v100x2,capacity=4MiB", 6 << 20), HasSubstr("and 6.00 MiB is asked for beside it"));
  EXPECT_THAT(message("hostx2"), HasSubstr("device name 'hostx2' is unknown"));
  EXPECT_THAT(message("h200x8,seed=3"), HasSubstr("did you mean 'emulated:h200x8,seed=3'?"));
  EXPECT_THAT(message("host", -1), HasSubstr("capacity is -1 bytes"));
  EXPECT_THAT(message("emulated:h200x2", -1), HasSubstr("capacity is -1 bytes"));
  if (AvailableMemoryBytes().value() < int64_t{16} * 140'000'000'000) {
    EXPECT_THAT(message("emulated:h200x16", int64_t{140'000'000'000}),
                HasSubstr("is available. Give it a capacity (capacity=SIZE), or mode=timing"));
  }
}

TEST(CheckNodeDevices, ABundleWhoseNameEndsLikeANumberOfDevicesStaysItself) {
  tidepool::testing::TempDir folder;
  const std::string name = profile::testing::WritePlantedBundle(folder.path(), {});
  std::filesystem::rename(name.substr(kPrefix.size()), folder.File("cardx4"));
  const std::string bundle = fmt::format("{}{}", kPrefix, folder.File("cardx4"));
  const auto devices = CheckNodeDevices({.name = bundle + "x2,mode=timing"}, 2 << 20);
  ASSERT_TRUE(devices.ok()) << ToString(devices.status());
  EXPECT_EQ(devices->count, 2);
  EXPECT_EQ(devices->options.name, bundle + "x1,mode=timing");
  EXPECT_TRUE(OpenDevice(devices->options).ok());
}

// Both have the same engine: what one reserved the other cannot have. Lower bounds hold on any machine.
TEST(EmulatedDevice, ProcessesThatHaveOneDeviceShareItsEngine) {
  auto maker = OpenDevice({.name = "emulated:h200,mode=timing", .capacity_bytes = 4 << 20});
  ASSERT_TRUE(maker.ok()) << ToString(maker.status());
  auto other = AttachDevice((*maker)->info(), MappingMode::kFast, UniqueFd(::dup((*maker)->memory().shared_fd())));
  ASSERT_TRUE(other.ok()) << ToString(other.status());
  constexpr int kSteps = 20;
  const Operation step{.key = {.model = "step"}, .cost = {.flops_per_sample = 1e11}};
  std::vector<absl::Time> ends;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<Event> events;
  for (Device* device : {maker->get(), other->get()}) streams.push_back(std::move(device->CreateStream({})).value());
  for (int i = 0; i < kSteps; ++i) {
    for (const auto& stream : streams) {
      ASSERT_TRUE(stream->Launch(step, nullptr).ok());
      events.push_back(stream->Record().value());
    }
  }
  for (const Event& event : events) {
    ASSERT_TRUE(event.Wait(Soon(**maker)).ok());
    ends.push_back(event.ReachedAt().value());
  }
  const absl::Duration busy = (*other)->timeline()->busy.at(EngineKind::kCompute);
  EXPECT_EQ((*maker)->timeline()->busy.at(EngineKind::kCompute), busy) << "of both";
  for (Device* device : {maker->get(), other->get()}) EXPECT_EQ(device->timeline()->own_busy.at(EngineKind::kCompute), busy / 2);
  const absl::Duration each = busy / (2 * kSteps);
  EXPECT_GT(each, absl::Microseconds(50));
  std::sort(ends.begin(), ends.end());
  for (size_t i = 1; i < ends.size(); ++i) EXPECT_GE(ends[i] - ends[i - 1] + absl::Microseconds(10), each) << i;
}

TEST(SharedTimeline, StretchesOfManyThreadsNeverOverlap) {
  auto file = CreateMemFd("timeline", 2 * SharedTimeline::kBytes);
  ASSERT_TRUE(file.ok());
  auto made = SharedTimeline::Create(file->get(), SharedTimeline::kBytes, 77);
  ASSERT_TRUE(made.ok());
  constexpr int kThreads = 4, kEach = 2000;
  std::vector<std::vector<std::pair<int64_t, int64_t>>> got(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      auto timeline = SharedTimeline::Open(file->get(), SharedTimeline::kBytes).value();
      EXPECT_EQ(timeline->epoch_ns(), 77);
      for (int i = 0; i < kEach; ++i) {
        const int64_t length = 1 + (i * 7 + t) % 13;
        got[static_cast<size_t>(t)].emplace_back(timeline->Reserve(1, i * 5, length), length);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<std::pair<int64_t, int64_t>> all;
  for (const auto& part : got) all.insert(all.end(), part.begin(), part.end());
  std::sort(all.begin(), all.end());
  int64_t sum = all[0].second;
  for (size_t i = 1; i < all.size(); ++i) {
    EXPECT_GE(all[i].first, all[i - 1].first + all[i - 1].second);
    sum += all[i].second;
  }
  EXPECT_EQ((*made)->busy_ns(1), sum);
  EXPECT_EQ((*made)->busy_ns(0), 0);
}

TEST(SharedTimeline, FileWithoutOneIsRefused) {
  auto file = CreateMemFd("timeline", SharedTimeline::kBytes);
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(MessageOf(SharedTimeline::Open(file->get(), 0).status()), HasSubstr("has no timeline of this version (TPEMUTL1)"));
  EXPECT_THAT(MessageOf(SharedTimeline::Open(file->get(), 4096).status()), HasSubstr("has 4096 bytes; 4096 and a timeline"));
}

}  // namespace
}  // namespace tidepool::device::emulated

namespace tidepool::device {
namespace {

INSTANTIATE_TEST_SUITE_P(
    Emulated, DeviceContract,
    ::testing::Values(
        DeviceFactory{"RealTime", [](int64_t c, int64_t p) { return emulated::OpenIt("emulated:h200", c, p); }},
        DeviceFactory{"Virtual", [](int64_t c, int64_t p) { return emulated::OpenIt("emulated:h200,clock=virtual", c, p); }},
        DeviceFactory{
            "VirtualRoundRobin",
            [](int64_t c, int64_t p) { return emulated::OpenIt("emulated:a100,clock=virtual,share=round-robin", c, p); }},
        DeviceFactory{"OfSeveral",
                      [](int64_t c, int64_t p) -> StatusOr<std::unique_ptr<Device>> {
                        TIDEPOOL_ASSIGN_OR_RETURN(
                            auto all,
                            OpenDevices({.name = "emulated:h200x4,clock=virtual", .capacity_bytes = c, .page_bytes = p}));
                        return std::move(all[2]);
                      }},
        DeviceFactory{"AttachedFast", [](int64_t c, int64_t p) { return emulated::AttachIt(c, p, MappingMode::kFast); }},
        DeviceFactory{"AttachedStrict", [](int64_t c, int64_t p) { return emulated::AttachIt(c, p, MappingMode::kStrict); }}),
    [](const ::testing::TestParamInfo<DeviceFactory>& factory) { return factory.param.name; });

}  // namespace
}  // namespace tidepool::device
