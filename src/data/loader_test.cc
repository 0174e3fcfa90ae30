#include "data/loader.h"

#include <absl/synchronization/mutex.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <thread>

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;

// Sample i is {i, augment key}; its target is 10 * i. Broken samples fail; a closed gate holds every reader.
class FakeDataset : public Dataset {
 public:
  explicit FakeDataset(int64_t size) : size_(size) {}
  int64_t size() const override { return size_; }
  const TensorSpec& input() const override { return input_; }
  const TensorSpec& target() const override { return target_; }
  int64_t classes() const override { return 2; }
  std::string Describe(int64_t index) const override { return fmt::format("file-{}", index); }
  Status Read(int64_t index, const ReadOptions& options, std::span<std::byte> input, std::span<std::byte> target) const override {
    absl::MutexLock lock(&mu_);
    ++reads_[index];
    if (broken_.contains(index)) return DataLoss("file-{}: damaged", index);
    mu_.Await(absl::Condition(&open_));
    const int64_t values[2] = {index, static_cast<int64_t>(options.augment_key)};
    std::memcpy(input.data(), values, sizeof(values));
    const int64_t label = 10 * index;
    std::memcpy(target.data(), &label, sizeof(label));
    return {};
  }
  void SetOpen(bool open) {
    absl::MutexLock lock(&mu_);
    open_ = open;
  }
  std::map<int64_t, int> reads() const {
    absl::MutexLock lock(&mu_);
    return reads_;
  }
  std::set<int64_t> broken_;

 private:
  const int64_t size_;
  TensorSpec input_{DType::kI64, {2}}, target_{DType::kI64, {}};
  mutable absl::Mutex mu_;
  bool open_ = true;
  mutable std::map<int64_t, int> reads_;
};

constexpr int64_t kSampleBytes = 24;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(30); }

struct Fetched {
  Status status;
  std::vector<int64_t> indices, keys, labels;
};

Fetched Fetch(Loader* loader, std::vector<PositionRange> ranges, absl::Time deadline = Soon()) {
  int64_t count = 0;
  for (const PositionRange& range : ranges) count += range.size();
  std::vector<int64_t> inputs(2 * count), targets(count);
  Fetched fetched;
  fetched.status =
      loader->Fetch(ranges, std::as_writable_bytes(std::span(inputs)), std::as_writable_bytes(std::span(targets)), deadline);
  for (int64_t i = 0; i < count; ++i) {
    fetched.indices.push_back(inputs[2 * i]);
    fetched.keys.push_back(inputs[2 * i + 1]);
  }
  fetched.labels = targets;
  return fetched;
}

TEST(EpochOrder, IsAPermutationThatDependsOnSeedAndEpoch) {
  const std::vector<int64_t> order = EpochOrder(1000, 3, 7);
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(sorted[i], i);
  EXPECT_EQ(order, EpochOrder(1000, 3, 7));
  EXPECT_NE(order, EpochOrder(1000, 3, 8));
  EXPECT_NE(order, EpochOrder(1000, 4, 7));
}

TEST(EpochOrder, KeepsItsValuesBetweenReleases) {
  EXPECT_THAT(EpochOrder(8, 1, 0), ::testing::ElementsAre(7, 6, 2, 3, 1, 4, 0, 5));
}

TEST(Loader, DeliversEachSampleOfAnEpochOnceAndNeverASampleOfTheNext) {
  FakeDataset dataset(37);
  for (const int threads : {1, 3}) {
    auto loader = Loader::Start(&dataset, {.threads = threads, .seed = 5}).value();
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      Fetched fetched = Fetch(loader.get(), {{epoch * 37, epoch * 37 + 37}});
      ASSERT_TRUE(fetched.status.ok());
      EXPECT_EQ(fetched.indices, EpochOrder(37, 5, epoch));
      for (int i = 0; i < 37; ++i) {
        EXPECT_EQ(fetched.labels[i], 10 * fetched.indices[i]);
        EXPECT_EQ(static_cast<uint64_t>(fetched.keys[i]), AugmentKey(5, epoch));
      }
      loader->ReleaseBefore((epoch + 1) * 37);
    }
  }
}

TEST(Loader, FetchesAgainWithoutDecodingAgainUntilRelease) {
  FakeDataset dataset(16);
  auto loader = Loader::Start(&dataset, {.threads = 2, .epochs = 1}).value();
  const Fetched first = Fetch(loader.get(), {{0, 8}});
  const Fetched again = Fetch(loader.get(), {{4, 8}, {0, 2}});
  ASSERT_TRUE(again.status.ok());
  EXPECT_EQ(again.indices, (std::vector<int64_t>{first.indices[4], first.indices[5], first.indices[6], first.indices[7],
                                                 first.indices[0], first.indices[1]}));
  for (const auto& [index, reads] : dataset.reads()) EXPECT_EQ(reads, 1) << index;
  loader->ReleaseBefore(4);
  const Status released = Fetch(loader.get(), {{3, 5}}).status;
  EXPECT_EQ(released.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(released), HasSubstr("position 3 was released; the first one that is kept is 4"));
}

TEST(Loader, KeepsWithinItsBytesUnlessAFetchNeedsMore) {
  FakeDataset dataset(100);
  auto loader = Loader::Start(&dataset, {.threads = 4, .max_bytes = 10 * kSampleBytes}).value();
  for (int64_t p = 0; p < 60; p += 5) {
    ASSERT_TRUE(Fetch(loader.get(), {{p, p + 5}}).status.ok());
    loader->ReleaseBefore(p + 5);
  }
  EXPECT_LE(loader->stats().peak_kept_bytes, 10 * kSampleBytes);
  ASSERT_TRUE(Fetch(loader.get(), {{60, 90}}).status.ok());
  EXPECT_LE(loader->stats().peak_kept_bytes, 30 * kSampleBytes);
  loader->ReleaseBefore(90);
  const LoaderStats stats = loader->stats();
  EXPECT_EQ(stats.delivered, 90);
  EXPECT_EQ(stats.released, 90);
  EXPECT_EQ(stats.kept_bytes, stats.kept * kSampleBytes);
}

TEST(Loader, ReportsABrokenSampleAtEachFetchOfIt) {
  FakeDataset dataset(10);
  dataset.broken_ = {3};
  auto loader = Loader::Start(&dataset, {.shuffle = false}).value();
  EXPECT_TRUE(Fetch(loader.get(), {{0, 3}}).status.ok());
  for (int i = 0; i < 2; ++i) {
    const Status status = Fetch(loader.get(), {{2, 5}}).status;
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(MessageOf(status), HasSubstr("sample 3 at position 3: file-3: damaged"));
  }
  EXPECT_TRUE(Fetch(loader.get(), {{4, 6}}).status.ok());
}

TEST(Loader, ReplacesABrokenSampleByTheNextReadableOneAndCountsIt) {
  FakeDataset dataset(10);
  dataset.broken_ = {3, 4, 9};
  auto loader =
      Loader::Start(&dataset, {.threads = 3, .shuffle = false, .epochs = 1, .on_error = LoaderOptions::OnError::kReplace})
          .value();
  const Fetched fetched = Fetch(loader.get(), {{0, 10}});
  ASSERT_TRUE(fetched.status.ok());
  EXPECT_THAT(fetched.indices, ::testing::ElementsAre(0, 1, 2, 5, 5, 5, 6, 7, 8, 0));
  EXPECT_EQ(loader->stats().skipped, 3);
  EXPECT_THAT(loader->stats().first_error, HasSubstr("damaged"));
}

TEST(Loader, GivesUpWhenNoReplacementCanBeRead) {
  FakeDataset dataset(3);
  dataset.broken_ = {0, 1, 2};
  auto loader = Loader::Start(&dataset, {.on_error = LoaderOptions::OnError::kReplace, .max_replacements = 5}).value();
  EXPECT_THAT(MessageOf(Fetch(loader.get(), {{0, 1}}).status), HasSubstr("neither this sample nor the next 5 can be read"));
}

TEST(Loader, WaitsNoLongerThanItsDeadline) {
  FakeDataset dataset(4);
  dataset.SetOpen(false);
  auto loader = Loader::Start(&dataset, {}).value();
  const Status late = Fetch(loader.get(), {{0, 1}}, Clock::Real()->Now() + absl::Milliseconds(1)).status;
  EXPECT_EQ(late.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(late), HasSubstr("sample at position 0 was not read in time"));
  dataset.SetOpen(true);
  EXPECT_TRUE(Fetch(loader.get(), {{0, 1}}).status.ok());
}

TEST(Loader, ReleasesSamplesThatAreStillBeingRead) {
  FakeDataset dataset(8);
  dataset.SetOpen(false);
  auto loader = Loader::Start(&dataset, {.threads = 2, .epochs = 1}).value();
  EXPECT_FALSE(Fetch(loader.get(), {{0, 2}}, Clock::Real()->Now() + absl::Milliseconds(1)).status.ok());
  loader->ReleaseBefore(6);
  dataset.SetOpen(true);
  EXPECT_TRUE(Fetch(loader.get(), {{6, 8}}).status.ok());
  loader->ReleaseBefore(8);
  loader.reset();
}

TEST(Loader, CancelWakesAFetch) {
  FakeDataset dataset(4);
  dataset.SetOpen(false);
  auto loader = Loader::Start(&dataset, {}).value();
  Status status;
  std::thread waiter([&] { status = Fetch(loader.get(), {{0, 1}}, absl::InfiniteFuture()).status; });
  loader->Cancel();
  waiter.join();
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  dataset.SetOpen(true);
}

TEST(Loader, RefusesPositionsBehindTheLastEpochAndBadOptions) {
  FakeDataset dataset(4);
  auto loader = Loader::Start(&dataset, {.epochs = 2}).value();
  EXPECT_THAT(MessageOf(Fetch(loader.get(), {{7, 9}}).status), HasSubstr("position 8; the last epoch ends at 8"));
  std::byte small[1];
  const PositionRange one{0, 1};
  EXPECT_THAT(MessageOf(loader->Fetch({&one, 1}, small, small, Soon())), HasSubstr("buffers of 1 and 1 bytes for 1 samples"));
  const Status bad = Loader::Start(&dataset, {.threads = 0, .max_bytes = 23}).status();
  EXPECT_THAT(MessageOf(bad), HasSubstr("loader threads 0; allowed: 1 to 256; 23 bytes to read ahead; one sample needs 24"));
}

TEST(Loader, StartsInTheMiddleWithTheSameSamples) {
  FakeDataset dataset(20);
  auto from_start = Loader::Start(&dataset, {.seed = 9}).value();
  auto from_middle = Loader::Start(&dataset, {.threads = 2, .seed = 9, .first_position = 33}).value();
  const Fetched a = Fetch(from_start.get(), {{33, 45}});
  const Fetched b = Fetch(from_middle.get(), {{33, 45}});
  ASSERT_TRUE(a.status.ok() && b.status.ok());
  EXPECT_EQ(a.indices, b.indices);
  EXPECT_EQ(a.keys, b.keys);
}

TEST(Loader, SurvivesRandomFetchesAndReleasesFromTwoThreads) {
  FakeDataset dataset(50);
  auto loader = Loader::Start(&dataset, {.threads = 3, .max_bytes = 20 * kSampleBytes, .seed = 2}).value();
  std::atomic<int64_t> released{0};
  std::thread other([&] {
    std::mt19937 random(1);
    for (int i = 0; i < 300; ++i) {
      const int64_t begin = released.load() + random() % 8;
      const Fetched fetched = Fetch(loader.get(), {{begin, begin + 4}});
      if (fetched.status.code() == StatusCode::kFailedPrecondition) continue;
      ASSERT_TRUE(fetched.status.ok()) << ToString(fetched.status);
      for (int64_t j = 0; j < 4; ++j) ASSERT_EQ(fetched.indices[j], EpochOrder(50, 2, (begin + j) / 50)[(begin + j) % 50]);
    }
  });
  for (int64_t position = 0; position < 300; ++position) {
    ASSERT_TRUE(Fetch(loader.get(), {{position, position + 2}}).status.ok());
    released = position + 1;
    loader->ReleaseBefore(position + 1);
  }
  other.join();
}

}  // namespace
}  // namespace tidepool::data
