#include "data/batch_loader.h"

#include <absl/synchronization/mutex.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "data/containers.h"
#include "data/packed.h"
#include "data/testing.h"

namespace tidepool::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Sample i is {i, augment key}; its target is 10 * i. Samples lie in groups of `group`. Broken samples fail; a held sample is
// read when it is let go.
class FakeData : public Dataset {
 public:
  explicit FakeData(int64_t size, int64_t group = 1) : size_(size), group_(group) {}
  int64_t size() const override { return size_; }
  const TensorSpec& input() const override { return input_; }
  const TensorSpec& target() const override { return target_; }
  int64_t classes() const override { return 2; }
  std::string Describe(int64_t index) const override { return fmt::format("file-{}", index); }
  RecordRange Group(int64_t index) const override {
    const int64_t first = index / group_ * group_;
    return {first, std::min(first + group_, size_)};
  }
  void WillNeed(int64_t index) const override {
    absl::MutexLock lock(&mu_);
    ++announced_[index];
  }
  void WontNeed(int64_t index) const override {
    absl::MutexLock lock(&mu_);
    --announced_[index];
  }
  Status Read(int64_t index, const ReadOptions& options, std::span<std::byte> input, std::span<std::byte> target) const override {
    absl::MutexLock lock(&mu_);
    --announced_[index];
    mu_.Await(absl::Condition(
        +[](const std::pair<const FakeData*, int64_t>* held)
             ABSL_NO_THREAD_SAFETY_ANALYSIS { return !held->first->held_.contains(held->second); },
        new_pair(index)));
    if (broken_.contains(index)) return DataLoss("file-{}: damaged", index);
    const int64_t values[2] = {index, static_cast<int64_t>(options.augment_key)};
    std::memcpy(input.data(), values, sizeof(values));
    const int64_t label = 10 * index;
    std::memcpy(target.data(), &label, sizeof(label));
    return {};
  }
  void Hold(int64_t index) {
    absl::MutexLock lock(&mu_);
    held_.insert(index);
  }
  void LetGo() {
    absl::MutexLock lock(&mu_);
    held_.clear();
  }
  int64_t open_announcements() const {
    absl::MutexLock lock(&mu_);
    int64_t sum = 0;
    for (const auto& [index, count] : announced_) sum += count;
    return sum;
  }
  std::set<int64_t> broken_;

 private:
  const std::pair<const FakeData*, int64_t>* new_pair(int64_t index) const {
    thread_local std::pair<const FakeData*, int64_t> pair;
    pair = {this, index};
    return &pair;
  }
  const int64_t size_, group_;
  TensorSpec input_{DType::kI64, {2}}, target_{DType::kI64, {}};
  mutable absl::Mutex mu_;
  std::set<int64_t> held_;
  mutable std::map<int64_t, int64_t> announced_;
};

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(30); }

// What a batch holds, as one line.
std::string Show(const Batch& batch) {
  std::string text = fmt::format("{}:{}-{}", batch.epoch(), batch.positions().begin, batch.positions().end);
  for (int64_t i = 0; i < batch.size(); ++i) {
    int64_t values[2], label;
    std::memcpy(values, batch.inputs().data() + 16 * i, 16);
    std::memcpy(&label, batch.targets().data() + 8 * i, 8);
    EXPECT_EQ(values[0], batch.samples()[i]);
    EXPECT_EQ(label, 10 * values[0]);
    text += fmt::format(" {}/{:x}", values[0], static_cast<uint64_t>(values[1]));
  }
  return text;
}

// All batches to the end, or `limit` of them.
std::vector<std::string> Drain(BatchLoader* loader, size_t limit = 100000) {
  std::vector<std::string> lines;
  while (lines.size() < limit) {
    const auto batch = loader->Next(Soon());
    EXPECT_TRUE(batch.ok()) << ToString(batch.status());
    if (!batch.ok() || !batch->has_value()) break;
    lines.push_back(Show(**batch));
  }
  return lines;
}

std::map<int64_t, std::multiset<int64_t>> SamplesByEpoch(const std::vector<std::string>& lines) {
  std::map<int64_t, std::multiset<int64_t>> samples;
  for (const std::string& line : lines) {
    const int64_t epoch = std::stoll(line);
    for (size_t at = line.find(' '); at != std::string::npos; at = line.find(' ', at + 1))
      samples[epoch].insert(std::stoll(line.substr(at + 1)));
  }
  return samples;
}

std::multiset<int64_t> Everything(int64_t size) {
  std::multiset<int64_t> all;
  for (int64_t i = 0; i < size; ++i) all.insert(i);
  return all;
}

TEST(BatchLoader, HandsOutEachSampleOfAnEpochOnceForEveryNumberOfThreadsAndGroupSize) {
  for (const int64_t group : {1, 7}) {
    std::vector<std::string> expected;
    for (const int threads : {1, 2, 3, 8}) {
      for (const bool as_ready : {false, true}) {
        FakeData data(101, group);
        auto loader = BatchLoader::Start(
            &data, {.threads = threads, .batch = 8, .as_ready = as_ready, .epochs = 3, .window_groups = 2, .start = {.seed = 5}});
        ASSERT_TRUE(loader.ok());
        std::vector<std::string> lines = Drain(loader->get());
        EXPECT_EQ(lines.size(), 3u * 13);
        for (const auto& [epoch, samples] : SamplesByEpoch(lines)) EXPECT_EQ(samples, Everything(101)) << "epoch " << epoch;
        if (as_ready) std::sort(lines.begin(), lines.end());
        std::vector<std::string> sorted = lines;
        std::sort(sorted.begin(), sorted.end());
        if (expected.empty()) expected = sorted;
        EXPECT_EQ(sorted, expected);
        const BatchLoaderStats stats = (*loader)->stats();
        EXPECT_EQ(stats.delivered, 303);
        EXPECT_EQ(stats.batches, 39);
        ASSERT_EQ(stats.accounts.size(), 3u);
        for (const EpochAccount& account : stats.accounts) EXPECT_EQ(account.delivered, 101);
        loader->reset();
        EXPECT_EQ(data.open_announcements(), 0);
      }
    }
  }
}

TEST(BatchLoader, GoesOnAfterACrashWithExactlyTheSamplesThatWereNotHandedOut) {
  for (const bool as_ready : {false, true}) {
    for (const size_t before : {1, 5, 13, 14, 20}) {
      FakeData data(101, 4);
      if (as_ready) data.Hold(EpochOrder(101, 1, 0)[0]);  // makes some batch late, so that others overtake it
      const BatchLoaderOptions options = {.threads = 3, .batch = 8, .as_ready = as_ready, .epochs = 3, .start = {.seed = 9}};
      auto first = BatchLoader::Start(&data, options).value();
      std::vector<std::string> lines = Drain(first.get(), std::min<size_t>(before, as_ready ? 5 : 100));
      const std::string saved = first->cursor().ToText();
      data.LetGo();
      // Abandoned with batches ready, being read and announced.
      first.reset();
      EXPECT_EQ(data.open_announcements(), 0);
      BatchLoaderOptions resumed = options;
      resumed.threads = 2;
      resumed.start = LoaderCursor::FromText(saved).value();
      auto second = BatchLoader::Start(&data, resumed).value();
      const std::vector<std::string> rest = Drain(second.get());
      lines.insert(lines.end(), rest.begin(), rest.end());
      FakeData same(101, 4);
      auto whole = BatchLoader::Start(&same, options).value();
      std::vector<std::string> expected = Drain(whole.get());
      std::sort(lines.begin(), lines.end());
      std::sort(expected.begin(), expected.end());
      EXPECT_EQ(lines, expected) << "as ready " << as_ready << " after " << before << " at " << saved;
    }
  }
}

TEST(BatchLoader, ResumesWithAnotherBatchSizeAndStillUsesEachSampleOnce) {
  FakeData data(50);
  auto first = BatchLoader::Start(&data, {.batch = 8, .epochs = 1}).value();
  std::vector<std::string> lines = Drain(first.get(), 3);
  auto second = BatchLoader::Start(&data, {.batch = 5, .epochs = 1, .start = first->cursor()}).value();
  const std::vector<std::string> rest = Drain(second.get());
  lines.insert(lines.end(), rest.begin(), rest.end());
  EXPECT_EQ(SamplesByEpoch(lines)[0], Everything(50));
}

TEST(BatchLoader, HandsOutWhatIsReadyPastASlowSample) {
  FakeData data(40);
  data.Hold(2);
  auto loader = BatchLoader::Start(&data, {.threads = 2, .batch = 4, .as_ready = true, .epochs = 1, .shuffle = false}).value();
  const std::vector<std::string> lines = Drain(loader.get(), 9);
  EXPECT_EQ(lines[0].substr(0, 5), "0:4-8");
  const LoaderCursor cursor = loader->cursor();
  EXPECT_EQ(cursor.offset, 0);
  EXPECT_EQ(cursor.delivered.front().begin, 4);
  EXPECT_EQ(cursor.delivered.back().end, 40);
  EXPECT_EQ(LoaderCursor::FromText(cursor.ToText()).value(), cursor);
  data.LetGo();
  EXPECT_EQ(Drain(loader.get()).size(), 1u);
  EXPECT_EQ(loader->cursor().epoch, 1);
  EXPECT_TRUE(loader->cursor().delivered.empty());
}

TEST(BatchLoader, SkipsBrokenSamplesWithAnExactAccount) {
  for (const int threads : {1, 4}) {
    FakeData data(50);
    data.broken_ = {3, 11, 12, 13, 14, 15, 16, 17, 18, 49};
    auto loader =
        BatchLoader::Start(&data, {.threads = threads, .batch = 4, .epochs = 2, .shuffle = false, .on_error = OnError::kSkip})
            .value();
    const std::vector<std::string> lines = Drain(loader.get());
    EXPECT_EQ(lines[0].substr(0, 8), "0:0-4 0/");
    std::multiset<int64_t> good = Everything(50);
    for (const int64_t broken : data.broken_) good.erase(broken);
    for (const auto& [epoch, samples] : SamplesByEpoch(lines)) EXPECT_EQ(samples, good);
    EXPECT_EQ(lines.size(), 2u * 12);  // the batch of 12 to 15 is empty
    const BatchLoaderStats stats = loader->stats();
    EXPECT_EQ(stats.delivered, 80);
    EXPECT_EQ(stats.skipped, 20);
    for (const EpochAccount& account : stats.accounts) {
      EXPECT_EQ(account.delivered, 40);
      EXPECT_EQ(account.skipped, 10);
    }
    ASSERT_EQ(stats.errors.size(), 20u);
    EXPECT_THAT(stats.errors, ::testing::Contains("sample 3 at position 3: file-3: damaged"));
    EXPECT_EQ(loader->cursor().epoch, 2);
  }
}

TEST(BatchLoader, ReplacesBrokenSamplesInTheirPlaces) {
  FakeData data(10);
  data.broken_ = {3, 4, 9};
  auto loader =
      BatchLoader::Start(&data, {.threads = 3, .batch = 10, .epochs = 1, .shuffle = false, .on_error = OnError::kReplace})
          .value();
  const auto batch = loader->Next(Soon());
  ASSERT_TRUE(batch.ok());
  EXPECT_THAT((*batch)->samples(), ElementsAre(0, 1, 2, 5, 5, 5, 6, 7, 8, 0));
  EXPECT_EQ(loader->stats().replaced, 3);
  EXPECT_EQ(loader->stats().accounts[0].delivered, 10);
}

TEST(BatchLoader, ReportsABrokenSampleOnceAndGoesOn) {
  FakeData data(12);
  data.broken_ = {5};
  auto loader = BatchLoader::Start(&data, {.threads = 2, .batch = 4, .epochs = 1, .shuffle = false}).value();
  EXPECT_TRUE(loader->Next(Soon()).ok());
  const Status broken = loader->Next(Soon()).status();
  EXPECT_EQ(broken.code(), StatusCode::kDataLoss);
  EXPECT_EQ(MessageOf(broken), "sample 5 at position 5: file-5: damaged");
  EXPECT_EQ((**loader->Next(Soon())).samples()[0], 8);
  EXPECT_FALSE(loader->Next(Soon())->has_value());
  EXPECT_EQ(loader->stats().accounts[0].skipped, 4);
}

TEST(BatchLoader, LeavesOutTheShortBatchIfAskedTo) {
  FakeData data(10);
  auto loader = BatchLoader::Start(&data, {.batch = 4, .drop_last = true, .epochs = 2, .shuffle = false}).value();
  EXPECT_EQ(Drain(loader.get()).size(), 4u);
  for (const EpochAccount& account : loader->stats().accounts) {
    EXPECT_EQ(account.delivered, 8);
    EXPECT_EQ(account.skipped, 2);
  }
  EXPECT_EQ(loader->cursor().epoch, 2);
  loader.reset();
  EXPECT_EQ(data.open_announcements(), 0);
}

TEST(BatchLoader, StaysWithinItsMemoryWhoeverHoldsTheBatches) {
  FakeData data(200);
  const int64_t batch_bytes = 4 * 24;
  auto loader = BatchLoader::Start(&data, {.threads = 4, .batch = 4, .max_bytes = 3 * batch_bytes, .epochs = 1}).value();
  std::vector<Batch> held;
  for (int i = 0; i < 3; ++i) held.push_back(*std::move(loader->Next(Soon()).value()));
  EXPECT_EQ(loader->Next(Clock::Real()->Now() + absl::Milliseconds(5)).status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(loader->stats().memory_bytes, 3 * batch_bytes);
  held.erase(held.begin());
  held.push_back(*std::move(loader->Next(Soon()).value()));
  const std::string kept = Show(held.back());
  loader->Cancel();
  EXPECT_EQ(loader->Next(Soon()).status().code(), StatusCode::kCancelled);
  EXPECT_LE(loader->stats().peak_memory_bytes, 3 * batch_bytes);
  loader.reset();
  EXPECT_EQ(Show(held.back()), kept);
}

TEST(BatchLoader, RefusesBadOptionsAndCursorsOfOtherData) {
  FakeData data(10);
  const auto message = [&](BatchLoaderOptions options) {
    return MessageOf(BatchLoader::Start(&data, std::move(options)).status());
  };
  EXPECT_THAT(message({.threads = 0, .batch = 0}),
              HasSubstr("loader threads 0; allowed: 1 to 256; batches of 0 samples; allowed: 1 to 65536"));
  EXPECT_THAT(message({.batch = 10, .max_bytes = 479}),
              HasSubstr("479 bytes for batches; two of 10 samples with 24 bytes each need 544"));
  EXPECT_THAT(message({.start = {.offset = 10}}), HasSubstr("epoch 0 offset 10; allowed: offsets 0 to 9"));
  EXPECT_THAT(message({.start = {.offset = 4, .delivered = {{3, 5}}}}),
              HasSubstr("delivered range 3-5; allowed: rising ranges behind position 4"));
  EXPECT_THAT(message({.start = {.fingerprint = 1}, .fingerprint = 2}),
              HasSubstr("of other data (fingerprint 0000000000000001) than this (fingerprint 0000000000000002)"));
  EXPECT_THAT(MessageOf(LoaderCursor::FromText("seed=1 bogus=2").status()), HasSubstr("'bogus=2' in a loader's cursor"));
  EXPECT_THAT(MessageOf(LoaderCursor::FromText("delivered=1-2,3").status()), HasSubstr("'delivered=1-2,3'"));
}

// Real pictures in every container, one of them broken: the same batches for any number of threads, cold or announced.
TEST(BatchLoader, GivesTheSameBytesFromEveryContainerAndNumberOfThreads) {
  const TempFolder folder;
  TarBuilder tar;
  std::string tf;
  for (int i = 0; i < 30; ++i) {
    const std::string jpeg = i == 11 ? SmallJpeg(i, 64, 48).substr(0, 700) : SmallJpeg(i, 64, 48);
    folder.Write(fmt::format("folder/c{}/{:02}.jpg", i / 15, i), jpeg);
    tar.Add(fmt::format("{:02}.jpg", i), jpeg).Add(fmt::format("{:02}.cls", i), fmt::format("{}", i / 15));
    tf += TfFrame(TfExample(jpeg, i / 15));
  }
  folder.Write("x.tar", tar.Finish());
  folder.Write("x.tfrecord", tf);
  const auto source = OpenImageFolderSource(folder.path("folder")).value();
  const PackJob pack{.output = folder.path("x.tpk"), .group_bytes = 8000};
  ASSERT_TRUE(PackRecords(*source, source->class_names(), pack).ok());
  std::string expected;
  for (const std::string name : {"folder", "x.tar", "x.tfrecord", "x.tpk"}) {
    for (const int threads : {1, 3}) {
      std::shared_ptr<const RecordSource> records = OpenRecordSource(folder.path(name), {.group_bytes = 8000}).value();
      const auto dataset = OpenImages(records, {.image_size = 16}).value();
      // window_groups 0: the order does not depend on where a container has its groups.
      auto loader =
          BatchLoader::Start(
              dataset.get(),
              {.threads = threads, .batch = 7, .epochs = 2, .window_groups = 0, .on_error = OnError::kSkip, .start = {.seed = 3}})
              .value();
      std::string bytes;
      while (true) {
        const auto batch = loader->Next(Soon());
        ASSERT_TRUE(batch.ok()) << ToString(batch.status());
        if (!batch->has_value()) break;
        bytes += AsText((*batch)->inputs()) + AsText((*batch)->targets());
      }
      EXPECT_EQ(loader->stats().skipped, 2) << name;
      EXPECT_THAT(loader->stats().errors.front(), HasSubstr("damaged JPEG data")) << name;
      if (expected.empty()) expected = bytes;
      EXPECT_TRUE(bytes == expected) << name << " with " << threads << " threads";
    }
  }
}

TEST(GroupedEpochOrder, KeepsTheSamplesOfAWindowOfGroupsTogether) {
  const std::vector<int64_t> groups = {0, 5, 10, 12, 20, 21, 30};
  const std::vector<int64_t> order = GroupedEpochOrder(groups, 2, 4, 1);
  EXPECT_EQ(std::multiset<int64_t>(order.begin(), order.end()), Everything(30));
  EXPECT_EQ(order, GroupedEpochOrder(groups, 2, 4, 1));
  EXPECT_NE(order, GroupedEpochOrder(groups, 2, 4, 2));
  EXPECT_NE(order, GroupedEpochOrder(groups, 2, 5, 1));
  // Every group's samples lie within one window, and each window holds two groups.
  std::vector<std::set<int64_t>> windows;
  size_t at = 0;
  while (at < order.size()) {
    std::set<int64_t> seen;
    size_t length = 0;
    const auto group_of = [&](int64_t sample) {
      return std::upper_bound(groups.begin(), groups.end(), sample) - groups.begin() - 1;
    };
    while (at + length < order.size()) {
      const int64_t group = group_of(order[at + length]);
      if (!seen.contains(group) && seen.size() == 2) break;
      seen.insert(group);
      ++length;
    }
    size_t total = 0;
    for (const int64_t group : seen) total += groups[group + 1] - groups[group];
    EXPECT_EQ(length, total);
    windows.push_back(seen);
    at += length;
  }
  EXPECT_EQ(windows.size(), 3u);
}

TEST(GroupedEpochOrder, KeepsItsValuesBetweenReleases) {
  EXPECT_THAT(GroupedEpochOrder(std::vector<int64_t>{0, 2, 4, 6, 8}, 2, 1, 0), ElementsAre(1, 0, 2, 3, 5, 6, 7, 4));
}

}  // namespace
}  // namespace tidepool::data
