#include "pool/broker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "pool/arena.h"
#include "pool/client.h"

namespace tidepool::pool {
namespace {

using testing::HasSubstr;

constexpr int64_t kPage = 64 * 1024;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(20); }

class BrokerTest : public testing::Test {
 protected:
  void StartBroker(int64_t pages, BrokerOptions options = {}, device::MappingMode mapping = device::MappingMode::kFast) {
    auto device = device::OpenDevice({.name = "host", .capacity_bytes = pages * kPage, .page_bytes = kPage, .mapping = mapping});
    ASSERT_TRUE(device.ok()) << ToString(device.status());
    device_ = std::move(*device);
    auto broker = Broker::Start(device_.get(), std::move(options));
    ASSERT_TRUE(broker.ok()) << ToString(broker.status());
    broker_ = std::move(*broker);
  }

  std::unique_ptr<Client> NewClient(const std::string& name) {
    auto socket = broker_->Connect();
    EXPECT_TRUE(socket.ok()) << ToString(socket.status());
    auto client = Client::Attach({.connected_socket = std::move(*socket), .name = name});
    EXPECT_TRUE(client.ok()) << ToString(client.status());
    return std::move(*client);
  }

  std::unique_ptr<device::Device> device_;
  std::unique_ptr<Broker> broker_;
};

TEST_F(BrokerTest, GrantsPagesAndTakesThemBack) {
  StartBroker(32);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "model:a", .burst_pages = 16}, Soon());
  ASSERT_TRUE(lease.ok()) << ToString(lease.status());
  auto pages = client->Grow(*lease, {.pages = 10, .min_run_pages = 10}, Soon());
  ASSERT_TRUE(pages.ok()) << ToString(pages.status());
  EXPECT_THAT(*pages, testing::ElementsAre(Extent{0, 10}));
  EXPECT_EQ(client->held_pages(*lease), 10);
  std::memset(client->device().memory().base(), 1, 10 * kPage);
  EXPECT_EQ(broker_->Stats().granted, 10);
  ASSERT_TRUE(client->Return(*lease, *pages).ok());
  EXPECT_EQ(client->held_pages(*lease), 0);
  const PoolStats stats = broker_->Stats();
  EXPECT_EQ(stats.granted, 0);
  EXPECT_EQ(stats.violations, 0);
}

TEST_F(BrokerTest, ArenaAllocatesFromItsLease) {
  StartBroker(32);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "model:a", .burst_pages = 16}, Soon());
  ASSERT_TRUE(lease.ok());
  auto arena = Arena::Create(client.get(), *lease, {});
  auto small = arena->Allocate(100);
  auto large = arena->Allocate(5 * kPage + 1);
  ASSERT_TRUE(small.ok() && large.ok());
  std::memset(*large, 3, 5 * kPage + 1);
  EXPECT_EQ(Arena::Owner(*large), arena.get());
  EXPECT_EQ(Arena::Owner(&small), nullptr);
  auto refused = arena->Allocate(12 * kPage);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted);
  arena->Free(*small);
  arena->Free(*large);
  EXPECT_TRUE(arena->ReturnCached(0).ok());
  EXPECT_EQ(broker_->Stats().granted, 0);
}

}  // namespace
}  // namespace tidepool::pool
