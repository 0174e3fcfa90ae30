#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>

namespace tidepool::model {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::string Image(const std::string& header, const std::string& data) {
  std::string image;
  for (int i = 0; i < 8; ++i) image += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return image + header + data;
}

StatusOr<SafetensorsHeader> Parse(const std::string& image) {
  return ParseSafetensorsHeader(std::as_bytes(std::span(image)), static_cast<int64_t>(image.size()));
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

class SafetensorsFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/safetensorsXXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::string Put(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
    return Path(name);
  }
  std::string Get(const std::string& path) const {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  std::string folder_;
};

TEST(SafetensorsHeader, ReadsEveryField) {
  const StatusOr<SafetensorsHeader> header =
      Parse(Image("{\"__metadata__\":{\"format\":\"pt\"}," + Entry("b", "I64", "[1]", "[4,12]") + "," +
                      Entry("a", "F16", "[2,1]", "[0,4]") + "}   ",
                  std::string(12, 'x')));
  ASSERT_TRUE(header.ok()) << ToString(header.status());
  EXPECT_EQ(header->metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].dtype, DType::kF16);
  EXPECT_EQ(header->tensors[0].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(header->tensors[0].offset_bytes, header->data_offset_bytes);
  EXPECT_EQ(header->tensors[1].offset_bytes, header->data_offset_bytes + 4);
  EXPECT_EQ(header->tensors[1].size_bytes, 8);
}

TEST(SafetensorsHeader, ReadsScalarsAndEmptyTensors) {
  const auto header =
      Parse(Image("{" + Entry("full", "U8", "[]", "[0,1]") + "," + Entry("none", "F32", "[3,0,9223372036854775807]", "[0,0]") +
                      "," + Entry("end", "F64", "[0]", "[1,1]") + "}",
                  "x"));
  ASSERT_TRUE(header.ok()) << ToString(header.status());
  EXPECT_EQ(header->tensors.size(), 3u);
  EXPECT_TRUE(Parse(Image("{}", "")).ok());
}

struct Refusal {
  std::string image, text;
};
class HostileHeaders : public ::testing::TestWithParam<Refusal> {};

TEST_P(HostileHeaders, AreRefusedWithTheReason) {
  const StatusOr<SafetensorsHeader> header = Parse(GetParam().image);
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(header.status()), HasSubstr(GetParam().text));
}

std::string OneTensor(const std::string& entry, size_t data_bytes = 4) {
  return Image("{" + entry + "}", std::string(data_bytes, 'x'));
}

INSTANTIATE_TEST_SUITE_P(
    Safetensors, HostileHeaders,
    ::testing::Values(
        Refusal{"", "0 bytes are too few for a safetensors file; allowed: at least 8"}, Refusal{"1234567", "7 bytes are too few"},
        Refusal{std::string(8, '\xff'), "the header has 18446744073709551615 bytes; allowed: 100000000"},
        Refusal{std::string("\x01\xe1\xf5\x05\0\0\0\0", 8), "the header has 100000001 bytes; allowed: 100000000"},
        Refusal{std::string("\x09\0\0\0\0\0\0\0{}", 10), "the header has 9 bytes but only 2 follow"},
        Refusal{std::string(8, '\0'), "the header does not start with '{'"}, Refusal{Image(" {}", ""), "does not start with '{'"},
        Refusal{Image("\xef\xbb\xbf{}", ""), "does not start with '{'"},
        Refusal{Image("{}\n", ""), "ends with byte 0x0a; allowed: '}', then spaces"},
        Refusal{Image("{} x", ""), "ends with byte 0x78"}, Refusal{Image("{}{}", ""), "is not JSON at byte"},
        Refusal{Image("{\"a\" 1}", ""), "the header is not JSON at byte"},
        Refusal{Image("{\"\xff\":{}}", ""), "the header is not JSON at byte"},
        Refusal{Image("{/**/}", ""), "the header is not JSON"},
        Refusal{Image("{\"a\":1}", ""), "'a' is the number 1; allowed: an object"},
        Refusal{Image("{\"a\":[]}", ""), "'a' is an array; allowed: an object"},
        Refusal{Image("{\"a\":null}", ""), "'a' is null"}, Refusal{Image("{\"a\":true}", ""), "'a' is a boolean"},
        Refusal{Image("{\"a\":\"b\"}", ""), "'a' is a string"},
        Refusal{Image("{\"__metadata__\":{\"a\":1}}", ""), "'a' of __metadata__ is the number 1; allowed: a string"},
        Refusal{Image("{\"__metadata__\":{\"a\":{}}}", ""), "'a' of __metadata__ is an object; allowed: a string"},
        Refusal{Image("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", ""), "metadata key 'a' appears twice"},
        Refusal{Image("{\"__metadata__\":{},\"__metadata__\":{}}", ""), "key '__metadata__' appears twice"},
        Refusal{Image("{" + Entry("a", "U8", "[4]", "[0,4]") + "," + Entry("a", "U8", "[4]", "[0,4]") + "}", "1234"),
                "key 'a' appears twice"},
        Refusal{OneTensor("\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}"), "key 'dtype' of tensor 'a' appears twice"},
        Refusal{OneTensor("\"a\":{\"dtype\":\"F32\",\"shape\":[1]}"), "tensor 'a' has no data_offsets"},
        Refusal{OneTensor("\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}"), "tensor 'a' has no dtype"},
        Refusal{OneTensor("\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}"), "tensor 'a' has no shape"},
        Refusal{OneTensor("\"a\":{\"stride\":[1]}"), "tensor 'a' has the key 'stride'; allowed: dtype, shape, data_offsets"},
        Refusal{OneTensor(Entry("a", "F31", "[1]", "[0,4]")), "tensor 'a': dtype 'F31' is not supported"},
        Refusal{OneTensor("\"a\":{\"dtype\":7}"), "dtype of tensor 'a' is the number 7; allowed: a string"},
        Refusal{OneTensor("\"a\":{\"shape\":\"1\"}"), "shape of tensor 'a' is a string; allowed: a list of numbers"},
        Refusal{OneTensor(Entry("a", "F32", "[-1]", "[0,4]")),
                "shape of tensor 'a' holds the negative number -1; allowed: numbers from 0"},
        Refusal{OneTensor(Entry("a", "F32", "[1.5]", "[0,4]")), "holds the number 1.5"},
        Refusal{OneTensor(Entry("a", "F32", "[9223372036854775808]", "[0,4]")), "holds the number 9223372036854775808"},
        Refusal{OneTensor(Entry("a", "F32", "[99999999999999999999999]", "[0,4]")), "holds the number 99999999999999999999999"},
        Refusal{OneTensor(Entry("a", "F32", "[1e999]", "[0,4]")), "the header is not JSON at byte"},
        Refusal{OneTensor(Entry("a", "F32", "[[1]]", "[0,4]")), "shape of tensor 'a' holds an array"},
        Refusal{OneTensor(Entry("a", "F32", "[{}]", "[0,4]")), "shape of tensor 'a' holds an object"},
        Refusal{OneTensor(Entry("a", "F32", "[4294967296,4294967296,4294967296]", "[0,4]")),
                "the shape of tensor 'a' overflows 64 bits"},
        Refusal{OneTensor(Entry("a", "F64", "[2305843009213693952]", "[0,4]")), "the shape of tensor 'a' overflows 64 bits"},
        Refusal{OneTensor(Entry("a", "F32", "[2]", "[0,4]")),
                "tensor 'a' has 8 bytes by its shape and type but 4 by its data_offsets"},
        Refusal{OneTensor(Entry("a", "F32", "[1]", "[4,0]")), "tensor 'a' begins at 4 and ends at 0, before it begins"},
        Refusal{OneTensor(Entry("a", "F32", "[1]", "[4,8]")), "tensor 'a' ends at 8; allowed: the buffer's 4 bytes"},
        Refusal{OneTensor(Entry("a", "F32", "[1]", "[0,18446744073709551615]")), "tensor 'a' ends at 18446744073709551615"},
        Refusal{OneTensor(Entry("a", "F32", "[1]", "[0]")), "data_offsets of tensor 'a' has 1 numbers; allowed: 2"},
        Refusal{OneTensor(Entry("a", "F32", "[1]", "[0,4,8]")), "data_offsets of tensor 'a' has more than 2 numbers"},
        Refusal{OneTensor(Entry("a", "U8", "[2]", "[1,3]"), 3),
                "tensor 'a' begins at 1 where 0 ends the tensors before it: a hole"},
        Refusal{OneTensor(Entry("a", "U8", "[2]", "[0,2]") + "," + Entry("b", "U8", "[1]", "[3,4]")),
                "tensor 'b' begins at 3 where 2 ends the tensors before it: a hole"},
        Refusal{OneTensor(Entry("a", "U8", "[3]", "[0,3]") + "," + Entry("b", "U8", "[2]", "[2,4]")),
                "tensor 'b' begins at 2 where 3 ends the tensors before it: an overlap"},
        Refusal{OneTensor(Entry("a", "U8", "[3]", "[0,3]")), "1 bytes follow the last tensor; allowed: none"},
        Refusal{Image("{}", "x"), "1 bytes follow the last tensor; allowed: none"}));

TEST(SafetensorsHeader, RefusesDeepNestingWithoutFollowingIt) {
  const std::string deep = "{\"a\":{\"shape\":" + std::string(1'000'000, '[') + "}";
  EXPECT_THAT(MessageOf(Parse(Image(deep, "")).status()), HasSubstr("shape of tensor 'a' holds an array"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_THAT(MessageOf(Parse(Image(objects + "}", "")).status()), HasSubstr("tensor 'a' has the key 'a'"));
}

TEST(SafetensorsHeader, RefusesTooManyDimensionsAndShortensLongNames) {
  std::string shape = "[1";
  for (int i = 0; i < 64; ++i) shape += ",1";
  EXPECT_THAT(MessageOf(Parse(OneTensor(Entry("a", "F32", shape + "]", "[0,4]"))).status()),
              HasSubstr("tensor 'a' has more than 64 dimensions"));
  const std::string message = MessageOf(Parse(OneTensor(Entry(std::string(1'000'000, 'n'), "F31", "[1]", "[0,4]"))).status());
  EXPECT_LT(message.size(), 300u);
}

TEST(SafetensorsHeader, SurvivesRandomDamage) {
  const std::string good =
      Image("{\"__metadata__\":{\"format\":\"pt\"}," + Entry("layer.weight", "F32", "[2,3]", "[0,24]") + "," +
                Entry("layer.bias", "I64", "[2]", "[24,40]") + "," + Entry("s", "BOOL", "[]", "[40,41]") + "}  ",
            std::string(41, 'd'));
  ASSERT_TRUE(Parse(good).ok());
  std::mt19937 random(20240607);
  const std::string tokens = "{}[]\":,0123456789-.eE \\u\xff\0antf";
  int accepted = 0;
  for (int round = 0; round < 60'000; ++round) {
    std::string image = good;
    for (uint32_t change = 0, changes = 1 + random() % 4; change < changes && !image.empty(); ++change) {
      const size_t at = random() % (random() % 2 ? image.size() : std::min<size_t>(image.size(), 180));
      switch (random() % 5) {
        case 0: image[at] = static_cast<char>(random()); break;
        case 1: image[at] = tokens[random() % tokens.size()]; break;
        case 2: image.erase(at, 1 + random() % 8); break;
        case 3: image.insert(at, image.substr(random() % image.size(), random() % 40)); break;
        default: image.resize(at); break;
      }
      // Half of the time the length is made right again, so that damage reaches the JSON.
      if (image.size() >= 57 && random() % 2) image[0] = static_cast<char>(image.size() - 8 - 41);
    }
    const StatusOr<SafetensorsHeader> header = Parse(image);
    if (!header.ok()) {
      EXPECT_FALSE(MessageOf(header.status()).empty());
      continue;
    }
    ++accepted;
    int64_t at = header->data_offset_bytes;
    for (const TensorEntry& tensor : header->tensors) {
      EXPECT_EQ(tensor.offset_bytes, at);
      at += tensor.size_bytes;
    }
    EXPECT_EQ(at, static_cast<int64_t>(image.size()));
  }
  EXPECT_GT(accepted, 0);
}

TEST_F(SafetensorsFiles, ReadBackWhatWasWritten) {
  std::vector<float> a(12);
  std::iota(a.begin(), a.end(), 0.5f);
  const std::vector<int64_t> b = {7};
  const std::vector<TensorToWrite> tensors = {{"b", DType::kI64, {}, std::as_bytes(std::span(b))},
                                              {"a", DType::kF32, {3, 4}, std::as_bytes(std::span(a))},
                                              {"none", DType::kBF16, {0, 2}, {}}};
  ASSERT_TRUE(WriteSafetensors(Path("x"), tensors, {{"k", "v\n\"\\"}}).ok());
  const auto file = SafetensorsFile::Open(Path("x"));
  ASSERT_TRUE(file.ok()) << ToString(file.status());
  EXPECT_EQ((*file)->header().data_offset_bytes % 64, 0);
  EXPECT_EQ((*file)->header().metadata.at("k"), "v\n\"\\");
  EXPECT_EQ((*file)->header().tensors[0].name, "b");
  std::vector<float> back(12);
  const TensorEntry* entry = *(*file)->Find("a");
  ASSERT_TRUE((*file)->Read(*entry, std::as_writable_bytes(std::span(back))).ok());
  EXPECT_EQ(back, a);
  std::vector<float> part(2);
  ASSERT_TRUE((*file)->ReadPart(*entry, 8, std::as_writable_bytes(std::span(part))).ok());
  EXPECT_EQ(part, (std::vector<float>{2.5f, 3.5f}));
  EXPECT_THAT(MessageOf((*file)->ReadPart(*entry, 44, std::as_writable_bytes(std::span(part)))),
              HasSubstr("8 bytes from byte 44 of tensor 'a' were asked for; it has 48"));
  EXPECT_THAT(MessageOf((*file)->Read(*entry, std::as_writable_bytes(std::span(part)))),
              HasSubstr("tensor 'a' has 48 bytes but the target has 8"));
}

TEST_F(SafetensorsFiles, AreWrittenToTheByte) {
  const std::string data = "abcd";
  const std::vector<TensorToWrite> tensors = {{"t", DType::kU8, {2, 2}, std::as_bytes(std::span(data))}};
  ASSERT_TRUE(WriteSafetensors(Path("x"), tensors, {{"a", "b"}}).ok());
  std::string header = "{\"__metadata__\":{\"a\":\"b\"},\"t\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]}}";
  header.resize(120, ' ');
  EXPECT_EQ(Get(Path("x")), Image(header, data));
}

TEST_F(SafetensorsFiles, NameTheNearestTensorIfOneIsAbsent) {
  const std::string data = "abcd";
  const std::vector<TensorToWrite> tensors = {{"layer1.weight", DType::kU8, {4}, std::as_bytes(std::span(data))}};
  ASSERT_TRUE(WriteSafetensors(Path("x"), tensors, {}).ok());
  const auto file = SafetensorsFile::Open(Path("x"));
  const Status absent = (*file)->Find("layer2.weight").status();
  EXPECT_EQ(absent.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(absent), HasSubstr("has no tensor 'layer2.weight'; the nearest is 'layer1.weight'"));
}

TEST_F(SafetensorsFiles, ThatBecomeShorterAreDataLoss) {
  const std::string data(1000, 'x');
  const std::vector<TensorToWrite> tensors = {{"t", DType::kU8, {1000}, std::as_bytes(std::span(data))}};
  ASSERT_TRUE(WriteSafetensors(Path("x"), tensors, {}).ok());
  const auto file = SafetensorsFile::Open(Path("x"));
  ASSERT_EQ(::truncate(Path("x").c_str(), 500), 0);
  std::vector<std::byte> back(1000);
  const Status lost = (*file)->Read((*file)->header().tensors[0], back);
  EXPECT_EQ(lost.code(), StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(lost), HasSubstr("ends at byte 500"));
}

TEST_F(SafetensorsFiles, ThatCannotBeOpenedSayWhy) {
  EXPECT_EQ(SafetensorsFile::Open(Path("absent")).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(SafetensorsFile::Open(folder_).status()), HasSubstr("is not a regular file"));
  ASSERT_EQ(::mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(MessageOf(SafetensorsFile::Open(Path("pipe")).status()), HasSubstr("is not a regular file"));
  EXPECT_THAT(MessageOf(SafetensorsFile::Open(Put("short", "123")).status()), HasSubstr("/short': 3 bytes are too few"));
  EXPECT_THAT(MessageOf(SafetensorsFile::Open(Put("long", std::string(40, '\x7f'))).status()), HasSubstr("allowed: 100000000"));
}

TEST_F(SafetensorsFiles, AreNotWrittenIfAFaultIsFound) {
  const std::string data = "abcd";
  const auto bytes = std::as_bytes(std::span(data));
  const auto error = [&](const std::vector<TensorToWrite>& tensors) {
    return MessageOf(WriteSafetensors(Path("x"), tensors, {}));
  };
  EXPECT_THAT(error({{"t", DType::kF32, {2}, bytes}}),
              HasSubstr("tensor 't' has 8 bytes by its shape and type but 4 were given"));
  EXPECT_THAT(error({{"t", DType::kU8, {4}, bytes}, {"t", DType::kU8, {4}, bytes}}), HasSubstr("two tensors are called 't'"));
  EXPECT_THAT(error({{"__metadata__", DType::kU8, {4}, bytes}}), HasSubstr("cannot be called '__metadata__'"));
  EXPECT_THAT(error({{"t", DType::kU8, {-4}, bytes}}), HasSubstr("has the dimension -4"));
  EXPECT_THAT(error({{"t", DType::kBytes, {4}, bytes}}), HasSubstr("a type that safetensors does not have"));
  EXPECT_TRUE(fs::is_empty(folder_));
  EXPECT_EQ(WriteSafetensors(Path("absent/x"), {}, {}).code(), StatusCode::kNotFound);
}

TEST_F(SafetensorsFiles, AppearOnlyWhenTheyAreComplete) {
  const std::vector<TensorPlan> plans = {{"t", DType::kU8, {4}}};
  const std::string data = "abcde";
  const auto bytes = std::as_bytes(std::span(data));
  {
    auto writer = SafetensorsWriter::Create(Path("x"), plans, {});
    ASSERT_TRUE(writer.ok());
    EXPECT_THAT(MessageOf((*writer)->Append(bytes)), HasSubstr("has room for 4 more bytes but 5 came"));
    ASSERT_TRUE((*writer)->Append(bytes.first(3)).ok());
    EXPECT_THAT(MessageOf((*writer)->Finish()), HasSubstr("lacks 1 bytes of its tensors"));
    EXPECT_FALSE(fs::exists(Path("x")));
  }
  EXPECT_TRUE(fs::is_empty(folder_)) << "an unfinished file was left behind";
}

// Runs the peer and returns what it prints; nullopt if this machine has no python3 with numpy.
std::optional<std::string> Peer(const std::string& arguments) {
  if (std::system("/usr/bin/python3 -c 'import numpy' >/dev/null 2>&1") != 0) return std::nullopt;
  const std::string command = "/usr/bin/python3 " TIDEPOOL_SOURCE_DIR "/src/model/safetensors_peer.py " + arguments;
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string output;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) output += static_cast<char>(c);
  EXPECT_EQ(::pclose(pipe), 0) << command;
  return output;
}

TEST_F(SafetensorsFiles, FromAnotherProgramReadEqual) {
  if (!Peer("write " + Path("peer"))) GTEST_SKIP() << "no python3 with numpy";
  const auto file = SafetensorsFile::Open(Path("peer"));
  ASSERT_TRUE(file.ok()) << ToString(file.status());
  EXPECT_EQ((*file)->header().metadata.at("made by"), "peer");
  const TensorEntry* weights = *(*file)->Find("weights");
  EXPECT_EQ(weights->shape, (std::vector<int64_t>{2, 3, 4}));
  std::vector<float> values(24);
  ASSERT_TRUE((*file)->Read(*weights, std::as_writable_bytes(std::span(values))).ok());
  for (int i = 0; i < 24; ++i) EXPECT_EQ(values[i], static_cast<float>(i) / 7);
  int64_t counter = 0;
  ASSERT_TRUE((*file)->Read(**(*file)->Find("counter"), std::as_writable_bytes(std::span(&counter, 1))).ok());
  EXPECT_EQ(counter, -3);
  EXPECT_EQ((*(*file)->Find("empty"))->size_bytes, 0);
  EXPECT_EQ((*(*file)->Find("mask \u00e9\""))->dtype, DType::kBool);
}

TEST_F(SafetensorsFiles, AreReadByAnotherProgram) {
  const std::string data = "123456789abc";
  const auto bytes = std::as_bytes(std::span(data));
  const std::vector<TensorToWrite> tensors = {{"nine", DType::kU8, {9}, bytes.first(9)}, {"three", DType::kF32, {1, 3}, bytes}};
  ASSERT_TRUE(WriteSafetensors(Path("ours"), tensors, {{"format", "pt"}}).ok());
  const std::optional<std::string> output = Peer("read " + Path("ours"));
  if (!output) GTEST_SKIP() << "no python3 with numpy";
  // 0xcbf43926 is the published check value of CRC-32 for "123456789".
  EXPECT_THAT(*output, HasSubstr("nine U8 [9] 3421780262\n"));
  EXPECT_THAT(*output, HasSubstr("three F32 [1, 3] "));
}

}  // namespace
}  // namespace tidepool::model
