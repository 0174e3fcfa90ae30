// A partitioned cache over real processes, one of which is killed while others read through it.
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/fd.h"
#include "base/process.h"
#include "base/testing.h"
#include "data/cache_testing.h"
#include "data/order.h"
#include "data/partition.h"

namespace tidepool::data {
namespace {

using testing::Soon;

constexpr uint32_t kNodes = 3;
constexpr int64_t kRecords = 900;
constexpr double kShare = 0.25;

MemorySource::Options Records() { return {.records = kRecords, .base_bytes = 400}; }

PartitionOptions NodeOptions(uint32_t node) {
  return {.nodes = kNodes,
          .node = node,
          .seed = 17,
          .budget_bytes = static_cast<int64_t>(kShare * kRecords * 400),
          .request_limit = absl::Seconds(20),  // only a dead peer fails, not one that has to wait for a core
          .health = {.first_wait = absl::Milliseconds(1), .longest_wait = absl::Milliseconds(20)}};
}

bool AwaitFile(const std::string& path, absl::Time deadline) {
  while (!std::filesystem::exists(path)) {
    if (Clock::Real()->Now() > deadline) return false;
    Clock::Real()->SleepFor(absl::Milliseconds(1));
  }
  return true;
}

// Waits until all nodes have left their addresses in `folder`.
std::vector<std::string> AwaitAddresses(const std::string& folder) {
  std::vector<std::string> addresses;
  for (uint32_t node = 0; node < kNodes; ++node) {
    const std::string path = fmt::format("{}/address.{}", folder, node);
    if (!AwaitFile(path, Soon())) return {};
    addresses.push_back(ReadFile(path, 1000).value_or(""));
  }
  return addresses;
}

// What a node's process does: fills its part, says so, and reads epochs through all nodes until the file `stop` is there. Exits
// with 0 if every read gave the right bytes.
int RunNode(uint32_t node, const std::string& folder, const std::string& listen) {
  const MemorySource source(Records());
  PartitionOptions options = NodeOptions(node);
  options.listen = listen;
  auto cache = PartitionedCache::Create(&source, options);
  if (!cache.ok()) return 2;
  if (!WriteFileAtomically(fmt::format("{}/address.{}", folder, node), (*cache)->address()).ok()) return 3;
  const std::vector<std::string> addresses = AwaitAddresses(folder);
  if (addresses.empty() || !(*cache)->SetPeers(addresses).ok() || !(*cache)->Fill(Soon()).ok()) return 4;
  if (!WriteFileAtomically(fmt::format("{}/ready.{}", folder, node), "").ok()) return 5;
  const absl::Time deadline = Clock::Real()->Now() + absl::Minutes(2);
  for (int epoch = 0; epoch == 0 || !std::filesystem::exists(folder + "/stop"); ++epoch) {
    if (Clock::Real()->Now() > deadline) return 6;
    for (const int64_t record : EpochOrder(kRecords, node, epoch)) {
      const auto view = (*cache)->Read(record);
      if (!view.ok() || TextOf(*view) != source.Content(record)) return 7;
    }
  }
  const PartitionStats stats = (*cache)->stats();
  return stats.failed == 0 && stats.remote_hits > 0 ? 0 : 8;
}

ChildProcess StartNode(uint32_t node, const std::string& folder, const std::string& listen = "127.0.0.1:0") {
  auto child = ChildProcess::Start({.command = {"/proc/self/exe", "--node", std::to_string(node), folder, listen}});
  EXPECT_TRUE(child.ok()) << ToString(child.status());
  return *std::move(child);
}

TEST(PartitionedCacheProcesses, ANodeThatIsKilledCostsItsPartOfTheCacheAndNothingElseUntilItIsBack) {
  const testing::TempDir folder;
  const MemorySource source(Records());
  auto cache = PartitionedCache::Create(&source, NodeOptions(0));
  ASSERT_TRUE(cache.ok()) << ToString(cache.status());
  ChildProcess victim = StartNode(1, folder.path()), witness = StartNode(2, folder.path());
  folder.Write("address.0", (*cache)->address());
  const std::vector<std::string> addresses = AwaitAddresses(folder.path());
  ASSERT_EQ(addresses.size(), kNodes);
  ASSERT_TRUE((*cache)->SetPeers(addresses).ok());
  ASSERT_TRUE((*cache)->Fill(Soon()).ok());
  for (const char* ready : {"ready.1", "ready.2"}) ASSERT_TRUE(AwaitFile(folder.File(ready), Soon())) << ready;

  const auto read_epoch = [&](int epoch, const std::function<void(int64_t)>& before_each = nullptr) {
    const PartitionStats before = (*cache)->stats();
    int64_t count = 0;
    for (const int64_t record : EpochOrder(kRecords, 0, epoch)) {
      if (before_each) before_each(count++);
      const auto view = (*cache)->Read(record);
      EXPECT_TRUE(view.ok()) << ToString(view.status());
      if (view.ok()) {
        EXPECT_EQ(TextOf(*view), source.Content(record));
      }
    }
    PartitionStats after = (*cache)->stats();
    EXPECT_EQ(after.reads() - before.reads(), kRecords);
    EXPECT_EQ(after.failed, 0);
    after.local_hits -= before.local_hits;
    after.remote_hits -= before.remote_hits;
    after.storage -= before.storage;
    return after;
  };

  // Warm: the share c from here, twice c from the two others, the rest from storage.
  PartitionStats seen = read_epoch(0);
  EXPECT_NEAR(static_cast<double>(seen.local_hits) / kRecords, kShare, 0.01);
  EXPECT_NEAR(static_cast<double>(seen.remote_hits) / kRecords, 2 * kShare, 0.01);
  EXPECT_NEAR(static_cast<double>(seen.storage) / kRecords, 1 - 3 * kShare, 0.01);

  read_epoch(1, [&](int64_t count) {
    if (count == kRecords / 3) {
      ASSERT_TRUE(victim.Signal(SIGKILL).ok());
    }
  });
  const auto killed = victim.Wait(Soon());
  ASSERT_TRUE(killed.ok());
  EXPECT_TRUE(killed->signalled);
  seen = read_epoch(2);
  EXPECT_NEAR(static_cast<double>(seen.local_hits) / kRecords, kShare, 0.01);
  EXPECT_NEAR(static_cast<double>(seen.remote_hits) / kRecords, kShare, 0.01);  // of the one that is left
  EXPECT_FALSE(seen.peers[1].up);
  EXPECT_TRUE(seen.peers[2].up);
  EXPECT_GT(seen.peer_failed, 0);

  // Back at the same address with an empty memory.
  std::filesystem::remove(folder.File("ready.1"));
  victim = StartNode(1, folder.path(), addresses[1]);
  ASSERT_TRUE(AwaitFile(folder.File("ready.1"), Soon()));
  const absl::Time deadline = Soon();
  for (int epoch = 3; !(*cache)->stats().peers[1].up && Clock::Real()->Now() < deadline; ++epoch) read_epoch(epoch);
  seen = read_epoch(1000);
  EXPECT_TRUE(seen.peers[1].up);
  EXPECT_NEAR(static_cast<double>(seen.remote_hits) / kRecords, 2 * kShare, 0.01);

  folder.Write("stop", "");
  for (ChildProcess* child : {&victim, &witness}) {
    const auto exit = child->Wait(Soon());
    ASSERT_TRUE(exit.ok()) << ToString(exit.status());
    EXPECT_TRUE(exit->ok()) << exit->Describe();
  }
}

}  // namespace
}  // namespace tidepool::data

int main(int argc, char** argv) {
  if (argc == 5 && std::string_view(argv[1]) == "--node") {
    return tidepool::data::RunNode(static_cast<uint32_t>(std::atoi(argv[2])), argv[3], argv[4]);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
