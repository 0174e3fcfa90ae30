#include "plan/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "plan/pricer.h"
#include "plan/recompute_rule.h"
#include "plan/testing.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;
using testing::MakeRandomProblem;
using testing::RandomPlan;
using testing::RandomProblemOptions;
using testing::RandomStage;
using testing::ReferenceTotals;

// Every field, in every bit.
void ExpectEqual(const StageTotals& a, const StageTotals& b) {
  EXPECT_EQ(a.gpus, b.gpus);
  EXPECT_EQ(a.forward_us, b.forward_us);
  EXPECT_EQ(a.backward_us, b.backward_us);
  EXPECT_EQ(a.recompute_us, b.recompute_us);
  EXPECT_EQ(a.reshard_forward_us, b.reshard_forward_us);
  EXPECT_EQ(a.reshard_backward_us, b.reshard_backward_us);
  for (int link = 0; link < kLinkClasses; ++link) {
    EXPECT_EQ(a.in_us[link], b.in_us[link]);
    EXPECT_EQ(a.out_us[link], b.out_us[link]);
  }
  EXPECT_EQ(a.input_mib, b.input_mib);
  EXPECT_EQ(a.weight_mib, b.weight_mib);
  EXPECT_EQ(a.state_mib, b.state_mib);
  EXPECT_EQ(a.activation_mib, b.activation_mib);
  EXPECT_EQ(a.saved_mib, b.saved_mib);
  EXPECT_EQ(a.peak_run_mib, b.peak_run_mib);
  EXPECT_EQ(a.reserved_mib, b.reserved_mib);
}

RandomProblemOptions Sized(std::mt19937& random) {
  RandomProblemOptions options;
  options.list.layers = static_cast<int32_t>(1 + random() % 12);
  options.list.period = static_cast<int32_t>(1 + random() % 7);
  options.list.extra = static_cast<int32_t>(random() % 4);
  options.list.reshards = random() % 3 != 0;
  return options;
}

TEST(ParityModel, TotalsOfAnyStageEqualAWalkOverItsOpsInEveryBit) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    for (int i = 0; i < 40; ++i) {
      const int32_t size = problem->ops.size(), first = static_cast<int32_t>(random() % size);
      const auto count = static_cast<int32_t>(1 + random() % (size - first));
      const int32_t micro_batch = 1 << (random() % 3);
      const std::vector<int32_t> sizes = problem->model->StageSizes(micro_batch);
      const StagePtr stage = RandomStage(random, *problem->model, first, count, sizes[random() % sizes.size()], micro_batch);
      ExpectEqual(problem->model->TotalsOf(*stage, micro_batch), ReferenceTotals(*problem->model, *stage, micro_batch));
      if (::testing::Test::HasFailure()) FAIL() << "round " << round << ", stage " << i;
    }
  }
}

TEST(ParityModel, UniformStagesCostTheSameWithoutAStageObject) {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    const int32_t size = problem->ops.size();
    for (int i = 0; i < 40; ++i) {
      const auto first = static_cast<int32_t>(random() % size), count = static_cast<int32_t>(1 + random() % (size - first));
      const int32_t micro_batch = 1 << (random() % 4);  // 8 was not prepared
      const std::vector<OpChoice> splits = problem->model->SplitsOf(1 << (random() % 3), micro_batch);
      if (splits.empty()) continue;
      OpChoice choice = splits[random() % splits.size()];
      choice.recompute = random() % 2 == 0;
      const StagePtr stage = Stage::MakeUniform(first, count, choice);
      ExpectEqual(problem->model->UniformTotals(first, count, choice, micro_batch),
                  ReferenceTotals(*problem->model, *stage, micro_batch));
      if (::testing::Test::HasFailure()) FAIL() << "round " << round << ", stage " << i;
    }
  }
}

TEST(ParityModel, WindowsWithOneCanonicalPlaceHaveOneCost) {
  std::mt19937 random(3);
  const auto problem = MakeRandomProblem(random, {.list = {.layers = 9, .period = 5, .extra = 2}});
  for (int i = 0; i < 500; ++i) {
    const int32_t size = problem->ops.size(), first = static_cast<int32_t>(random() % size);
    const auto count = static_cast<int32_t>(1 + random() % (size - first));
    const OpChoice choice{2, 2, static_cast<uint8_t>(random() % 2), random() % 2 == 0};
    ExpectEqual(problem->model->UniformTotals(first, count, choice, 4),
                problem->model->UniformTotals(problem->ops.CanonicalFirst(first, count), count, choice, 4));
  }
}

// Random changes to a plan, each priced through a cache that has seen the ones before, against pricing it from nothing.
TEST(ParityModel, IncrementalPricesEqualFullOnesInEveryBit) {
  std::mt19937 random(4);
  int priced = 0;
  for (int round = 0; round < 20; ++round) {
    const auto problem = MakeRandomProblem(random, {.list = {.layers = 6, .period = 5, .extra = 3}, .cluster = {2, 4, 2048}});
    Pricer pricer(*problem->model);
    auto plan = RandomPlan(random, *problem->model, 4, true);
    ASSERT_NE(plan, nullptr);
    for (int step = 0; step < 60; ++step) {
      const size_t at = random() % plan->stages.size();
      const StagePtr before = plan->stages[at];
      const Stage& stage = *before;
      if (random() % 3 == 0 && at + 1 < plan->stages.size() && stage.count() > 1) {
        // The last op moves to the next stage.
        std::vector<OpChoice> here = stage.Choices(), there = plan->stages[at + 1]->Choices();
        here.pop_back();
        there.insert(there.begin(), there.front());
        plan->stages[at] = Stage::Make(stage.first(), here);
        plan->stages[at + 1] = Stage::Make(stage.end() - 1, there);
      } else if (random() % 2 == 0) {
        std::vector<uint8_t> flags(stage.count());
        for (uint8_t& flag : flags) flag = random() % 2;
        plan->stages[at] = stage.WithRecompute(flags);
      } else {
        plan->stages[at] = RandomStage(random, *problem->model, stage.first(), stage.count(), stage.gpus(), 4);
      }
      const auto cached = pricer.Price(*plan);
      const auto full = problem->model->Price(*plan);
      ASSERT_TRUE(cached.ok() && full.ok());
      ASSERT_EQ(cached->iteration_ms, full->iteration_ms);
      ASSERT_EQ(cached->max_memory_mib, full->max_memory_mib);
      ASSERT_EQ(cached->stage_iteration_ms, full->stage_iteration_ms);
      ++priced;
    }
    EXPECT_LT(pricer.stage_evaluations(), 60 * 3) << "only what changed is priced again";
  }
  EXPECT_EQ(priced, 1200);
}

TEST(ParityModel, IterationIsTheSlowestStagePerMicroBatchAndOnceAllStages) {
  std::mt19937 random(5);
  const auto problem = MakeRandomProblem(random);
  auto plan = RandomPlan(random, *problem->model, 2, true);
  ASSERT_NE(plan, nullptr);
  plan->global_batch = 14;
  const auto cost = problem->model->Price(*plan);
  ASSERT_TRUE(cost.ok());
  double sum = 0, slowest = 0;
  for (const StageCost& stage : cost->stages) {
    sum += stage.time_us;
    slowest = std::max(slowest, stage.time_us);
  }
  EXPECT_EQ(cost->iteration_ms, (6 * slowest + sum) / 1000);
}

TEST(ParityModel, WhatWasNotProfiledHasNoFinitePrice) {
  std::mt19937 random(6);
  const auto problem = MakeRandomProblem(random);
  for (const OpChoice choice : {OpChoice{8, 1, 0, false}, OpChoice{1, 3, 0, false}, OpChoice{1, 1, 5, false}}) {
    EXPECT_FALSE(problem->model->UniformTotals(0, 3, choice, 4).priced());
  }
  const StagePtr mixed = Stage::MakeRuns(0, {{2, {1, 1, 0, false}}, {1, {8, 1, 0, false}}});
  EXPECT_FALSE(problem->model->TotalsOf(*mixed, 1).priced());
  const auto cost = problem->model->Price({.global_batch = 4, .micro_batch = 1, .stages = {mixed}});
  ASSERT_TRUE(cost.ok());
  EXPECT_FALSE(cost->fits);
  EXPECT_TRUE(std::isinf(cost->iteration_ms));
}

TEST(ParityModel, ImpossibleInputsAreRefusedWithAReason) {
  std::mt19937 random(7);
  const auto problem = MakeRandomProblem(random);
  const auto price = [&](const Plan& plan) { return MessageOf(problem->model->Price(plan).status()); };
  EXPECT_EQ(price({}), "the plan has no stages");
  const StagePtr stage = Stage::MakeUniform(0, 3, {});
  EXPECT_THAT(price({.global_batch = 1, .micro_batch = 2, .stages = {stage}}), HasSubstr("micro-batch 2 and global batch 1"));
  EXPECT_THAT(price({.global_batch = 4, .micro_batch = 2, .stages = {Stage::MakeUniform(5, 1000, {})}}),
              HasSubstr("has ops 5 to 1004"));

  Cluster cluster = problem->cluster;
  cluster.memory_limit_mib = 0;
  EXPECT_THAT(MessageOf(MakeParityModel(problem->ops, *problem->table, cluster, {}).status()),
              HasSubstr("memory_limit_mib is 0"));
  cluster = problem->cluster;
  cluster.within_node = LinkSpeed{1e9, 0};
  EXPECT_THAT(MessageOf(MakeParityModel(problem->ops, *problem->table, cluster, {}).status()),
              HasSubstr("use the calibrated model"));
  const auto merged = ProfileTable::Build(testing::RandomProfile(random, problem->ops), problem->ops);
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(MessageOf(MakeParityModel(problem->ops, *merged, problem->cluster, {}).status()), HasSubstr("kParityTable"));
  profile::Bundle bundle = testing::RandomProfile(random, problem->ops);
  bundle.links.clear();
  const auto unlinked = ProfileTable::Build(bundle, problem->ops, kParityTable);
  ASSERT_TRUE(unlinked.ok());
  EXPECT_THAT(MessageOf(MakeParityModel(problem->ops, *unlinked, problem->cluster, {}).status()), HasSubstr("no transfers"));
}

TEST(ProfileTable, ACollectiveThatWasMeasuredWithoutDataOnlyHasAFinitePrice) {
  std::mt19937 random(9);
  const auto problem = MakeRandomProblem(random, {});
  profile::Bundle bundle = testing::RandomProfile(random, problem->ops);
  bundle.collectives = {{.kind = profile::CollectiveKind::kAllReduce, .ranks = 2, .bytes = 0, .median_us = 5}};
  const auto table = ProfileTable::Build(bundle, problem->ops);
  ASSERT_TRUE(table.ok()) << ToString(table.status());
  EXPECT_EQ(table->Collective(profile::CollectiveKind::kAllReduce, 2, 3).us, 5);
}

TEST(ParityModel, SplitsAndStageSizesAreThoseThatWereProfiled) {
  std::mt19937 random(8);
  const auto problem = MakeRandomProblem(random, {.cluster = {2, 4, 1024}});
  EXPECT_EQ(problem->model->StageSizes(1), (std::vector<int32_t>{1, 2, 4}));
  EXPECT_EQ(problem->model->StageSizes(4), (std::vector<int32_t>{1, 2, 4, 8}));
  EXPECT_EQ(problem->model->SplitsOf(4, 4).size(), 6u) << "widths 1, 2, 4 with two algorithms each";
  EXPECT_EQ(problem->model->SplitsOf(4, 1).size(), 2u) << "one sample has one replica";
  EXPECT_TRUE(problem->model->SplitsOf(3, 4).empty());
}

// --- The recompute rule ---

TEST(RecomputeRule, TotalsAreThoseOfTheStageWithTheFlags) {
  std::mt19937 random(9);
  int fitted = 0, recomputed = 0;
  for (int round = 0; round < 200; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    const int32_t size = problem->ops.size();
    const auto first = static_cast<int32_t>(random() % size), count = static_cast<int32_t>(1 + random() % (size - first));
    const StagePtr stage = RandomStage(random, *problem->model, first, count, 2, 4);
    const StagePlace place{.stages_behind = static_cast<int32_t>(random() % 4)};
    const StagePtr plain = stage->WithRecompute(std::vector<uint8_t>(count, 0));
    const double needed = problem->model->MemoryAt(problem->model->TotalsOf(*plain, 4), place);
    const double limit = needed * std::uniform_real_distribution<double>(0.6, 1.1)(random);
    const RecomputeResult result = ChooseRecompute(*problem->model, *stage, 4, place, limit);
    const StagePtr chosen = WithChosenRecompute(*problem->model, stage, 4, place, limit);
    ExpectEqual(result.totals, ReferenceTotals(*problem->model, *chosen, 4));
    EXPECT_EQ(result.memory_mib, problem->model->MemoryAt(result.totals, place));
    EXPECT_EQ(result.fits, result.memory_mib <= limit);
    if (needed <= limit) {
      EXPECT_FALSE(chosen->recomputes()) << "nothing is recomputed where all fits";
    }
    fitted += result.fits;
    recomputed += chosen->recomputes();
  }
  EXPECT_GT(fitted, 40);
  EXPECT_GT(recomputed, 100);
}

TEST(RecomputeRule, UniformStagesTakeTheSameChoice) {
  std::mt19937 random(10);
  for (int round = 0; round < 200; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    const int32_t size = problem->ops.size();
    const auto first = static_cast<int32_t>(random() % size), count = static_cast<int32_t>(1 + random() % (size - first));
    const OpChoice split{2, 2, 0, false};
    const StagePlace place{.stages_behind = 2};
    const double needed = problem->model->MemoryAt(problem->model->UniformTotals(first, count, split, 4), place);
    const double limit = needed * std::uniform_real_distribution<double>(0.5, 1.2)(random);
    const RecomputeResult a = ChooseRecomputeUniform(*problem->model, first, count, split, 4, place, limit);
    const RecomputeResult b = ChooseRecompute(*problem->model, *Stage::MakeUniform(first, count, split), 4, place, limit);
    ExpectEqual(a.totals, b.totals);
    EXPECT_EQ(a.fits, b.fits);
    if (!a.flags.empty()) {
      EXPECT_EQ(a.flags, b.flags);
    }
  }
}

}  // namespace
}  // namespace tidepool::plan
