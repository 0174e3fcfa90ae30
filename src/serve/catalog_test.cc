#include "serve/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "model/families.h"
#include "model/safetensors.h"
#include "serve/weights.h"

namespace tidepool::serve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kSpec = "resnet18:image=32,small_stem=true,width=8,classes=4";
constexpr int64_t kPage = 64 * 1024;

class CatalogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/tidepool-catalog-test-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    repository_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(repository_); }
  void Create(const std::string& name, uint64_t seed = 1, int64_t version = 1) {
    const Status status = model::CreateModel(
        {.repository = repository_, .name = name, .spec = kSpec, .seed = seed, .version = version, .overwrite = true});
    ASSERT_TRUE(status.ok()) << ToString(status);
  }
  std::shared_ptr<const Catalog> Scan(const Catalog* previous = nullptr) {
    auto catalog = Catalog::Scan(repository_, kPage, previous, &next_id_);
    EXPECT_TRUE(catalog.ok()) << ToString(catalog.status());
    return catalog.ok() ? *catalog : nullptr;
  }
  std::string repository_;
  uint32_t next_id_ = 0;
};

TEST_F(CatalogTest, DescribesModelsAndFindsVersions) {
  Create("a", 1, 1);
  Create("a", 2, 3);
  const auto catalog = Scan();
  const auto highest = catalog->Find("a", "");
  ASSERT_TRUE(highest.ok()) << ToString(highest.status());
  EXPECT_EQ((*highest)->version, 3);
  EXPECT_EQ((*highest)->lease_name, "a");
  EXPECT_EQ((*catalog->Find("a", "1"))->lease_name, "a:1");
  EXPECT_NE((*catalog->Find("a", "1"))->id, (*highest)->id);
  EXPECT_EQ((*highest)->inputs[0].shape, (std::vector<int64_t>{-1, 3, 32, 32}));
  EXPECT_EQ((*highest)->input_sample_bytes[0], 3 * 32 * 32 * 4);
  EXPECT_EQ((*highest)->output_sample_bytes[0], 4 * 4);
  EXPECT_GE((*highest)->pages * kPage, (*highest)->weight_bytes);
  EXPECT_LT((*highest)->pages * kPage, (*highest)->weight_bytes + 2 * kPage);
  EXPECT_THAT(MessageOf(catalog->Find("a", "2").status()), HasSubstr("model 'a' has no version '2'; allowed: 1, 3"));
  EXPECT_THAT(MessageOf(catalog->Find("a", "x").status()), HasSubstr("no version 'x'"));
  EXPECT_EQ(catalog->Find("zzz", "").status().code(), StatusCode::kNotFound);
}

TEST_F(CatalogTest, KeepsTheIdsOfWhatDidNotChange) {
  Create("a", 1);
  Create("b", 1);
  const auto first = Scan();
  Create("b", 2);
  const auto second = Scan(first.get());
  EXPECT_EQ((*first->Find("a", ""))->id, (*second->Find("a", ""))->id);
  EXPECT_NE((*first->Find("b", ""))->id, (*second->Find("b", ""))->id);
}

TEST_F(CatalogTest, ListsABrokenModelWithEveryFaultAndServesTheOthers) {
  Create("good");
  Create("bad");
  const std::string path = repository_ + "/bad/1/model.safetensors";
  {
    auto file = model::SafetensorsFile::Open(path);
    ASSERT_TRUE(file.ok());
    std::vector<model::TensorToWrite> tensors;
    std::vector<std::string> data;
    data.reserve(1000);
    for (const model::TensorEntry& entry : (*file)->header().tensors) {
      if (entry.name == "bn1.weight") continue;
      std::string& bytes = data.emplace_back(static_cast<size_t>(entry.size_bytes), '\0');
      model::TensorToWrite tensor{.name = entry.name, .dtype = entry.dtype, .shape = entry.shape};
      if (entry.name == "bn1.bias") tensor.name = "bn1.byas";
      if (entry.name == "conv1.weight") tensor.shape = {entry.shape[1], entry.shape[0], entry.shape[2], entry.shape[3]};
      tensor.data = std::as_bytes(std::span(bytes));
      tensors.push_back(tensor);
    }
    ASSERT_TRUE(model::WriteSafetensors(path, tensors, {}).ok());
  }
  const auto catalog = Scan();
  EXPECT_TRUE(catalog->Find("good", "").ok());
  const Status status = catalog->Find("bad", "").status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(status), AllOf(HasSubstr("2 missing: 'bn1.weight', 'bn1.bias'"), HasSubstr("1 unexpected: 'bn1.byas'"),
                                       HasSubstr("1 mismatched: 'conv1.weight' is F32 [3,8,3,3], needed: F32 [8,3,3,3]")));
}

TEST_F(CatalogTest, SaysThatAFolderIsNoRepository) {
  uint32_t next = 0;
  const auto catalog = Catalog::Scan(repository_ + "/nothing", kPage, nullptr, &next);
  EXPECT_FALSE(catalog.ok());
  EXPECT_THAT(MessageOf(catalog.status()), HasSubstr("/nothing"));
}

TEST_F(CatalogTest, ChecksRequestsOfSeveralSamples) {
  Create("a");
  const auto catalog = Scan();
  const auto model = catalog->Find("a", "");
  InferRequest request{.model = "a", .inputs = {{.name = "image", .datatype = DType::kF32, .shape = {2, 3, 32, 32}}}};
  request.inputs[0].data.resize(2 * 12288);
  const auto checked = CheckRequest(**model, request);
  ASSERT_TRUE(checked.ok()) << ToString(checked.status());
  EXPECT_EQ(checked->batch, 2);
  EXPECT_EQ(checked->slab_bytes, 2 * 12288 + 64);
  request.inputs[0].shape = {0, 3, 32, 32};
  EXPECT_THAT(MessageOf(CheckRequest(**model, request).status()), HasSubstr("has batch size 0; allowed: 1 to 8"));
  request.inputs[0].shape = {};
  EXPECT_THAT(MessageOf(CheckRequest(**model, request).status()), HasSubstr("has shape []; allowed: [-1,3,32,32]"));
  request.inputs[0].shape = {int64_t{1} << 62, 3, 32, 32};
  EXPECT_FALSE(CheckRequest(**model, request).ok());
  request.inputs.clear();
  EXPECT_THAT(MessageOf(CheckRequest(**model, request).status()),
              HasSubstr("input 'image' is missing; needed: FP32 of shape [-1,3,32,32]"));
}

TEST(EstimateWorkspace, GrowsWithTheBatchAndCoversTheLargestPairOfActivations) {
  const auto graph = model::BuildGraph(kSpec);
  ASSERT_TRUE(graph.ok());
  const int64_t one = EstimateWorkspaceBytes(*graph, 1), eight = EstimateWorkspaceBytes(*graph, 8);
  EXPECT_EQ(eight, 8 * one);
  EXPECT_GE(one, 2 * 8 * 32 * 32 * 4);
  EXPECT_LT(one, 20 * 8 * 32 * 32 * 4) << "far less than keeping everything";
}

TEST(BytesPerSample, RefusesOpenAndAbsurdDimensions) {
  EXPECT_EQ(*BytesPerSample({.name = "x", .shape = {-1, 3}}), 12);
  EXPECT_THAT(MessageOf(BytesPerSample({.name = "x", .shape = {3}}).status()),
              HasSubstr("'x' has shape [3]; allowed: the batch (-1) first"));
  EXPECT_FALSE(BytesPerSample({.name = "x", .shape = {-1, -1}}).ok());
  EXPECT_FALSE(BytesPerSample({.name = "x", .shape = {-1, int64_t{1} << 40, 1 << 20}}).ok());
}

}  // namespace
}  // namespace tidepool::serve
