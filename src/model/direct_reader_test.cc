#include "model/direct_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

namespace tidepool::model {
namespace {

using ::testing::HasSubstr;

// In the working directory: the one for temporary files is often one without direct reads.
class DirectReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = "direct_reader_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::vector<char>& bytes) {
    const std::string path = (folder_ / "file").string();
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
  }
  std::filesystem::path folder_;
};

std::vector<char> RandomBytes(size_t size) {
  std::mt19937_64 random(7);
  std::vector<char> bytes(size);
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST_F(DirectReaderTest, ReadsTheSameBytesAtAnyOffset) {
  const std::vector<char> bytes = RandomBytes((9 << 20) + 1234);  // some blocks and a ragged end
  auto reader = DirectReader::Open(Write(bytes));
  if (reader.status().code() == StatusCode::kUnimplemented) GTEST_SKIP() << ToString(reader.status());
  ASSERT_TRUE(reader.ok()) << ToString(reader.status());
  std::mt19937_64 random(1);
  std::vector<std::byte> target;
  const auto check = [&](size_t offset, size_t size) {
    target.assign(size, std::byte{0});
    ASSERT_TRUE((*reader)->Read(static_cast<int64_t>(offset), target).ok());
    ASSERT_EQ(std::memcmp(target.data(), bytes.data() + offset, size), 0) << offset << " + " << size;
  };
  check(0, bytes.size());
  check(bytes.size() - 1, 1);
  for (int i = 0; i < 50; ++i) {
    const size_t offset = random() % bytes.size();
    check(offset, random() % (bytes.size() - offset + 1));
  }
}

TEST_F(DirectReaderTest, AFileThatEndsTooSoonIsDataLoss) {
  auto reader = DirectReader::Open(Write(RandomBytes(5000)));
  if (reader.status().code() == StatusCode::kUnimplemented) GTEST_SKIP() << ToString(reader.status());
  ASSERT_TRUE(reader.ok());
  std::vector<std::byte> target(1000);
  const Status status = (*reader)->Read(4500, target);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(status), HasSubstr("ends at or before byte 5000; 500 more bytes"));
  EXPECT_EQ((*reader)->Read(8192, target).code(), StatusCode::kDataLoss);
}

TEST_F(DirectReaderTest, AMissingFileIsNamed) {
  const Status status = DirectReader::Open((folder_ / "none").string()).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(status), HasSubstr("none"));
}

}  // namespace
}  // namespace tidepool::model
