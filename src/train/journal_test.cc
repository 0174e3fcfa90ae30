#include "train/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/units.h"

namespace tidepool::train {
namespace {

using ::testing::HasSubstr;

const JournalHeader kHeader{.model = "resnet18:classes=4", .seed = 0xfedcba9876543210u, .global_batch = 8, .dataset_size = 20};

JournalStep StepOf(int64_t step, int64_t begin, int64_t end) {
  const int64_t middle = (begin + end) / 2;
  return {.epoch = 0,
          .step = step,
          .positions = {begin, end},
          .micro_batches = {{{{middle, end}}, 0xffffffffffffffffu}, {{{begin, middle}}, 7}}};
}

class JournalTest : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string Content() { return ReadFile(path_, kMiB).value(); }
  void Put(const std::string& content) { ASSERT_TRUE(WriteFileAtomically(path_, content).ok()); }
  std::string path_ = (std::filesystem::path(::testing::TempDir()) / fmt::format("journal-{}.jsonl", ::getpid())).string();
};

TEST_F(JournalTest, ReadsWhatItWrote) {
  auto writer = JournalWriter::Create(path_, kHeader).value();
  ASSERT_TRUE(writer->Append(StepOf(1, 0, 8)).ok());
  ASSERT_TRUE(writer->Append(StepOf(2, 8, 16)).ok());
  EXPECT_EQ(writer->size_bytes(), static_cast<int64_t>(Content().size()));
  const auto reader = JournalReader::Open(path_).value();
  EXPECT_EQ(reader->header(), kHeader);
  EXPECT_EQ(reader->last_step(), 2);
  EXPECT_EQ(*reader->Step(1).value(), StepOf(1, 0, 8));
  EXPECT_EQ(*reader->Step(2).value(), StepOf(2, 8, 16));
  EXPECT_THAT(MessageOf(reader->Step(3).status()), HasSubstr("holds steps 1 to 2; step 3 is not among them"));
}

TEST_F(JournalTest, WritesTheDocumentedBytes) {
  auto writer = JournalWriter::Create(path_, kHeader).value();
  ASSERT_TRUE(writer->Append(StepOf(1, 0, 4)).ok());
  EXPECT_EQ(Content(),
            "{\"dataset_size\":20,\"format\":\"tidepool.journal\",\"global_batch\":8,\"model\":\"resnet18:classes=4\","
            "\"seed\":\"fedcba9876543210\",\"version\":1}\n"
            "{\"epoch\":0,\"micro_batches\":[{\"ranges\":[[2,4]],\"rng\":\"ffffffffffffffff\"},"
            "{\"ranges\":[[0,2]],\"rng\":\"0000000000000007\"}],\"positions\":[0,4],\"step\":1}\n");
}

TEST_F(JournalTest, IgnoresATornLastLineOnly) {
  auto writer = JournalWriter::Create(path_, kHeader).value();
  ASSERT_TRUE(writer->Append(StepOf(1, 0, 8)).ok());
  const std::string whole = Content();
  const std::string line = ToJson(StepOf(2, 8, 16));
  Put(whole + line.substr(0, line.size() / 2));
  EXPECT_EQ(JournalReader::Open(path_).value()->last_step(), 1);
  Put(whole + line.substr(0, line.size() / 2) + "\n" + line + "\n");
  EXPECT_THAT(MessageOf(JournalReader::Open(path_).status()), HasSubstr(path_ + ":3: not a JSON object"));
}

TEST_F(JournalTest, GoesOnBehindACheckpointAndDropsWhatCameLater) {
  auto writer = JournalWriter::Create(path_, kHeader).value();
  ASSERT_TRUE(writer->Append(StepOf(1, 0, 8)).ok());
  const int64_t keep = writer->size_bytes();
  ASSERT_TRUE(writer->Append(StepOf(2, 8, 16)).ok());
  writer = JournalWriter::Resume(path_, kHeader, keep).value();
  ASSERT_TRUE(writer->Append({.step = 2, .positions = {8, 16}, .micro_batches = {{{{8, 16}}, 1}}}).ok());
  EXPECT_EQ(JournalReader::Open(path_).value()->Step(2).value()->micro_batches.size(), 1u);

  EXPECT_THAT(MessageOf(JournalWriter::Resume(path_, kHeader, 1 << 20).status()),
              HasSubstr("the checkpoint goes on behind line end"));
  EXPECT_EQ(JournalWriter::Resume(path_, kHeader, keep - 1).status().code(), StatusCode::kDataLoss);
  JournalHeader other = kHeader;
  other.seed = 1;
  other.global_batch = 16;
  const Status differs = JournalWriter::Resume(path_, other, keep).status();
  EXPECT_EQ(differs.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(differs), HasSubstr("seed is 18364758544493064720 in the journal and 1 in this run; global_batch is 8"));
}

TEST_F(JournalTest, RefusesGapsAndWrongOrderOfSteps) {
  const std::string header = ToJson(kHeader) + "\n";
  Put(header + ToJson(StepOf(1, 0, 8)) + "\n" + ToJson(StepOf(3, 8, 16)) + "\n");
  EXPECT_THAT(MessageOf(JournalReader::Open(path_).status()),
              HasSubstr(":3: step 3 over [8, 16) does not follow step 1, which ends at 8"));
  Put("");
  EXPECT_THAT(MessageOf(JournalReader::Open(path_).status()), HasSubstr("has no header line"));
  EXPECT_EQ(JournalReader::Open(path_ + ".none").status().code(), StatusCode::kNotFound);
}

TEST(JournalLine, IsReadStrictly) {
  auto fault = [](const std::string& line) { return MessageOf(ParseJournalStep(line).status()); };
  const std::string micro = R"([{"ranges":[[0,4]],"rng":"0000000000000001"}])";
  EXPECT_TRUE(ParseJournalStep(R"({"epoch":0,"step":1,"positions":[0,4],"micro_batches":)" + micro + "}").ok());
  EXPECT_THAT(fault(R"({"epoch":0,"step":1,"positions":[0,4]})"), HasSubstr("key 'micro_batches' is missing"));
  EXPECT_THAT(fault(R"({"epoch":0,"step":1,"positions":[0,4],"extra":1,"micro_batches":)" + micro + "}"),
              HasSubstr("unknown key 'extra'"));
  EXPECT_THAT(fault(R"({"epoch":-1,"step":1,"positions":[0,4],"micro_batches":)" + micro + "}"), HasSubstr("key 'epoch' is -1"));
  EXPECT_THAT(fault(R"({"epoch":0,"step":1.5,"positions":[0,4],"micro_batches":)" + micro + "}"), HasSubstr("key 'step' is 1.5"));
  EXPECT_THAT(fault(R"({"epoch":0,"step":1,"positions":[4,4],"micro_batches":)" + micro + "}"),
              HasSubstr("range [4,4] is empty"));
  EXPECT_THAT(fault(R"({"epoch":0,"step":1,"positions":[0,5],"micro_batches":)" + micro + "}"),
              HasSubstr("cover 4 of the 5 positions"));
  EXPECT_THAT(fault(R"({"epoch":0,"step":1,"positions":[0,4],"micro_batches":[{"ranges":[[0,4]],"rng":"0000000000000001"},)"
                    R"({"ranges":[[1,2]],"rng":"0000000000000001"}]})"),
              HasSubstr("position 1 of range [1, 2) is not unprocessed"));
  EXPECT_THAT(fault(R"({"epoch":0,"step":1,"positions":[0,4],"micro_batches":[{"ranges":[[0,4]],"rng":"12"}]})"),
              HasSubstr("16 hexadecimal digits"));
  EXPECT_THAT(fault("[1]"), HasSubstr("not a JSON object"));
}

TEST(JournalHeader, NamesAnotherFormatOrVersion) {
  auto fault = [](std::string line, const std::string& from, const std::string& to) {
    line.replace(line.find(from), from.size(), to);
    return MessageOf(ParseJournalHeader(line).status());
  };
  const std::string line = ToJson(kHeader);
  EXPECT_EQ(*ParseJournalHeader(line), kHeader);
  EXPECT_THAT(fault(line, "\"version\":1", "\"version\":2"), HasSubstr("version 2; this program reads version 1"));
  EXPECT_THAT(fault(line, "tidepool.journal", "tidepool.plan"), HasSubstr("format \"tidepool.plan\""));
  EXPECT_THAT(fault(line, "\"global_batch\":8", "\"global_batch\":0"), HasSubstr("key 'global_batch' is 0"));
}

}  // namespace
}  // namespace tidepool::train
