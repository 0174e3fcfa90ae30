#include "data/shared_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "base/testing.h"
#include "base/unix_socket.h"
#include "data/shared_prep_coordinator.h"
#include "data/shared_prep_protocol.h"
#include "data/shared_prep_testing.h"

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;
using testing::Soon;

std::string Hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

std::string TextOf(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// --- the protocol ---

const PrepPlan kPlan{
    .fingerprint = 1, .settings = 2, .seed = 3, .samples = 100, .batch = 8, .epochs = 5, .input_bytes = 64, .target_bytes = 8};

TEST(SharedPrepProtocol, EveryPacketHasTheBytesThatTheDocumentGives) {
  EXPECT_EQ(Hex(EncodePrep(JoinPacket{.plan = kPlan, .name = "ab"})),
            "01000000"
            "5450535001000000"
            "010000000000000002000000000000000300000000000000640000000000000008000000000000000500000000000000"
            "40000000000000000800000000000000"
            "0002006162");
  EXPECT_EQ(Hex(EncodePrep(JoinedPacket{.job = 1, .first = 2, .slots = 4, .held = 2})),
            "02000000"
            "0100000002000000000000000400000002000000");
  EXPECT_EQ(Hex(EncodePrep(ErrorPacket{.code = 9, .text = "no"})), "03000000090002006e6f");
  EXPECT_EQ(Hex(EncodePrep(WantPacket{})), "04000000");
  EXPECT_EQ(Hex(EncodePrep(LeasePacket{.token = 7, .number = 8, .slot = 3})), "050000000700000000000000080000000000000003000000");
  EXPECT_EQ(Hex(EncodePrep(DonePacket{.token = 7, .samples = 8, .replaced = 1})),
            "06000000"
            "07000000000000000800000000000000010000000000000000000000");
  EXPECT_EQ(Hex(EncodePrep(TakePacket{})), "07000000");
  EXPECT_EQ(Hex(EncodePrep(BatchPacket{.number = 258, .slot = 3, .samples = 8, .code = 15, .text = "x"})),
            "08000000"
            "02010000000000000300000008000000000000000000000000000000"
            "0f00010078");
  EXPECT_EQ(Hex(EncodePrep(ReleasePacket{.number = 5})), "090000000500000000000000");
  EXPECT_EQ(Hex(EncodePrep(EndPacket{})), "0a000000");
  EXPECT_EQ(Hex(EncodePrep(ByePacket{})), "0b000000");
  // The layout of a slot is part of the protocol too.
  EXPECT_EQ(kPlan.targets_at(), 512);
  EXPECT_EQ(kPlan.numbers_at(), 576);
  EXPECT_EQ(kPlan.slot_bytes(), 4096);
  EXPECT_EQ(kPlan.batches(), 13);
  EXPECT_EQ(kPlan.size_of(12), 4);
}

// Everything that decodes is a message, and encodes to the same bytes again.
TEST(SharedPrepProtocol, RandomBytesDecodeToAMessageOrToAnError) {
  const PrepMessage messages[] = {JoinPacket{.plan = kPlan, .name = "job"},
                                  JoinedPacket{.job = 1, .slots = 4, .held = 2},
                                  ErrorPacket{.code = 3, .text = "what"},
                                  WantPacket{},
                                  LeasePacket{.number = 5},
                                  DonePacket{.samples = 3, .replaced = 1, .text = "t"},
                                  TakePacket{},
                                  BatchPacket{.number = 7, .samples = 3},
                                  ReleasePacket{.number = 4},
                                  EndPacket{},
                                  ByePacket{}};
  std::mt19937_64 random(1);
  int decoded = 0;
  for (int i = 0; i < 60'000; ++i) {
    std::string packet = EncodePrep(messages[random() % std::size(messages)]);
    for (uint64_t edits = random() % 4; edits > 0; --edits) packet[random() % packet.size()] = static_cast<char>(random());
    if (random() % 4 == 0) packet.resize(random() % (packet.size() + 4));
    const auto message = DecodePrep(packet);
    if (!message.ok()) continue;
    ++decoded;
    const auto* join = std::get_if<JoinPacket>(&*message);
    if (join != nullptr && join->version != kPrepVersion) continue;
    EXPECT_EQ(Hex(EncodePrep(*message)), Hex(packet));
  }
  EXPECT_GT(decoded, 10'000);
}

TEST(SharedPrepProtocol, PlansThatCannotBeAreNamed) {
  const auto fault = [](auto change) {
    PrepPlan plan = kPlan;
    change(&plan);
    return ToString(plan.Validate());
  };
  EXPECT_EQ(fault([](PrepPlan*) {}), "OK");
  EXPECT_THAT(fault([](PrepPlan* p) { p->samples = 0; }), HasSubstr("0 samples"));
  EXPECT_THAT(fault([](PrepPlan* p) { p->batch = -1; }), HasSubstr("batches of -1"));
  EXPECT_THAT(fault([](PrepPlan* p) { p->epochs = INT64_MAX; }), HasSubstr("epochs are too many"));
  EXPECT_THAT(fault([](PrepPlan* p) { p->input_bytes = INT64_MAX; }), HasSubstr("a sample of 9223372036854775807 bytes"));
  EXPECT_THAT(fault([](PrepPlan* p) { p->batch = 1 << 20, p->input_bytes = 1 << 30; }), HasSubstr("allowed: 1.00 TiB in all"));
  EXPECT_THAT(fault([](PrepPlan* p) { p->batch = 101, p->drop_last = true; }), HasSubstr("there is none"));
}

// --- jobs in this process ---

struct Node {
  explicit Node(PrepCoordinatorOptions options = {}) {
    options.socket = folder.File("prep");
    if (options.staging_bytes == 0) options.staging_bytes = 4 * 4096;
    auto started = PrepCoordinator::Start(options);
    EXPECT_TRUE(started.ok()) << ToString(started.status());
    coordinator = *std::move(started);
  }
  std::unique_ptr<SharedLoader> Join(const Dataset* dataset, SharedLoaderOptions options) {
    auto loader = TryJoin(dataset, std::move(options));
    EXPECT_TRUE(loader.ok()) << ToString(loader.status());
    return *std::move(loader);
  }
  StatusOr<std::unique_ptr<SharedLoader>> TryJoin(const Dataset* dataset, SharedLoaderOptions options) {
    options.socket = folder.File("prep");
    return SharedLoader::Join(dataset, std::move(options), Soon());
  }
  // What the coordinator knows once all jobs have left.
  PrepCoordinatorStats AtEnd() {
    EXPECT_EQ(ToString(coordinator->AwaitAllLeft(Soon())), "OK");
    return coordinator->stats();
  }
  testing::TempDir folder;
  std::unique_ptr<PrepCoordinator> coordinator;
};

struct Seen {
  int64_t epoch = 0;
  std::vector<int64_t> samples;
  std::string inputs, targets;
  friend bool operator==(const Seen&, const Seen&) = default;
};

// Everything until the end, or until the first error.
std::vector<Seen> ReadAll(SharedLoader* loader, Status* error = nullptr) {
  std::vector<Seen> seen;
  while (true) {
    auto batch = loader->Next(Soon());
    if (!batch.ok()) {
      if (error != nullptr) *error = batch.status();
      EXPECT_NE(error, nullptr) << ToString(batch.status());
      return seen;
    }
    if (!batch->has_value()) return seen;
    const SharedBatch& got = **batch;
    seen.push_back({got.epoch(), {got.samples().begin(), got.samples().end()}, TextOf(got.inputs()), TextOf(got.targets())});
  }
}

std::vector<Seen> ReadPlain(const Dataset* dataset, BatchLoaderOptions options) {
  auto loader = BatchLoader::Start(dataset, std::move(options));
  EXPECT_TRUE(loader.ok()) << ToString(loader.status());
  std::vector<Seen> seen;
  while (true) {
    auto batch = (*loader)->Next(Soon());
    EXPECT_TRUE(batch.ok()) << ToString(batch.status());
    if (!batch.ok() || !batch->has_value()) return seen;
    const Batch& got = **batch;
    seen.push_back({got.epoch(), {got.samples().begin(), got.samples().end()}, TextOf(got.inputs()), TextOf(got.targets())});
  }
}

TEST(SharedLoader, FourJobsPrepareOnceAndEachGetsWhatALoaderOfItsOwnWouldGive) {
  constexpr int kJobs = 4;
  const NumberedDataset dataset(230), alone(230);
  const std::vector<Seen> expected = ReadPlain(&alone, {.batch = 16, .epochs = 3, .start = {.seed = 9}});
  Node node({.jobs = kJobs});
  std::vector<std::vector<Seen>> seen(kJobs);
  std::vector<SharedLoaderStats> stats(kJobs);
  std::vector<std::thread> threads;
  for (int j = 0; j < kJobs; ++j) {
    threads.emplace_back([&, j] {
      const auto loader =
          node.Join(&dataset, {.name = fmt::format("job {}", j), .threads = 1 + j % 2, .batch = 16, .epochs = 3, .seed = 9});
      seen[j] = ReadAll(loader.get());
      stats[j] = loader->stats();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int j = 0; j < kJobs; ++j) EXPECT_EQ(seen[j], expected) << j;
  EXPECT_EQ(dataset.reads(), 3 * 230);  // and not four times as many
  EXPECT_EQ(dataset.open_hints(), 0);
  const PrepCoordinatorStats end = node.AtEnd();
  ASSERT_EQ(end.epochs.size(), 3u);
  for (const PrepEpochAccount& epoch : end.epochs) {
    EXPECT_EQ(epoch.prepared, 15);
    EXPECT_EQ(epoch.delivered, kJobs * 15);
    EXPECT_EQ(epoch.wasted + epoch.repeated + epoch.takeovers, 0);
  }
  EXPECT_EQ(end.slots, 4);
  EXPECT_EQ(end.slots * end.slot_bytes, 4 * 4096);  // the budget
  EXPECT_EQ(end.free_slots, end.slots);
  EXPECT_EQ(end.expelled, 0);
  int64_t prepared = 0;
  for (const SharedLoaderStats& each : stats) prepared += each.prepared;
  EXPECT_EQ(prepared, 3 * 15);
}

TEST(SharedLoader, BrokenSamplesAreSkippedReplacedOrToldAsInALoaderOfOnesOwn) {
  NumberedDataset dataset(50);
  dataset.on_read = [](int64_t index) { return index % 17 == 3 ? DataLoss("number {} is damaged", index) : Status(); };
  for (const OnError on_error : {OnError::kSkip, OnError::kReplace}) {
    const std::vector<Seen> expected = ReadPlain(&dataset, {.batch = 8, .epochs = 2, .on_error = on_error, .start = {.seed = 4}});
    Node node;
    const auto loader = node.Join(&dataset, {.batch = 8, .epochs = 2, .seed = 4, .on_error = on_error});
    EXPECT_EQ(ReadAll(loader.get()), expected);
    const SharedLoaderStats stats = loader->stats();
    EXPECT_EQ(stats.skipped, on_error == OnError::kSkip ? 6 : 0);
    EXPECT_EQ(stats.delivered_samples + stats.skipped, 100);
    EXPECT_EQ(stats.errors.size(), 6u);
    EXPECT_THAT(stats.errors[0], HasSubstr("is damaged"));
  }
  Node node;
  const auto loader = node.Join(&dataset, {.batch = 8, .epochs = 1, .shuffle = false});
  for (int64_t b = 0; b < 7; ++b) {
    const auto batch = loader->Next(Soon());
    const bool broken = b == 0 || b == 2 || b == 4;  // numbers 3, 20 and 37
    EXPECT_EQ(batch.ok(), !broken) << b;
    if (broken) {
      EXPECT_THAT(ToString(batch.status()), HasSubstr(fmt::format("DATA_LOSS: sample {} at position", 3 + 17 * (b / 2))));
    }
  }
  EXPECT_FALSE(loader->Next(Soon())->has_value());
}

TEST(SharedLoader, AJobThatDoesNotFitTheOthersIsRefusedWithWhatDiffers) {
  const NumberedDataset dataset(50), other(51);
  Node node;
  const auto loader = node.Join(&dataset, {.batch = 8, .seed = 4, .fingerprint = 7});
  const auto fault = [&](const Dataset* data, SharedLoaderOptions options) {
    return ToString(node.TryJoin(data, std::move(options)).status());
  };
  EXPECT_EQ(fault(&dataset, {.batch = 9, .seed = 4, .fingerprint = 7}),
            "FAILED_PRECONDITION: the job has batches of 9, the jobs that came first have 8");
  EXPECT_THAT(fault(&dataset, {.batch = 8, .seed = 5, .fingerprint = 7}), HasSubstr("seed 5, the jobs that came first have 4"));
  EXPECT_THAT(fault(&dataset, {.batch = 8, .seed = 4, .fingerprint = 8}), HasSubstr("data with fingerprint 8"));
  EXPECT_THAT(fault(&dataset, {.batch = 8, .seed = 4, .augment = false, .fingerprint = 7}), HasSubstr("settings"));
  EXPECT_THAT(fault(&other, {.batch = 8, .seed = 4, .fingerprint = 7}), HasSubstr("a number of samples of 51"));
  EXPECT_THAT(fault(&dataset, {.threads = 0}), HasSubstr("0 preparing threads"));
  EXPECT_EQ(ToString(SharedLoader::Join(&dataset, {.socket = node.folder.File("nobody")}, Soon()).status()).substr(0, 9),
            "NOT_FOUND");
  Node small({.staging_bytes = 4096});
  EXPECT_EQ(ToString(small.TryJoin(&dataset, {.batch = 8}).status()),
            "RESOURCE_EXHAUSTED: staging memory of 4.00 KiB for batches of 4.00 KiB; needed: 8.00 KiB");
  EXPECT_EQ(small.coordinator->stats().refused, 1);
}

TEST(SharedLoader, BatchesInTheCallersHandsStayAsTheyAreAndAreLimited) {
  const NumberedDataset dataset(100);
  Node node;
  auto loader = node.Join(&dataset, {.batch = 8, .epochs = 2, .seed = 4});
  auto first = **loader->Next(Soon()), second = **loader->Next(Soon());
  const std::string content = TextOf(first.inputs());
  EXPECT_EQ(ToString(loader->Next(Soon()).status()),
            "FAILED_PRECONDITION: this job holds 2 batches, as many as it may; give one up first");
  EXPECT_EQ(loader->cursor().offset, 16);
  second = SharedBatch();
  for (int i = 0; i < 20; ++i) {
    const auto batch = loader->Next(Soon());
    ASSERT_TRUE(batch.ok() && batch->has_value()) << ToString(batch.status());
  }
  EXPECT_EQ(TextOf(first.inputs()), content);
  // The batch outlives its loader, and another job does not get its memory meanwhile.
  loader.reset();
  const auto other = node.Join(&dataset, {.batch = 8, .epochs = 2, .seed = 4});
  EXPECT_EQ(other->first_epoch(), 2);  // both epochs have begun
  EXPECT_FALSE(other->Next(Soon())->has_value());
  EXPECT_EQ(TextOf(first.inputs()), content);
  EXPECT_EQ(node.coordinator->stats().left, 0);
  first = SharedBatch();
}

TEST(SharedLoader, WithoutItsCoordinatorAJobGoesOnFromItsCursorAlone) {
  const NumberedDataset dataset(100);
  const std::vector<Seen> expected =
      ReadPlain(&dataset, {.batch = 8, .epochs = 3, .start = {.seed = 4, .fingerprint = 5}, .fingerprint = 5});
  Node node;
  const auto loader = node.Join(&dataset, {.batch = 8, .epochs = 3, .seed = 4, .fingerprint = 5});
  std::vector<Seen> seen;
  for (int i = 0; i < 17; ++i) {
    const auto batch = loader->Next(Soon());
    ASSERT_TRUE(batch.ok() && batch->has_value());
    seen.push_back({(*batch)->epoch(),
                    {(*batch)->samples().begin(), (*batch)->samples().end()},
                    TextOf((*batch)->inputs()),
                    TextOf((*batch)->targets())});
  }
  node.coordinator.reset();
  EXPECT_THAT(ToString(loader->Next(Soon()).status()), HasSubstr("UNAVAILABLE: the coordinator of shared preparation at '"));
  for (Seen& each : ReadPlain(&dataset, {.batch = 8, .epochs = 3, .start = loader->cursor(), .fingerprint = 5}))
    seen.push_back(each);
  EXPECT_EQ(seen, expected);
}

TEST(SharedLoader, AWaitEndsWithItsDeadlineOrWithCancelAndTheBatchComesLater) {
  NumberedDataset dataset(32);
  absl::Mutex mu;
  bool open = false;
  dataset.on_read = [&](int64_t) {
    absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&open));
    return Status();
  };
  Node node;
  const auto loader = node.Join(&dataset, {.batch = 8, .seed = 4});
  EXPECT_EQ(ToString(loader->Next(Clock::Real()->Now() + absl::Milliseconds(1)).status()),
            "DEADLINE_EXCEEDED: batch 0 of epoch 0 did not come in time");
  {
    absl::MutexLock lock(&mu);
    open = true;
  }
  EXPECT_EQ((*loader->Next(Soon()))->batch(), 0);
  EXPECT_EQ((*loader->Next(Soon()))->batch(), 1);
  loader->Cancel();
  EXPECT_EQ(ToString(loader->Next(Soon()).status()), "CANCELLED: the loader was cancelled");
}

TEST(PrepCoordinator, HostilePacketsCostTheirJobAndNothingElse) {
  const NumberedDataset dataset(400);
  Node node({.staging_bytes = 8 * 4096});
  const auto loader = node.Join(&dataset, {.batch = 8, .epochs = 2, .seed = 4});
  ASSERT_TRUE(loader->Next(Soon())->has_value());
  // What an honest job says first.
  const PrepPlan plan{
      .fingerprint = 0, .settings = 0, .seed = 4, .samples = 400, .batch = 8, .epochs = 2, .input_bytes = 64, .target_bytes = 8};
  const PrepMessage messages[] = {JoinPacket{.plan = plan},
                                  WantPacket{},
                                  TakePacket{},
                                  DonePacket{.token = 1},
                                  ReleasePacket{},
                                  LeasePacket{},
                                  EndPacket{},
                                  ByePacket{},
                                  BatchPacket{},
                                  ErrorPacket{.code = 1}};
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    auto socket = PacketSocket::Connect(node.folder.File("prep"));
    ASSERT_TRUE(socket.ok()) << ToString(socket.status());
    for (uint64_t packets = 1 + random() % 4; packets > 0; --packets) {
      std::string packet = EncodePrep(messages[random() % std::size(messages)]);
      for (uint64_t edits = random() % 3; edits > 0; --edits) packet[random() % packet.size()] = static_cast<char>(random());
      (void)socket->Send(packet, Soon()).ok();
    }
  }
  const std::vector<Seen> rest = ReadAll(loader.get());
  EXPECT_EQ(rest.size(), 99u);
}

TEST(PrepCoordinator, AJobThatBreaksTheProtocolIsToldAndTakesPartNoMore) {
  const NumberedDataset dataset(64);
  Node node;
  const auto honest = node.Join(&dataset, {.batch = 8, .seed = 4});
  auto rogue = PacketSocket::Connect(node.folder.File("prep"));
  ASSERT_TRUE(rogue.ok());
  const auto answer = [&](const PrepMessage& message) {
    EXPECT_TRUE(rogue->Send(EncodePrep(message), Soon()).ok());
    const auto packet = rogue->Receive(Soon());
    if (!packet.ok()) return ToString(packet.status());
    const auto got = DecodePrep(packet->data);
    const auto* error = got.ok() ? std::get_if<ErrorPacket>(&*got) : nullptr;
    return error == nullptr ? std::string("no error") : ToString(ToPrepStatus(error->code, error->text));
  };
  EXPECT_EQ(answer(TakePacket{}), "INVALID_ARGUMENT: the first packet is no Join");
  rogue = PacketSocket::Connect(node.folder.File("prep"));
  JoinPacket join{.plan = kPlan};
  join.version = 2;
  EXPECT_THAT(answer(join), HasSubstr("version 2 of the protocol of shared preparation, the coordinator version 1"));
  EXPECT_EQ(ReadAll(honest.get()).size(), 8u);
  EXPECT_EQ(node.coordinator->stats().refused, 2);

  Node second;
  rogue = PacketSocket::Connect(second.folder.File("prep"));
  EXPECT_EQ(answer(JoinPacket{.plan = kPlan, .name = "rogue"}), "no error");
  EXPECT_EQ(answer(DonePacket{.token = 99}), "INVALID_ARGUMENT: job 'rogue' has no lease 99");
  EXPECT_EQ(second.coordinator->stats().expelled, 1);
  EXPECT_EQ(second.coordinator->stats().jobs.size(), 1u);
  rogue->Shutdown();
  EXPECT_EQ(second.AtEnd().left, 1);
}

TEST(PrepCoordinator, BadOptionsAreNamed) {
  const testing::TempDir folder;
  const auto fault = [&](PrepCoordinatorOptions options) {
    if (options.socket.empty()) options.socket = folder.File("prep");
    return ToString(PrepCoordinator::Start(options).status());
  };
  EXPECT_THAT(fault({}), HasSubstr("staging memory of 0 bytes"));
  EXPECT_THAT(fault({.staging_bytes = 1, .jobs = 0}), HasSubstr("0 jobs to wait for"));
  EXPECT_THAT(fault({.staging_bytes = 1, .jobs = 65}), HasSubstr("65 jobs to wait for, but only 64 connections"));
  EXPECT_THAT(fault({.staging_bytes = 1, .held = 0}), HasSubstr("0 batches held"));
  EXPECT_THAT(fault({.staging_bytes = 1, .lease_limit = absl::ZeroDuration()}), HasSubstr("a limit of 0"));
  EXPECT_THAT(fault({.socket = std::string(200, 'x'), .staging_bytes = 1}), HasSubstr("has 200 characters"));
}

}  // namespace
}  // namespace tidepool::data
