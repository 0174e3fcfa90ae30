#include "pool/broker.h"

#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "pool/client.h"
#include "pool/protocol.h"

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

  // Training that does what it is asked, at once.
  struct Trainer {
    std::unique_ptr<Client> client;
    LeaseId lease;
    std::vector<Extent> pages;
    std::atomic<int> revokes = 0;
    std::atomic<bool> saw_pause = false;

    void Obey(const RevokeRequest& request) {
      ++revokes;
      const absl::Time start = Clock::Real()->Now();
      int64_t above = client->held_pages(lease) - request.limit_pages;
      std::vector<Extent> back;
      while (above > 0) {
        Extent& last = pages.back();
        const auto count = static_cast<int32_t>(std::min<int64_t>(above, last.count));
        back.push_back({last.end() - count, count});
        last.count -= count;
        above -= count;
        if (last.count == 0) pages.pop_back();
      }
      EXPECT_TRUE(client->Return(lease, back).ok());
      const Status finished = client->FinishRevoke(request, {.give_back = Clock::Real()->Now() - start});
      EXPECT_TRUE(finished.ok()) << ToString(finished);
    }
  };

  std::unique_ptr<Trainer> NewTrainer(int64_t pages, int64_t guaranteed = 0) {
    auto trainer = std::make_unique<Trainer>();
    trainer->client = NewClient("train");
    Trainer* raw = trainer.get();
    trainer->client->SetHandlers([raw](const RevokeRequest& request) { raw->Obey(request); },
                                 [raw](LeaseId, int64_t, bool paused) { raw->saw_pause = paused; });
    auto lease = trainer->client->OpenLease({.name = "train:demo",
                                             .lease_class = LeaseClass::kReclaimable,
                                             .guaranteed_pages = guaranteed,
                                             .burst_pages = 32,
                                             .placement = Placement::kHigh},
                                            Soon());
    EXPECT_TRUE(lease.ok()) << ToString(lease.status());
    trainer->lease = *lease;
    auto grown = trainer->client->Grow(*lease, {.pages = pages}, Soon());
    EXPECT_TRUE(grown.ok()) << ToString(grown.status());
    trainer->pages = *grown;
    return trainer;
  }

  void ExpectSound() {
    const PoolStats stats = broker_->Stats();
    EXPECT_EQ(stats.violations, 0);
    EXPECT_EQ(stats.free + stats.granted + stats.returning + stats.dirty, stats.total);
  }

  // A connection that speaks for itself.
  PacketSocket RawConnection(bool say_hello = true) {
    auto fd = broker_->Connect();
    EXPECT_TRUE(fd.ok());
    PacketSocket socket(std::move(*fd));
    if (say_hello) {
      EXPECT_TRUE(socket.Send(Encode(1, HelloMessage{.name = "raw"}), Soon()).ok());
      EXPECT_TRUE(std::holds_alternative<WelcomeMessage>(NextMessage(socket).message));
    }
    return socket;
  }
  static Envelope NextMessage(PacketSocket& socket) {
    auto packet = socket.Receive(Soon());
    EXPECT_TRUE(packet.ok()) << ToString(packet.status());
    if (!packet.ok()) return {};
    auto envelope = Decode(packet->data);
    EXPECT_TRUE(envelope.ok()) << ToString(envelope.status());
    return envelope.ok() ? *envelope : Envelope{};
  }
  static Status NextStatus(PacketSocket& socket, uint32_t call) {
    const Envelope envelope = NextMessage(socket);
    EXPECT_EQ(envelope.call, call);
    const auto* status = std::get_if<StatusMessage>(&envelope.message);
    EXPECT_NE(status, nullptr) << NameOf(envelope.message);
    return status == nullptr ? Status() : ToStatus(*status);
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

TEST_F(BrokerTest, TellsWhoHoldsWhat) {
  StartBroker(32);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "model:a", .guaranteed_pages = 3, .burst_pages = 16}, Soon());
  ASSERT_TRUE(lease.ok());
  ASSERT_TRUE(client->Grow(*lease, {.pages = 5}, Soon()).ok());
  const PoolStats stats = broker_->Stats();
  EXPECT_EQ(stats.page_bytes, kPage);
  EXPECT_EQ(stats.total, 32);
  EXPECT_EQ(stats.peak_granted, 5);
  ASSERT_EQ(stats.leases.size(), 1u);
  EXPECT_EQ(stats.leases[0].id, *lease);
  EXPECT_EQ(stats.leases[0].name, "model:a");
  EXPECT_EQ(stats.leases[0].client, "worker");
  EXPECT_EQ(stats.leases[0].held_pages, 5);
  EXPECT_EQ(stats.leases[0].guaranteed_pages, 3);
  EXPECT_EQ(stats.leases[0].limit_pages, 16);
  EXPECT_EQ(broker_->RoomForPinned().pages, 27);
}

TEST_F(BrokerTest, HandsMemoryOverFromTrainingToServing) {
  absl::Notification recorded;
  HandoverRecord record;
  StartBroker(32, {.on_handover = [&](const HandoverRecord& complete) {
                record = complete;
                recorded.Notify();
              }});
  auto trainer = NewTrainer(32);
  auto worker = NewClient("worker");
  auto lease = worker->OpenLease({.name = "model:a", .burst_pages = 32}, Soon());
  ASSERT_TRUE(lease.ok());
  auto pages = worker->Grow(*lease, {.pages = 12, .min_run_pages = 12}, Soon());
  ASSERT_TRUE(pages.ok()) << ToString(pages.status());
  EXPECT_EQ(trainer->client->limit_pages(trainer->lease), 20);
  ASSERT_TRUE(recorded.WaitForNotificationWithDeadline(Soon()));
  EXPECT_EQ(record.requester, "model:a");
  EXPECT_EQ(record.giver, "train:demo");
  EXPECT_EQ(record.pages, 12);
  EXPECT_TRUE(record.granted);
  const ReclaimParts& parts = record.giver_parts;
  EXPECT_EQ(record.total, record.notify + parts.cached + parts.wait + parts.unwind + parts.give_back + record.zero + record.rest);
  EXPECT_GT(parts.give_back, absl::ZeroDuration());
  ASSERT_TRUE(worker->Return(*lease, *pages).ok());
  // The limit has risen: the trainer may take everything again.
  EXPECT_TRUE(trainer->client->Grow(trainer->lease, {.pages = 12}, Soon()).ok());
  ExpectSound();
}

TEST_F(BrokerTest, PausesAndResumesTraining) {
  StartBroker(32);
  auto trainer = NewTrainer(20, 4);
  EXPECT_FALSE(trainer->client->paused());
  ASSERT_TRUE(broker_->SetPaused(true, Soon()).ok());
  EXPECT_TRUE(trainer->client->paused());
  EXPECT_TRUE(trainer->saw_pause);
  EXPECT_EQ(trainer->client->held_pages(trainer->lease), 4);
  auto late = NewClient("late");
  EXPECT_TRUE(late->paused());
  absl::Notification resumed;
  trainer->client->SetHandlers([](const RevokeRequest&) {},
                               [&](LeaseId, int64_t limit_pages, bool paused) {
                                 if (!paused && limit_pages == 32 && !resumed.HasBeenNotified()) resumed.Notify();
                               });
  ASSERT_TRUE(broker_->SetPaused(false, Soon()).ok());
  EXPECT_TRUE(resumed.WaitForNotificationWithDeadline(Soon()));
  EXPECT_FALSE(trainer->client->paused());
}

TEST_F(BrokerTest, SaysWhenAPauseIsNotObeyedInTime) {
  StartBroker(32);
  auto client = NewClient("train");
  client->SetHandlers([](const RevokeRequest&) {}, nullptr);
  auto lease = client->OpenLease({.name = "t", .lease_class = LeaseClass::kReclaimable, .burst_pages = 32}, Soon());
  ASSERT_TRUE(lease.ok());
  const Status status = broker_->SetPaused(true, Clock::Real()->Now() + absl::Milliseconds(20));
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(status), HasSubstr("not every tenant has stopped"));
}

TEST_F(BrokerTest, RequestsOfManyThreadsAreAnsweredEach) {
  StartBroker(64);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "a", .burst_pages = 64}, Soon());
  ASSERT_TRUE(lease.ok());
  std::vector<std::thread> threads;
  std::atomic<int> failures = 0;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        auto pages = client->Grow(*lease, {.pages = 1 + t}, Soon());
        if (!pages.ok() || !client->Return(*lease, *pages).ok()) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(client->held_pages(*lease), 0);
  EXPECT_EQ(broker_->Stats().grants, 1600);
  ExpectSound();
}

TEST_F(BrokerTest, ErrorsReachTheCaller) {
  StartBroker(32);
  auto client = NewClient("worker");
  EXPECT_THAT(MessageOf(client->OpenLease({.name = "big", .burst_pages = 33}, Soon()).status()), HasSubstr("1 <= burst <= 32"));
  EXPECT_THAT(MessageOf(client->OpenLease({.name = std::string(300, 'n'), .burst_pages = 3}, Soon()).status()),
              HasSubstr("name of 300 and trust label of 0 bytes; allowed: 256 each"));
  auto lease = client->OpenLease({.name = "a", .burst_pages = 4}, Soon());
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(client->Grow(*lease, {.pages = 5}, Soon()).status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(client->Return(*lease, std::vector<Extent>{{0, 1}})),
              HasSubstr("returns page 0, which it does not hold"));
  EXPECT_THAT(MessageOf(client->Return(*lease, std::vector<Extent>{{0, 0}})), HasSubstr("not a part of the device"));
  EXPECT_THAT(MessageOf(client->SetGuaranteed(*lease, 5, Soon())), HasSubstr("allowed: 0 to its burst of 4"));
  EXPECT_THAT(MessageOf(client->Grow(LeaseId(99), {.pages = 1}, Soon()).status()),
              HasSubstr("lease 99 is not open in client 'worker'"));
  EXPECT_THAT(MessageOf(client->FinishRevoke({.lease = *lease, .demand = DemandId(5)}, {})), HasSubstr("has no open request 5"));
  EXPECT_TRUE(client->CloseLease(*lease).ok());
  EXPECT_EQ(client->CloseLease(*lease).code(), StatusCode::kNotFound);
  EXPECT_EQ(client->limit_pages(*lease), 0);
}

TEST_F(BrokerTest, DetachReturnsEverythingAtOnce) {
  StartBroker(32);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "a", .burst_pages = 32}, Soon());
  ASSERT_TRUE(client->Grow(*lease, {.pages = 32}, Soon()).ok());
  client.reset();
  const PoolStats stats = broker_->Stats();
  EXPECT_EQ(stats.granted + stats.returning, 0);
  EXPECT_TRUE(stats.leases.empty());
  EXPECT_EQ(stats.fenced, 0);
}

TEST_F(BrokerTest, StrictMappingFollowsOwnership) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  StartBroker(8, {}, device::MappingMode::kStrict);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "a", .burst_pages = 8}, Soon());
  auto pages = client->Grow(*lease, {.pages = 4}, Soon());
  ASSERT_TRUE(pages.ok());
  std::byte* base = client->device().memory().base();
  std::memset(base, 1, 4 * kPage);
  ASSERT_TRUE(client->Return(*lease, std::vector<Extent>{{1, 1}}).ok());
  base[0] = base[2 * kPage] = std::byte{2};
  EXPECT_DEATH({ *reinterpret_cast<volatile char*>(base + kPage) = 1; }, "");
  ASSERT_TRUE(client->Grow(*lease, {.pages = 1}, Soon()).ok());
  base[kPage] = std::byte{3};
  EXPECT_FALSE(client->Return(*lease, std::vector<Extent>{{6, 1}}).ok());
}

TEST_F(BrokerTest, ClearsPagesInTheBackgroundForTheNextOwner) {
  StartBroker(16);
  auto first = NewClient("first");
  auto a = first->OpenLease({.name = "a", .burst_pages = 16}, Soon());
  auto b = first->OpenLease({.name = "b", .burst_pages = 16}, Soon());
  auto pages = first->Grow(*a, {.pages = 16}, Soon());
  std::memset(first->device().memory().base(), 7, 16 * kPage);
  ASSERT_TRUE(first->Return(*a, *pages).ok());
  const absl::Time deadline = Soon();
  while (broker_->Stats().free < 16 && Clock::Real()->Now() < deadline) Clock::Real()->SleepFor(absl::Milliseconds(1));
  const PoolStats stats = broker_->Stats();
  EXPECT_EQ(stats.free, 16);
  EXPECT_EQ(stats.zeroed_pages, 16);
  for (int64_t i = 0; i < 16 * kPage; ++i) ASSERT_EQ(device_->memory().base()[i], std::byte{0});
  ASSERT_TRUE(first->Grow(*b, {.pages = 16}, Soon()).ok());
  EXPECT_EQ(broker_->Stats().zeroed_pages, 16);
}

TEST_F(BrokerTest, LeavesPagesAloneThatNobodyNeedsCleared) {
  StartBroker(16);
  auto client = NewClient("c");
  auto a = client->OpenLease({.name = "a", .burst_pages = 16, .trust_label = "acme"}, Soon());
  auto b = client->OpenLease({.name = "b", .burst_pages = 16, .trust_label = "acme"}, Soon());
  auto pages = client->Grow(*a, {.pages = 16}, Soon());
  ASSERT_TRUE(client->Return(*a, *pages).ok());
  ASSERT_TRUE(client->Grow(*b, {.pages = 16}, Soon()).ok());
  EXPECT_EQ(broker_->Stats().zeroed_pages, 0);
}

TEST_F(BrokerTest, RefusesAnotherVersionOfTheProtocol) {
  StartBroker(4);
  PacketSocket socket = RawConnection(/*say_hello=*/false);
  std::string hello = Encode(9, HelloMessage{.name = "future"});
  hello[12] = kProtocolVersion + 1;
  ASSERT_TRUE(socket.Send(hello, Soon()).ok());
  const Status refusal = NextStatus(socket, 9);
  EXPECT_EQ(refusal.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(refusal), HasSubstr(fmt::format("speaks version {} of the pool protocol and this node speaks {}",
                                                        kProtocolVersion + 1, kProtocolVersion)));
  EXPECT_EQ(socket.Receive(Soon()).status().code(), StatusCode::kUnavailable);
}

TEST_F(BrokerTest, RefusesAConnectionThatDoesNotSayHello) {
  StartBroker(4);
  PacketSocket polite = RawConnection(false);
  ASSERT_TRUE(polite.Send(Encode(3, CloseLeaseMessage{}), Soon()).ok());
  EXPECT_THAT(MessageOf(NextStatus(polite, 3)), HasSubstr("a connection starts with Hello, not with CloseLease"));
  EXPECT_EQ(polite.Receive(Soon()).status().code(), StatusCode::kUnavailable);
  PacketSocket rude = RawConnection(false);
  ASSERT_TRUE(rude.Send("GET / HTTP/1.1", Soon()).ok());
  EXPECT_EQ(NextMessage(rude).message.index(), Message(StatusMessage()).index());
  EXPECT_EQ(rude.Receive(Soon()).status().code(), StatusCode::kUnavailable);
}

TEST_F(BrokerTest, AnswersMalformedMessagesToTheirSenderOnly) {
  StartBroker(32);
  auto bystander = NewClient("bystander");
  auto lease = bystander->OpenLease({.name = "a", .burst_pages = 8}, Soon());
  ASSERT_TRUE(lease.ok());
  PacketSocket socket = RawConnection();
  ASSERT_TRUE(socket.Send("abc", Soon()).ok());
  EXPECT_THAT(MessageOf(NextStatus(socket, 0)), HasSubstr("message of 3 bytes"));
  std::string cut = Encode(4, GrowMessage{});
  cut.resize(20);
  ASSERT_TRUE(socket.Send(cut, Soon()).ok());
  EXPECT_THAT(MessageOf(NextStatus(socket, 4)), HasSubstr("Grow message of 12 bytes ends in the middle of a field"));
  ASSERT_TRUE(socket.Send(Encode(5, PausedMessage{.paused = true}), Soon()).ok());
  EXPECT_THAT(MessageOf(NextStatus(socket, 5)), HasSubstr("a client does not send Paused"));
  ASSERT_TRUE(socket.Send(Encode(6, HelloMessage{.name = "again"}), Soon()).ok());
  EXPECT_THAT(MessageOf(NextStatus(socket, 6)), HasSubstr("a client does not send Hello"));
  ASSERT_TRUE(socket.Send(Encode(7, GrowMessage{.lease = *lease, .pages = 1, .timeout_ns = 1'000'000'000}), Soon()).ok());
  EXPECT_THAT(MessageOf(NextStatus(socket, 7)), HasSubstr("belongs to another client"));
  EXPECT_TRUE(bystander->Grow(*lease, {.pages = 8}, Soon()).ok());
  ASSERT_TRUE(socket.Send(Encode(8, DetachMessage()), Soon()).ok());
  EXPECT_TRUE(NextStatus(socket, 8).ok());
  ExpectSound();
}

TEST_F(BrokerTest, SurvivesAClientThatSendsNonsense) {
  StartBroker(32, {.fence_after = absl::Seconds(3600)});
  auto bystander = NewClient("bystander");
  auto lease = bystander->OpenLease({.name = "a", .burst_pages = 8}, Soon());
  ASSERT_TRUE(lease.ok());
  std::mt19937_64 random(5);
  PacketSocket socket = RawConnection();
  uint32_t own = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string packet;
    switch (random() % 5) {
      case 0:
        packet = Encode(1, GrowMessage{.lease = LeaseId(own),
                                       .pages = static_cast<int64_t>(random()) >> (random() % 64),
                                       .min_run_pages = static_cast<int64_t>(random()) >> (random() % 64),
                                       .timeout_ns = static_cast<int64_t>(random() % 1000)});
        break;
      case 1:
        packet = Encode(1, ReturnMessage{.lease = LeaseId(own),
                                         .extents = {{static_cast<int32_t>(random() % 40), static_cast<int32_t>(random() % 5)}}});
        break;
      case 2:
        packet =
            Encode(1, SetGuaranteedMessage{.lease = LeaseId(own), .pages = static_cast<int64_t>(random()) >> (random() % 64)});
        break;
      case 3:
        packet = Encode(1, OpenLeaseMessage{.options = {.name = "x",
                                                        .guaranteed_pages = static_cast<int64_t>(random()) >> (random() % 64),
                                                        .burst_pages = static_cast<int64_t>(random() % 40)}});
        break;
      default:
        packet.resize(1 + random() % 60);
        for (char& byte : packet) byte = static_cast<char>(random());
        if (packet.size() > 4 && random() % 2 == 0) packet[1] = packet[2] = packet[3] = 0;
        // No Detach and no Hello: the connection is to live on.
        if (packet[0] == 15 || packet[0] == 1) packet[0] = 20;
    }
    ASSERT_TRUE(socket.Send(packet, Soon()).ok());
    while (true) {
      auto answer = socket.Receive(absl::InfinitePast());
      if (!answer.ok()) break;
      auto envelope = Decode(answer->data);
      ASSERT_TRUE(envelope.ok());
      if (const auto* opened = std::get_if<LeaseOpenedMessage>(&envelope->message)) own = opened->lease.value();
    }
  }
  EXPECT_GT(own, 0u);
  ASSERT_TRUE(socket.Send(Encode(1, DetachMessage()), Soon()).ok());
  while (socket.Receive(Soon()).ok()) {
  }
  EXPECT_TRUE(bystander->Grow(*lease, {.pages = 8}, Soon()).ok());
  ExpectSound();
}

TEST_F(BrokerTest, ConnectionsHaveALimit) {
  StartBroker(4);
  std::vector<UniqueFd> connections;
  for (int i = 0; i < 256; ++i) {
    auto connection = broker_->Connect();
    ASSERT_TRUE(connection.ok());
    connections.push_back(std::move(*connection));
  }
  const Status refused = broker_->Connect().status();
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(refused), HasSubstr("has 256 connections; allowed: 256"));
  connections.clear();
  const absl::Time deadline = Soon();
  while (!broker_->Connect().ok()) ASSERT_LT(Clock::Real()->Now(), deadline);
}

TEST_F(BrokerTest, EndOfTheBrokerEndsEveryCall) {
  StartBroker(8);
  auto client = NewClient("worker");
  auto lease = client->OpenLease({.name = "a", .burst_pages = 8}, Soon());
  ASSERT_TRUE(lease.ok());
  absl::Notification told;
  client->SetDisconnectHandler([&] { told.Notify(); });
  broker_.reset();
  EXPECT_TRUE(told.WaitForNotificationWithDeadline(Soon()));
  EXPECT_FALSE(client->connected());
  EXPECT_EQ(client->Grow(*lease, {.pages = 1}, Soon()).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(client->OpenLease({.name = "b", .burst_pages = 8}, Soon()).status().code(), StatusCode::kUnavailable);
}

TEST(BrokerOptionsTest, ReportsAllFaultsAtOnce) {
  BrokerOptions options{.reserve_pages = -1, .static_reclaimable_pages = 99, .fence_after = absl::ZeroDuration()};
  const Status status = options.Validate({.capacity_bytes = 10 * kPage, .page_bytes = kPage});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("the reserve is -1 pages; allowed: 0 to 10"));
  EXPECT_THAT(MessageOf(status), HasSubstr("the static split gives 99 pages to reclaimable leases; allowed: at most 10"));
  EXPECT_THAT(MessageOf(status), HasSubstr("fence_after is not positive"));
}

TEST(ClientOptionsTest, NeedsANameAndOneAddress) {
  EXPECT_THAT(MessageOf(Client::Attach({.socket_path = "/x"}).status()),
              HasSubstr("pool client name '' has 0 bytes; allowed: 1 to 256"));
  EXPECT_THAT(MessageOf(Client::Attach({.name = "c"}).status()),
              HasSubstr("needs either a socket path or an inherited connection"));
  const Status nobody = Client::Attach({.socket_path = "/nonexistent/pool.sock", .name = "c"}).status();
  EXPECT_EQ(nobody.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(nobody), HasSubstr("attaching client 'c' to the page broker: connecting to '/nonexistent/pool.sock'"));
}

}  // namespace
}  // namespace tidepool::pool
