// Protocol, slab and packer: what crosses between the processes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <set>

#include "base/units.h"
#include "serve/packer.h"
#include "serve/protocol.h"
#include "serve/slab.h"

namespace tidepool::serve {
namespace {

using ::testing::HasSubstr;

std::vector<Message> OneOfEach() {
  return {
      HelloMessage{.slab_bytes = 1 << 20},
      LoadMessage{.job = JobId(7),
                  .name = "a",
                  .spec = "resnet18:width=8",
                  .path = "/x/y",
                  .grow_slack_ns = 5,
                  .limit_ns = 6,
                  .direct_io = true},
      CancelMessage{JobId(8)},
      UnloadMessage{JobId(9), JobId(7)},
      ExecuteMessage{.job = JobId(10), .instance = JobId(7), .batch = 3, .inputs = {{0, 64}, {128, 7}}, .outputs = {{192, 1}}},
      ShutdownMessage{},
      HelloReplyMessage{.pid = 42, .runtime = "torch"},
      LoadDoneMessage{
          .job = JobId(7), .status = NotFound("gone"), .pages = 3, .bytes = 4, .grow_ns = 5, .read_ns = 6, .total_ns = 7},
      UnloadDoneMessage{.job = JobId(9), .freed_bytes = 11},
      ExecuteDoneMessage{
          .job = JobId(10), .start_ns = 1, .end_ns = 2, .pieces = 2, .workspace_pages = 3, .workspace_peak_pages = 4},
      WorkspaceMessage{.pages = 5}};
}

TEST(Protocol, ReadsBackEveryMessage) {
  for (const Message& message : OneOfEach()) {
    const std::string data = Encode(message);
    const auto decoded = Decode(data);
    ASSERT_TRUE(decoded.ok()) << ToString(decoded.status());
    EXPECT_EQ(decoded->index(), message.index());
    EXPECT_EQ(Encode(*decoded), data);
  }
}

TEST(Protocol, HasTheDocumentedBytes) {
  const std::string data = Encode(UnloadMessage{JobId(0x0102), JobId(7)});
  const char expected[] = "TPSV\x01\x00\x04\x00\x02\x01\0\0\0\0\0\0\x07\0\0\0\0\0\0\0";
  EXPECT_EQ(data, std::string(expected, sizeof(expected) - 1));
}

TEST(Protocol, RefusesAnotherVersionAndAnotherProtocol) {
  std::string data = Encode(ShutdownMessage{});
  data[4] = 9;
  EXPECT_EQ(Decode(data).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(Decode(data).status()), HasSubstr("speaks version 9 of the serving channel, this program version 1"));
  data[0] = 'X';
  EXPECT_THAT(MessageOf(Decode(data).status()), HasSubstr("the message starts with"));
}

TEST(Protocol, RefusesEveryTruncationAndEveryExtraByte) {
  for (const Message& message : OneOfEach()) {
    const std::string data = Encode(message);
    for (size_t size = 0; size < data.size(); ++size) EXPECT_FALSE(Decode(data.substr(0, size)).ok()) << size;
    EXPECT_THAT(MessageOf(Decode(data + "x").status()), HasSubstr("1 bytes follow the end of the message"));
  }
}

TEST(Protocol, SurvivesRandomDamage) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20000; ++round) {
    const auto messages = OneOfEach();
    std::string data = Encode(messages[random() % messages.size()]);
    for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips) {
      data[random() % data.size()] = static_cast<char>(random());
    }
    const auto decoded = Decode(data);
    if (decoded.ok()) {
      EXPECT_EQ(Encode(*decoded).size(), data.size());
    }
  }
}

TEST(Protocol, RefusesNegativeAmountsTooManyTensorsAndUnknownTypes) {
  EXPECT_THAT(MessageOf(Decode(Encode(LoadMessage{.grow_slack_ns = -1})).status()),
              HasSubstr("the slack is -1; allowed: 0 or more"));
  ExecuteMessage many;
  many.inputs.resize(kMaxProtocolTensors + 1);
  EXPECT_THAT(MessageOf(Decode(Encode(many)).status()), HasSubstr("257 inputs; allowed: up to 256"));
  std::string data = Encode(ShutdownMessage{});
  data[6] = 99;
  EXPECT_THAT(MessageOf(Decode(data).status()), HasSubstr("message type 99 is unknown"));
}

TEST(Protocol, CutsLongErrorTexts) {
  const auto decoded = Decode(Encode(UnloadDoneMessage{.status = Internal("{}", std::string(10000, 'x'))}));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(MessageOf(std::get<UnloadDoneMessage>(*decoded).status).size(), 4096u);
}

TEST(Protocol, ChecksRangesAgainstTheSlab) {
  EXPECT_TRUE(CheckRange({0, 4096}, 4096).ok());
  EXPECT_TRUE(CheckRange({4096, 0}, 4096).ok());
  EXPECT_FALSE(CheckRange({64, 4096}, 4096).ok());
  EXPECT_FALSE(CheckRange({1, 1}, 4096).ok());
  EXPECT_FALSE(CheckRange({64, ~uint64_t{0}}, 4096).ok());
  EXPECT_THAT(MessageOf(CheckRange({~uint64_t{0} - 63, 64}, 4096)), HasSubstr("outside the slab or misaligned"));
}

TEST(SlabAllocator, NeverOverlapsAndMergesEverythingBack) {
  std::mt19937_64 random(3);
  SlabAllocator slab(1 << 16);
  std::map<int64_t, int64_t> live;
  for (int round = 0; round < 20000; ++round) {
    if (random() % 2 == 0) {
      const int64_t size = 1 + static_cast<int64_t>(random() % 9000);
      const bool should_fit = RoundUp(size, kSlabAlignment) <= slab.largest_free_bytes();
      const auto offset = slab.Allocate(size);
      ASSERT_EQ(offset.has_value(), should_fit);
      if (!offset) continue;
      ASSERT_EQ(*offset % kSlabAlignment, 0);
      const auto next = live.lower_bound(*offset);
      ASSERT_TRUE(next == live.end() || *offset + size <= next->first);
      ASSERT_TRUE(next == live.begin() || std::prev(next)->first + std::prev(next)->second <= *offset);
      ASSERT_LE(*offset + size, slab.size_bytes());
      live[*offset] = size;
    } else if (!live.empty()) {
      auto victim = live.begin();
      std::advance(victim, random() % live.size());
      slab.Free(victim->first);
      live.erase(victim);
    }
  }
  for (const auto& [offset, size] : live) slab.Free(offset);
  EXPECT_EQ(slab.largest_free_bytes(), 1 << 16);
  EXPECT_EQ(slab.used_bytes(), 0);
}

TEST(SlabMapping, IsSharedAndRefusesAFileThatCouldShrink) {
  auto slab = SlabMapping::Create(1 << 16);
  ASSERT_TRUE(slab.ok());
  auto other = SlabMapping::Map(UniqueFd(::dup((*slab)->fd())), 1 << 16);
  ASSERT_TRUE(other.ok());
  (*slab)->base()[100] = std::byte{42};
  EXPECT_EQ((*other)->base()[100], std::byte{42});
  EXPECT_EQ(SlabMapping::Map(UniqueFd(::dup((*slab)->fd())), 1 << 17).status().code(), StatusCode::kFailedPrecondition);
  UniqueFd loose(::memfd_create("loose", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(loose.get(), 4096), 0);
  EXPECT_THAT(MessageOf(SlabMapping::Map(std::move(loose), 4096).status()), HasSubstr("not sealed against shrinking"));
}

TEST(Packer, FillsScatteredExtentsWithoutOverlap) {
  std::mt19937_64 random(5);
  constexpr int64_t kPage = 4096;
  for (int round = 0; round < 500; ++round) {
    std::vector<int64_t> sizes(random() % 40);
    for (int64_t& size : sizes) size = static_cast<int64_t>(random() % 9000);
    std::vector<device::Extent> extents;
    int32_t at = 0;
    for (int i = 0; i < 6; ++i) {
      at += static_cast<int32_t>(random() % 3);
      const auto count = static_cast<int32_t>(1 + random() % 5);
      extents.push_back({at, count});
      at += count;
    }
    const Packing packing = Pack(sizes, extents, kPage);
    std::map<int64_t, int64_t> placed;
    std::set<device::PageIndex> used;
    size_t without = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int64_t offset = packing.offsets[i];
      if (offset < 0) {
        ++without;
        continue;
      }
      ASSERT_EQ(offset % kTensorAlignment, 0);
      bool inside = false;
      for (const auto& extent : extents) inside |= offset >= extent.first * kPage && offset + sizes[i] <= extent.end() * kPage;
      ASSERT_TRUE(inside) << "a tensor straddles extents";
      if (sizes[i] == 0) continue;
      ASSERT_TRUE(placed.emplace(offset, sizes[i]).second);
      for (int64_t page = offset / kPage; page <= (offset + sizes[i] - 1) / kPage; ++page)
        used.insert(static_cast<device::PageIndex>(page));
    }
    ASSERT_EQ(without, packing.left_over.size());
    for (auto it = placed.begin(); it != placed.end() && std::next(it) != placed.end(); ++it) {
      ASSERT_LE(it->first + it->second, std::next(it)->first) << "tensors overlap";
    }
    for (const auto& extent : packing.unused) {
      for (auto page = extent.first; page < extent.end(); ++page) ASSERT_FALSE(used.contains(page));
    }
  }
}

TEST(Packer, UsesOneRunOfTheSumOfTheSizesCompletely) {
  const std::vector<int64_t> sizes = {100, 4096, 60, 0, 8000};
  EXPECT_EQ(PackedBytes(sizes), 128 + 4096 + 64 + 0 + 8000);
  const std::vector<device::Extent> extents = {{5, 3}};
  const Packing packing = Pack(sizes, extents, 4096);
  EXPECT_TRUE(packing.left_over.empty());
  EXPECT_TRUE(packing.unused.empty());
  EXPECT_EQ(packing.offsets[4], 5 * 4096) << "the largest chooses first";
}

TEST(Packer, NamesWhatFoundNoPlace) {
  const std::vector<int64_t> sizes = {5000, 5000};
  const std::vector<device::Extent> extents = {{0, 2}, {3, 1}};
  const Packing packing = Pack(sizes, extents, 4096);
  EXPECT_EQ(packing.left_over, std::vector<size_t>{1});
  EXPECT_EQ(packing.unused, (std::vector<device::Extent>{{3, 1}}));
}

}  // namespace
}  // namespace tidepool::serve
