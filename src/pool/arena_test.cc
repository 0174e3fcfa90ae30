#include "pool/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "base/units.h"
#include "pool/broker.h"

namespace tidepool::pool {
namespace {

using testing::HasSubstr;

constexpr int64_t kPage = 64 * 1024;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(20); }

class ArenaTest : public testing::Test {
 protected:
  void Start(int64_t device_pages, LeaseOptions lease, ArenaOptions options = {}) {
    auto device = device::OpenDevice({.name = "host", .capacity_bytes = device_pages * kPage, .page_bytes = kPage});
    ASSERT_TRUE(device.ok()) << ToString(device.status());
    device_ = std::move(*device);
    auto broker = Broker::Start(device_.get(), {});
    ASSERT_TRUE(broker.ok()) << ToString(broker.status());
    broker_ = std::move(*broker);
    auto client = Client::Attach({.connected_socket = std::move(*broker_->Connect()), .name = "worker"});
    ASSERT_TRUE(client.ok()) << ToString(client.status());
    client_ = std::move(*client);
    lease_ = OpenLease(std::move(lease));
    arena_ = Arena::Create(client_.get(), lease_, options);
  }
  LeaseId OpenLease(LeaseOptions options) {
    auto lease = client_->OpenLease(options, Soon());
    EXPECT_TRUE(lease.ok()) << ToString(lease.status());
    return *lease;
  }
  void* Must(int64_t size_bytes) {
    auto block = arena_->Allocate(size_bytes);
    EXPECT_TRUE(block.ok()) << ToString(block.status());
    return block.ok() ? *block : nullptr;
  }

  std::unique_ptr<device::Device> device_;
  std::unique_ptr<Broker> broker_;
  std::unique_ptr<Client> client_;
  LeaseId lease_;
  std::unique_ptr<Arena> arena_;
};

TEST_F(ArenaTest, BlocksAreAlignedAndApart) {
  Start(32, {.name = "model:a", .burst_pages = 32});
  void* a = Must(1);
  void* b = Must(100);
  void* c = Must(3 * kPage + 5);
  for (void* block : {a, b, c}) EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
  std::memset(a, 1, 1);
  std::memset(b, 2, 100);
  std::memset(c, 3, 3 * kPage + 5);
  EXPECT_EQ(static_cast<char*>(b)[99], 2);
  const ArenaStats stats = arena_->stats();
  EXPECT_EQ(stats.live_bytes, 64 + 128 + 3 * kPage + 64);
  EXPECT_EQ(stats.blocks, 3);
  EXPECT_EQ(stats.allocations, 3);
  EXPECT_EQ(stats.held_pages, client_->held_pages(lease_));
  for (void* block : {a, b, c}) arena_->Free(block);
  EXPECT_EQ(arena_->stats().live_bytes, 0);
  EXPECT_EQ(arena_->stats().peak_live_bytes, stats.live_bytes);
  EXPECT_EQ(arena_->stats().cached_pages, stats.held_pages);
  arena_->ResetPeak();
  EXPECT_EQ(arena_->stats().peak_live_bytes, 0);
}

TEST_F(ArenaTest, RefusesSizesThatMakeNoSense) {
  Start(4, {.name = "model:a", .burst_pages = 4});
  EXPECT_THAT(MessageOf(arena_->Allocate(0).status()), HasSubstr("block of 0 bytes; allowed: 1 to 262144"));
  EXPECT_EQ(arena_->Allocate(-5).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(arena_->Allocate(INT64_MAX).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(ArenaTest, NamesTheLeaseAndTheNumbersAtItsLimit) {
  Start(32, {.name = "model:a", .burst_pages = 8});
  Must(6 * kPage);
  const Status status = arena_->Allocate(3 * kPage).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(
      MessageOf(status),
      HasSubstr("lease 'model:a': no room for a block of 192 KiB: it needs 3 pages in one run, 6 pages are held and 8 allowed"));
  EXPECT_EQ(client_->held_pages(lease_), 6) << "nothing was taken for the block that failed";
  Must(2 * kPage);
}

TEST_F(ArenaTest, KeepsFreedPagesUntilTheyAreReturned) {
  Start(32, {.name = "model:a", .burst_pages = 32});
  void* a = Must(4 * kPage);
  void* b = Must(kPage / 2);
  arena_->Free(a);
  EXPECT_GE(arena_->stats().cached_pages, 4);
  const int64_t held = arena_->stats().held_pages, cached = arena_->stats().cached_pages;
  auto returned = arena_->ReturnCached(held - 2);
  ASSERT_TRUE(returned.ok());
  EXPECT_EQ(*returned, 2);
  returned = arena_->ReturnCached(0);
  ASSERT_TRUE(returned.ok());
  EXPECT_EQ(*returned, cached - 2);
  EXPECT_EQ(arena_->stats().held_pages, 1);
  EXPECT_EQ(broker_->Stats().granted, 1);
  std::memset(b, 5, kPage / 2);
  EXPECT_EQ(Arena::Owner(b), arena_.get());
  EXPECT_EQ(Arena::Owner(a), nullptr);
}

TEST_F(ArenaTest, ExchangesScatteredPagesForPagesThatLieTogether) {
  Start(12, {.name = "model:a", .burst_pages = 8}, {.grow_step_pages = 1});
  std::vector<void*> pages;
  for (int i = 0; i < 8; ++i) pages.push_back(Must(kPage));
  for (size_t i = 0; i < 8; i += 2) arena_->Free(pages[i]);
  // Four pages are free but apart, and the limit is reached: together they are elsewhere.
  void* block = Must(4 * kPage);
  std::memset(block, 9, 4 * kPage);
  EXPECT_EQ(client_->held_pages(lease_), 8);
}

TEST_F(ArenaTest, KnowsWhoseBlockItIs) {
  Start(32, {.name = "model:a", .burst_pages = 16});
  auto other = Arena::Create(client_.get(), OpenLease({.name = "model:b", .burst_pages = 16}), {});
  void* a = Must(100);
  auto b = other->Allocate(100);
  ASSERT_TRUE(b.ok());
  int on_stack = 0;
  EXPECT_EQ(Arena::Owner(a), arena_.get());
  EXPECT_EQ(Arena::Owner(*b), other.get());
  EXPECT_EQ(Arena::Owner(&on_stack), nullptr);
  EXPECT_EQ(Arena::Owner(nullptr), nullptr);
  other->Free(*b);
  other.reset();
  EXPECT_EQ(Arena::Owner(*b), nullptr);
  EXPECT_EQ(Arena::Owner(a), arena_.get());
}

TEST_F(ArenaTest, ReturnsEverythingWhenItEnds) {
  Start(32, {.name = "model:a", .burst_pages = 32});
  arena_->Free(Must(10 * kPage));
  arena_.reset();
  EXPECT_EQ(client_->held_pages(lease_), 0);
  EXPECT_EQ(broker_->Stats().granted, 0);
}

TEST_F(ArenaTest, TrainingIsRefusedAtOnceAtItsPresentLimit) {
  Start(32, {.name = "train", .lease_class = LeaseClass::kReclaimable, .burst_pages = 32}, {.grow_timeout = absl::Hours(1)});
  const LeaseId model = OpenLease({.name = "model", .burst_pages = 32});
  auto held = client_->Grow(model, {.pages = 20}, Soon());
  ASSERT_TRUE(held.ok());
  Must(12 * kPage);
  EXPECT_EQ(arena_->Allocate(kPage).status().code(), StatusCode::kResourceExhausted) << "it does not wait an hour";
  ASSERT_TRUE(client_->Return(model, *held).ok());
  // The limit rises as soon as the news is here; the broker has said it already.
  const absl::Time deadline = Soon();
  while (client_->limit_pages(lease_) < 32) ASSERT_LT(Clock::Real()->Now(), deadline);
  Must(20 * kPage);
}

TEST_F(ArenaTest, EndOfTheBrokerIsAnError) {
  Start(8, {.name = "model:a", .burst_pages = 8});
  void* block = Must(kPage);
  broker_.reset();
  const absl::Time deadline = Soon();
  while (client_->connected()) ASSERT_LT(Clock::Real()->Now(), deadline);
  EXPECT_EQ(arena_->Allocate(4 * kPage).status().code(), StatusCode::kUnavailable);
  arena_->Free(block);
}

// Each block carries a pattern of its own; a block that another one overlaps, or whose page was given away, loses it.
void Fill(void* block, int64_t size_bytes, uint64_t seed) {
  auto* words = static_cast<uint64_t*>(block);
  words[0] = seed;
  words[size_bytes / 8 - 1] = seed;
  if (size_bytes > kPage) words[size_bytes / 16] = seed;
}
bool Holds(const void* block, int64_t size_bytes, uint64_t seed) {
  const auto* words = static_cast<const uint64_t*>(block);
  return words[0] == seed && words[size_bytes / 8 - 1] == seed && (size_bytes <= kPage || words[size_bytes / 16] == seed);
}

TEST_F(ArenaTest, ManyThreadsNeverShareAByte) {
  Start(64, {.name = "model:a", .burst_pages = 64});
  std::atomic<int> damaged = 0, refused = 0, unexpected = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::vector<std::tuple<void*, int64_t, uint64_t>> blocks;
      for (int i = 0; i < 3000; ++i) {
        if (blocks.size() < 30 && random() % 5 < 3) {
          const auto size = static_cast<int64_t>(16 + (random() % 8 == 0 ? random() % (5 * kPage) : random() % 4000));
          auto block = arena_->Allocate(size);
          if (!block.ok()) {
            ++(block.status().code() == StatusCode::kResourceExhausted ? refused : unexpected);
            continue;
          }
          Fill(*block, size / 8 * 8, random());
          uint64_t seed;
          std::memcpy(&seed, *block, 8);
          blocks.emplace_back(*block, size / 8 * 8, seed);
        } else if (!blocks.empty()) {
          const size_t index = random() % blocks.size();
          const auto [block, size, seed] = blocks[index];
          if (!Holds(block, size, seed) || Arena::Owner(block) != arena_.get()) ++damaged;
          arena_->Free(block);
          blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(index));
        }
        if (random() % 100 == 0 && !arena_->ReturnCached(0).ok()) ++unexpected;
      }
      for (const auto& [block, size, seed] : blocks) {
        if (!Holds(block, size, seed)) ++damaged;
        arena_->Free(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(damaged, 0);
  EXPECT_EQ(unexpected, 0);
  EXPECT_EQ(arena_->stats().live_bytes, 0);
  EXPECT_EQ(arena_->stats().blocks, 0);
  ASSERT_TRUE(arena_->ReturnCached(0).ok());
  EXPECT_EQ(arena_->stats().held_pages, 0);
  const PoolStats stats = broker_->Stats();
  EXPECT_EQ(stats.granted, 0);
  EXPECT_EQ(stats.violations, 0);
}

}  // namespace
}  // namespace tidepool::pool
