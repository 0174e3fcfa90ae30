#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/testing.h"

namespace tidepool::train {
namespace {

using ::testing::HasSubstr;

const CheckpointManifest kManifest{.model = "resnet:depth=18",
                                   .optimizer = "sgd",
                                   .seed = 0xfedcba9876543210u,
                                   .global_batch = 8,
                                   .dataset_size = 20,
                                   .step = 5,
                                   .epoch = 2,
                                   .position = 40,
                                   .journal_bytes = 99};

class CheckpointTest : public ::testing::Test {
 protected:
  Status Save(CheckpointManifest manifest) {
    const model::TensorToWrite tensor{.name = "w", .dtype = DType::kF32, .shape = {2}, .data = std::as_bytes(std::span(values_))};
    return SaveCheckpoint(directory(), std::move(manifest), {&tensor, 1});
  }
  Status Load(const CheckpointManifest& manifest, const std::string& name, std::vector<int64_t> shape) {
    const TensorToLoad tensor{
        .name = name, .dtype = DType::kF32, .shape = std::move(shape), .data = std::as_writable_bytes(std::span(loaded_))};
    return LoadCheckpoint(directory(), manifest, {&tensor, 1});
  }
  std::string directory() const { return folder_ / "checkpoint"; }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory())) names.push_back(entry.path().filename().string());
    return names;
  }

  ScratchFolder folder_;
  std::vector<float> values_ = {1.5f, -2.0f}, loaded_ = {0, 0};
};

TEST_F(CheckpointTest, LoadsWhatItSavedAndKeepsOnlyTheNewest) {
  EXPECT_FALSE(FindCheckpoint(directory()).value().has_value());
  ASSERT_TRUE(Save(kManifest).ok());
  CheckpointManifest later = kManifest;
  later.step = 6;
  ASSERT_TRUE(Save(later).ok());
  EXPECT_THAT(Files(), ::testing::UnorderedElementsAre("manifest.json", "state-000000000006.safetensors"));
  const auto found = FindCheckpoint(directory()).value();
  ASSERT_TRUE(found.has_value());
  later.state_file = "state-000000000006.safetensors";
  EXPECT_EQ(ToJson(*found), ToJson(later));
  ASSERT_TRUE(Load(*found, "w", {2}).ok());
  EXPECT_EQ(loaded_, values_);
}

TEST_F(CheckpointTest, IsTheOldOneUntilTheManifestIsReplaced) {
  ASSERT_TRUE(Save(kManifest).ok());
  // A process that died between the two files of step 6.
  const model::TensorToWrite tensor{.name = "w", .dtype = DType::kF32, .shape = {2}, .data = std::as_bytes(std::span(values_))};
  ASSERT_TRUE(model::WriteSafetensors(directory() + "/state-000000000006.safetensors", {&tensor, 1}, {}).ok());
  const auto found = FindCheckpoint(directory()).value();
  EXPECT_EQ(found->step, 5);
  EXPECT_TRUE(Load(*found, "w", {2}).ok());
  ASSERT_TRUE(Save(kManifest).ok());
  EXPECT_THAT(Files(), ::testing::UnorderedElementsAre("manifest.json", "state-000000000005.safetensors"));
}

TEST_F(CheckpointTest, ListsEveryTensorThatDoesNotFit) {
  ASSERT_TRUE(Save(kManifest).ok());
  const auto found = *FindCheckpoint(directory()).value();
  EXPECT_THAT(MessageOf(Load(found, "w", {3})), HasSubstr("'w' is F32 [2], needed: F32 [3]"));
  const Status missing = Load(found, "v", {2});
  EXPECT_EQ(missing.code(), StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(missing), HasSubstr("'v' is missing; 'w' is not of this job"));
  CheckpointManifest wrong = found;
  wrong.step = 4;
  EXPECT_THAT(MessageOf(Load(wrong, "w", {2})), HasSubstr("it is of step 5, the manifest of step 4"));
  EXPECT_EQ(loaded_, (std::vector<float>{0, 0}));
}

TEST_F(CheckpointTest, NamesWhatDiffersFromTheRun) {
  CheckpointManifest run = kManifest;
  run.optimizer = "adamw";
  run.dataset_size = 21;
  const Status status = kManifest.CheckFits(run, "dir");
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(status),
              HasSubstr("optimizer is sgd in the checkpoint and adamw in this run; the size of the data set is 20"));
  EXPECT_TRUE(kManifest.CheckFits(kManifest, "dir").ok());
}

TEST_F(CheckpointTest, RefusesADamagedManifest) {
  auto fault = [](const std::string& from, const std::string& to) {
    CheckpointManifest manifest = kManifest;
    manifest.state_file = "state-000000000005.safetensors";
    std::string json = ToJson(manifest);
    json.replace(json.find(from), from.size(), to);
    return MessageOf(ParseCheckpointManifest(json).status());
  };
  EXPECT_THAT(fault("tidepool.checkpoint", "x"), HasSubstr("format \"x\""));
  EXPECT_THAT(fault("\"version\": 1", "\"version\": 9"), HasSubstr("version 9; this program reads version 1"));
  EXPECT_THAT(fault("\"step\": 5", "\"step\": -5"), HasSubstr("key 'step' is no whole number"));
  EXPECT_THAT(fault("fedcba98", "xyz"), HasSubstr("key 'seed' is not 16 hexadecimal digits"));
  EXPECT_THAT(fault("state-000000000005", "../../etc/state-1"), HasSubstr("key 'state_file' is"));
  EXPECT_THAT(MessageOf(ParseCheckpointManifest("{").status()), HasSubstr("no JSON object"));
  std::filesystem::create_directories(directory());
  ASSERT_TRUE(WriteFileAtomically(directory() + "/manifest.json", "{").ok());
  EXPECT_THAT(MessageOf(FindCheckpoint(directory()).status()), HasSubstr("manifest.json: the manifest is no JSON object"));
}

}  // namespace
}  // namespace tidepool::train
