// The searches that stand on the stage programme, against exhaustive search.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "plan/path_planner.h"
#include "plan/programme_search.h"
#include "plan/recompute_rule.h"
#include "plan/search.h"
#include "plan/testing.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;

// Every way to cut the list into stages of the sizes that the cluster allows; `visit` gets first ops and devices of all stages.
void ForEachCut(const CostModel& model, int32_t micro_batch,
                const std::function<void(const std::vector<std::pair<int32_t, int32_t>>&)>& visit) {
  std::vector<std::pair<int32_t, int32_t>> cuts;
  const std::vector<int32_t> sizes = model.StageSizes(micro_batch);
  const std::function<void(int32_t, int32_t)> extend = [&](int32_t op, int32_t gpu) {
    for (const int32_t size : sizes) {
      if (!model.cluster().IsStageRange(gpu, size)) continue;
      cuts.emplace_back(op, size);
      if (gpu + size == model.cluster().gpus()) visit(cuts);
      for (int32_t next = op + 1; next < model.ops().size(); ++next) {
        if (model.ops().SkipsAllowStage(op, next - op) && gpu + size < model.cluster().gpus()) extend(next, gpu + size);
      }
      cuts.pop_back();
    }
  };
  extend(0, 0);
}

std::vector<StagePlace> PlacesOf(const CostModel& model, const std::vector<std::pair<int32_t, int32_t>>& cuts) {
  std::vector<StagePlace> places;
  int32_t gpu = 0;
  for (size_t i = 0; i < cuts.size(); ++i) {
    const int32_t next = gpu + cuts[i].second;
    places.push_back({static_cast<int32_t>(cuts.size() - 1 - i), model.cluster().LinkAt(gpu), model.cluster().LinkAt(next), gpu});
    gpu = next;
  }
  return places;
}

// The best plan of stages with one split each and recomputation by the rule; infinite if there is none.
double ExhaustiveUniformMs(const CostModel& model, const SearchRequest& request) {
  double best = std::numeric_limits<double>::infinity();
  for (const int32_t micro_batch : request.micro_batches) {
    ForEachCut(model, micro_batch, [&](const std::vector<std::pair<int32_t, int32_t>>& cuts) {
      const auto stages = static_cast<int32_t>(cuts.size());
      if (stages < request.min_stages || (request.max_stages > 0 && stages > request.max_stages)) return;
      const std::vector<StagePlace> places = PlacesOf(model, cuts);
      Plan plan{request.global_batch, micro_batch, {}};
      // Splits of one stage do not matter to another: but to the slowest. So all combinations.
      const std::function<void(size_t)> choose = [&](size_t at) {
        if (at == cuts.size()) {
          const auto cost = model.Price(plan);
          ASSERT_TRUE(cost.ok());
          if (cost->fits) best = std::min(best, cost->iteration_ms);
          return;
        }
        const int32_t end = at + 1 < cuts.size() ? cuts[at + 1].first : model.ops().size();
        for (const OpChoice& split : model.SplitsOf(cuts[at].second, micro_batch)) {
          const StagePtr stage = Stage::MakeUniform(cuts[at].first, end - cuts[at].first, split);
          const double limit = model.cluster().MemoryLimitOf(places[at].first_gpu);
          plan.stages.push_back(WithChosenRecompute(model, stage, micro_batch, places[at], limit));
          choose(at + 1);
          plan.stages.pop_back();
        }
      };
      choose(0);
    });
  }
  return best;
}

std::unique_ptr<testing::RandomProblem> SmallProblem(std::mt19937& random) {
  testing::RandomProblemOptions options;
  options.list = {.layers = static_cast<int32_t>(random() % 3), .period = 3, .extra = static_cast<int32_t>(1 + random() % 2)};
  options.profile.missing = random() % 3 == 0 ? 0.3 : 0;
  const auto nodes = static_cast<int32_t>(1 + random() % 2);
  options.cluster = {.nodes = nodes, .gpus_per_node = 2, .memory_limit_mib = 300.0 + static_cast<double>(random() % 3000)};
  return testing::MakeRandomProblem(random, options);
}
SearchRequest SmallRequest(std::mt19937& random, int32_t threads) {
  return {.global_batch = static_cast<int64_t>(4 << random() % 5), .micro_batches = {1, 2, 4}, .threads = threads};
}

TEST(ExactSearch, FindsTheBestUniformPlanOfSmallCases) {
  std::mt19937 random(3);
  int found = 0, none = 0;
  for (int i = 0; i < 160; ++i) {
    SCOPED_TRACE(i);
    const auto problem = SmallProblem(random);
    const SearchRequest request = SmallRequest(random, 1 + i % 2);
    const double best = ExhaustiveUniformMs(*problem->model, request);
    const auto result = Search(SearchKind::kExact, *problem->model, request);
    if (best == std::numeric_limits<double>::infinity()) {
      ASSERT_FALSE(result.ok());
      EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted) << ToString(result.status());
      ++none;
      continue;
    }
    ASSERT_TRUE(result.ok()) << ToString(result.status()) << " but " << best << " is possible";
    EXPECT_EQ(result->best_ms(), best);
    const std::vector<PlanFault> faults = FindFaults(*problem->model, result->plans[0].plan);
    EXPECT_TRUE(faults.empty()) << faults[0].text;
    ++found;
  }
  EXPECT_GT(found, 100);
  EXPECT_GT(none, 5);
}

TEST(ExactSearch, GivesTheSamePlansForAnyNumberOfThreads) {
  std::mt19937 random(4);
  for (int i = 0; i < 10; ++i) {
    testing::RandomProblemOptions options;
    options.list = {.layers = 6, .period = 5, .extra = 2};
    options.cluster = {.nodes = 2, .gpus_per_node = 4, .memory_limit_mib = 600.0 + 200.0 * i};
    const auto problem = testing::MakeRandomProblem(random, options);
    SearchRequest request{.global_batch = 64, .micro_batches = {4, 1, 2}, .threads = 1, .top_k = 3};
    const auto one = Search(SearchKind::kExact, *problem->model, request);
    for (const int32_t threads : {2, 16}) {
      request.threads = threads;
      const auto many = Search(SearchKind::kExact, *problem->model, request);
      ASSERT_EQ(one.ok(), many.ok());
      if (!one.ok()) {
        EXPECT_EQ(ToString(one.status()), ToString(many.status()));
        continue;
      }
      ASSERT_EQ(one->plans.size(), many->plans.size());
      EXPECT_EQ(one->evaluations, many->evaluations);
      for (size_t k = 0; k < one->plans.size(); ++k) EXPECT_EQ(one->plans[k].plan.Key(), many->plans[k].plan.Key());
    }
  }
}

TEST(ExactSearch, KeepsTheBestPlansOfDifferentStageCounts) {
  std::mt19937 random(5);
  const auto problem = testing::MakeRandomProblem(random);
  SearchRequest request{.global_batch = 32, .micro_batches = {1, 2, 4}, .threads = 1, .top_k = 4};
  const auto result = Search(SearchKind::kExact, *problem->model, request);
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  ASSERT_GT(result->plans.size(), 1u);
  for (size_t k = 0; k < result->plans.size(); ++k) {
    const auto stages = static_cast<int32_t>(result->plans[k].plan.stages.size());
    if (k > 0) {
      EXPECT_LE(result->plans[k - 1].cost.iteration_ms, result->plans[k].cost.iteration_ms);
    }
    SearchRequest only = request;
    only.top_k = 1;
    only.min_stages = only.max_stages = stages;
    EXPECT_EQ(ExhaustiveUniformMs(*problem->model, only), result->plans[k].cost.iteration_ms);
  }
}

TEST(ExactSearch, SaysWhatMemoryWouldDo) {
  std::mt19937 random(6);
  testing::RandomProblemOptions options;
  options.cluster.memory_limit_mib = 150;
  const auto problem = testing::MakeRandomProblem(random, options);
  const SearchRequest request{.global_batch = 32, .micro_batches = {1, 2, 4}, .threads = 1};
  const auto result = Search(SearchKind::kExact, *problem->model, request);
  ASSERT_EQ(result.status().code(), StatusCode::kResourceExhausted) << ToString(result.status());
  const std::string text = MessageOf(result.status());
  EXPECT_THAT(text, HasSubstr("no plan of random fits into 4 devices with 150 MiB each, at micro-batches 1, 2, 4: "));
  const size_t at = text.find("4: ") + 3;
  const double enough = std::stod(text.substr(at));
  EXPECT_THAT(text, HasSubstr("MiB per device would do"));
  // The rule recomputes no more than it must, and may need a little more than it would with all that it may recompute.
  for (const double mib : {enough * 1.1, enough - 1}) {
    Cluster cluster = problem->cluster;
    cluster.memory_limit_mib = mib;
    const auto model = MakeParityModel(problem->ops, *problem->table, cluster, request.micro_batches);
    ASSERT_TRUE(model.ok());
    EXPECT_EQ(Search(SearchKind::kExact, **model, request).ok(), mib > enough) << mib;
  }
}

TEST(ExactSearch, StopsAtItsLimitsAndSaysSo) {
  std::mt19937 random(7);
  const auto problem = testing::MakeRandomProblem(random);
  SearchRequest request{.global_batch = 32, .micro_batches = {1, 2, 4}, .threads = 1, .wall_limit = absl::Nanoseconds(1)};
  const auto late = Search(SearchKind::kExact, *problem->model, request);
  EXPECT_EQ(late.status().code(), StatusCode::kDeadlineExceeded) << ToString(late.status());
  EXPECT_THAT(MessageOf(late.status()), HasSubstr("wall limit"));
  request.wall_limit = absl::Hours(1);
  request.budget = 1;
  const auto poor = Search(SearchKind::kExact, *problem->model, request);
  EXPECT_EQ(poor.status().code(), StatusCode::kDeadlineExceeded) << ToString(poor.status());
  EXPECT_THAT(MessageOf(poor.status()), HasSubstr("budget of 1 evaluations"));
}

// The best plan of any splits and any recomputation, op by op; infinite if there is none.
double ExhaustivePerOpMs(const CostModel& model, const SearchRequest& request) {
  double best = std::numeric_limits<double>::infinity();
  for (const int32_t micro_batch : request.micro_batches) {
    ForEachCut(model, micro_batch, [&](const std::vector<std::pair<int32_t, int32_t>>& cuts) {
      const std::vector<StagePlace> places = PlacesOf(model, cuts);
      Plan plan{request.global_batch, micro_batch, {}};
      for (size_t i = 0; i < cuts.size(); ++i) {
        const int32_t end = i + 1 < cuts.size() ? cuts[i + 1].first : model.ops().size();
        const std::vector<OpChoice> splits = model.SplitsOf(cuts[i].second, micro_batch);
        std::vector<OpChoice> choices(end - cuts[i].first);
        StagePtr fastest;
        double fastest_us = std::numeric_limits<double>::infinity();
        const std::function<void(size_t)> choose = [&](size_t at) {
          if (at == choices.size()) {
            const StagePtr stage = Stage::Make(cuts[i].first, choices);
            const StageCost cost = model.CostAt(model.TotalsOf(*stage, micro_batch), places[i]);
            if (cost.memory_mib > model.cluster().memory_limit_mib || cost.time_us >= fastest_us) return;
            fastest = stage;
            fastest_us = cost.time_us;
            return;
          }
          for (OpChoice split : splits) {
            for (const bool recompute : {false, true}) {
              split.recompute = recompute;
              choices[at] = split;
              choose(at + 1);
            }
          }
        };
        choose(0);
        if (fastest == nullptr) return;
        plan.stages.push_back(fastest);
      }
      const auto cost = model.Price(plan);
      ASSERT_TRUE(cost.ok());
      EXPECT_TRUE(cost->fits);
      best = std::min(best, cost->iteration_ms);
    });
  }
  return best;
}

TEST(PerOpSearch, LiesBetweenTheBoundAndTheExactSearchInSmallCases) {
  std::mt19937 random(8);
  int found = 0, optimal = 0, tight = 0;
  for (int i = 0; i < 130; ++i) {
    SCOPED_TRACE(i);
    testing::RandomProblemOptions options;
    options.list = {.layers = 1, .period = static_cast<int32_t>(2 + random() % 2), .extra = 1};
    options.profile.widths = {1, 2};
    options.profile.batches = {1, 2};
    options.cluster = {.nodes = static_cast<int32_t>(1 + random() % 2),
                       .gpus_per_node = 1,
                       .memory_limit_mib = 300.0 + static_cast<double>(random() % 1500)};
    if (options.cluster.nodes == 1) options.cluster.gpus_per_node = 2;
    const auto problem = testing::MakeRandomProblem(random, options);
    const SearchRequest request{.global_batch = static_cast<int64_t>(4 << random() % 5), .micro_batches = {1, 2}, .threads = 1};
    const double best = ExhaustivePerOpMs(*problem->model, request);
    const auto bound = LowerBound(*problem->model, request);
    ASSERT_TRUE(bound.ok());
    const auto result = Search(SearchKind::kAuto, *problem->model, request);
    if (best == std::numeric_limits<double>::infinity()) {
      EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted);
      continue;
    }
    EXPECT_GT(*bound, 0);
    EXPECT_LE(*bound, best);
    if (!result.ok()) {  // only some mixture of splits fits
      EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted);
      continue;
    }
    ++found;
    EXPECT_LE(result->lower_bound_ms, best);
    EXPECT_GE(result->best_ms(), best);
    optimal += result->best_ms() <= best * (1 + 1e-9);
    tight += result->best_ms() <= result->lower_bound_ms * 1.05;
    const std::vector<PlanFault> faults = FindFaults(*problem->model, result->plans[0].plan);
    EXPECT_TRUE(faults.empty()) << faults[0].text;
  }
  EXPECT_GE(found, 100);
  EXPECT_GE(optimal, found / 2) << "of " << found;
  EXPECT_GE(tight, found / 4) << "of " << found;
}

TEST(PerOpSearch, GivesTheSamePlansAndBoundForAnyNumberOfThreads) {
  std::mt19937 random(9);
  for (int i = 0; i < 4; ++i) {
    testing::RandomProblemOptions options;
    options.list = {.layers = 6, .period = 5, .extra = 2};
    options.cluster = {.nodes = 2, .gpus_per_node = 4, .memory_limit_mib = 700.0 + 300.0 * i};
    const auto problem = testing::MakeRandomProblem(random, options);
    SearchRequest request{.global_batch = 64, .micro_batches = {4, 2}, .threads = 1, .top_k = 2};
    const auto one = Search(SearchKind::kAuto, *problem->model, request);
    for (const int32_t threads : {2, 16}) {
      request.threads = threads;
      const auto many = Search(SearchKind::kAuto, *problem->model, request);
      ASSERT_EQ(one.ok(), many.ok());
      if (!one.ok()) continue;
      EXPECT_TRUE(FindFaults(*problem->model, one->plans[0].plan).empty());
      EXPECT_LE(one->lower_bound_ms, one->best_ms());
      EXPECT_EQ(one->lower_bound_ms, many->lower_bound_ms);
      ASSERT_EQ(one->plans.size(), many->plans.size());
      for (size_t k = 0; k < one->plans.size(); ++k) EXPECT_EQ(one->plans[k].plan.Key(), many->plans[k].plan.Key());
    }
  }
}

// The same list with its layers as one segment, as two of which stages reach over the end, and as none.
TEST(PerOpSearch, JoinsWindowsOverSegmentsWithoutHarm) {
  std::mt19937 random(10);
  int compared = 0;
  for (int i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    testing::RandomProblemOptions options;
    options.list = {.layers = 8, .period = 4, .extra = 2, .reshards = i % 2 == 0};
    options.cluster = {.nodes = 1, .gpus_per_node = 4, .memory_limit_mib = 900.0 + 400.0 * i};
    const auto problem = testing::MakeRandomProblem(random, options);
    const SearchRequest request{.global_batch = 64, .micro_batches = {1, 2}, .threads = 2};
    std::vector<double> bounds, found;
    for (const std::vector<Segment>& segments :
         {std::vector<Segment>{}, std::vector<Segment>{{2, 4, 8}}, std::vector<Segment>{{2, 4, 4}, {18, 4, 4}}}) {
      OpList ops = problem->ops;
      ops.segments = segments;
      ASSERT_TRUE(ops.Finish().ok());
      const auto model = MakeParityModel(ops, *problem->table, problem->cluster, request.micro_batches);
      ASSERT_TRUE(model.ok()) << ToString(model.status());
      const auto bound = LowerBound(**model, request);
      const auto result = Search(SearchKind::kAuto, **model, request);
      ASSERT_TRUE(bound.ok());
      if (!result.ok()) continue;
      EXPECT_TRUE(FindFaults(**model, result->plans[0].plan).empty());
      bounds.push_back(*bound);
      found.push_back(result->best_ms());
    }
    if (found.size() < 3) continue;
    ++compared;
    EXPECT_NEAR(bounds[1] / bounds[0], 1, 1e-4);
    // A join leaves out what resharding costs where it is, no more.
    EXPECT_LE(bounds[2], bounds[0] * (1 + 1e-4));
    EXPECT_GE(bounds[2], bounds[0] * 0.8);
    for (const double ms : found) {
      EXPECT_GE(ms, bounds[0]);
      EXPECT_LE(ms, found[0] * 1.03);
    }
  }
  EXPECT_GE(compared, 3);
}

TEST(PerOpSearch, GivesTheSamePlansAndBoundOfLongListsForAnyNumberOfThreads) {
  std::mt19937 random(13);
  testing::RandomProblemOptions options;
  options.list = {.layers = 70, .period = 4, .extra = 2};
  options.cluster = {.nodes = 2, .gpus_per_node = 4, .memory_limit_mib = 9000};
  const auto problem = testing::MakeRandomProblem(random, options);
  SearchRequest request{.global_batch = 64, .micro_batches = {1, 2}, .threads = 1};
  const auto one = Search(SearchKind::kAuto, *problem->model, request);
  ASSERT_TRUE(one.ok()) << ToString(one.status());
  EXPECT_TRUE(FindFaults(*problem->model, one->plans[0].plan).empty());
  EXPECT_GT(one->lower_bound_ms, 0);
  EXPECT_LE(one->lower_bound_ms, one->best_ms());
  request.threads = 3;
  const auto three = Search(SearchKind::kAuto, *problem->model, request);
  ASSERT_TRUE(three.ok());
  EXPECT_EQ(one->lower_bound_ms, three->lower_bound_ms);
  EXPECT_EQ(one->evaluations, three->evaluations);
  EXPECT_EQ(one->plans[0].plan.Key(), three->plans[0].plan.Key());
}

TEST(PerOpSearch, BeginsStagesWhereItIsToldTo) {
  std::mt19937 random(11);
  testing::RandomProblemOptions options;
  options.list = {.layers = 8, .period = 4, .extra = 2};
  options.cluster = {.nodes = 1, .gpus_per_node = 4, .memory_limit_mib = 4000};
  const auto problem = testing::MakeRandomProblem(random, options);
  const SearchRequest request{.global_batch = 64, .micro_batches = {1, 2}, .threads = 1, .min_stages = 3};
  const MakeStagePlanner make = [](const StageProgramme& programme) { return std::make_unique<PathPlanner>(programme); };
  const auto anywhere = SearchByProgramme(*problem->model, request, make);
  ASSERT_TRUE(anywhere.ok()) << ToString(anywhere.status());
  StageBounds where;
  where.cuts = SomeCuts(problem->ops, 10);
  EXPECT_EQ(where.cuts.front(), 0);
  EXPECT_LE(where.cuts.size(), 12u);
  const auto few = SearchByProgramme(*problem->model, request, make, where);
  ASSERT_TRUE(few.ok()) << ToString(few.status());
  for (const StagePtr& stage : few->plans[0].plan.stages) {
    EXPECT_TRUE(std::binary_search(where.cuts.begin(), where.cuts.end(), stage->first())) << stage->first();
  }
  // Around the plan, with all cuts: nothing else is found than the best one, if it lies there.
  where = {};
  int32_t behind = 4;
  where.corridor.assign(5, {0, problem->ops.size()});
  for (const StagePtr& stage : anywhere->plans[0].plan.stages) {
    where.corridor[behind] = {std::max(0, stage->first() - 1), stage->first() + 1};
    behind -= stage->gpus();
  }
  where.expected_us = anywhere->best_ms() * 1000;
  const auto near = SearchByProgramme(*problem->model, request, make, where);
  ASSERT_TRUE(near.ok()) << ToString(near.status());
  EXPECT_NEAR(near->best_ms() / anywhere->best_ms(), 1, 1e-3);
  behind = 4;
  for (const StagePtr& stage : near->plans[0].plan.stages) {
    EXPECT_GE(stage->first(), where.corridor[behind].first);
    EXPECT_LE(stage->first(), where.corridor[behind].second);
    behind -= stage->gpus();
  }
}

TEST(PerOpSearch, PlansForManyDevicesWithLargeStages) {
  std::mt19937 random(12);
  testing::RandomProblemOptions options;
  options.list = {.layers = 20, .period = 4, .extra = 2};
  options.cluster = {.nodes = 32, .gpus_per_node = 4, .memory_limit_mib = 4000};
  const auto problem = testing::MakeRandomProblem(random, options);
  SearchRequest request{.global_batch = 256, .micro_batches = {4, 2}, .threads = 1};
  const auto one = Search(SearchKind::kAuto, *problem->model, request);
  ASSERT_TRUE(one.ok()) << ToString(one.status());
  EXPECT_TRUE(FindFaults(*problem->model, one->plans[0].plan).empty());
  EXPECT_GT(one->lower_bound_ms, 0);
  EXPECT_LE(one->lower_bound_ms, one->best_ms());
  EXPECT_THAT(one->notes, ::testing::Contains(HasSubstr("only stages of 2 devices or more")));
  for (const StagePtr& stage : one->plans[0].plan.stages) EXPECT_GE(stage->gpus(), 2);
  request.threads = 2;
  const auto two = Search(SearchKind::kAuto, *problem->model, request);
  ASSERT_TRUE(two.ok());
  EXPECT_EQ(one->plans[0].plan.Key(), two->plans[0].plan.Key());
}

}  // namespace
}  // namespace tidepool::plan
