// Shared preparation over real processes that are killed and stopped.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "base/fd.h"
#include "base/process.h"
#include "base/testing.h"
#include "data/shared_loader.h"
#include "data/shared_prep_coordinator.h"
#include "data/shared_prep_testing.h"

namespace tidepool::data {
namespace {

using testing::Soon;

constexpr int64_t kSamples = 230, kBatch = 16, kBatches = 15, kEpochs = 12;

uint64_t HashOf(std::span<const std::byte> bytes, uint64_t hash = 0) {
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3;
  return hash;
}

// What a job's process does: uses all batches, and writes a line for each into its log: "epoch batch samples hash". Exits with 0
// if all came.
int RunJob(const std::string& socket, const std::string& log_path) {
  NumberedDataset dataset(kSamples);
  auto loader = SharedLoader::Join(
      &dataset, {.socket = socket, .name = log_path, .threads = 2, .batch = kBatch, .epochs = kEpochs, .seed = 6}, Soon());
  if (!loader.ok()) return 2;
  std::ofstream log(log_path);
  while (true) {
    const auto batch = (*loader)->Next(Soon());
    if (!batch.ok()) {
      log << ToString(batch.status()) << std::endl;
      return 3;
    }
    if (!batch->has_value()) break;
    const SharedBatch& got = **batch;
    const uint64_t hash = HashOf(std::as_bytes(got.samples()), HashOf(got.targets(), HashOf(got.inputs())));
    log << got.epoch() << ' ' << got.batch() << ' ' << got.size() << ' ' << hash << std::endl;
  }
  return 0;
}

ChildProcess StartJob(const std::string& socket, const std::string& log) {
  auto child = ChildProcess::Start({.command = {"/proc/self/exe", "--job", socket, log}});
  EXPECT_TRUE(child.ok()) << ToString(child.status());
  return *std::move(child);
}

std::vector<std::string> LinesOf(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

// What a loader alone gives, as lines of a log.
std::vector<std::string> Expected() {
  NumberedDataset dataset(kSamples);
  auto loader = BatchLoader::Start(&dataset, {.batch = kBatch, .epochs = kEpochs, .start = {.seed = 6}});
  std::vector<std::string> lines;
  while (true) {
    const auto batch = (*loader)->Next(Soon());
    EXPECT_TRUE(batch.ok());
    if (!batch.ok() || !batch->has_value()) return lines;
    const Batch& got = **batch;
    const uint64_t hash = HashOf(std::as_bytes(got.samples()), HashOf(got.targets(), HashOf(got.inputs())));
    lines.push_back(fmt::format("{} {} {} {}", got.epoch(), got.positions().begin % kSamples / kBatch, got.size(), hash));
  }
}

// Waits until the job with this name has been given `count` batches, or some job has had all.
bool AwaitDelivered(const PrepCoordinator& coordinator, const std::string& name, int64_t count) {
  const absl::Time deadline = Soon();
  while (Clock::Real()->Now() < deadline) {
    const PrepCoordinatorStats stats = coordinator.stats();
    if (stats.left > 0) return true;
    for (const PrepJobAccount& job : stats.jobs) {
      if (job.name == name.substr(0, 64) && job.delivered >= count) return true;
    }
    Clock::Real()->SleepFor(absl::Microseconds(200));
  }
  return false;
}

void ExpectAll(const std::vector<std::string>& lines, const std::vector<std::string>& expected, int64_t first_epoch = 0) {
  const std::vector<std::string> wanted(expected.begin() + first_epoch * kBatches, expected.end());
  EXPECT_EQ(lines.size(), wanted.size());
  EXPECT_EQ(lines, wanted);
}

TEST(SharedPrepProcesses, JobsThatAreKilledAtAnyMomentCostTheOthersNothingAndEachBatchIsUsedExactlyOnce) {
  const std::vector<std::string> expected = Expected();
  ASSERT_EQ(expected.size(), static_cast<size_t>(kBatches * kEpochs));
  for (const int64_t killed_after : {0, 1, 5, 20, 47, 100}) {
    const testing::TempDir folder;
    // Little room, so that the jobs meet.
    auto coordinator = PrepCoordinator::Start({.socket = folder.File("s"), .staging_bytes = 4 * 4096, .jobs = 3});
    ASSERT_TRUE(coordinator.ok()) << ToString(coordinator.status());
    const std::string names[] = {folder.File("a"), folder.File("b"), folder.File("victim"), folder.File("late")};
    std::vector<ChildProcess> jobs;
    for (int j = 0; j < 3; ++j) jobs.push_back(StartJob(folder.File("s"), names[j]));
    // With 0 it may not have got anything yet.
    ASSERT_TRUE(AwaitDelivered(**coordinator, names[killed_after > 0 ? 2 : 0], std::max<int64_t>(killed_after, 1)));
    ASSERT_TRUE(jobs[2].Signal(SIGKILL).ok());
    const auto killed = jobs[2].Wait(Soon());
    ASSERT_TRUE(killed.ok());
    jobs.push_back(StartJob(folder.File("s"), names[3]));
    for (const int j : {0, 1, 3}) {
      const auto exit = jobs[static_cast<size_t>(j)].Wait(Soon());
      ASSERT_TRUE(exit.ok()) << ToString(exit.status());
      EXPECT_TRUE(exit->ok()) << exit->Describe();
    }
    for (const int j : {0, 1}) ExpectAll(LinesOf(names[j]), expected);
    // The one that came late has whole epochs, from the first that had not begun.
    const std::vector<std::string> late = LinesOf(names[3]);
    ASSERT_EQ(late.size() % kBatches, 0u);
    ExpectAll(late, expected, kEpochs - static_cast<int64_t>(late.size()) / kBatches);
    // What the victim used before it was killed is right as well, and in order.
    const std::vector<std::string> dead = LinesOf(names[2]);
    // On a busy machine it can have had all before the signal came.
    ASSERT_LE(dead.size(), expected.size());
    for (size_t i = 0; i + 1 < dead.size(); ++i) EXPECT_EQ(dead[i], expected[i]);

    EXPECT_EQ(ToString((*coordinator)->AwaitAllLeft(Soon())), "OK");
    const PrepCoordinatorStats stats = (*coordinator)->stats();
    EXPECT_EQ(stats.free_slots, stats.slots);
    EXPECT_EQ(stats.expelled, 0);
    ASSERT_EQ(stats.epochs.size(), static_cast<size_t>(kEpochs));
    for (const PrepEpochAccount& epoch : stats.epochs) {
      EXPECT_EQ(epoch.prepared, kBatches) << epoch.epoch;  // once, whoever died
      EXPECT_EQ(epoch.repeated, 0);
      EXPECT_GE(epoch.delivered, 2 * kBatches);
      EXPECT_LE(epoch.delivered, 4 * kBatches);
    }
    if (HasFailure()) return;
  }
}

TEST(SharedPrepProcesses, AJobThatIsStoppedHoldsUpTheOthersForALimitedTimeAndWakesUpToAnError) {
  const std::vector<std::string> expected = Expected();
  const testing::TempDir folder;
  auto coordinator = PrepCoordinator::Start({.socket = folder.File("s"),
                                             .staging_bytes = 8 * 4096,
                                             .jobs = 2,
                                             .lease_limit = absl::Milliseconds(300),
                                             .use_limit = absl::Seconds(5)});  // long: a busy machine may hold up this job too
  ASSERT_TRUE(coordinator.ok()) << ToString(coordinator.status());
  const std::string stopped_name = folder.File("stopped");
  ChildProcess stopped = StartJob(folder.File("s"), stopped_name);
  NumberedDataset dataset(kSamples);
  auto loader = SharedLoader::Join(
      &dataset, {.socket = folder.File("s"), .threads = 2, .batch = kBatch, .epochs = kEpochs, .seed = 6}, Soon());
  ASSERT_TRUE(loader.ok()) << ToString(loader.status());
  std::vector<std::string> lines;
  while (true) {
    const auto batch = (*loader)->Next(Soon());
    ASSERT_TRUE(batch.ok()) << ToString(batch.status());
    if (!batch->has_value()) break;
    const SharedBatch& got = **batch;
    const uint64_t hash = HashOf(std::as_bytes(got.samples()), HashOf(got.targets(), HashOf(got.inputs())));
    lines.push_back(fmt::format("{} {} {} {}", got.epoch(), got.batch(), got.size(), hash));
    if (lines.size() == 20) {
      ASSERT_TRUE(stopped.Signal(SIGSTOP).ok());
    }
  }
  ExpectAll(lines, expected);
  const PrepCoordinatorStats stats = (*coordinator)->stats();
  EXPECT_EQ(stats.expelled, 1);
  for (const PrepEpochAccount& epoch : stats.epochs) EXPECT_EQ(epoch.prepared, kBatches);
  ASSERT_TRUE(stopped.Signal(SIGCONT).ok());
  const auto exit = stopped.Wait(Soon());
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->code, 3) << exit->Describe();
  EXPECT_NE(LinesOf(stopped_name).back().find("FAILED_PRECONDITION: the job has held up the others"), std::string::npos)
      << LinesOf(stopped_name).back();
}

}  // namespace
}  // namespace tidepool::data

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--job") return tidepool::data::RunJob(argv[2], argv[3]);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
