#include "data/storage_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <set>
#include <thread>

#include "data/cache.h"
#include "data/cache_testing.h"
#include "data/containers.h"
#include "data/order.h"
#include "data/storage_model_source.h"
#include "data/testing.h"

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;

const absl::Time kStart = absl::UnixEpoch();
double SecondsAfterStart(absl::Time time) { return absl::ToDoubleSeconds(time - kStart); }

// All at once; the moment at which the last is done.
double LastOf(const StorageSpec& spec, int64_t ops, int64_t bytes, bool sequential = false) {
  EXPECT_EQ(ToString(spec.Validate()), "OK");
  StorageModel model(spec);
  absl::Time last;
  for (int64_t i = 0; i < ops; ++i) last = model.Submit(kStart, bytes, sequential);
  EXPECT_EQ(model.counts().ops, ops);
  EXPECT_EQ(model.counts().bytes, ops * bytes);
  return SecondsAfterStart(last);
}

constexpr double kTight = 1e-6;

TEST(TokenBucket, ABurstPassesAtOnceAndTheRestAtTheRate) {
  TokenBucket bucket(100, 50);
  EXPECT_DOUBLE_EQ(SecondsAfterStart(bucket.Take(kStart, 50)), 0);
  EXPECT_DOUBLE_EQ(SecondsAfterStart(bucket.Take(kStart, 10)), 0.1);
  EXPECT_DOUBLE_EQ(SecondsAfterStart(bucket.Take(kStart, 10)), 0.2);
  // Full again after another half second.
  EXPECT_DOUBLE_EQ(SecondsAfterStart(bucket.Take(kStart + absl::Seconds(0.7), 50)), 0.7);
  EXPECT_DOUBLE_EQ(SecondsAfterStart(bucket.Take(kStart, 10)), 0.8);  // an earlier time counts as the last one
}

TEST(StorageModel, OneSlotTakesLatencyAndTransferOneAfterTheOther) {
  const StorageSpec spec{.name = "x", .bytes_per_s = 1e6, .random_latency = absl::Milliseconds(10), .depth = 1};
  EXPECT_NEAR(LastOf(spec, 100, 5000), 100 * (0.010 + 0.005), kTight);
  EXPECT_NEAR(LastOf(spec, 100, 5000, /*sequential=*/true), 100 * 0.005, kTight);
}

TEST(StorageModel, SlotsHideLatenciesBehindEachOther) {
  const StorageSpec spec{.name = "x", .bytes_per_s = 1e9, .random_latency = absl::Milliseconds(10), .depth = 8};
  EXPECT_NEAR(LastOf(spec, 8, 0), 0.010, kTight);
  EXPECT_NEAR(LastOf(spec, 9, 0), 0.020, kTight);
  EXPECT_NEAR(LastOf(spec, 800, 0), 1.0, kTight);
}

TEST(StorageModel, TheLinkBoundsWhatManySlotsBring) {
  const StorageSpec spec{.name = "x", .bytes_per_s = 1e6, .random_latency = absl::Milliseconds(10), .depth = 64};
  EXPECT_NEAR(LastOf(spec, 1000, 10'000), 0.010 + 1000 * 0.010, kTight);
}

TEST(StorageModel, OperationsPerSecondBoundSmallReads) {
  const StorageSpec spec{
      .name = "x", .bytes_per_s = 1e9, .random_latency = absl::Milliseconds(1), .depth = 64, .ops_per_s = 3000};
  EXPECT_NEAR(LastOf(spec, 3001, 1000), 3000 / 3000.0 + 0.001 + 1e-6, kTight);
}

TEST(StorageModel, BurstCreditsLastAsLongAsTheyShould) {
  const StorageSpec spec{.name = "x", .bytes_per_s = 250e6, .depth = 1, .sustained_bytes_per_s = 40e6, .burst_bytes = 1e9};
  // At full speed up to B P / (P - S) bytes, then (X - B) / S seconds in all.
  const double knee = 1e9 * 250 / (250 - 40);
  EXPECT_NEAR(LastOf(spec, 1000, 1'000'000), 1e9 / 250e6, 1e-3);
  ASSERT_GT(knee, 1e9);
  EXPECT_NEAR(LastOf(spec, 5000, 1'000'000), (5e9 - 1e9) / 40e6, 1e-3);
}

TEST(StorageModel, ManyOperationsDoNotDrift) {
  const StorageSpec spec{.name = "x", .bytes_per_s = 3e8, .random_latency = absl::Nanoseconds(77'777), .depth = 1};
  const double expected = 1e6 * (77'777e-9 + 114'660 / 3e8);
  EXPECT_NEAR(LastOf(spec, 1'000'000, 114'660) / expected, 1, 1e-6);
}

TEST(StorageModel, AReaderThatWaitsForEachSeesWhatTheDataSheetSays) {
  for (const auto& [name, iops] : {std::pair("sata-ssd", 13'000.0), std::pair("nvme", 22'000.0)}) {
    StorageModel model(*ParseStorageSpec(name));
    absl::Time now = kStart;
    for (int i = 0; i < 1000; ++i) now = model.Submit(now, 4096, false);
    EXPECT_NEAR(1000 / SecondsAfterStart(now), iops, 0.02 * iops) << name;
    // And with many at once, the most that it does.
    const StorageSpec& spec = model.spec();
    EXPECT_NEAR(100'000 / LastOf(spec, 100'000, 4096), spec.ops_per_s, 0.02 * spec.ops_per_s) << name;
    EXPECT_NEAR(10'000 * 1e6 / LastOf(spec, 10'000, 1'000'000), spec.bytes_per_s, 0.01 * spec.bytes_per_s) << name;
  }
}

TEST(StorageModel, PresetsAreValidAndSayWhereTheyComeFrom) {
  std::set<std::string> names;
  for (const StorageSpec& spec : StoragePresets()) {
    EXPECT_EQ(ToString(spec.Validate()), "OK");
    EXPECT_FALSE(spec.origin.empty()) << spec.name;
    EXPECT_EQ(spec.estimated, spec.origin.find("assumed") != std::string::npos) << spec.name;
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    EXPECT_EQ(ParseStorageSpec(spec.name)->bytes_per_s, spec.bytes_per_s);
  }
  EXPECT_GE(names.size(), 8u);
}

TEST(StorageModel, TextChangesAPreset) {
  const auto spec =
      ParseStorageSpec("sata-ssd,rate=300MB,latency=1ms,sequential=2ms,depth=4,iops=5000,sustained=40MB,burst=1GiB");
  ASSERT_TRUE(spec.ok()) << ToString(spec.status());
  EXPECT_EQ(spec->bytes_per_s, 300e6);
  EXPECT_EQ(spec->random_latency, absl::Milliseconds(1));
  EXPECT_EQ(spec->sequential_latency, absl::Milliseconds(2));
  EXPECT_EQ(spec->depth, 4);
  EXPECT_EQ(spec->ops_per_s, 5000);
  EXPECT_EQ(spec->sustained_bytes_per_s, 40e6);
  EXPECT_EQ(spec->burst_bytes, 1 << 30);
  EXPECT_EQ(ParseStorageSpec("custom,rate=50MB")->bytes_per_s, 50e6);
  const auto fault = [](const char* text) { return ToString(ParseStorageSpec(text).status()); };
  EXPECT_THAT(fault("sata-sdd"), HasSubstr("storage 'sata-sdd'; allowed: custom, hdd, sata-ssd,"));
  EXPECT_THAT(fault("sata-sdd"), HasSubstr("Did you mean 'sata-ssd'?"));
  EXPECT_THAT(fault("custom"), HasSubstr("storage 'custom': rate in bytes per second 0; allowed: above 0"));
  EXPECT_THAT(fault("hdd,rate=fast"), HasSubstr("storage 'hdd,rate=fast': rate:"));
  EXPECT_THAT(fault("hdd,depth=1.5"), HasSubstr("depth '1.5'; allowed: a whole number of 1 to 65536"));
  EXPECT_THAT(fault("hdd,colour=red"), HasSubstr("'colour'; allowed: rate, latency"));
  EXPECT_THAT(fault("hdd,latency"), HasSubstr("'latency'; allowed: rate="));
  EXPECT_THAT(fault("hdd,burst=1GiB"), HasSubstr("burst without a sustained rate"));
  EXPECT_THAT(fault("hdd,latency=inf"), HasSubstr("latency in seconds"));
  EXPECT_THAT(fault(""), HasSubstr("needed: a name"));
}

TEST(StorageModel, RandomTextIsASpecThatWorksOrAnError) {
  std::mt19937_64 random(4);
  const std::string good = "nvme,rate=300MB,latency=1ms,depth=4,iops=5000,sustained=40MB,burst=1GiB";
  int parsed = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text = good;
    for (uint64_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % text.size();
      if (random() % 2 == 0)
        text[at] = static_cast<char>(random());
      else
        text.erase(at, random() % 8);
      if (text.empty()) text = ",";
    }
    const auto spec = ParseStorageSpec(text);
    if (!spec.ok()) continue;
    ++parsed;
    StorageModel model(*spec);
    EXPECT_GE(model.Submit(kStart, 1000, false), kStart) << text;
  }
  EXPECT_GT(parsed, 100);
}

// --- a source that is as slow as a model ---

std::unique_ptr<PacedSource> Pace(const RecordSource* base, PacedSourceOptions options) {
  auto source = PacedSource::Create(base, std::move(options));
  EXPECT_TRUE(source.ok()) << ToString(source.status());
  return std::move(*source);
}

StorageSpec SlowDisk() { return {.name = "slow", .bytes_per_s = 1e6, .random_latency = absl::Milliseconds(10), .depth = 1}; }

TEST(PacedSource, ReadsTakeTheTimeOfTheModelAndGiveTheRealBytes) {
  const MemorySource base({.records = 100, .base_bytes = 5000});
  VirtualClock clock(kStart);
  const VirtualClock::Actor actor(&clock);
  const auto source = Pace(&base, {.storage = SlowDisk(), .clock = &clock});
  for (int64_t i = 99; i >= 0; --i) ASSERT_EQ(TextOf(*source->Read(i)), base.Content(i));
  EXPECT_NEAR(SecondsAfterStart(clock.Now()), 100 * 0.015, kTight);
  EXPECT_EQ(source->stats().model.sequential_ops, 0);
  // In the order of the records only the first one seeks.
  const absl::Time before = clock.Now();
  for (int64_t i = 1; i < 100; ++i) ASSERT_TRUE(source->Read(i).ok());
  EXPECT_EQ(source->stats().model.sequential_ops, 99);
  EXPECT_NEAR(absl::ToDoubleSeconds(clock.Now() - before), 99 * 0.005, kTight);
  EXPECT_EQ(source->stats().waited, clock.Now() - kStart);
  EXPECT_EQ(source->stats().beyond, absl::ZeroDuration());
}

TEST(PacedSource, TellsWhatReadersWaitedForTheModelAndWhatForARealDiskThatIsSlower) {
  MemorySource base({.records = 8, .base_bytes = 1000});
  VirtualClock clock(kStart);
  const VirtualClock::Actor actor(&clock);
  absl::Duration real = absl::ZeroDuration();
  base.on_read = [&](int64_t) {
    clock.SleepFor(real);
    return Status();
  };
  const auto source = Pace(&base, {.storage = SlowDisk(), .clock = &clock});  // 10 ms and 1 ms a record
  const auto waited_and_beyond = [&] {
    const PacedSourceStats stats = source->stats();
    const auto milliseconds = [](absl::Duration time) { return std::lround(absl::ToDoubleMilliseconds(time)); };
    return std::pair(milliseconds(stats.waited), milliseconds(stats.beyond));
  };
  // A reader that comes long after the bytes waits for nothing, and nobody was slow.
  source->WillNeed(5);
  clock.SleepFor(absl::Seconds(1));
  ASSERT_TRUE(source->Read(5).ok());
  EXPECT_EQ(waited_and_beyond(), std::pair(0L, 0L));
  // The real read within the model's time.
  real = absl::Milliseconds(4);
  ASSERT_TRUE(source->Read(2).ok());
  EXPECT_EQ(waited_and_beyond(), std::pair(11L, 0L));
  // Longer than the model's.
  real = absl::Milliseconds(30);
  ASSERT_TRUE(source->Read(0).ok());
  EXPECT_EQ(waited_and_beyond(), std::pair(22L, 19L));
  // The model had them before the question: all of the real read counts.
  source->WillNeed(7);
  clock.SleepFor(absl::Seconds(1));
  ASSERT_TRUE(source->Read(7).ok());
  EXPECT_EQ(waited_and_beyond(), std::pair(22L, 49L));
  // A group is one read.
  std::vector<RecordView> views;
  real = absl::Milliseconds(12);
  ASSERT_TRUE(source->ReadGroup(4, &views).ok());
  EXPECT_EQ(waited_and_beyond(), std::pair(33L, 50L));
}

TEST(PacedSource, GroupsTakeOneOperationAndOneSeekEach) {
  constexpr int64_t kRecords = 1000, kBytes = 2000;
  const MemorySource base({.records = kRecords, .base_bytes = kBytes});
  for (const int64_t group : {1, 4, 16, 64, 300}) {
    VirtualClock clock(kStart);
    const VirtualClock::Actor actor(&clock);
    const auto source = Pace(&base, {.storage = SlowDisk(), .group_records = group, .clock = &clock});
    const int64_t groups = (kRecords + group - 1) / group;
    std::vector<RecordView> views;
    int64_t seen = 0;
    for (const int64_t each : EpochOrder(groups, 3, 0)) {
      ASSERT_TRUE(source->ReadGroup(each * group, &views).ok());
      for (size_t i = 0; i < views.size(); ++i) ASSERT_EQ(TextOf(views[i]), base.Content(each * group + static_cast<int64_t>(i)));
      seen += static_cast<int64_t>(views.size());
    }
    EXPECT_EQ(seen, kRecords);
    const StorageCounts counts = source->stats().model;
    EXPECT_EQ(counts.ops, groups);
    EXPECT_EQ(counts.bytes, kRecords * kBytes);
    const double seeks = static_cast<double>(groups - counts.sequential_ops) * 0.010;
    EXPECT_NEAR(SecondsAfterStart(clock.Now()), seeks + kRecords * kBytes / 1e6, kTight) << group;
  }
}

TEST(PacedSource, ReadAheadStartsOperationsWhenTheyAreAnnounced) {
  const MemorySource base({.records = 64, .base_bytes = 1000, .group = 8});
  VirtualClock clock(kStart);
  const VirtualClock::Actor actor(&clock);
  const auto source = Pace(&base, {.storage = SlowDisk(), .clock = &clock});
  for (int64_t i = 0; i < 64; ++i) source->WillNeed(i);
  EXPECT_EQ(base.open_hints(), 64);
  clock.SleepFor(absl::Seconds(1));  // long enough for all
  for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(TextOf(*source->Read(i)), base.Content(i));
  EXPECT_EQ(clock.Now(), kStart + absl::Seconds(1));
  EXPECT_EQ(source->stats().model.ops, 8);
  EXPECT_EQ(source->stats().ahead_bytes, 0);
  EXPECT_EQ(base.open_hints(), 0);
  // What is given up leaves nothing behind.
  source->WillNeed(3);
  source->WontNeed(3);
  source->WontNeed(3);
  EXPECT_EQ(source->stats().ahead_bytes, 0);
}

TEST(PacedSource, ReadAheadStaysWithinItsBytes) {
  const MemorySource base({.records = 64, .base_bytes = 1000, .group = 4});
  VirtualClock clock(kStart);
  const VirtualClock::Actor actor(&clock);
  const auto source = Pace(&base, {.storage = SlowDisk(), .read_ahead_bytes = 10'000, .clock = &clock});
  for (int64_t i = 0; i < 64; ++i) source->WillNeed(i);
  EXPECT_EQ(source->stats().ahead_bytes, 8000);
  for (int64_t i = 0; i < 64; ++i) ASSERT_TRUE(source->Read(i).ok());
  EXPECT_EQ(source->stats().model.ops, 16);
  EXPECT_EQ(source->stats().peak_ahead_bytes, 8000);
  EXPECT_EQ(source->stats().ahead_bytes, 0);
  EXPECT_EQ(base.open_hints(), 0);
  // One group seeks, the others follow it; while two are under way the reader waits for the first.
  EXPECT_NEAR(SecondsAfterStart(clock.Now()), 0.010 + 64 * 0.001, kTight);
}

TEST(PacedSource, ACacheBeforeItPaysOnlyForItsMisses) {
  const MemorySource base({.records = 400, .base_bytes = 1000});
  VirtualClock clock(kStart);
  const VirtualClock::Actor actor(&clock);
  const auto source = Pace(&base, {.storage = {.name = "x", .bytes_per_s = 1e6}, .clock = &clock});
  const auto cache = Cache::Create(source.get(), {.kind = CacheKind::kMinio, .budget_bytes = 260'000, .clock = &clock});
  ASSERT_TRUE(cache.ok());
  for (int epoch = 0; epoch < 3; ++epoch) {
    const absl::Time before = clock.Now();
    for (const int64_t i : EpochOrder(400, 1, epoch)) ASSERT_TRUE((*cache)->Read(i).ok());
    const double misses = epoch == 0 ? 400 : 140;
    EXPECT_NEAR(absl::ToDoubleSeconds(clock.Now() - before), misses * 0.001, kTight) << epoch;
  }
}

TEST(PacedSource, AVanishedFileIsATypedErrorAndCostsItsSeek) {
  const TempFolder folder;
  for (int i = 0; i < 3; ++i) folder.Write(fmt::format("class/{}.jpg", i), std::string(1000, 'x'));
  const auto base = OpenImageFolderSource(folder.path());
  ASSERT_TRUE(base.ok());
  VirtualClock clock(kStart);
  const VirtualClock::Actor actor(&clock);
  const auto source = Pace(base->get(), {.storage = SlowDisk(), .clock = &clock});
  std::filesystem::remove(folder.path("class/1.jpg"));
  const Status status = source->Read(1).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(status), HasSubstr("class/1.jpg"));
  EXPECT_NEAR(SecondsAfterStart(clock.Now()), 0.010, kTight);
  EXPECT_EQ(source->Read(5).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(source->stats().model.ops, 1);
  EXPECT_THAT(ToString(PacedSource::Create(base->get(), {.storage = SlowDisk(), .group_records = -1}).status()),
              HasSubstr("group_records -1"));
}

TEST(PacedSource, SeveralReadersShareTheDisk) {
  const MemorySource base({.records = 200, .base_bytes = 1000});
  VirtualClock clock(kStart);
  clock.ExpectActors(4);
  const auto source = Pace(&base, {.storage = {.name = "x", .bytes_per_s = 1e6, .depth = 8}, .clock = &clock});
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const VirtualClock::Actor actor(&clock);
      for (int64_t i = t; i < 200; i += 4) EXPECT_EQ(TextOf(*source->Read(i)), base.Content(i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_NEAR(SecondsAfterStart(clock.Now()), 0.2, kTight);
}

}  // namespace
}  // namespace tidepool::data
