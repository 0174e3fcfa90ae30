#include "data/packed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <random>
#include <set>

#include "base/fd.h"
#include "data/containers.h"
#include "data/testing.h"

namespace tidepool::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string PackTen(const TempFolder& folder, int64_t group_bytes = 3000) {
  const std::string path = folder.path("ten.tpk");
  auto writer = PackWriter::Create(path, {.group_bytes = group_bytes, .classes = 2, .class_names = {"cat", "dog"}}).value();
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(writer->Add(AsBytes(SmallJpeg(i)), i % 2, fmt::format("picture {}", i)).ok());
  EXPECT_TRUE(writer->Finish().ok());
  return path;
}

uint64_t At(const std::string& file, size_t offset, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(static_cast<uint8_t>(file[offset + i])) << (8 * i);
  return value;
}

TEST(Packed, HasTheBytesThatTheFormatPageSays) {
  const TempFolder folder;
  const std::string file = ReadFile(PackTen(folder), 1 << 20).value();
  EXPECT_EQ(file.substr(0, 8), "TIDEPACK");
  EXPECT_EQ(At(file, 8, 4), 1u);
  EXPECT_EQ(At(file, 12, 4), 4096u);
  EXPECT_EQ(At(file, 16, 8), 10u);
  const uint64_t groups = At(file, 24, 8);
  EXPECT_GT(groups, 1u);
  EXPECT_EQ(At(file, 32, 8), 2u);
  EXPECT_EQ(At(file, 40, 8), 2u);
  EXPECT_EQ(At(file, 48, 8), 90u);  // "picture 0" ... "picture 9"
  const uint64_t index = At(file, 56, 8), index_bytes = At(file, 64, 8);
  EXPECT_EQ(index % 4096, 0u);
  EXPECT_EQ(index + index_bytes, file.size());
  EXPECT_EQ(At(file, 72, 8), XXH3_64bits(file.data() + index, index_bytes));
  EXPECT_EQ(At(file, 4088, 8), XXH3_64bits(file.data(), 4088));
  EXPECT_EQ(At(file, index, 8), 0u);         // group 0 begins with record 0
  EXPECT_EQ(At(file, index + 8, 8), 4096u);  // behind the header
  const size_t records = index + 16 * groups;
  for (int i = 0; i < 10; ++i) {
    const size_t entry = records + 32 * i;
    const uint64_t offset = At(file, entry, 8), length = At(file, entry + 8, 4);
    EXPECT_EQ(offset % 64, 0u);
    EXPECT_EQ(file.substr(offset, length), SmallJpeg(i));
    EXPECT_EQ(At(file, entry + 12, 4), static_cast<uint64_t>(i % 2));
    EXPECT_EQ(At(file, entry + 16, 8), XXH3_64bits(file.data() + offset, length));
    EXPECT_EQ(At(file, entry + 24, 4), 9u * (i + 1));
  }
  const size_t names = records + 320;
  EXPECT_EQ(file.substr(names, 18), "picture 0picture 1");
  EXPECT_EQ(At(file, names + 90, 4), 3u);
  EXPECT_EQ(At(file, names + 94, 4), 6u);
  EXPECT_EQ(file.substr(names + 98), "catdog");
}

TEST(Packed, NamesClassesRecordsAndPlaces) {
  const TempFolder folder;
  const auto source = OpenPacked(PackTen(folder)).value();
  EXPECT_THAT(source->class_names(), ElementsAre("cat", "dog"));
  EXPECT_EQ(source->Describe(0), folder.path("ten.tpk") + " at byte 4096 (picture 0)");
}

TEST(Packed, AppearsOnlyWhenItIsComplete) {
  const TempFolder folder;
  const std::string path = folder.path("x.tpk");
  {
    auto writer = PackWriter::Create(path, {.classes = 1}).value();
    ASSERT_TRUE(writer->Add(AsBytes("picture"), 0, "").ok());
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  auto writer = PackWriter::Create(path, {.classes = 1}).value();
  EXPECT_THAT(MessageOf(writer->Finish()), HasSubstr("would hold no record"));
  EXPECT_THAT(MessageOf(writer->Add(AsBytes("x"), 1, "")), HasSubstr("label 1; allowed: 0 to 0"));
  EXPECT_THAT(MessageOf(writer->Add({}, 0, "")), HasSubstr("a record of 0 bytes"));
  ASSERT_TRUE(writer->Add(AsBytes("x"), 0, "").ok());
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(writer->Finish().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(OpenPacked(path).value()->size(), 1);
  EXPECT_THAT(MessageOf(PackWriter::Create(path, {.classes = 0}).status()), HasSubstr("0 classes; allowed: 1 to"));
  EXPECT_THAT(MessageOf(PackWriter::Create(path, {.group_bytes = 0, .classes = 1}).status()), HasSubstr("groups of 0 bytes"));
  EXPECT_EQ(PackWriter::Create(folder.path("none/x.tpk"), {.classes = 1}).status().code(), StatusCode::kNotFound);
}

TEST(Packed, NoticesEveryDamagedRecordAndGivesTheOthers) {
  const TempFolder folder;
  const std::string path = PackTen(folder);
  std::string file = ReadFile(path, 1 << 20).value();
  const auto good = OpenPacked(path).value();
  const size_t at = file.find(SmallJpeg(4));
  ASSERT_NE(at, std::string::npos);
  file[at + 100] ^= 4;
  const auto source = OpenPacked(folder.Write("damaged.tpk", file)).value();
  for (int64_t i = 0; i < 10; ++i) {
    for (const bool announced : {false, true}) {
      if (announced) source->WillNeed(i);
      const Status status = source->Read(i).status();
      EXPECT_EQ(status.ok(), i != 4);
      if (i != 4) continue;
      EXPECT_EQ(status.code(), StatusCode::kDataLoss);
      EXPECT_THAT(MessageOf(status), HasSubstr(fmt::format("damaged.tpk at byte {} (picture 4): the record has checksum", at)));
    }
  }
}

TEST(Packed, RefusesOtherVersionsAndDamagedHeaders) {
  const TempFolder folder;
  const std::string file = ReadFile(PackTen(folder), 1 << 20).value();
  const auto message = [&](const std::string& content) { return MessageOf(OpenPacked(folder.Write("y.tpk", content)).status()); };
  std::string other = file;
  other[8] = 2;
  EXPECT_THAT(message(other), HasSubstr("y.tpk: version 2 of the packed format; this program reads version 1"));
  other = file;
  other[20] = 1;
  EXPECT_THAT(message(other), HasSubstr("the header has checksum"));
  other = file;
  other[file.size() - 2] ^= 1;
  EXPECT_THAT(message(other), HasSubstr("the index at byte"));
  EXPECT_THAT(message(SmallJpeg(1)), HasSubstr("no packed file: it does not begin with TIDEPACK"));
  EXPECT_THAT(message(file.substr(0, 2000)), HasSubstr("ends at byte 2000, within its header"));
  EXPECT_THAT(message(file.substr(0, file.size() - 1)),
              HasSubstr(fmt::format("ends at byte {}, but its index goes on", file.size() - 1)));
  EXPECT_THAT(MessageOf(OpenPacked(folder.path("none.tpk")).status()), HasSubstr("none.tpk"));
}

// Damage behind valid checksums: as from a faulty writer, or a hostile one.
TEST(Packed, SurvivesAnIndexThatLies) {
  const TempFolder folder;
  const std::string file = ReadFile(PackTen(folder), 1 << 20).value();
  const size_t index = At(file, 56, 8);
  std::mt19937 random(11);
  int opened = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = file;
    const bool in_header = round % 4 == 0;
    for (int i = 0; i < 1 + round % 3; ++i) {
      const size_t at = in_header ? 16 + random() % 64 : index + random() % (file.size() - index);
      damaged[at] = round % 2 == 0 ? static_cast<char>(random()) : static_cast<char>(damaged[at] ^ (1 << random() % 8));
    }
    const uint64_t index_offset = At(damaged, 56, 8), index_bytes = At(damaged, 64, 8);
    if (index_offset <= damaged.size() && index_bytes <= damaged.size() - index_offset) {
      damaged.replace(72, 8, Number(XXH3_64bits(damaged.data() + index_offset, index_bytes), 8));
    }
    damaged.replace(4088, 8, Number(XXH3_64bits(damaged.data(), 4088), 8));
    const auto source = OpenPacked(folder.Write("z.tpk", damaged));
    if (!source.ok()) {
      ASSERT_THAT(source.status().code(), ::testing::AnyOf(StatusCode::kDataLoss, StatusCode::kInvalidArgument,
                                                           StatusCode::kOutOfRange, StatusCode::kNotFound));
      continue;
    }
    ++opened;
    for (int64_t i = 0; i < (*source)->size(); ++i) {
      const StatusOr<RecordView> view = (*source)->Read(i);
      if (view.ok()) (void)(*source)->Parse(i, view->bytes());
      std::vector<RecordView> views;
      (void)(*source)->ReadGroup(i, &views);
      (void)(*source)->Describe(i);
    }
  }
  EXPECT_GT(opened, 0);
}

TEST(PackRecords, ShufflesSplitsAndSkips) {
  const TempFolder folder;
  for (int i = 0; i < 20; ++i) folder.Write(fmt::format("in/c{}/{:02}.jpg", i / 10, i), i == 7 ? "no picture" : SmallJpeg(i));
  const auto source = OpenImageFolderSource(folder.path("in")).value();
  PackJob job{.output = folder.path("out.tpk"), .group_bytes = 4000, .shard_bytes = 16000, .shuffle = true, .seed = 3};
  EXPECT_THAT(MessageOf(PackRecords(*source, {}, job).status()), HasSubstr("c0/07.jpg: not a readable JPEG file"));
  job.skip_broken = true;
  const PackSummary summary = PackRecords(*source, source->class_names(), job).value();
  EXPECT_EQ(summary.records, 19);
  EXPECT_EQ(summary.skipped, 1);
  EXPECT_THAT(summary.first_skipped, HasSubstr("c0/07.jpg"));
  EXPECT_GT(summary.files.size(), 1u);
  const auto packed = OpenPacked(folder.path("out-*.tpk")).value();
  ASSERT_EQ(packed->size(), 19);
  std::multiset<std::string> before, after;
  int sorted = 0;
  for (int64_t i = 0; i < 19; ++i) {
    const RecordView view = packed->Read(i).value();
    const LabelledPicture sample = packed->Parse(i, view.bytes()).value();
    after.insert(fmt::format("{}{}", sample.label, AsText(sample.picture)));
    sorted += i > 0 && packed->Describe(i) > packed->Describe(i - 1);
  }
  for (int i = 0; i < 20; ++i) {
    if (i != 7) before.insert(fmt::format("{}{}", i / 10, SmallJpeg(i)));
  }
  EXPECT_EQ(before, after);
  EXPECT_THAT(packed->Describe(0), ::testing::ContainsRegex(R"(out-00000.tpk at byte 4096 \(c[01]/[0-9]+.jpg\))"));
  job.progress = [](int64_t done, int64_t) { return done < 5; };
  EXPECT_EQ(PackRecords(*source, {}, job).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace tidepool::data
