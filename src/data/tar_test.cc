#include "data/tar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "base/fd.h"
#include "data/testing.h"

namespace tidepool::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Listing {
  std::vector<TarMember> members;
  Status status;
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const TarMember& member : members) all.push_back(member.name);
    return all;
  }
};

Listing List(const std::string& archive) {
  TarReader reader(
      [&archive](int64_t offset, std::span<std::byte> buffer) -> StatusOr<size_t> {
        if (offset > static_cast<int64_t>(archive.size())) return size_t{0};
        const size_t count = std::min(buffer.size(), archive.size() - static_cast<size_t>(offset));
        std::memcpy(buffer.data(), archive.data() + offset, count);
        return count;
      },
      static_cast<int64_t>(archive.size()));
  Listing listing;
  while (true) {
    const StatusOr<std::optional<TarMember>> member = reader.Next();
    if (!member.ok()) {
      listing.status = member.status();
      return listing;
    }
    if (!member->has_value()) return listing;
    listing.members.push_back(**member);
    EXPECT_LT(listing.members.size(), 10000u);
    if (listing.members.size() >= 10000u) return listing;
  }
}

TEST(Tar, ListsNamesSizesAndWhereTheDataIs) {
  const std::string archive =
      TarBuilder().Add("a/x.jpg", "pixels").Add("a/", "", '5').Add("a/x.cls", std::string(513, '7')).Finish();
  const Listing listing = List(archive);
  ASSERT_TRUE(listing.status.ok()) << ToString(listing.status);
  EXPECT_THAT(listing.names(), ElementsAre("a/x.jpg", "a/", "a/x.cls"));
  EXPECT_EQ(archive.substr(listing.members[0].data_offset, listing.members[0].size_bytes), "pixels");
  EXPECT_TRUE(listing.members[0].regular);
  EXPECT_FALSE(listing.members[1].regular);
  EXPECT_EQ(listing.members[2].header_offset, 1536);
  EXPECT_EQ(listing.members[2].size_bytes, 513);
}

TEST(Tar, ReadsWhatTheSystemsTarWritesInEachFormat) {
  const TempFolder folder;
  const std::string deep = std::string(90, 'd') + "/" + std::string(80, 'e') + "/";
  const std::string longest = deep + std::string(120, 'f') + ".jpg";
  folder.Write("in/" + deep + "short.jpg", "one");
  folder.Write("in/plain.txt", "three");
  for (const std::string format : {"ustar", "gnu", "pax", "v7"}) {
    const bool long_names = format == "gnu" || format == "pax";
    if (long_names) folder.Write("in/" + longest, "two");
    const std::string output = folder.path(format + ".tar");
    const std::string what = format == "v7" ? "plain.txt" : ".";
    const std::string command =
        fmt::format("cd {} && tar --format={} --sort=name -cf {} {}", folder.path("in"), format, output, what);
    if (std::system(command.c_str()) != 0) GTEST_SKIP() << "this machine has no GNU tar";
    const std::string archive = ReadFile(output, 1 << 20).value();
    const Listing listing = List(archive);
    ASSERT_TRUE(listing.status.ok()) << format << ": " << ToString(listing.status);
    std::vector<std::string> files;
    for (const TarMember& member : listing.members) {
      if (member.regular) files.push_back(member.name + "=" + archive.substr(member.data_offset, member.size_bytes));
    }
    std::sort(files.begin(), files.end());
    if (format == "v7") {
      EXPECT_THAT(files, ElementsAre("plain.txt=three"));
    } else if (format == "ustar") {
      EXPECT_THAT(files, ElementsAre("./" + deep + "short.jpg=one", "./plain.txt=three"));
    } else {
      EXPECT_THAT(files, ElementsAre("./" + longest + "=two", "./" + deep + "short.jpg=one", "./plain.txt=three"));
    }
    if (long_names) std::filesystem::remove(folder.path("in/" + longest));
  }
}

TEST(Tar, TakesNameAndSizeFromAPaxHeader) {
  const std::string lines = "32 path=a/name\xc3\xa9 with space.jpg\n9 size=3\n";
  ASSERT_EQ(lines.find('\n'), 31u);
  TarBuilder builder;
  builder.Add("PaxHeaders/x", lines, 'x').Add("x", "abc");
  const Listing listing = List(builder.Finish());
  ASSERT_TRUE(listing.status.ok()) << ToString(listing.status);
  EXPECT_THAT(listing.names(), ElementsAre("a/name\xc3\xa9 with space.jpg"));
  EXPECT_EQ(listing.members[0].header_offset, 0);
  EXPECT_EQ(listing.members[0].data_offset, 1536);
}

TEST(Tar, ReadsSizesInBinary) {
  std::string archive = TarBuilder().Add("x.bin", "abcd").Finish();
  std::string header = archive.substr(0, 512);
  header.replace(124, 12, std::string("\x80\0\0\0\0\0\0\0\0\0\0\x04", 12));
  TarBuilder::Seal(&header);
  archive.replace(0, 512, header);
  const Listing listing = List(archive);
  ASSERT_TRUE(listing.status.ok()) << ToString(listing.status);
  EXPECT_EQ(listing.members[0].size_bytes, 4);
}

TEST(Tar, NamesTheByteWhereAnArchiveIsDamagedOrCut) {
  const std::string archive = TarBuilder().Add("a.jpg", std::string(600, 'a')).Add("b.jpg", "bb").Finish();
  EXPECT_THAT(MessageOf(List(archive.substr(0, 1536)).status), HasSubstr("ends at byte 1536 without the block of zeros"));
  EXPECT_THAT(MessageOf(List(archive.substr(0, 1000)).status),
              HasSubstr("has 1000 bytes, but its member at byte 0 goes on to byte 1112"));
  EXPECT_EQ(List(archive.substr(0, 1700)).status.code(), StatusCode::kDataLoss);
  std::string damaged = archive;
  damaged[1536 + 3] ^= 1;
  EXPECT_THAT(MessageOf(List(damaged).status), HasSubstr("the tar header at byte 1536 has a wrong checksum"));
  EXPECT_EQ(List(damaged).members.size(), 1u);
  const Status no_tar = List(SmallJpeg(1) + std::string(2000, 'x')).status;
  EXPECT_EQ(no_tar.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(no_tar), HasSubstr("not a tar archive"));
  EXPECT_EQ(List("").status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(List(TarBuilder().Add("p", "5 a=b\n", 'x').Add("x", "").Finish()).status), HasSubstr("does not parse"));
  EXPECT_THAT(MessageOf(List(TarBuilder().Add("p", "11 size=-4\n", 'x').Add("x", "").Finish()).status), HasSubstr("size=-4"));
}

TEST(Tar, GivesUpOnEndlessExtendedHeaders) {
  TarBuilder builder;
  for (int i = 0; i < 40; ++i) builder.Add("g", "", 'g');
  EXPECT_THAT(MessageOf(List(builder.Add("x", "y").Finish()).status), HasSubstr("more than 16 extended headers"));
}

TEST(Tar, SurvivesRandomDamage) {
  const std::string archive = TarBuilder()
                                  .Add("PaxHeaders/x", "18 path=some/name\n", 'x')
                                  .Add("a.jpg", std::string(700, 'a'))
                                  .Add("././@LongLink", std::string(200, 'n'), 'L')
                                  .Add("b.jpg", "bb")
                                  .Finish();
  ASSERT_TRUE(List(archive).status.ok());
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = archive;
    for (int i = 0; i < 1 + round % 4; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    if (round % 3 == 0) damaged.resize(random() % damaged.size());
    // With a valid checksum the damage gets as far as it can.
    if (round % 2 == 0) {
      for (size_t at = 0; at + 512 <= damaged.size(); at += 512) {
        if (archive.compare(at + 257, 5, "ustar") != 0) continue;
        std::string header = damaged.substr(at, 512);
        TarBuilder::Seal(&header);
        damaged.replace(at, 512, header);
      }
    }
    const Listing listing = List(damaged);
    for (const TarMember& member : listing.members) {
      ASSERT_GE(member.size_bytes, 0);
      ASSERT_LE(member.data_offset + member.size_bytes, static_cast<int64_t>(damaged.size()));
    }
    ASSERT_THAT(listing.status.code(),
                ::testing::AnyOf(StatusCode::kOk, StatusCode::kDataLoss, StatusCode::kInvalidArgument, StatusCode::kOutOfRange));
  }
}

}  // namespace
}  // namespace tidepool::data
