#include "plan/aceso_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "plan/fine_tune.h"
#include "plan/initial_plans.h"
#include "plan/reference_problems.h"
#include "plan/search_run.h"
#include "plan/testing.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;
using testing::MakeRandomProblem;
using testing::RandomPlan;
using testing::RandomProblemOptions;

using SearchFunction = StatusOr<SearchResult> (*)(const CostModel&, const SearchRequest&);
struct NamedSearch {
  const char* name;
  SearchFunction search;
  bool improves;  // begins with request.start
};
void PrintTo(const NamedSearch& search, std::ostream* out) { *out << search.name; }

RandomProblemOptions Sized(std::mt19937& random) {
  RandomProblemOptions options;
  options.list.layers = static_cast<int32_t>(2 + random() % 8);
  options.list.period = static_cast<int32_t>(2 + random() % 5);
  options.list.reshards = random() % 2 == 0;
  options.profile.missing = random() % 3 == 0 ? 0.2 : 0;
  constexpr Cluster kClusters[] = {{1, 4, 0}, {2, 2, 0}, {2, 4, 0}, {1, 8, 0}, {1, 1, 0}};
  options.cluster = kClusters[random() % 5];
  options.cluster.memory_limit_mib = 600.0 + static_cast<double>(random() % 4000);
  return options;
}

SearchRequest RequestOf(int64_t budget) {
  SearchRequest request{.global_batch = 32, .micro_batches = {1, 2, 4}};
  request.threads = 1;
  request.top_k = 3;
  request.budget = budget;
  return request;
}

class AnySearch : public ::testing::TestWithParam<NamedSearch> {};

TEST_P(AnySearch, GivesValidPlansThatCostWhatItSaysBestFirst) {
  std::mt19937 random(1);
  int32_t found = 0;
  for (int round = 0; round < 25; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    const auto result = GetParam().search(*problem->model, RequestOf(2000));
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted) << ToString(result.status());
      continue;
    }
    ++found;
    EXPECT_LE(result->plans.size(), 3u);
    for (size_t i = 0; i < result->plans.size(); ++i) {
      const RankedPlan& ranked = result->plans[i];
      const Status valid = Verify(*problem->model, ranked.plan);
      EXPECT_TRUE(valid.ok()) << "round " << round << ": " << ToString(valid);
      const auto cost = problem->model->Price(ranked.plan);
      ASSERT_TRUE(cost.ok());
      EXPECT_EQ(cost->iteration_ms, ranked.cost.iteration_ms);
      EXPECT_EQ(cost->max_memory_mib, ranked.cost.max_memory_mib);
      if (i == 0) continue;
      EXPECT_GE(ranked.cost.iteration_ms, result->plans[i - 1].cost.iteration_ms);
      EXPECT_NE(ranked.plan.stages.size(), result->plans[i - 1].plan.stages.size());
    }
  }
  EXPECT_GE(found, 10);
}

TEST_P(AnySearch, FindsTheSamePlansWithOneTwoAndSixteenThreads) {
  std::mt19937 random(2);
  for (int round = 0; round < 5; ++round) {
    RandomProblemOptions options = Sized(random);
    options.cluster.memory_limit_mib = 4000;
    const auto problem = MakeRandomProblem(random, options);
    SearchRequest request = RequestOf(4000);
    const auto one = GetParam().search(*problem->model, request);
    for (const int32_t threads : {2, 16}) {
      request.threads = threads;
      const auto many = GetParam().search(*problem->model, request);
      ASSERT_EQ(one.ok(), many.ok());
      if (!one.ok()) continue;
      ASSERT_EQ(one->plans.size(), many->plans.size());
      EXPECT_EQ(one->evaluations, many->evaluations);
      for (size_t i = 0; i < one->plans.size(); ++i) {
        EXPECT_EQ(one->plans[i].plan.Key(), many->plans[i].plan.Key()) << threads << " threads, plan " << i;
        EXPECT_EQ(one->plans[i].cost.iteration_ms, many->plans[i].cost.iteration_ms);
      }
    }
  }
}

TEST_P(AnySearch, IsNeverWorseThanTheStart) {
  if (!GetParam().improves) GTEST_SKIP() << "does not begin with a plan";
  std::mt19937 random(3);
  int32_t starts = 0;
  for (int round = 0; round < 60; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    const auto start = RandomPlan(random, *problem->model, 1 << (random() % 3), true);
    if (start == nullptr) continue;
    start->global_batch = 32;
    if (!Verify(*problem->model, *start).ok()) continue;
    ++starts;
    SearchRequest request = RequestOf(1 + random() % 300);
    request.start = *start;
    const auto result = GetParam().search(*problem->model, request);
    ASSERT_TRUE(result.ok()) << ToString(result.status());
    EXPECT_LE(result->best_ms(), problem->model->Price(*start)->iteration_ms);
  }
  EXPECT_GE(starts, 8);
}

TEST_P(AnySearch, SaysHowMuchMemoryWasSeenToWork) {
  std::mt19937 random(4);
  RandomProblemOptions options;
  options.cluster.memory_limit_mib = 1;
  const auto problem = MakeRandomProblem(random, options);
  const auto result = GetParam().search(*problem->model, RequestOf(500));
  ASSERT_EQ(result.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(result.status()), HasSubstr("within 1 MiB"));
}

TEST_P(AnySearch, StopsAtTheWallLimit) {
  std::mt19937 random(5);
  const auto problem = MakeRandomProblem(random);
  SearchRequest request = RequestOf(int64_t{1} << 40);
  request.wall_limit = absl::ZeroDuration();
  const auto result = GetParam().search(*problem->model, request);
  if (result.ok()) {
    EXPECT_TRUE(Verify(*problem->model, result->plans[0].plan).ok());
  } else {
    EXPECT_TRUE(result.status().code() == StatusCode::kDeadlineExceeded ||
                result.status().code() == StatusCode::kResourceExhausted)
        << ToString(result.status());
  }
}

INSTANTIATE_TEST_SUITE_P(All, AnySearch,
                         ::testing::Values(NamedSearch{"aceso", SearchAceso, true}, NamedSearch{"random", SearchRandom, true},
                                           NamedSearch{"inter_intra", SearchInterIntra, false}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(AcesoSearch, TellsOfProgressThatOnlyImproves) {
  std::mt19937 random(6);
  RandomProblemOptions options;
  options.cluster.memory_limit_mib = 8000;
  const auto problem = MakeRandomProblem(random, options);
  SearchRequest request = RequestOf(5000);
  request.threads = 4;
  std::vector<double> seen;
  request.on_progress = [&](const SearchProgress& progress) { seen.push_back(progress.best_ms); };
  const auto result = SearchAceso(*problem->model, request);
  ASSERT_TRUE(result.ok());
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(std::is_sorted(seen.rbegin(), seen.rend()));
  EXPECT_GE(seen.back(), result->best_ms());
}

TEST(AcesoSearch, IsAtLeastAsGoodWithMoreEvaluations) {
  std::mt19937 random(7);
  for (int round = 0; round < 6; ++round) {
    RandomProblemOptions options = Sized(random);
    options.cluster = {1, 4, 3000};
    const auto problem = MakeRandomProblem(random, options);
    const auto few = SearchAceso(*problem->model, RequestOf(200)), many = SearchAceso(*problem->model, RequestOf(40'000));
    if (!few.ok()) continue;
    ASSERT_TRUE(many.ok());
    EXPECT_LE(many->best_ms(), few->best_ms());
  }
}

TEST(Polish, IsNeverWorseThanThePlanAsItWasGiven) {
  std::mt19937 random(8);
  int32_t polished = 0, better = 0;
  for (int round = 0; round < 60; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    const auto plan = RandomPlan(random, *problem->model, 1 << (random() % 3), true);
    if (plan == nullptr) continue;
    plan->global_batch = 32;
    if (!Verify(*problem->model, *plan).ok()) continue;
    ++polished;
    const double before = problem->model->Price(*plan)->iteration_ms;
    const auto result = Polish(*problem->model, *plan, 1 + static_cast<int64_t>(random() % 2000), {.micro_batches = {1, 2, 4}});
    ASSERT_TRUE(result.ok()) << ToString(result.status());
    EXPECT_TRUE(Verify(*problem->model, result->best.plan).ok());
    EXPECT_EQ(result->best.plan.stages.size(), plan->stages.size());
    EXPECT_LE(result->best.cost.iteration_ms, before);
    better += result->best.cost.iteration_ms < before ? 1 : 0;
  }
  EXPECT_GE(polished, 8);
  EXPECT_GE(better, polished / 2);
}

TEST(Polish, RefusesAPlanThatIsNotValid) {
  std::mt19937 random(9);
  const auto problem = MakeRandomProblem(random);
  Plan plan{.global_batch = 4, .micro_batch = 1, .stages = {Stage::MakeUniform(1, 3, {})}};
  const auto result = Polish(*problem->model, plan, 100);
  ASSERT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(result.status()), HasSubstr("begins with op 1"));
}

TEST(FineTune, MakesStagesFasterAndKeepsCutsAndDevices) {
  std::mt19937 random(10);
  int32_t tuned_plans = 0;
  for (int round = 0; round < 40; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    PlanEditor editor(*problem->model, {1, 2, 4});
    const auto plan = RandomPlan(random, *problem->model, 2, true);
    if (plan == nullptr) continue;
    plan->global_batch = 32;
    const std::optional<RankedPlan> from = editor.MakeAsIs(*plan);
    if (!from || !from->cost.fits) continue;
    const std::optional<RankedPlan> tuned = FineTune(&editor, *from, {.recompute = true});
    if (!tuned) continue;
    ++tuned_plans;
    EXPECT_TRUE(Verify(*problem->model, tuned->plan).ok());
    EXPECT_LT(tuned->cost.iteration_ms, from->cost.iteration_ms);
    for (size_t i = 0; i < from->plan.stages.size(); ++i) {
      EXPECT_EQ(tuned->plan.stages[i]->first(), from->plan.stages[i]->first());
      EXPECT_EQ(tuned->plan.stages[i]->gpus(), from->plan.stages[i]->gpus());
      EXPECT_LE(tuned->cost.stages[i].time_us, from->cost.stages[i].time_us);
    }
  }
  EXPECT_GE(tuned_plans, 5);
}

TEST(FineTune, OfRecomputationFreesOnlyWhatItMust) {
  std::mt19937 random(11);
  int32_t compared = 0;
  for (int round = 0; round < 40; ++round) {
    RandomProblemOptions options = Sized(random);
    options.list.layers = 2;
    options.list.period = 4;
    options.list.extra = 0;
    options.cluster = {1, 1, 1e6};
    auto problem = MakeRandomProblem(random, options);
    const StagePtr stage = Stage::MakeUniform(0, problem->ops.size(), {});
    const StagePlace place = problem->model->PlacesOf({.stages = {stage}})[0];
    // A limit at which some flags are needed, and the best flags by exhaustion.
    const auto memory = [&](uint32_t mask) {
      std::vector<uint8_t> flags;
      for (int32_t i = 0; i < problem->ops.size(); ++i) flags.push_back(mask >> i & 1);
      return problem->model->CostAt(problem->model->TotalsOf(*stage->WithRecompute(flags), 1), place);
    };
    const double none = memory(0).memory_mib, all = memory((1u << problem->ops.size()) - 1).memory_mib;
    if (all >= none) continue;
    problem->cluster.memory_limit_mib = (all + none) / 2;
    double best = 1e300;
    for (uint32_t mask = 0; mask < 1u << problem->ops.size(); ++mask) {
      const StageCost cost = memory(mask);
      if (cost.memory_mib <= problem->cluster.memory_limit_mib) best = std::min(best, cost.time_us);
    }
    PlanEditor editor(*problem->model, {1});
    const std::optional<RankedPlan> from = editor.MakeNew(4, 1, {stage});
    ASSERT_TRUE(from.has_value());
    const std::optional<RankedPlan> tuned =
        FineTune(&editor, *from, {.splits = false, .algorithms = false, .uniform = false, .recompute = true});
    const RankedPlan& result = tuned ? *tuned : *from;
    if (!result.cost.fits) continue;
    ++compared;
    EXPECT_GE(result.cost.stages[0].time_us, best);
    EXPECT_LE(result.cost.stages[0].time_us, from->cost.fits ? from->cost.stages[0].time_us : 1e300);
  }
  EXPECT_GE(compared, 10);
}

TEST(InitialPlans, UseAllDevicesAndOpsWithEveryStageCount) {
  std::mt19937 random(12);
  int32_t plans = 0;
  for (int round = 0; round < 30; ++round) {
    const auto problem = MakeRandomProblem(random, Sized(random));
    PlanEditor editor(*problem->model, {1, 2, 4});
    for (int32_t stages = 1; stages <= problem->cluster.gpus(); ++stages) {
      for (const RankedPlan& plan : InitialPlans(&editor, 32, stages)) {
        ++plans;
        EXPECT_EQ(plan.plan.stages.size(), static_cast<size_t>(stages));
        for (const PlanFault& fault : FindFaults(*problem->model, plan.plan, {.check_memory = false}))
          ADD_FAILURE() << fault.text;
      }
    }
  }
  EXPECT_GT(plans, 100);
}

TEST(InitialPlans, DivideDevicesAsEquallyAsNodesAllow) {
  const Cluster cluster{.nodes = 2, .gpus_per_node = 8, .memory_limit_mib = 1};
  const std::vector<int32_t> sizes = {1, 2, 4, 8, 16};
  EXPECT_THAT(DivideDevices(cluster, sizes, 4, true), ::testing::ElementsAre(4, 4, 4, 4));
  EXPECT_THAT(DivideDevices(cluster, sizes, 1, true), ::testing::ElementsAre(16));
  EXPECT_THAT(DivideDevices(cluster, sizes, 3, true), ::testing::UnorderedElementsAre(4, 4, 8));
  EXPECT_THAT(DivideDevices(cluster, sizes, 3, false), ::testing::UnorderedElementsAre(4, 4, 8));
  EXPECT_THAT(DivideDevices(cluster, {8}, 3, true), ::testing::IsEmpty());
  EXPECT_THAT(DivideDevices(cluster, sizes, 17, true), ::testing::IsEmpty());
}

// What the published search found on the same settings, with the same cost model.
TEST(AcesoSearch, FindsPlansAsFastAsThePublishedOnesOnSmallSettings) {
  if (testing::ReferenceProblemNames(TIDEPOOL_SOURCE_DIR).empty())
    GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  for (const char* name : {"small/gpt_1_3B", "small/resnet_1B", "large/gpt_1_3B", "scale/8"}) {
    const auto problem = testing::LoadReferenceProblem(TIDEPOOL_SOURCE_DIR, name);
    ASSERT_TRUE(problem.ok()) << ToString(problem.status());
    SearchRequest request = (*problem)->request;
    request.budget = 100'000;
    const auto result = SearchAceso(*(*problem)->model, request);
    ASSERT_TRUE(result.ok()) << ToString(result.status());
    EXPECT_LE(result->best_ms(), (*problem)->published_seconds * 1000 + 0.5) << name;
  }
}

}  // namespace
}  // namespace tidepool::plan
