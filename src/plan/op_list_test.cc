#include "plan/op_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/units.h"
#include "model/families.h"
#include "plan/profile_table.h"
#include "profile/plan_csv.h"
#include "profile/testing.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;

OpList Published(const std::string& name) {
  auto list = PublishedOpList(name);
  EXPECT_TRUE(list.ok()) << ToString(list.status());
  return *std::move(list);
}

OpList OfGraph(const std::string& spec) {
  const auto graph = model::BuildGraph(spec);
  EXPECT_TRUE(graph.ok()) << ToString(graph.status());
  auto list = OpListOfGraph(*graph);
  EXPECT_TRUE(list.ok()) << ToString(list.status());
  return *std::move(list);
}

TEST(OpList, PublishedListsHaveThePublishedLengths) {
  EXPECT_EQ(Published("gpt:1.3b").size(), 315);
  EXPECT_EQ(Published("gpt:2.6b").size(), 419);
  EXPECT_EQ(Published("gpt:13b").size(), 523);
  EXPECT_EQ(Published("gpt-layers:1024").size(), 13 * 1024 + 3);
  EXPECT_EQ(Published("t5:3b").size(), 821);
  EXPECT_EQ(Published("t5:22b").size(), 1637);
  EXPECT_EQ(Published("wresnet:500m").size(), 134);
  EXPECT_EQ(Published("wresnet:13b").size(), 270);
  EXPECT_EQ(Published("gpt:1.3b").distinct.size(), 16u);
  EXPECT_EQ(Published("t5:22b").distinct.size(), 39u);
}

TEST(OpList, PublishedListsHaveTheParametersThatTheirNamesSay) {
  const std::pair<const char*, double> kBillions[] = {
      {"gpt:350m", 0.35}, {"gpt:1.3b", 1.3}, {"gpt:2.6b", 2.6},     {"gpt:6.7b", 6.7},  {"gpt:13b", 13},      {"t5:770m", 0.77},
      {"t5:3b", 3},       {"t5:6b", 6},      {"t5:11b", 11},        {"t5:22b", 22},     {"wresnet:500m", .5}, {"wresnet:1b", 1},
      {"wresnet:2b", 2},  {"wresnet:4b", 4}, {"wresnet:6.8b", 6.8}, {"wresnet:13b", 13}};
  for (const auto& [name, billions] : kBillions) {
    EXPECT_NEAR(static_cast<double>(Published(name).parameters()) / 1e9, billions, 0.22 * billions) << name;
  }
}

TEST(OpList, UnknownNamesAreRefusedWithThoseThatAreAllowed) {
  for (const char* name : {"gpt", "gpt:2b", "gpt-layers:0", "gpt-layers:x", "gpt-layers:99999", "llama:7b", ""}) {
    const auto list = PublishedOpList(name);
    EXPECT_EQ(list.status().code(), StatusCode::kInvalidArgument) << name;
  }
  EXPECT_THAT(MessageOf(PublishedOpList("gpt:2b").status()), HasSubstr("'gpt:2b'; allowed: gpt:350m, gpt:1.3b"));
  for (const std::string& name : PublishedOpListNames()) {
    if (name == "gpt-layers:N") continue;
    EXPECT_TRUE(PublishedOpList(name).ok()) << name;
  }
}

TEST(OpList, ModelsOfPlanFilesAreFoundAndTheirDepthIsChecked) {
  EXPECT_EQ(OpListOfFile("gpt", "1_3B", {24})->name, "gpt:1.3b");
  EXPECT_EQ(OpListOfFile("gpt", "scale-layer", {128})->size(), 13 * 128 + 3);
  EXPECT_EQ(OpListOfFile("resnet", "6_8B", {3, 4, 6, 3})->name, "wresnet:6.8b");
  EXPECT_THAT(MessageOf(OpListOfFile("gpt", "1_3B", {25}).status()), HasSubstr("num_layers is [25]; allowed for gpt:1.3b: [24]"));
  EXPECT_THAT(MessageOf(OpListOfFile("gpt", "9B", {24}).status()), HasSubstr("model_size '9B'"));
}

TEST(OpList, SegmentsRepeatAndWindowsInThemHaveOneCanonicalPlace) {
  const OpList t5 = Published("t5:3b");
  ASSERT_EQ(t5.segments.size(), 2u);
  EXPECT_EQ(t5.segments[1].period, 21);
  EXPECT_EQ(t5.CanonicalFirst(1 + 13 * 7 + 4, 40), 1 + 4);
  EXPECT_EQ(t5.CanonicalFirst(0, 40), 0);
  EXPECT_EQ(t5.CanonicalFirst(300, 40), 300) << "it leaves the encoder";
  for (int32_t first = 0; first < t5.size(); first += 5) {
    for (int32_t count = 1; first + count <= t5.size(); count += 17) {
      const int32_t canonical = t5.CanonicalFirst(first, count);
      for (int32_t i = 0; i < count; ++i) ASSERT_EQ(t5.ops[canonical + i], t5.ops[first + i]);
    }
  }
}

TEST(OpList, PlacesOfDistinctOpsAreFoundWithoutAWalk) {
  for (const char* name : {"t5:3b", "gpt-layers:100", "wresnet:1b"}) {
    const OpList list = Published(name);
    size_t places = 0;
    for (size_t op = 0; op < list.distinct.size(); ++op) {
      for (const int32_t place : list.PlacesOf(static_cast<uint16_t>(op))) EXPECT_EQ(list.ops[place], op);
      places += list.PlacesOf(static_cast<uint16_t>(op)).size();
    }
    EXPECT_EQ(places, list.ops.size());
    std::vector<int32_t> found;
    for (int32_t first = 0; first < list.size(); first += 7) {
      for (int32_t last = first + 1; last <= list.size(); last += 23) {
        std::vector<int32_t> expected;
        std::set<uint16_t> seen;
        for (int32_t i = first; i < last; ++i) {
          if (seen.insert(list.ops[i]).second) expected.push_back(i);
        }
        list.FirstPlaces(first, last, &found);
        ASSERT_EQ(found, expected) << name << ": " << first << " to " << last;
      }
    }
  }
}

TEST(OpList, AStageThatASkipTensorPassesOverIsNotAllowed) {
  const OpList gpt = Published("gpt:1.3b");
  // Op 1 is the first layer norm; its input is needed again 7 ops later.
  EXPECT_FALSE(gpt.SkipsAllowStage(2, 3));
  EXPECT_FALSE(gpt.SkipsAllowStage(2, 6));
  EXPECT_TRUE(gpt.SkipsAllowStage(2, 7)) << "it holds the op that reads the tensor";
  EXPECT_TRUE(gpt.SkipsAllowStage(0, 3)) << "nothing comes before the first stage";
  EXPECT_TRUE(gpt.SkipsAllowStage(310, 5)) << "nothing comes after the last one";
  const OpList resnet = Published("wresnet:1b");
  EXPECT_FALSE(resnet.SkipsAllowStage(5, 5));
  EXPECT_TRUE(resnet.SkipsAllowStage(5, 6));
  // Against a search through the skip tensors.
  for (int32_t first = 1; first < 60; ++first) {
    for (int32_t count = 1; count < 12; ++count) {
      bool allowed = true;
      for (const SkipTensor& skip : gpt.skips) allowed = allowed && !(skip.producer < first && skip.consumer >= first + count);
      EXPECT_EQ(gpt.SkipsAllowStage(first, count), allowed) << first << " " << count;
    }
  }
}

TEST(OpList, ListsThatDoNotFitTogetherAreRefused) {
  OpList list;
  list.name = "x";
  EXPECT_THAT(MessageOf(list.Finish()), HasSubstr("x has 0 ops"));
  list.distinct.resize(2);
  list.distinct[0].name = list.distinct[1].name = "same";
  list.ops = {0, 1, 0, 0};
  list.segments = {{0, 2, 2}};
  list.skips = {{2, 1}};
  const std::string message = MessageOf(list.Finish());
  EXPECT_THAT(message, HasSubstr("two distinct ops are called 'same'"));
  EXPECT_THAT(message, HasSubstr("segment at op 0 of 2 times 2 ops does not repeat"));
  EXPECT_THAT(message, HasSubstr("skip tensor from op 2 to op 1"));
  list.ops = {7};
  EXPECT_THAT(MessageOf(list.Finish()), HasSubstr("op id 7; allowed: below 2"));
}

TEST(OpList, HashesDifferWhereCostsMay) {
  OpList list = Published("gpt:1.3b");
  const std::string before = list.hash;
  EXPECT_EQ(before, Published("gpt:1.3b").hash);
  EXPECT_NE(before, Published("gpt:2.6b").hash);
  EXPECT_NE(Published("t5:11b").hash, Published("t5:22b").hash);
  list.distinct[3].starts_layer = true;
  ASSERT_TRUE(list.Finish().ok());
  EXPECT_NE(before, list.hash);
}

// --- Lists of graphs ---

TEST(GraphOpList, Gpt2RepeatsItsLayersAndKeepsItsCosts) {
  const auto graph = model::BuildGraph("gpt2:layers=12");
  const OpList list = OfGraph("gpt2:layers=12");
  EXPECT_EQ(list.size(), static_cast<int32_t>(graph->ops.size()));
  ASSERT_EQ(list.segments.size(), 1u);
  EXPECT_EQ(list.segments[0].repeats, 12);
  int64_t flops = 0;
  for (const uint16_t op : list.ops) flops += list.distinct[op].forward_flops_per_sample;
  EXPECT_EQ(flops, graph->forward_flops_per_sample());
  // The head's weight is the token embedding and counts with both, as two stages each hold it.
  EXPECT_EQ(list.parameters(), graph->trainable_parameters() + int64_t{50257} * 768);
  EXPECT_EQ(list.layer_starts.size(), 12u);
  EXPECT_EQ(list.at(list.layer_starts[3]).name, "h.0.ln_1");
  EXPECT_LT(list.distinct.size(), 20u);
}

TEST(GraphOpList, ResidualTensorsAreSkipsAndPassByInSizes) {
  const OpList list = OfGraph("gpt2:layers=4,dropout=0");
  int32_t norm = 0;
  while (list.at(norm).name != "h.0.ln_1") ++norm;
  const int64_t hidden = int64_t{1024} * 768 * 4;
  EXPECT_EQ(list.at(norm).input_bytes_per_sample, hidden);
  EXPECT_EQ(list.at(norm).output_bytes_per_sample, 2 * hidden) << "the result and the tensor that is added later";
  EXPECT_FALSE(list.SkipsAllowStage(norm + 1, 2));
}

TEST(GraphOpList, OtherFamiliesHaveListsToo) {
  for (const char* spec : {"resnet50", "resnet18:image=64", "bert-base", "gpt2-xl", "t5-3b", "wresnet-1b"}) {
    const OpList list = OfGraph(spec);
    EXPECT_GT(list.parameters(), 1000000) << spec;
    EXPECT_FALSE(list.skips.empty()) << spec;
    EXPECT_FALSE(list.hash.empty()) << spec;
  }
}

// The two descriptions of one network, the published list and the graph that can be run, agree.
TEST(GraphOpList, GraphsOfPublishedSizesHaveTheArithmeticOfTheirLists) {
  const std::pair<const char*, const char*> kPairs[] = {
      {"gpt:1.3b", "gpt2:layers=24,width=2048,heads=32,vocab=51200,context=2048"},
      {"gpt:13b", "gpt2:layers=40,width=5120,heads=40,vocab=51200,context=2048"},
      {"t5:770m", "t5-770m"},
      {"t5:11b", "t5-11b"},
      {"wresnet:500m", "wresnet-500m"},
      {"wresnet:6.8b", "wresnet-6.8b"},
      {"wresnet:13b", "wresnet-13b"}};
  for (const auto& [name, spec] : kPairs) {
    const OpList list = Published(name);
    const auto graph = model::BuildGraph(spec);
    ASSERT_TRUE(graph.ok()) << ToString(graph.status());
    int64_t flops = 0;
    for (const uint16_t op : list.ops) flops += list.distinct[op].forward_flops_per_sample;
    EXPECT_EQ(flops, graph->forward_flops_per_sample()) << name;
    if (list.file_model_name == "resnet") {
      EXPECT_EQ(list.parameters(), graph->trainable_parameters()) << name;
      continue;
    }
    // Lists leave out biases and norms, and count a shared embedding with every op that holds a copy.
    const double shared = name[0] == 'g' ? 51200.0 * list.file_numbers.at("hidden_size") : 2 * 30592.0 * 1024;
    const auto once = static_cast<double>(list.parameters()) - shared;
    EXPECT_NEAR(once / static_cast<double>(graph->trainable_parameters()), 1, 0.005) << name;
  }
}

// --- Against the published tables ---

class PublishedTable : public ::testing::TestWithParam<std::string> {};

TEST_P(PublishedTable, SizesFromShapesAreThoseThatWereMeasured) {
  const std::string root = ::tidepool::testing::ReferenceFolder("aceso", TIDEPOOL_SOURCE_DIR);
  if (root.empty()) GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  const OpList list = Published(GetParam());
  const std::string folder = GetParam() == "wresnet:1b" ? "/profiled-time-miniset" : "/profiled-time-eurosys";
  const auto database = profile::ReadPlanCsv(root + folder, {.models = {list.profile_model}});
  ASSERT_TRUE(database.ok()) << ToString(database.status());
  const auto table = ProfileTable::Build(database->bundle, list);
  ASSERT_TRUE(table.ok()) << ToString(table.status());
  const int32_t batch = table->batches().front(), row = table->RowOf(batch, 1, 0);
  ASSERT_GE(row, 0);
  const auto element = static_cast<double>(SizeOf(list.dtype));
  for (int32_t i = 0; i < table->distinct_ops(); ++i) {
    const DistinctOp& op = list.distinct[i];
    // Biases and norms were not counted as weights, but their tensors pass from op to op; allow for them.
    const double slack = 0.13 + 0.005 * table->At(Column::kInputMib, row, i);
    const auto mib = [&](int64_t bytes) { return static_cast<double>(bytes) * batch / kMiB; };
    EXPECT_NEAR(mib(op.input_bytes_per_sample), table->At(Column::kInputMib, row, i), slack) << op.name << " input";
    if (op.name != "gpt-post-process") {
      EXPECT_NEAR(mib(op.output_bytes_per_sample), table->At(Column::kOutputMib, row, i), slack) << op.name << " output";
    }
    const double weights = table->At(Column::kWeightMib, row, i);
    EXPECT_NEAR(static_cast<double>(op.parameters) * element / kMiB, weights, 0.06 + 0.002 * weights) << op.name << " weights";
    const double kept = table->At(Column::kActivationMib, row, i);
    EXPECT_NEAR(mib(op.activation_bytes_per_sample), kept, 2 + 0.02 * kept) << op.name << " activation";
  }
}

INSTANTIATE_TEST_SUITE_P(All, PublishedTable,
                         ::testing::Values("gpt:350m", "gpt:1.3b", "gpt:2.6b", "gpt:6.7b", "gpt:13b", "gpt-layers:8", "t5:770m",
                                           "t5:3b", "t5:6b", "t5:11b", "t5:22b", "wresnet:500m", "wresnet:1b", "wresnet:2b",
                                           "wresnet:4b", "wresnet:6.8b", "wresnet:13b"),
                         [](const auto& info) {
                           std::string name;
                           for (const char c : info.param) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace tidepool::plan
