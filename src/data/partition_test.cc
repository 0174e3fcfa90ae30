#include "data/partition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "base/testing.h"
#include "data/cache_testing.h"
#include "data/order.h"

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;
using testing::Soon;

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string Hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

// --- the protocol ---

TEST(PartitionProtocol, EveryFrameHasTheBytesThatTheDocumentGives) {
  const PartitionIdentity identity{.seed = 1, .fingerprint = 2, .layout = 3, .records = 4, .nodes = 5};
  AuthBytes nonce{}, proof{};
  nonce[0] = 0xaa, nonce[31] = 0xbb, proof[1] = 0xcc;
  const std::string zeros(60, '0');
  EXPECT_EQ(Hex(EncodeFrame(7, HelloFrame{.identity = identity, .from = 6, .to = 0x0708, .nonce = nonce})),
            "54000000010000000700000000000000"
            "5450504302000000"
            "0100000000000000020000000000000003000000000000000400000000000000"
            "050000000600000008070000"
            "aa" +
                zeros + "bb");
  EXPECT_EQ(Hex(EncodeFrame(5, ChallengeFrame{.nonce = nonce, .proof = proof})),
            "40000000070000000500000000000000aa" + zeros + "bb00cc" + zeros);
  EXPECT_EQ(Hex(EncodeFrame(6, ProofFrame{.proof = proof})), "2000000008000000060000000000000000cc" + zeros);
  EXPECT_EQ(Hex(EncodeFrame(0, WelcomeFrame{.node = 2, .incarnation = 0x1122334455667788})),
            "10000000020000000000000000000000"
            "02000000020000008877665544332211");
  EXPECT_EQ(Hex(EncodeFrame(1, ErrorFrame{.code = 5, .text = "no"})), "0600000003000000010000000000000005000200" + Hex("no"));
  EXPECT_EQ(Hex(EncodeFrame(2, GetFrame{.record = 258})), "080000000400000002000000000000000201000000000000");
  EXPECT_EQ(Hex(EncodeFrame(3, RecordFrame{.checksum = 0xff}, /*record_bytes=*/16)),
            "18000000050000000300000000000000ff00000000000000");
  EXPECT_EQ(Hex(EncodeFrame(4, AbsentFrame{.for_good = true})), "0100000006000000040000000000000001");
  EXPECT_EQ(RecordChecksum("tidepool"), RecordChecksum("tidepool"));
  EXPECT_NE(RecordChecksum("tidepool"), RecordChecksum("tidepoom"));
}

TEST(PartitionProtocol, FramesThatAreWrongInAnyFieldAreRefused) {
  const auto header = [](std::string_view text) { return ToString(DecodeFrameHeader(text, 100).status()); };
  const std::string good = EncodeFrame(1, GetFrame{.record = 1}).substr(0, kFrameHeaderBytes);
  EXPECT_EQ(header(good), "OK");
  EXPECT_THAT(header(good.substr(0, 15)), HasSubstr("a frame header of 15 bytes; needed: 16"));
  const auto changed = [&good](size_t at, char value) {
    std::string text = good;
    text[at] = value;
    return text;
  };
  EXPECT_THAT(header(changed(0, 9)), HasSubstr("a frame of type 4 with 9 bytes; allowed: 8 to 8"));
  EXPECT_THAT(header(changed(3, 127)), HasSubstr("allowed: 8 to 8"));
  EXPECT_THAT(header(changed(4, 9)), HasSubstr("a frame of type 9; allowed: 1 to 8"));
  EXPECT_THAT(header(changed(4, 0)), HasSubstr("a frame of type 0"));
  EXPECT_THAT(header(changed(6, 1)), HasSubstr("with 1 where 0 belongs"));
  EXPECT_THAT(header(EncodeFrame(1, RecordFrame{}, 101).substr(0, 16)), HasSubstr("with 109 bytes; allowed: 8 to 108"));

  const auto body = [](uint16_t type, std::string_view text) { return ToString(DecodeFrameBody(type, text).status()); };
  EXPECT_THAT(body(1, "12345678"), HasSubstr("a Hello with magic 0x34333231"));
  EXPECT_THAT(body(1, "1234"), HasSubstr("a frame of type Hello with 4 bytes that does not parse"));
  EXPECT_THAT(body(4, std::string(8, '\xff')), HasSubstr("a frame of type Get with 8 bytes"));
  EXPECT_THAT(body(6, "\x02"), HasSubstr("a frame of type Absent"));
}

// Everything that decodes is a message, and encodes to the same bytes again.
TEST(PartitionProtocol, RandomBytesDecodeToAMessageOrToAnError) {
  const PartitionIdentity identity{.seed = 1, .fingerprint = 2, .layout = 3, .records = 4, .nodes = 5};
  const PartitionMessage messages[] = {HelloFrame{.identity = identity},
                                       WelcomeFrame{},
                                       ErrorFrame{.code = 3, .text = "what"},
                                       GetFrame{.record = 5},
                                       RecordFrame{},
                                       AbsentFrame{},
                                       ChallengeFrame{.nonce = RandomAuthBytes()},
                                       ProofFrame{}};
  std::mt19937_64 random(1);
  int decoded = 0;
  for (int i = 0; i < 60'000; ++i) {
    std::string frame = EncodeFrame(random(), messages[random() % std::size(messages)]);
    for (uint64_t edits = random() % 4; edits > 0; --edits) frame[random() % frame.size()] = static_cast<char>(random());
    if (random() % 4 == 0) frame.resize(random() % (frame.size() + 4));
    const auto header = DecodeFrameHeader(std::string_view(frame).substr(0, std::min(frame.size(), kFrameHeaderBytes)), 1000);
    if (!header.ok() || frame.size() < kFrameHeaderBytes) continue;
    const auto message = DecodeFrameBody(header->type, std::string_view(frame).substr(kFrameHeaderBytes));
    if (!message.ok()) continue;
    ++decoded;
    const auto* hello = std::get_if<HelloFrame>(&*message);
    if (hello != nullptr && hello->version != kPartitionVersion) continue;
    EXPECT_EQ(Hex(EncodeFrame(header->call, *message).substr(kFrameHeaderBytes)), Hex(frame.substr(kFrameHeaderBytes)));
  }
  EXPECT_GT(decoded, 10'000);
}

TEST(PartitionProtocol, AHelloThatDoesNotMatchSaysWhatDiffers) {
  const PartitionIdentity identity{.seed = 1, .fingerprint = 2, .layout = 3, .records = 4, .nodes = 5};
  const auto check = [&](auto change) {
    HelloFrame hello{.identity = identity, .from = 1, .to = 2};
    change(&hello);
    return ToString(CheckHello(hello, identity, 2));
  };
  EXPECT_EQ(check([](HelloFrame*) {}), "OK");
  EXPECT_THAT(check([](HelloFrame* h) { h->version = 9; }),
              HasSubstr("speaks version 9 of the cache protocol, this node version 2"));
  EXPECT_THAT(check([](HelloFrame* h) { h->identity.nodes = 6; }), HasSubstr("a number of nodes of 6, node 2 has 5"));
  EXPECT_THAT(check([](HelloFrame* h) { h->identity.seed = 6; }), HasSubstr("seed 6, node 2 has 1"));
  EXPECT_THAT(check([](HelloFrame* h) { h->identity.records = 6; }), HasSubstr("a number of records of 6"));
  EXPECT_THAT(check([](HelloFrame* h) { h->identity.fingerprint = 6; }), HasSubstr("data with fingerprint 6"));
  EXPECT_THAT(check([](HelloFrame* h) { h->identity.layout = 6; }), HasSubstr("groups with fingerprint 6"));
  EXPECT_THAT(check([](HelloFrame* h) { h->to = 0; }), HasSubstr("wants node 0, this is node 2"));
  EXPECT_THAT(check([](HelloFrame* h) { h->from = 5; }), HasSubstr("says that it is node 5"));
  EXPECT_THAT(check([](HelloFrame* h) { h->from = 2; }), HasSubstr("says that it is node 2"));
}

TEST(PartitionOwner, IsTheSameEverywhereAndBalanced) {
  // Pinned: nodes of different releases and machines must agree.
  std::string owners;
  for (int64_t unit = 0; unit < 24; ++unit) owners += static_cast<char>('0' + PartitionOwner(42, unit, 3));
  EXPECT_EQ(owners, "221002022002201210010002");
  std::map<uint32_t, int64_t> counts;
  for (int64_t unit = 0; unit < 30'000; ++unit) ++counts[PartitionOwner(7, unit, 3)];
  ASSERT_EQ(counts.size(), 3u);
  for (const auto& [node, count] : counts) EXPECT_NEAR(static_cast<double>(count), 10'000, 300) << node;
}

TEST(PeerHealth, WaitsDoubleAndOneRequestTriesAgain) {
  PeerHealth health({.first_wait = absl::Seconds(1), .longest_wait = absl::Seconds(8)});
  absl::Time now = absl::UnixEpoch();
  EXPECT_TRUE(health.MayAsk(now));
  EXPECT_TRUE(health.MayAsk(now));
  health.Failed(now);
  health.Failed(now);  // the other one of the two: the same failure
  EXPECT_FALSE(health.up());
  double expected = 1;
  for (int i = 0; i < 6; ++i) {
    EXPECT_FALSE(health.MayAsk(now + absl::Seconds(0.74 * expected)));
    now += absl::Seconds(expected);
    EXPECT_TRUE(health.MayAsk(now)) << i;
    EXPECT_FALSE(health.MayAsk(now)) << i;  // one at a time
    health.Failed(now);
    expected = std::min(8.0, 2 * expected);
  }
  now += absl::Seconds(8);
  EXPECT_TRUE(health.MayAsk(now));
  health.Succeeded();
  EXPECT_TRUE(health.up());
  EXPECT_TRUE(health.MayAsk(now));
  EXPECT_TRUE(health.MayAsk(now));
}

// --- nodes in this process ---

constexpr int64_t kBytesEach = 500;

struct Cluster {
  Cluster(uint32_t nodes, int64_t records, double share, int64_t group = 1, PartitionOptions options = {}) {
    options.nodes = nodes;
    options.seed = 11;
    options.budget_bytes = static_cast<int64_t>(share * static_cast<double>(records * kBytesEach) + 0.5);
    std::vector<std::string> addresses;
    for (uint32_t node = 0; node < nodes; ++node) {
      options.node = node;
      sources.push_back(
          std::make_unique<MemorySource>(MemorySource::Options{.records = records, .base_bytes = kBytesEach, .group = group}));
      auto cache = PartitionedCache::Create(sources.back().get(), options);
      EXPECT_TRUE(cache.ok()) << ToString(cache.status());
      caches.push_back(*std::move(cache));
      addresses.push_back(caches.back()->address());
    }
    for (const auto& cache : caches) EXPECT_TRUE(cache->SetPeers(addresses).ok());
  }
  void ReadEpoch(uint32_t node, int epoch) {
    for (const int64_t record : EpochOrder(sources[node]->size(), node, epoch)) {
      const auto view = caches[node]->Read(record);
      ASSERT_TRUE(view.ok()) << ToString(view.status());
      ASSERT_EQ(TextOf(*view), sources[node]->Content(record));
    }
  }
  std::vector<std::unique_ptr<MemorySource>> sources;
  std::vector<std::unique_ptr<PartitionedCache>> caches;
};

TEST(PartitionedCache, WarmSharesAreThoseOfTheory) {
  constexpr int64_t kRecords = 3000;
  for (const double share : {0.2, 0.3, 0.6, 1.0}) {
    Cluster cluster(3, kRecords, share);
    for (const auto& cache : cluster.caches) ASSERT_EQ(ToString(cache->Fill(Soon())), "OK");
    const PartitionStats before = cluster.caches[0]->stats();
    cluster.ReadEpoch(0, 0);
    const PartitionStats after = cluster.caches[0]->stats();
    const auto part = [&](int64_t PartitionStats::*field) {
      return static_cast<double>(after.*field - before.*field) / static_cast<double>(kRecords);
    };
    // A node's own part is a third of the records give or take chance; where all of it fits, the rest goes to others.
    EXPECT_NEAR(part(&PartitionStats::local_hits), share, 0.001) << share;
    EXPECT_NEAR(part(&PartitionStats::remote_hits), share <= 1.0 / 3 ? 2 * share : 1 - share, 0.01) << share;
    EXPECT_NEAR(part(&PartitionStats::storage), share <= 1.0 / 3 ? 1 - 3 * share : 0, 0.01) << share;
    EXPECT_EQ(after.reads() - before.reads(), kRecords);
    EXPECT_EQ(after.failed, 0);
    EXPECT_LE(after.own.peak_bytes + after.others.peak_bytes, static_cast<int64_t>(share * kRecords * kBytesEach + 0.5));
  }
}

TEST(PartitionedCache, OwnersReadForOthersWhileTheyHaveRoomSoStorageIsReadOnce) {
  constexpr int64_t kRecords = 900;
  Cluster cluster(3, kRecords, 0.4);
  for (uint32_t node = 0; node < 3; ++node) cluster.ReadEpoch(node, 0);
  int64_t storage_reads = 0;
  for (const auto& source : cluster.sources) storage_reads += source->read_count();
  EXPECT_EQ(storage_reads, kRecords);
  for (const auto& cache : cluster.caches) EXPECT_EQ(cache->stats().reads(), kRecords);
}

TEST(PartitionedCache, AnOwnerThatIsFullIsAskedOncePerRecord) {
  Cluster cluster(2, 400, 0.1);
  for (const auto& cache : cluster.caches) ASSERT_TRUE(cache->Fill(Soon()).ok());
  cluster.ReadEpoch(0, 0);
  const int64_t asked = cluster.caches[0]->stats().peers[1].requests;
  EXPECT_GT(cluster.caches[0]->stats().not_kept, 0);
  cluster.ReadEpoch(0, 1);
  const PartitionStats stats = cluster.caches[0]->stats();
  EXPECT_EQ(stats.peers[1].requests - asked, 40);  // for those that it has
  EXPECT_EQ(stats.remote_hits, 80);
  // Now that it is known, what comes from storage is read ahead from storage.
  int64_t announced = 0;
  for (int64_t record = 0; record < 400; ++record) {
    cluster.caches[0]->WillNeed(record);
    announced = cluster.sources[0]->open_hints();
  }
  EXPECT_EQ(announced, 400 - 40 - 40);
  cluster.ReadEpoch(0, 2);
  EXPECT_EQ(cluster.sources[0]->open_hints(), 0);
}

TEST(PartitionedCache, GroupsStayWithOneOwner) {
  Cluster cluster(3, 240, 1.0 / 3, /*group=*/8);
  const PartitionedCache& cache = *cluster.caches[1];
  int64_t own = 0;
  std::vector<RecordView> views;
  for (int64_t record = 0; record < 240; record += 8) {
    for (int64_t i = record; i < record + 8; ++i) EXPECT_EQ(cache.OwnerOf(i), cache.OwnerOf(record));
    own += cache.OwnerOf(record) == 1 ? 1 : 0;
    ASSERT_TRUE(cache.ReadGroup(record + 3, &views).ok());
    ASSERT_EQ(views.size(), 8u);
    for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(TextOf(views[static_cast<size_t>(i)]), cluster.sources[1]->Content(record + i));
  }
  EXPECT_EQ(cluster.sources[1]->group_reads(), own);
  EXPECT_EQ(cache.stats().reads(), 240);
}

TEST(PartitionedCache, ThreadsOfSeveralNodesAtOnceGetTheRightBytesAndTheAccountsAddUp) {
  constexpr int64_t kRecords = 500;
  Cluster cluster(3, kRecords, 0.25);
  std::vector<std::thread> threads;
  for (uint32_t node = 0; node < 3; ++node) {
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back([&, node, t] {
        for (int epoch = 0; epoch < 3; ++epoch) cluster.ReadEpoch(node, 2 * epoch + t);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& cache : cluster.caches) {
    const PartitionStats stats = cache->stats();
    EXPECT_EQ(stats.reads(), 6 * kRecords);
    EXPECT_EQ(stats.failed, 0);
    EXPECT_EQ(stats.others.misses, stats.remote_hits + stats.not_kept + stats.peer_failed);
    EXPECT_GT(stats.remote_hits, 0);
  }
}

TEST(PartitionedCache, AnOwnerThatCannotReadARecordSaysSoAndStorageIsTried) {
  Cluster cluster(2, 100, 0.5);
  for (const auto& source : cluster.sources) {
    source->on_read = [](int64_t record) { return record % 10 == 3 ? DataLoss("memory:{}: damaged", record) : Status(); };
  }
  int64_t failed = 0;
  for (int64_t record = 0; record < 100; ++record) {
    const auto view = cluster.caches[0]->Read(record);
    if (record % 10 == 3) {
      EXPECT_EQ(ToString(view.status()), fmt::format("DATA_LOSS: memory:{}: damaged", record));
      ++failed;
    } else {
      EXPECT_TRUE(view.ok());
    }
  }
  const PartitionStats stats = cluster.caches[0]->stats();
  EXPECT_EQ(stats.failed, failed);
  EXPECT_EQ(stats.reads(), 100);
  EXPECT_TRUE(stats.peers[1].up);  // an error answer is an answer
  EXPECT_GT(stats.peers[1].refused, 0);
}

TEST(PartitionedCache, NodesThatAreNotSetUpAlikeRefuseEachOtherAndReadFromStorage) {
  const MemorySource first({.records = 100, .fingerprint = 1}), second({.records = 100, .fingerprint = 2});
  auto a = PartitionedCache::Create(&first, {.nodes = 2, .node = 0, .budget_bytes = 5000});
  auto b = PartitionedCache::Create(&second, {.nodes = 2, .node = 1, .budget_bytes = 5000});
  ASSERT_TRUE((*a)->SetPeers({"", (*b)->address()}).ok());
  for (int64_t record = 0; record < 100; ++record) EXPECT_EQ(TextOf(*(*a)->Read(record)), first.Content(record));
  const PartitionStats stats = (*a)->stats();
  EXPECT_EQ(stats.remote_hits, 0);
  EXPECT_EQ(stats.storage, 100);
  EXPECT_GT(stats.peer_failed, 0);
  EXPECT_FALSE(stats.peers[1].up);
  EXPECT_GE((*b)->stats().server.refused, 1);
}

TEST(PartitionedCache, BadOptionsAreNamed) {
  const MemorySource source({.records = 10});
  const auto fault = [&](PartitionOptions options) { return ToString(PartitionedCache::Create(&source, options).status()); };
  EXPECT_THAT(fault({.nodes = 0}), HasSubstr("a cache over 0 nodes; allowed: 1 to 4096"));
  EXPECT_THAT(fault({.nodes = 2, .node = 2}), HasSubstr("node 2 of a cache over 2 nodes; allowed: 0 to 1"));
  EXPECT_THAT(fault({.budget_bytes = -1}), HasSubstr("cache budget of -1 bytes"));
  EXPECT_THAT(fault({.listen = "localhost:0"}), HasSubstr("address 'localhost:0'; allowed: a numeric address and a port"));
  EXPECT_THAT(fault({.request_limit = absl::ZeroDuration()}), HasSubstr("request_limit 0"));
  EXPECT_THAT(fault({.listen = "0.0.0.0:0"}),
              HasSubstr("would answer anybody who reaches 0.0.0.0:0; allowed without a key: loopback"));
  EXPECT_THAT(fault({.listen = "[::]:0"}), HasSubstr("loopback"));
  EXPECT_EQ(fault({.listen = "127.9.9.9:0"}), "OK");
  EXPECT_EQ(fault({.listen = "0.0.0.0:0", .key = "sixteen bytes or more"}), "OK");
  EXPECT_EQ(fault({.listen = "0.0.0.0:0", .open = true}), "OK");
  auto cache = PartitionedCache::Create(&source, {.nodes = 2});
  EXPECT_THAT(ToString((*cache)->SetPeers({"x"})), HasSubstr("1 addresses for a cache over 2 nodes"));
  EXPECT_THAT(ToString((*cache)->SetPeers({"localhost:7", "localhost:7"})),
              HasSubstr("address 'localhost:7'; allowed: a numeric"));
  auto again = PartitionedCache::Create(&source, {.nodes = 2, .listen = (*cache)->address()});
  EXPECT_THAT(ToString(again.status()), HasSubstr("ALREADY_EXISTS: listening on 127.0.0.1:"));
  EXPECT_EQ(ToString((*cache)->Read(10).status()), "OUT_OF_RANGE: record 10; the data has 10");
}

// --- peers that lie ---

PartitionIdentity IdentityOf(const RecordSource& source) {
  auto cache = PartitionedCache::Create(&source, {.nodes = 2, .node = 1});
  // What a real node says first.
  auto listener = TcpListener::Listen("127.0.0.1:0");
  EXPECT_TRUE((*cache)->SetPeers({listener->address(), ""}).ok());
  std::thread reader([&] {
    for (int64_t record = 0; record < source.size(); ++record) (void)(*cache)->Read(record).ok();
  });
  pollfd entry{listener->fd(), POLLIN, 0};
  ::poll(&entry, 1, 30'000);
  auto socket = listener->Accept();
  const auto frame = ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 0);
  socket->Shutdown();
  reader.join();
  return std::get<HelloFrame>(frame->message).identity;
}

TEST(PartitionServer, HostileBytesCostTheirConnectionAndNothingElse) {
  const MemorySource source({.records = 50});
  const PartitionIdentity identity = IdentityOf(source);
  auto cache = PartitionedCache::Create(&source, {.nodes = 2, .node = 0, .budget_bytes = 5000});
  std::mt19937_64 random(5);
  const std::string hello = EncodeFrame(0, HelloFrame{.identity = identity, .from = 1, .to = 0});
  int64_t own = -1;
  for (int64_t record = 0; record < 50 && own < 0; ++record) own = (*cache)->OwnerOf(record) == 0 ? record : -1;
  for (int i = 0; i < 300; ++i) {
    auto socket = TcpSocket::Connect((*cache)->address(), Soon());
    ASSERT_TRUE(socket.ok()) << ToString(socket.status());
    std::string bytes = hello + EncodeFrame(1, GetFrame{.record = own}) + EncodeFrame(2, AbsentFrame{});
    for (uint64_t edits = random() % 6; edits > 0; --edits) bytes[random() % bytes.size()] = static_cast<char>(random());
    bytes.resize(random() % (bytes.size() + 1));
    (void)socket->Send(Bytes(bytes), {}, Soon()).ok();
    if (i % 3 != 0) continue;  // two of three leave at once
    // The server answers what it understood and ends the connection where it stops understanding, or waits for more.
    std::array<std::byte, 16> head;
    (void)socket->Receive(head, Clock::Real()->Now() + absl::Milliseconds(5)).ok();
  }
  // An honest peer is served.
  auto socket = TcpSocket::Connect((*cache)->address(), Soon());
  ASSERT_TRUE(socket->Send(Bytes(hello + EncodeFrame(9, GetFrame{.record = own})), {}, Soon()).ok());
  const auto welcome = ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 1000);
  ASSERT_TRUE(welcome.ok()) << ToString(welcome.status());
  EXPECT_EQ(std::get<WelcomeFrame>(welcome->message).node, 0u);
  const auto head = ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 1000);
  ASSERT_TRUE(head.ok()) << ToString(head.status());
  EXPECT_EQ(head->call, 9u);
  std::string content(static_cast<size_t>(head->record_bytes), '\0');
  ASSERT_TRUE(socket->Receive(std::as_writable_bytes(std::span(content)), Soon()).ok());
  EXPECT_EQ(content, source.Content(own));
  EXPECT_EQ(std::get<RecordFrame>(head->message).checksum, RecordChecksum(content));
}

TEST(PartitionServer, WhatIsNotAskedRightIsAnsweredWithAnError) {
  const MemorySource source({.records = 50});
  const PartitionIdentity identity = IdentityOf(source);
  auto cache = PartitionedCache::Create(&source, {.nodes = 2, .node = 0, .budget_bytes = 5000, .max_connections = 1});
  const auto talk = [&](const std::string& bytes, int skipped_frames, int others = 0) {
    while ((*cache)->stats().server.connections > others) std::this_thread::yield();
    auto socket = TcpSocket::Connect((*cache)->address(), Soon());
    EXPECT_TRUE(socket->Send(Bytes(bytes), {}, Soon()).ok());
    for (int i = 0; i < skipped_frames; ++i) EXPECT_TRUE(ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 1000).ok());
    const auto frame = ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 1000);
    if (!frame.ok()) return ToString(frame.status());
    const auto* error = std::get_if<ErrorFrame>(&frame->message);
    return error == nullptr ? "no error" : ToString(ToStatus(*error));
  };
  HelloFrame hello{.identity = identity, .from = 1, .to = 0};
  const std::string good = EncodeFrame(0, hello);
  int64_t foreign = -1;
  for (int64_t record = 0; record < 50 && foreign < 0; ++record) foreign = (*cache)->OwnerOf(record) == 1 ? record : -1;
  EXPECT_THAT(talk(good + EncodeFrame(1, GetFrame{.record = 50}), 1), HasSubstr("OUT_OF_RANGE: record 50; the data has 50"));
  EXPECT_THAT(talk(good + EncodeFrame(1, GetFrame{.record = foreign}), 1),
              HasSubstr(fmt::format("INVALID_ARGUMENT: record {} belongs to node 1, not to node 0", foreign)));
  EXPECT_THAT(talk(good + good, 1), HasSubstr("a frame of this type is not for a server that has said Welcome"));
  EXPECT_THAT(talk(EncodeFrame(1, GetFrame{.record = 1}), 0), HasSubstr("the first frame is no Hello"));
  hello.version = 1;
  EXPECT_THAT(talk(EncodeFrame(0, hello), 0), HasSubstr("the peer speaks version 1 of the cache protocol, this node version 2"));

  // One connection more than allowed.
  while ((*cache)->stats().server.connections > 0) std::this_thread::yield();
  auto first = TcpSocket::Connect((*cache)->address(), Soon());
  ASSERT_TRUE(first->Send(Bytes(good), {}, Soon()).ok());
  ASSERT_TRUE(ReceiveFrame(&*first, Soon(), absl::Seconds(10), 0).ok());
  EXPECT_THAT(talk(std::string(), 0, /*others=*/1),
              HasSubstr("RESOURCE_EXHAUSTED: node 0 has 1 connections, the most that it takes"));
}

// --- keys ---

TEST(PartitionAuth, ProofsDependOnKeySideHelloAndChallenge) {
  const AuthBytes challenge = RandomAuthBytes();
  const AuthBytes proof = ServerProof("a key of some bytes", "hello", challenge);
  EXPECT_TRUE(SameAuthBytes(proof, ServerProof("a key of some bytes", "hello", challenge)));
  EXPECT_FALSE(SameAuthBytes(proof, ServerProof("a key of same bytes", "hello", challenge)));
  EXPECT_FALSE(SameAuthBytes(proof, ClientProof("a key of some bytes", "hello", challenge)));
  EXPECT_FALSE(SameAuthBytes(proof, ServerProof("a key of some bytes", "hallo", challenge)));
  EXPECT_FALSE(SameAuthBytes(proof, ServerProof("a key of some bytes", "hello", RandomAuthBytes())));
  EXPECT_NE(RandomAuthBytes(), RandomAuthBytes());
}

TEST(PartitionAuth, AKeyFileIsOfSomeLengthAndForItsOwnerOnly) {
  const std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("peer-key-{}", ::getpid());
  const auto write = [&](const std::string& text, std::filesystem::perms perms) {
    std::ofstream(path, std::ios::binary) << text;
    std::filesystem::permissions(path, perms);
    const auto key = ReadPeerKey(path.string());
    return key.ok() ? *key : ToString(key.status());
  };
  using std::filesystem::perms;
  const std::string key = "sixteen bytes or\nmore";
  EXPECT_EQ(write(key, perms::owner_read | perms::owner_write), key);
  EXPECT_THAT(write(key, perms::owner_read | perms::owner_write | perms::others_read),
              HasSubstr("has mode 604; allowed: none for"));
  EXPECT_THAT(write("short", perms::owner_read | perms::owner_write), HasSubstr("has 5 bytes; allowed: 16 to 4096"));
  std::filesystem::remove(path);
  EXPECT_THAT(ToString(ReadPeerKey(path.string()).status()), HasSubstr("NOT_FOUND"));
}

TEST(PartitionedCache, NodesWithTheSameKeyServeEachOther) {
  Cluster cluster(3, 300, 0.5, 1, {.key = "the key of these three"});
  for (uint32_t node = 0; node < 3; ++node) cluster.ReadEpoch(node, 0);
  EXPECT_GT(cluster.caches[0]->stats().remote_hits, 0);
  EXPECT_EQ(cluster.caches[0]->stats().peer_failed, 0);
}

TEST(PartitionedCache, NodesWithoutTheSameKeyRefuseEachOtherAndReadFromStorage) {
  const std::pair<std::string, std::string> pairs[] = {
      {"the key of the one", "the key of the two"}, {"", "the key of the two"}, {"the key of the one", ""}};
  for (const auto& [ours, theirs] : pairs) {
    SCOPED_TRACE(ours + "|" + theirs);
    const MemorySource source({.records = 100});
    auto a = PartitionedCache::Create(&source, {.nodes = 2, .node = 0, .budget_bytes = 5000, .key = ours});
    auto b = PartitionedCache::Create(&source, {.nodes = 2, .node = 1, .budget_bytes = 5000, .key = theirs});
    ASSERT_TRUE((*a)->SetPeers({"", (*b)->address()}).ok());
    for (int64_t record = 0; record < 100; ++record) EXPECT_EQ(TextOf(*(*a)->Read(record)), source.Content(record));
    EXPECT_EQ((*a)->stats().remote_hits, 0);
    EXPECT_EQ((*a)->stats().storage, 100);
    EXPECT_EQ((*b)->stats().server.records, 0);
  }
}

TEST(PartitionServer, AStrangerLearnsNothingAndAnOldProofIsWorthNothing) {
  const MemorySource source({.records = 50});
  const PartitionIdentity identity = IdentityOf(source);
  const std::string key = "the key of this node";
  auto cache = PartitionedCache::Create(&source, {.nodes = 2, .node = 0, .budget_bytes = 5000, .key = key});
  HelloFrame hello{.identity = identity, .from = 1, .to = 0, .nonce = RandomAuthBytes()};
  // Says Hello, answers the challenge with what `answer` makes of it, and reads what comes then.
  const auto talk = [&](const HelloFrame& first, const std::function<std::string(const ChallengeFrame&)>& answer) {
    auto socket = TcpSocket::Connect((*cache)->address(), Soon());
    EXPECT_TRUE(socket->Send(Bytes(EncodeFrame(0, first)), {}, Soon()).ok());
    const auto challenge = ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 1000);
    EXPECT_TRUE(challenge.ok()) << ToString(challenge.status());
    EXPECT_TRUE(socket->Send(Bytes(answer(std::get<ChallengeFrame>(challenge->message))), {}, Soon()).ok());
    const auto last = ReceiveFrame(&*socket, Soon(), absl::Seconds(10), 1000);
    if (!last.ok()) return ToString(last.status());
    if (std::holds_alternative<WelcomeFrame>(last->message)) return std::string("welcome");
    return ToString(ToStatus(std::get<ErrorFrame>(last->message)));
  };
  std::string old_proof;
  EXPECT_EQ(talk(hello,
                 [&](const ChallengeFrame& challenge) {
                   EXPECT_TRUE(SameAuthBytes(challenge.proof, ServerProof(key, HelloBytes(hello), challenge.nonce)));
                   return old_proof = EncodeFrame(0, ProofFrame{.proof = ClientProof(key, HelloBytes(hello), challenge.nonce)});
                 }),
            "welcome");
  EXPECT_THAT(talk(hello, [&](const ChallengeFrame&) { return old_proof; }),
              HasSubstr("UNAUTHENTICATED: the peer's key is not that of node 0"));
  EXPECT_THAT(talk(hello, [](const ChallengeFrame& challenge) { return EncodeFrame(0, ProofFrame{.proof = challenge.proof}); }),
              HasSubstr("UNAUTHENTICATED"))
      << "the server's own proof, given back";
  EXPECT_THAT(talk(hello, [](const ChallengeFrame&) { return EncodeFrame(1, GetFrame{.record = 1}); }),
              HasSubstr("wants a proof of the key"));
  HelloFrame other = hello;
  other.identity.fingerprint ^= 1;
  EXPECT_THAT(talk(other, [](const ChallengeFrame&) { return EncodeFrame(0, ProofFrame{}); }), HasSubstr("UNAUTHENTICATED"))
      << "not what differs";
}

// A server that says Welcome and then answers each Get with what `answer` makes of it.
class FakePeer {
 public:
  explicit FakePeer(std::function<std::string(uint64_t call, int64_t record)> answer)
      : answer_(std::move(answer)), listener_(*TcpListener::Listen("127.0.0.1:0")), thread_([this] { Run(); }) {}
  ~FakePeer() {
    stop_ = true;
    thread_.join();
  }
  const std::string& address() const { return listener_.address(); }

 private:
  void Run() {
    while (!stop_) {
      pollfd entry{listener_.fd(), POLLIN, 0};
      if (::poll(&entry, 1, 2) <= 0) continue;
      auto socket = listener_.Accept();
      if (!socket.ok()) continue;
      const auto limit = absl::Seconds(1);
      auto frame = ReceiveFrame(&*socket, Clock::Real()->Now() + limit, limit, 0);
      if (!frame.ok()) continue;
      (void)socket->Send(Bytes(EncodeFrame(frame->call, WelcomeFrame{.node = 1, .incarnation = 1})), {}, Soon()).ok();
      while (!stop_) {
        frame = ReceiveFrame(&*socket, Clock::Real()->Now() + absl::Milliseconds(50), limit, 0);
        if (!frame.ok() && frame.status().code() == StatusCode::kDeadlineExceeded) continue;
        if (!frame.ok()) break;
        const std::string bytes = answer_(frame->call, std::get<GetFrame>(frame->message).record);
        if (!socket->Send(Bytes(bytes), {}, Soon()).ok()) break;
      }
    }
  }
  const std::function<std::string(uint64_t, int64_t)> answer_;
  TcpListener listener_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

TEST(PartitionedCache, APeerThatLiesOrIsSilentCostsTimeAndNothingElse) {
  const MemorySource source({.records = 60});
  std::atomic<int> served = 0;
  using Answer = std::function<std::string(uint64_t, int64_t)>;
  const std::string content = source.Content(0);
  const std::pair<const char*, Answer> lies[] = {
      {"nothing", [](uint64_t, int64_t) { return std::string(); }},
      {"a part",
       [&](uint64_t call, int64_t) { return EncodeFrame(call, RecordFrame{.checksum = 1}, 100) + content.substr(0, 40); }},
      {"another checksum", [&](uint64_t call, int64_t) { return EncodeFrame(call, RecordFrame{.checksum = 1}, 100) + content; }},
      {"another call",
       [&](uint64_t call, int64_t) {
         return EncodeFrame(call + 1, RecordFrame{.checksum = RecordChecksum(content)}, 100) + content;
       }},
      {"a huge record", [](uint64_t call, int64_t) { return EncodeFrame(call, RecordFrame{}, int64_t{1} << 31); }},
      {"noise", [](uint64_t call, int64_t) { return std::string(64, static_cast<char>(call | 0x80)); }},
      {"a Get", [](uint64_t call, int64_t) { return EncodeFrame(call, GetFrame{}); }},
      {"an error", [](uint64_t call, int64_t) { return EncodeFrame(call, ErrorFrame{.code = 999, .text = "?"}); }},
  };
  for (const auto& [what, lie] : lies) {
    FakePeer peer([&, lie = lie](uint64_t call, int64_t record) {
      ++served;
      return lie(call, record);
    });
    auto cache = PartitionedCache::Create(
        &source, {.nodes = 2,
                  .node = 0,
                  .budget_bytes = 1000,
                  .request_limit = absl::Milliseconds(30),
                  .health = {.first_wait = absl::Microseconds(1), .longest_wait = absl::Microseconds(2)}});
    ASSERT_TRUE((*cache)->SetPeers({"", peer.address()}).ok());
    served = 0;
    for (int64_t record = 0; record < 60; ++record) {
      const auto view = (*cache)->Read(record);
      ASSERT_TRUE(view.ok()) << what << ": " << ToString(view.status());
      ASSERT_EQ(TextOf(*view), source.Content(record)) << what;
    }
    const PartitionStats stats = (*cache)->stats();
    EXPECT_GT(served, 1) << what;  // it was tried again
    EXPECT_EQ(stats.remote_hits, 0) << what;
    EXPECT_EQ(stats.reads(), 60) << what;
    EXPECT_EQ(stats.failed, 0) << what;
    EXPECT_GT(stats.peer_failed, 0) << what;
  }
}

TEST(PartitionedCache, APeerThatNobodyListensForAndAForgottenConnectionAreTriedAgain) {
  const MemorySource source({.records = 200});
  PartitionOptions options{.nodes = 2,
                           .node = 1,
                           .budget_bytes = 20'000,
                           .health = {.first_wait = absl::Microseconds(1), .longest_wait = absl::Microseconds(2)}};
  auto server = PartitionedCache::Create(&source, options);
  options.listen = (*server)->address();
  auto cache = PartitionedCache::Create(
      &source, {.nodes = 2, .node = 0, .health = {.first_wait = absl::Microseconds(1), .longest_wait = absl::Microseconds(2)}});
  ASSERT_TRUE((*cache)->SetPeers({"", options.listen}).ok());
  const auto read_all = [&] {
    for (int64_t record = 0; record < 200; ++record) ASSERT_EQ(TextOf(*(*cache)->Read(record)), source.Content(record));
    return;
  };
  read_all();
  const int64_t hits = (*cache)->stats().remote_hits;
  EXPECT_GT(hits, 50);
  server->reset();
  read_all();
  EXPECT_EQ((*cache)->stats().remote_hits, hits);
  EXPECT_FALSE((*cache)->stats().peers[1].up);
  // It starts again on the same port, empty, and reads for us again.
  server = PartitionedCache::Create(&source, options);
  ASSERT_TRUE(server.ok()) << ToString(server.status());
  read_all();
  EXPECT_GT((*cache)->stats().remote_hits, hits);
  EXPECT_TRUE((*cache)->stats().peers[1].up);
  EXPECT_EQ((*cache)->stats().reads(), 600);
}

}  // namespace
}  // namespace tidepool::data
