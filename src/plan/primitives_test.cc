#include "plan/primitives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "plan/op_migration.h"
#include "plan/pricer.h"
#include "plan/recompute_rule.h"
#include "plan/search_run.h"
#include "plan/testing.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

using testing::MakeRandomProblem;
using testing::RandomPlan;
using testing::RandomProblemOptions;

constexpr Primitive kAll[] = {Primitive::kDecOps,        Primitive::kIncData,          Primitive::kIncTensor,
                              Primitive::kDecData,       Primitive::kDecTensor,        Primitive::kIncMicroBatch,
                              Primitive::kDecMicroBatch, Primitive::kIncTensorDecData, Primitive::kIncDataDecTensor};

RandomProblemOptions Sized(std::mt19937& random) {
  RandomProblemOptions options;
  options.list.layers = static_cast<int32_t>(2 + random() % 8);
  options.list.period = static_cast<int32_t>(2 + random() % 5);
  options.list.reshards = random() % 2 == 0;
  options.profile.missing = random() % 3 == 0 ? 0.2 : 0;
  options.profile.widths = {1, 2, 4};
  constexpr Cluster kClusters[] = {{1, 4, 0}, {2, 2, 0}, {2, 4, 0}, {1, 8, 0}, {4, 2, 0}};
  options.cluster = kClusters[random() % 5];
  options.cluster.memory_limit_mib = 200.0 + static_cast<double>(random() % 3000);
  return options;
}

// A random plan that is valid but for memory, priced.
std::optional<RankedPlan> RandomRanked(std::mt19937& random, PlanEditor* editor) {
  for (int attempt = 0; attempt < 30; ++attempt) {
    const auto plan = RandomPlan(random, editor->model(), 1 << (random() % 3), random() % 2 == 0);
    if (plan == nullptr) continue;
    plan->global_batch = 4 * static_cast<int64_t>(1 + random() % 8);
    if (std::optional<RankedPlan> made = editor->MakeAsIs(*plan)) return made;
  }
  return std::nullopt;
}

void ExpectConserved(const CostModel& model, const RankedPlan& before, const RankedPlan& after) {
  const std::vector<PlanFault> faults = FindFaults(model, after.plan, {.check_memory = false});
  for (const PlanFault& fault : faults) ADD_FAILURE() << fault.text;
  EXPECT_EQ(after.plan.gpus(), before.plan.gpus());
  EXPECT_EQ(after.plan.global_batch, before.plan.global_batch);
  EXPECT_EQ(after.plan.stages.size(), before.plan.stages.size());
  EXPECT_EQ(after.plan.stages.back()->end(), model.ops().size());
}

void ExpectSameCost(const PlanCost& a, const PlanCost& b) {
  EXPECT_EQ(a.iteration_ms, b.iteration_ms);
  EXPECT_EQ(a.max_memory_mib, b.max_memory_mib);
  EXPECT_EQ(a.slowest, b.slowest);
  EXPECT_EQ(a.largest, b.largest);
  EXPECT_EQ(a.fits, b.fits);
  EXPECT_EQ(a.stage_iteration_ms, b.stage_iteration_ms);
  ASSERT_EQ(a.stages.size(), b.stages.size());
  for (size_t i = 0; i < a.stages.size(); ++i) {
    EXPECT_EQ(a.stages[i].time_us, b.stages[i].time_us);
    EXPECT_EQ(a.stages[i].recompute_us, b.stages[i].recompute_us);
    EXPECT_EQ(a.stages[i].in_us, b.stages[i].in_us);
    EXPECT_EQ(a.stages[i].out_us, b.stages[i].out_us);
    EXPECT_EQ(a.stages[i].memory_mib, b.stages[i].memory_mib);
  }
}

// Walks from plan to plan by random primitives; calls `check` after each.
template <typename Check>
int Walk(uint32_t seed, int problems, int steps, std::set<Primitive>* made, Check&& check) {
  std::mt19937 random(seed);
  int moves = 0;
  for (int round = 0; round < problems; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    PlanEditor editor(*problem->model, {1, 2, 4});
    std::optional<RankedPlan> now = RandomRanked(random, &editor);
    for (int step = 0; now && step < steps; ++step) {
      const Primitive primitive = kAll[random() % std::size(kAll)];
      const auto stage = static_cast<int32_t>(random() % now->plan.stages.size());
      const std::vector<RankedPlan> next = Apply(&editor, primitive, *now, stage);
      for (const RankedPlan& plan : next) {
        ++moves;
        made->insert(primitive);
        check(*problem->model, primitive, stage, *now, plan);
        if (::testing::Test::HasFailure()) {
          ADD_FAILURE() << "seed " << seed << ", problem " << round << ", step " << step << ": " << NameOf(primitive);
          return moves;
        }
      }
      if (!next.empty()) now = next[random() % next.size()];
    }
  }
  return moves;
}

TEST(Primitives, KeepOpsDevicesBatchAndEveryRuleOfAValidPlan) {
  std::set<Primitive> made;
  const int moves =
      Walk(1, 300, 30, &made, [](const CostModel& model, Primitive, int32_t, const RankedPlan& before, const RankedPlan& after) {
        ExpectConserved(model, before, after);
      });
  EXPECT_GT(moves, 2000);
  EXPECT_EQ(made.size(), std::size(kAll)) << "not every primitive was ever possible";
}

TEST(Primitives, PriceWhatTheyMakeAsAFullEvaluationDoesInEveryBit) {
  std::set<Primitive> made;
  const int moves =
      Walk(2, 200, 30, &made, [](const CostModel& model, Primitive, int32_t, const RankedPlan&, const RankedPlan& after) {
        const auto full = model.Price(after.plan);
        ASSERT_TRUE(full.ok());
        ExpectSameCost(after.cost, *full);
        Pricer pricer(model);
        ExpectSameCost(after.cost, *pricer.Price(after.plan));
      });
  EXPECT_GT(moves, 1500);
}

TEST(Primitives, ChooseRecomputationOfWhatChangedByTheRule) {
  std::set<Primitive> made;
  Walk(3, 60, 20, &made, [](const CostModel& model, Primitive, int32_t, const RankedPlan& before, const RankedPlan& after) {
    const std::vector<StagePlace> places = model.PlacesOf(after.plan);
    for (size_t i = 0; i < places.size(); ++i) {
      const StagePtr& stage = after.plan.stages[i];
      if (stage == before.plan.stages[i]) continue;
      const StagePtr chosen = WithChosenRecompute(model, stage, after.plan.micro_batch, places[i],
                                                  model.cluster().MemoryLimitOf(places[i].first_gpu, stage->gpus()));
      EXPECT_EQ(chosen->key(), stage->key());
    }
  });
}

TEST(Primitives, DoToTheirStageWhatTheirTableSays) {
  std::set<Primitive> made;
  Walk(4, 100, 30, &made,
       [](const CostModel&, Primitive primitive, int32_t stage, const RankedPlan& before, const RankedPlan& after) {
         const Stage &was = *before.plan.stages[stage], &is = *after.plan.stages[stage];
         const PrimitiveEffect effect = EffectOf(primitive);
         EXPECT_EQ(is.gpus() > was.gpus(), effect.devices > 0);
         EXPECT_EQ(is.gpus() < was.gpus(), effect.devices < 0);
         if (primitive != Primitive::kDecOps) {
           EXPECT_EQ(is.count(), was.count());
         }
         const bool other_batch = primitive == Primitive::kIncMicroBatch || primitive == Primitive::kDecMicroBatch;
         EXPECT_EQ(after.plan.micro_batch != before.plan.micro_batch, other_batch);
       });
}

TEST(OpMigration, MovesOpsFromTheSideOfTheTaker) {
  std::mt19937 random(5);
  const auto problem = MakeRandomProblem(random);
  const StagePtr left = Stage::MakeRuns(0, {{3, {4, 1, 1}}, {2, {2, 2, 0, true}}}), right = Stage::MakeRuns(5, {{4, {1, 2, 1}}});
  const Moved forward = MoveOps(*problem->model, left, right, 3, 4);
  EXPECT_EQ(forward.giver->runs(), (std::vector<ChoiceRun>{{2, {4, 1, 1}}}));
  EXPECT_EQ(forward.taker->first(), 2);
  EXPECT_EQ(forward.taker->runs(), (std::vector<ChoiceRun>{{1, {1, 2, 1}}, {2, {1, 2, 0}}, {4, {1, 2, 1}}}));
  const Moved back = MoveOps(*problem->model, right, left, 1, 4);
  EXPECT_EQ(back.giver->first(), 6);
  EXPECT_EQ(back.giver->count(), 3);
  EXPECT_EQ(back.taker->first(), 0);
  EXPECT_EQ(back.taker->runs().back(), (ChoiceRun{1, {2, 2, 1}}));
}

TEST(OpMigration, MakesTheBottleneckFasterOrSmallerIfThePlanDoesNotFit) {
  std::mt19937 random(6);
  int32_t moved = 0;
  for (int round = 0; round < 60; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    PlanEditor editor(*problem->model, {1, 2, 4});
    const std::optional<RankedPlan> from = RandomRanked(random, &editor);
    if (!from) continue;
    const int32_t stage = BottleneckOf(*problem->model, *from);
    for (const RankedPlan& plan : Apply(&editor, Primitive::kDecOps, *from, stage, {.migrations = 1})) {
      ++moved;
      const StageCost &is = plan.cost.stages[stage], &was = from->cost.stages[stage];
      EXPECT_LT(from->cost.fits ? is.time_us : is.memory_mib, from->cost.fits ? was.time_us : was.memory_mib);
      EXPECT_LE(plan.plan.stages[stage]->count(), from->plan.stages[stage]->count());
    }
  }
  EXPECT_GT(moved, 20);
}

TEST(PrimitiveOrder, TriesEveryPrimitiveOnceAndWhatSavesMemoryFirstIfThePlanDoesNotFit) {
  std::mt19937 random(7);
  int32_t too_large = 0;
  for (int round = 0; round < 60; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    PlanEditor editor(*problem->model, {1, 2, 4});
    const std::optional<RankedPlan> plan = RandomRanked(random, &editor);
    if (!plan) continue;
    const int32_t stage = BottleneckOf(*problem->model, *plan);
    std::set<Primitive> seen;
    for (const std::vector<Primitive>& group : OrderedPrimitives(*problem->model, *plan, stage)) {
      for (const Primitive primitive : group) EXPECT_TRUE(seen.insert(primitive).second);
    }
    EXPECT_EQ(seen.size(), std::size(kAll));
    if (plan->cost.fits) continue;
    ++too_large;
    const auto groups = OrderedPrimitives(*problem->model, *plan, stage);
    for (const Primitive primitive : groups[0]) EXPECT_LT(EffectOf(primitive).memory, 0);
    const std::vector<StagePlace> places = problem->model->PlacesOf(plan->plan);
    EXPECT_EQ(stage, plan->cost.largest);
  }
  EXPECT_GT(too_large, 5);
}

}  // namespace
}  // namespace tidepool::plan
