#include "data/cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <numeric>
#include <random>
#include <thread>

#include "base/metrics.h"
#include "base/testing.h"
#include "data/cache_testing.h"
#include "data/containers.h"
#include "data/order.h"
#include "data/testing.h"

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Cache> Make(const RecordSource* base, CacheOptions options) {
  auto cache = Cache::Create(base, std::move(options));
  EXPECT_TRUE(cache.ok()) << ToString(cache.status());
  return std::move(*cache);
}

TEST(Cache, AHitGivesTheSameBytesAtTheSameAddressWithoutReading) {
  const MemorySource source({.records = 10});
  const auto cache = Make(&source, {.budget_bytes = 10'000});
  const RecordView first = *cache->Read(3);
  EXPECT_EQ(TextOf(first), source.Content(3));
  const RecordView again = *cache->Read(3);
  EXPECT_EQ(again.bytes().data(), first.bytes().data());
  EXPECT_EQ(again.held_bytes(), 100);  // not the source's larger buffer
  EXPECT_EQ(cache->TryGet(3)->bytes().data(), first.bytes().data());
  EXPECT_FALSE(cache->TryGet(4).has_value());
  EXPECT_EQ(source.reads(3), 1);
  const CacheStats stats = cache->stats();
  EXPECT_EQ(stats.hits, 2);
  EXPECT_EQ(stats.misses, 1);
  EXPECT_EQ(stats.used_bytes, 100);
  EXPECT_EQ(stats.lingering_bytes, 0);
}

TEST(Cache, AViewPinsItsBytesBeyondEvictionAndTheEndOfTheCache) {
  const MemorySource source({.records = 10});
  auto cache = Make(&source, {.kind = CacheKind::kFifo, .budget_bytes = 200});
  RecordView view = *cache->Read(0);
  for (int64_t i = 1; i < 10; ++i) ASSERT_TRUE(cache->Read(i).ok());
  EXPECT_FALSE(cache->Contains(0));
  EXPECT_EQ(cache->stats().used_bytes, 200);
  EXPECT_EQ(cache->stats().lingering_bytes, 100);
  EXPECT_EQ(TextOf(view), source.Content(0));
  RecordView other = *cache->Read(9);
  view = RecordView();
  EXPECT_EQ(cache->stats().lingering_bytes, 0);
  cache.reset();
  EXPECT_EQ(TextOf(other), source.Content(9));
}

TEST(Cache, HitSharesOfTheRealCacheAreThoseOfTheory) {
  const MemorySource source({.records = 2000, .base_bytes = 64});
  constexpr double kShare = 0.65;
  const auto budget = static_cast<int64_t>(kShare * 2000 * 64);
  const std::pair<CacheKind, double> expected[] = {{CacheKind::kNone, 0},
                                                   {CacheKind::kMinio, kShare},
                                                   {CacheKind::kLru, kShare + (1 - kShare) * std::log(1 - kShare)},
                                                   {CacheKind::kFifo, 0.404},
                                                   {CacheKind::kTwoList, 0.356}};
  for (const auto& [kind, share] : expected) {
    const auto cache = Make(&source, {.kind = kind, .budget_bytes = budget});
    CacheStats warm;
    for (int epoch = 0; epoch < 40; ++epoch) {
      if (epoch == 10) warm = cache->stats();
      for (const int64_t record : EpochOrder(source.size(), 1, epoch)) ASSERT_TRUE(cache->Read(record).ok());
    }
    const CacheStats stats = cache->stats();
    const double seen = static_cast<double>(stats.hits - warm.hits) / static_cast<double>(stats.reads() - warm.reads());
    EXPECT_NEAR(seen, share, 0.01) << CacheKindName(kind);
    EXPECT_LE(stats.peak_bytes, budget);
    if (kind == CacheKind::kMinio) {
      EXPECT_EQ(stats.evicted, 0);
    }
  }
}

// One thread reads, and stays in the source until Release; others come meanwhile.
class HeldRead {
 public:
  HeldRead(MemorySource* source, Status outcome) {
    source->on_read = [this, outcome](int64_t) {
      absl::MutexLock lock(&mu_);
      inside_ = true;
      mu_.Await(absl::Condition(&open_));
      return outcome;
    };
  }
  void AwaitInside() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&inside_));
  }
  // Until `count` other threads wait for the one inside.
  static void AwaitWaiters(const Cache& cache, int64_t count) {
    while (cache.stats().waiting < count) std::this_thread::yield();
  }
  void Release() {
    absl::MutexLock lock(&mu_);
    open_ = true;
  }

 private:
  absl::Mutex mu_;
  bool inside_ = false, open_ = false;
};

TEST(Cache, ThreadsThatAskForOneRecordAtOnceReadItOnce) {
  MemorySource source({.records = 4});
  HeldRead held(&source, Status());
  const auto cache = Make(&source, {.kind = CacheKind::kNone});  // even if it keeps nothing
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { good += TextOf(*cache->Read(2)) == source.Content(2) ? 1 : 0; });
  }
  held.AwaitInside();
  HeldRead::AwaitWaiters(*cache, 7);
  held.Release();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 8);
  EXPECT_EQ(source.reads(2), 1);
  const CacheStats stats = cache->stats();
  EXPECT_EQ(stats.misses, 1);
  EXPECT_EQ(stats.joined, 7);
  EXPECT_EQ(stats.waiting, 0);
}

TEST(Cache, AFailedReadIsToldToAllWhoWaitAndNothingIsKept) {
  MemorySource source({.records = 4});
  VirtualClock clock;  // nobody moves it: a waiter cannot run out of time
  HeldRead held(&source, DataLoss("memory:1: cut short"));
  const auto cache = Make(&source, {.budget_bytes = 1000, .clock = &clock});
  Status first, second;
  std::thread reader([&] { first = cache->Read(1).status(); });
  held.AwaitInside();
  std::thread waiter([&] { second = cache->Read(1).status(); });
  HeldRead::AwaitWaiters(*cache, 1);
  held.Release();
  reader.join();
  waiter.join();
  EXPECT_EQ(ToString(first), "DATA_LOSS: memory:1: cut short");
  EXPECT_EQ(ToString(second), "DATA_LOSS: memory:1: cut short");
  EXPECT_EQ(source.reads(1), 1);
  EXPECT_FALSE(cache->Contains(1));
  CacheStats stats = cache->stats();
  EXPECT_EQ(stats.failed, 2);
  EXPECT_EQ(stats.failed_reads, 1);
  EXPECT_EQ(stats.used_bytes, 0);

  source.on_read = nullptr;  // the file is back
  EXPECT_EQ(TextOf(*cache->Read(1)), source.Content(1));
  stats = cache->stats();
  EXPECT_EQ(stats.reads(), 3);
  EXPECT_EQ(stats.misses, 1);
}

TEST(Cache, WaitingForAnotherReaderHasADeadline) {
  MemorySource source({.records = 4});
  VirtualClock clock;
  HeldRead held(&source, Status());
  const auto cache = Make(&source, {.budget_bytes = 1000, .wait_limit = absl::Seconds(2), .clock = &clock});
  std::thread reader([&] { EXPECT_TRUE(cache->Read(1).ok()); });
  held.AwaitInside();
  Status status;
  std::thread waiter([&] { status = cache->Read(1).status(); });
  std::atomic<bool> done = false;
  std::thread time([&] {
    while (!done) {
      clock.Advance(absl::Seconds(3));
      std::this_thread::yield();
    }
  });
  waiter.join();
  done = true;
  time.join();
  EXPECT_EQ(ToString(status), "DEADLINE_EXCEEDED: memory:1: another thread has been reading it for more than 2s");
  held.Release();
  reader.join();
  EXPECT_EQ(TextOf(*cache->Read(1)), source.Content(1));
  const CacheStats stats = cache->stats();
  EXPECT_EQ(stats.failed, 1);
  EXPECT_EQ(stats.hits, 1);
}

TEST(Cache, ManyThreadsGetTheRightBytesAndTheAccountsAddUp) {
  MemorySource source({.records = 300, .base_bytes = 50, .spread = 100});
  source.on_read = [](int64_t record) { return record % 50 == 49 ? DataLoss("memory:{}: damaged", record) : Status(); };
  for (const CacheKind kind :
       {CacheKind::kNone, CacheKind::kPageCache, CacheKind::kMinio, CacheKind::kLru, CacheKind::kFifo, CacheKind::kTwoList}) {
    const auto cache = Make(&source, {.kind = kind, .budget_bytes = kind == CacheKind::kPageCache ? 400'000 : 10'000});
    constexpr int kThreads = 4, kReads = 5000;
    std::atomic<int64_t> wrong = 0, failures = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t);
        for (int i = 0; i < kReads; ++i) {
          // Two of three reads go to a few records, so that threads meet.
          const auto record = static_cast<int64_t>(random() % (i % 3 == 0 ? 300 : 30));
          const auto view = cache->Read(record);
          if (record % 50 == 49) {
            failures += view.ok() ? 0 : 1;
            wrong += view.ok() ? 1 : 0;
          } else {
            wrong += view.ok() && TextOf(*view) == source.Content(record) ? 0 : 1;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    const CacheStats stats = cache->stats();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(stats.reads(), kThreads * kReads) << CacheKindName(kind);
    EXPECT_EQ(stats.failed, failures);
    EXPECT_LE(stats.peak_bytes, stats.budget_bytes);
    EXPECT_EQ(stats.lingering_bytes, 0);
    int64_t kept_bytes = 0, kept = 0;
    for (int64_t i = 0; i < source.size(); ++i) {
      if (!cache->Contains(i)) continue;
      const int64_t bytes = *source.SizeBytes(i);
      kept_bytes += kind == CacheKind::kPageCache ? 4096 : bytes;
      ++kept;
    }
    EXPECT_EQ(stats.used_bytes, kept_bytes) << CacheKindName(kind);
    EXPECT_EQ(stats.items, kept);
    EXPECT_EQ(stats.admitted - stats.evicted, kept);
  }
}

TEST(Cache, AGroupIsReadWithOneReadAndServedFromTheCacheAfterwards) {
  MemorySource source({.records = 10, .group = 4});
  const auto cache = Make(&source, {.budget_bytes = 10'000});
  std::vector<RecordView> views;
  ASSERT_TRUE(cache->ReadGroup(5, &views).ok());
  ASSERT_EQ(views.size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(TextOf(views[i]), source.Content(4 + i));
  EXPECT_EQ(source.group_reads(), 1);
  ASSERT_TRUE(cache->ReadGroup(7, &views).ok());
  EXPECT_TRUE(cache->Read(6).ok());
  EXPECT_EQ(source.group_reads(), 1);
  EXPECT_EQ(source.read_count(), 0);
  EXPECT_EQ(cache->stats().misses, 4);
  EXPECT_EQ(cache->stats().hits, 5);

  // One of the group's records is damaged: the others are good, and stay.
  source.on_read = [](int64_t record) { return record == 1 ? DataLoss("memory:1: damaged") : Status(); };
  ASSERT_TRUE(cache->ReadGroup(0, &views).ok());
  EXPECT_EQ(TextOf(views[0]), source.Content(0));
  EXPECT_TRUE(views[1].bytes().empty());
  EXPECT_EQ(ToString(cache->Read(1).status()), "DATA_LOSS: memory:1: damaged");
  EXPECT_TRUE(cache->Contains(2));
  EXPECT_FALSE(cache->Contains(1));
}

TEST(Cache, HintsReachTheSourceOnlyForWhatIsMissingAndNeverStayOpen) {
  const MemorySource source({.records = 10});
  const auto cache = Make(&source, {.kind = CacheKind::kFifo, .budget_bytes = 300});
  cache->WillNeed(1);
  cache->WillNeed(1);
  EXPECT_EQ(source.open_hints(), 2);
  ASSERT_TRUE(cache->Read(1).ok());  // a miss: the source's own count goes down
  EXPECT_EQ(source.open_hints(), 1);
  ASSERT_TRUE(cache->Read(1).ok());  // a hit: the cache takes the hint back
  EXPECT_EQ(source.open_hints(), 0);
  cache->WillNeed(1);
  EXPECT_EQ(source.open_hints(), 0);
  cache->WillNeed(2);
  cache->WontNeed(2);
  cache->WontNeed(2);
  cache->WillNeed(-1);
  cache->WillNeed(10);
  EXPECT_EQ(source.open_hints(), 0);
}

TEST(Cache, AFileThatVanishesIsServedFromTheCacheAndItsNeighboursAreTypedErrors) {
  const TempFolder folder;
  for (int i = 0; i < 4; ++i) folder.Write(fmt::format("class/{}.jpg", i), SmallJpeg(i));
  const auto source = OpenImageFolderSource(folder.path());
  ASSERT_TRUE(source.ok());
  const auto cache = Make(source->get(), {.budget_bytes = 1 << 20});
  const std::string kept = TextOf(*cache->Read(0));
  std::filesystem::remove_all(folder.path("class"));
  EXPECT_EQ(TextOf(*cache->Read(0)), kept);
  const Status gone = cache->Read(1).status();
  EXPECT_EQ(gone.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(gone), HasSubstr("class/1.jpg"));
  EXPECT_EQ(cache->stats().failed, 1);
  EXPECT_EQ(cache->stats().reads(), 3);
}

TEST(Cache, RecordsThatDoNotExistAndBadOptionsAreErrors) {
  const MemorySource source({.records = 10});
  const auto cache = Make(&source, {.budget_bytes = 1000});
  EXPECT_EQ(ToString(cache->Read(10).status()), "OUT_OF_RANGE: record 10; the data has 10");
  EXPECT_EQ(ToString(cache->Read(-1).status()), "OUT_OF_RANGE: record -1; the data has 10");
  std::vector<RecordView> views;
  EXPECT_EQ(cache->ReadGroup(10, &views).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(cache->stats().reads(), 0);
  EXPECT_THAT(ToString(Cache::Create(&source, {.wait_limit = absl::ZeroDuration()}).status()), HasSubstr("wait_limit 0"));
  EXPECT_THAT(ToString(Cache::Create(&source, {.budget_bytes = -5}).status()), HasSubstr("budget of -5 bytes"));
}

TEST(Cache, MetricsTellReadsByOutcome) {
  const MemorySource source({.records = 10});
  auto cache = Make(&source, {.budget_bytes = 1000, .metrics_label = "test"});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(cache->Read(2).ok());
  const std::string text = Metrics::Default().Render();
  EXPECT_THAT(text, HasSubstr("tidepool_cache_reads_total{cache=\"test\",outcome=\"hit\"} 2"));
  EXPECT_THAT(text, HasSubstr("tidepool_cache_reads_total{cache=\"test\",outcome=\"miss\"} 1"));
  EXPECT_THAT(text, HasSubstr("tidepool_cache_used_bytes{cache=\"test\"} 100"));
  cache.reset();
  Metrics::Default().Render();
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// In strict mode the kernel kills a thread at its first system call other than read, write and exit.
TEST(Cache, AHitMakesNoSystemCall) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's runtime makes system calls of its own";
  const MemorySource source({.records = 64, .base_bytes = 1000});
  for (const CacheKind kind : {CacheKind::kMinio, CacheKind::kLru, CacheKind::kFifo, CacheKind::kTwoList}) {
    const auto cache = Make(&source, {.kind = kind, .budget_bytes = 64'000});
    for (int64_t i = 0; i < 64; ++i) ASSERT_TRUE(cache->Read(i).ok());
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t i = 0; i < 64; ++i) (void)cache->Read(i).ok();  // the child's own copies of touched pages
      if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) ::_exit(77);
      bool good = true;
      for (int64_t i = 0; i < 200'000; ++i) {
        const auto view = cache->Read(i % 64);
        good = good && view.ok() && view->size_bytes() == 1000;
      }
      ::syscall(SYS_exit, good ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "the kernel has no strict seccomp mode here";
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << CacheKindName(kind) << ": status " << status;
  }
}

}  // namespace
}  // namespace tidepool::data
