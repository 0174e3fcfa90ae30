#include "plan/grid_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "plan/reference_problems.h"
#include "plan/search.h"
#include "plan/testing.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;
using testing::LoadReferenceProblem;
using testing::MakeRandomProblem;
using testing::ReferenceProblem;

std::unique_ptr<ReferenceProblem> Load(const std::string& name) {
  auto problem = LoadReferenceProblem(TIDEPOOL_SOURCE_DIR, name);
  EXPECT_TRUE(problem.ok()) << ToString(problem.status());
  return problem.ok() ? *std::move(problem) : nullptr;
}

TEST(GridSearch, FindsThePublishedGridsPlansOfGptAndLargeWideResNet) {
  if (testing::ReferenceProblemNames(TIDEPOOL_SOURCE_DIR).empty())
    GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  for (const char* name : {"small/gpt_1_3B", "large/gpt_1_3B", "large/gpt_2_6B", "large/gpt_13B", "large/resnet_2B",
                           "large/resnet_4B", "large/resnet_6_8B", "large/resnet_13B"}) {
    const auto problem = Load(name);
    ASSERT_NE(problem, nullptr);
    const auto result = SearchGrid(*problem->model, problem->request);
    ASSERT_TRUE(result.ok()) << ToString(result.status());
    EXPECT_NEAR(result->best_ms(), problem->grid_seconds * 1000, 0.6) << name;
  }
}

// There the published grid leaves out points that fit under its own model; ours tries them and finds faster ones.
TEST(GridSearch, PricesThePublishedGridsPlansOfT5AndSmallWideResNetAndFindsFasterOnes) {
  if (testing::ReferenceProblemNames(TIDEPOOL_SOURCE_DIR).empty())
    GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  const struct {
    const char* name;
    GridPoint point;
  } kSettings[] = {{"large/t5_3B", {1, 4, {4, 1}, true}},
                   {"large/t5_6B", {1, 4, {8, 1}, true}},
                   {"large/t5_11B", {16, 1, {1, 1}, true}},
                   {"large/t5_22B", {16, 2, {2, 1}, true}},
                   {"small/resnet_1B", {2, 16, {2, 1}, true}}};
  for (const auto& [name, point] : kSettings) {
    const auto problem = Load(name);
    ASSERT_NE(problem, nullptr);
    const std::optional<Plan> plan = GridPlan(problem->ops, problem->request.global_batch, point);
    ASSERT_TRUE(plan.has_value());
    const auto cost = problem->model->Price(*plan);
    ASSERT_TRUE(cost.ok()) << ToString(cost.status());
    EXPECT_NEAR(cost->iteration_ms, problem->grid_seconds * 1000, 0.6) << name;
    const auto result = SearchGrid(*problem->model, problem->request);
    ASSERT_TRUE(result.ok()) << ToString(result.status());
    EXPECT_LT(result->best_ms(), problem->grid_seconds * 1000) << name;
  }
}

TEST(GridSearch, GivesValidPlansOfRandomModels) {
  std::mt19937 random(3);
  int32_t found = 0;
  for (int round = 0; round < 40; ++round) {
    testing::RandomProblemOptions options;
    options.list.layers = static_cast<int32_t>(1 + random() % 8);
    options.cluster = {.nodes = 2, .gpus_per_node = 2, .memory_limit_mib = 500.0 + static_cast<double>(random() % 4000)};
    const auto problem = MakeRandomProblem(random, options);
    const SearchRequest request{.global_batch = 16, .micro_batches = {1, 2, 4}, .top_k = 3};
    const auto result = SearchGrid(*problem->model, request);
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted) << ToString(result.status());
      continue;
    }
    ++found;
    for (size_t i = 0; i < result->plans.size(); ++i) {
      const RankedPlan& ranked = result->plans[i];
      EXPECT_TRUE(Verify(*problem->model, ranked.plan).ok()) << ToString(Verify(*problem->model, ranked.plan));
      EXPECT_EQ(problem->model->Price(ranked.plan)->iteration_ms, ranked.cost.iteration_ms);
      if (i > 0) {
        EXPECT_GE(ranked.cost.iteration_ms, result->plans[i - 1].cost.iteration_ms);
        EXPECT_NE(ranked.plan.stages.size(), result->plans[i - 1].plan.stages.size());
      }
    }
  }
  EXPECT_GE(found, 10);
}

TEST(GridSearch, SaysHowMuchMemoryWouldWork) {
  std::mt19937 random(4);
  testing::RandomProblemOptions options;
  options.cluster.memory_limit_mib = 1;
  const auto tight = MakeRandomProblem(random, options);
  const SearchRequest request{.global_batch = 16, .micro_batches = {1, 2, 4}};
  const auto result = SearchGrid(*tight->model, request);
  ASSERT_EQ(result.status().code(), StatusCode::kResourceExhausted);
  const std::string text = MessageOf(result.status());
  EXPECT_THAT(text, HasSubstr("within 1 MiB; the least that was seen to work is "));
  // With that much it works.
  Cluster cluster = tight->cluster;
  cluster.memory_limit_mib = std::stod(text.substr(text.find("work is ") + 8));
  const auto model = MakeParityModel(tight->ops, *tight->table, cluster, request.micro_batches);
  ASSERT_TRUE(model.ok());
  EXPECT_TRUE(SearchGrid(**model, request).ok());
}

}  // namespace
}  // namespace tidepool::plan
