#include "data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "base/fd.h"
#include "data/jpeg.h"
#include "data/wrapped_source.h"

namespace tidepool::data {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(::testing::TempDir()) /
            fmt::format("tidepool-data-{}-{}", ::getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& name, std::string_view content) {
    fs::create_directories((root_ / name).parent_path());
    ASSERT_TRUE(WriteFileAtomically((root_ / name).string(), content).ok());
  }
  void WritePicture(const std::string& name, uint8_t grey, int width = 40, int height = 30) {
    Write(name, EncodeJpeg(std::vector<uint8_t>(size_t{3} * width * height, grey), width, height, 90).value());
  }
  std::string root() const { return root_.string(); }

  fs::path root_;
};

struct Sample {
  Status status;
  std::vector<float> pixels;
  int64_t label = -1;
};

Sample ReadPicture(const Dataset& dataset, int64_t index, const ReadOptions& options = {}) {
  Sample sample;
  sample.pixels.resize(dataset.input().size_bytes() / sizeof(float));
  sample.status = dataset.Read(index, options, std::as_writable_bytes(std::span(sample.pixels)),
                               std::as_writable_bytes(std::span(&sample.label, 1)));
  return sample;
}

TEST_F(DatasetTest, NumbersClassesBySortedFolderAndSamplesBySortedFile) {
  WritePicture("zebra/a.jpg", 200);
  WritePicture("ant/b.JPEG", 20);
  WritePicture("ant/a.jpg", 10);
  Write("ant/notes.txt", "no picture");
  Write("README", "not a class");
  const auto dataset = OpenImageFolder({.root = root(), .image_size = 16}).value();
  ASSERT_EQ(dataset->size(), 3);
  EXPECT_EQ(dataset->classes(), 2);
  EXPECT_EQ(dataset->Describe(0), root() + "/ant/a.jpg");
  EXPECT_EQ(dataset->Describe(1), root() + "/ant/b.JPEG");
  EXPECT_EQ(ReadPicture(*dataset, 0).label, 0);
  EXPECT_EQ(ReadPicture(*dataset, 2).label, 1);
  EXPECT_EQ(dataset->input().shape, (std::vector<int64_t>{3, 16, 16}));
  const Sample grey = ReadPicture(*dataset, 2, {.augment = false});
  EXPECT_NEAR(grey.pixels[0], (200 / 255.0 - 0.485) / 0.229, 0.03);
}

TEST_F(DatasetTest, GivesTheSameBytesOnEveryThread) {
  std::vector<uint8_t> rgb(3 * 90 * 70);
  for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  for (int i = 0; i < 8; ++i) {
    Write(fmt::format("c/{}.jpg", i), EncodeJpeg(rgb, 90, 70, 60 + i).value());
  }
  const auto dataset = OpenImageFolder({.root = root(), .image_size = 24}).value();
  std::vector<Sample> alone, together(8);
  for (int i = 0; i < 8; ++i) alone.push_back(ReadPicture(*dataset, i, {.augment_key = 5}));
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&, i] { together[i] = ReadPicture(*dataset, i, {.augment_key = 5}); });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(alone[i].pixels, together[i].pixels);
    EXPECT_NE(alone[i].pixels, ReadPicture(*dataset, i, {.augment_key = 6}).pixels);
  }
}

TEST_F(DatasetTest, NamesTheBrokenFile) {
  WritePicture("a/good.jpg", 9);
  Write("a/short.jpg", EncodeJpeg(std::vector<uint8_t>(3 * 64 * 64, 7), 64, 64, 90).value().substr(0, 650));
  Write("a/text.jpg", "hello");
  Write("a/void.jpg", "");
  const auto dataset = OpenImageFolder({.root = root(), .image_size = 16}).value();
  EXPECT_TRUE(ReadPicture(*dataset, 0).status.ok());
  const Status cut = ReadPicture(*dataset, 1).status;
  EXPECT_EQ(cut.code(), StatusCode::kDataLoss) << ToString(cut);
  EXPECT_THAT(MessageOf(cut), HasSubstr(root() + "/a/short.jpg: damaged JPEG data"));
  const Status text = ReadPicture(*dataset, 2).status;
  EXPECT_EQ(text.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(text), HasSubstr("/a/text.jpg: not a readable JPEG file"));
  EXPECT_THAT(MessageOf(ReadPicture(*dataset, 3).status), HasSubstr("/a/void.jpg: not a JPEG file: it is empty"));
  fs::remove(root_ / "a/good.jpg");
  EXPECT_EQ(ReadPicture(*dataset, 0).status.code(), StatusCode::kNotFound);
}

TEST_F(DatasetTest, RefusesWrongIndicesBuffersAndFolders) {
  WritePicture("a/good.jpg", 9);
  const auto dataset = OpenImageFolder({.root = root(), .image_size = 16}).value();
  EXPECT_THAT(MessageOf(ReadPicture(*dataset, 1).status), HasSubstr("sample 1; the data set has 1"));
  std::byte small[4];
  EXPECT_THAT(MessageOf(dataset->Read(0, {}, small, small)), HasSubstr("buffers of 4 and 4 bytes"));
  EXPECT_THAT(MessageOf(OpenImageFolder({.root = root() + "/a"}).status()), HasSubstr("holds no <class>/<file>.jpg"));
  EXPECT_EQ(OpenImageFolder({.root = root() + "/none"}).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(OpenImageFolder({.root = root(), .image_size = 0}).status()),
              HasSubstr("image_size 0; allowed: 1 to 4096"));
  EXPECT_THAT(MessageOf(OpenImageFolder({.root = root(), .min_area = 0}).status()), HasSubstr("min_area 0; allowed"));
  EXPECT_THAT(MessageOf(OpenImageFolder({.root = root(), .stddev = {1, 0, 1}}).status()),
              HasSubstr("stddev 0; allowed: above 0"));
}

TEST_F(DatasetTest, CutsTextIntoWindowsWithTheNextByteAsTarget) {
  Write("t/b.txt", "defghij");  // two windows of 3
  Write("t/a.txt", "0123456");  // two windows of 3
  Write("t/c.txt", "xyz");      // too short for one
  const auto dataset = OpenText({.path = root() + "/t", .context = 3}).value();
  ASSERT_EQ(dataset->size(), 4);
  EXPECT_EQ(dataset->classes(), 256);
  int64_t input[3], target[3];
  ASSERT_TRUE(dataset->Read(3, {}, std::as_writable_bytes(std::span(input)), std::as_writable_bytes(std::span(target))).ok());
  EXPECT_THAT(input, ::testing::ElementsAre('g', 'h', 'i'));
  EXPECT_THAT(target, ::testing::ElementsAre('h', 'i', 'j'));
  EXPECT_THAT(dataset->Describe(3), HasSubstr("b.txt at byte 3"));
  fs::resize_file(root_ / "t/b.txt", 4);
  const Status shrunk = dataset->Read(3, {}, std::as_writable_bytes(std::span(input)), std::as_writable_bytes(std::span(target)));
  EXPECT_EQ(shrunk.code(), StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(shrunk), HasSubstr("has become shorter"));
}

TEST_F(DatasetTest, OpensByUriAndGuessesTheKindOfABarePath) {
  WritePicture("pictures/a/x.jpg", 9);
  Write("text/a.txt", "some text that is long enough");
  const std::vector<int64_t> picture_shape = {-1, 3, 8, 8}, text_shape = {4};
  EXPECT_EQ(OpenDataset(root() + "/pictures", picture_shape).value()->input().shape, (std::vector<int64_t>{3, 8, 8}));
  EXPECT_EQ(OpenDataset("imagefolder:" + root() + "/pictures", picture_shape).value()->size(), 1);
  EXPECT_EQ(OpenDataset(root() + "/text", text_shape).value()->size(), 7);
  EXPECT_EQ(OpenDataset("text:" + root() + "/text/a.txt", text_shape).value()->size(), 7);
  const WrapOptions wrap{.cache = "minio", .cache_bytes = 1000};
  EXPECT_EQ(OpenDataset(root() + "/pictures", picture_shape, wrap).value()->size(), 1);
  EXPECT_THAT(MessageOf(OpenDataset(root() + "/text", text_shape, wrap).status()), HasSubstr("takes data of pictures"));
  EXPECT_THAT(MessageOf(OpenDataset("lmdb:/x", text_shape).status()),
              HasSubstr("of kind 'lmdb'; allowed: imagefolder:PATH, webdataset:SHARDS, tfrecord:SHARDS, packed:SHARDS"));
  EXPECT_THAT(MessageOf(OpenDataset("text:" + root() + "/text", picture_shape).status()), HasSubstr("has shape [3, 8, 8]"));
  EXPECT_THAT(MessageOf(OpenDataset(root() + "/pictures", text_shape).status()),
              HasSubstr("has shape [4]; allowed: [3, size, size]"));
  EXPECT_EQ(OpenDataset(root() + "/absent", text_shape).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(OpenText({.path = root() + "/text", .context = 500}).status()), HasSubstr("at least 501 bytes"));
}

}  // namespace
}  // namespace tidepool::data
