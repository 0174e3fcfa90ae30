// The bound below all plans of the calibrated model, against the simulator and against exhaustive search.
#include "plan/lower_bound.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "plan/calibrated_cost_model.h"
#include "plan/testing.h"

namespace tidepool::plan {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What calibrated_bound.cc says of any pipeline, from the numbers of the pipeline itself.
TEST(LowerBound, HoldsForEveryPipelineThatIsPlayed) {
  std::mt19937 random(1);
  const auto up_to = [&](double most) { return std::uniform_real_distribution<double>(0, most)(random); };
  int by_sum = 0;
  for (int round = 0; round < 20000; ++round) {
    PipelineSpec spec;
    const auto stages = static_cast<int32_t>(1 + random() % 6);
    spec.micro_batches = static_cast<int64_t>(1 + random() % 24);
    spec.transfer_overlap = static_cast<double>(random() % 3) / 2;
    // Times of all shapes: equal ones, random ones, some next to nothing.
    const int shape = static_cast<int>(random() % 3);
    for (int32_t i = 0; i < stages; ++i) {
      const double scale = shape == 2 && random() % 2 == 0 ? 0.01 : 1;
      spec.stages.push_back({.forward_us = scale * (shape == 0 ? 100 : up_to(100)),
                             .recompute_us = random() % 3 == 0 ? scale * up_to(50) : 0,
                             .backward_us = scale * (shape == 0 ? 200 : up_to(300)),
                             .sync_us = random() % 2 == 0 ? up_to(100) : 0});
      const double us = random() % 2 == 0 ? up_to(random() % 4 == 0 ? 300 : 20) : 0;
      spec.edges.push_back({us, us});
    }
    const double blocking = 1 - spec.transfer_overlap, n = static_cast<double>(spec.micro_batches), s = stages;
    double slowest = 0, slowest_half = 0, sum = 0;
    for (int32_t i = 0; i < stages; ++i) {
      const double messages =
          (i > 0 ? 2 * spec.edges[i - 1].forward_us : 0) + (i + 1 < stages ? 2 * spec.edges[i].forward_us : 0);
      const double passes = spec.stages[i].forward_us + spec.stages[i].recompute_us + spec.stages[i].backward_us;
      slowest = std::max(slowest, passes + blocking * messages);
      slowest_half = std::max(slowest_half, passes + blocking / 2 * messages);
      sum += passes + blocking / 2 * messages;
    }
    const double makespan = SimulatePipeline(spec).makespan_us + 1e-3;
    ASSERT_LE(n * slowest, makespan) << round;
    ASSERT_LE(sum + (n - 1) / 2 * slowest_half, makespan) << round;
    if (spec.micro_batches > stages) {
      ASSERT_LE(2 * sum + (n - 1 - s) * slowest_half, makespan) << round;
      by_sum += 2 * sum + (n - 1 - s) * slowest_half > n * slowest;
    }
  }
  EXPECT_GT(by_sum, 2000);
}

// What it takes to price plans; the model refers to the rest.
struct Problem {
  OpList ops;
  std::unique_ptr<ProfileTable> table;
  Cluster cluster;
  std::unique_ptr<CostModel> model;
};

std::unique_ptr<Problem> SmallProblem(std::mt19937& random, const CalibratedOptions& options) {
  auto problem = std::make_unique<Problem>();
  problem->ops = testing::RandomOpList(random, {.layers = static_cast<int32_t>(random() % 3),
                                                .period = 1 + static_cast<int32_t>(random() % 2),
                                                .extra = 1 + static_cast<int32_t>(random() % 2),
                                                .algorithms = 1});
  for (DistinctOp& op : problem->ops.distinct) {
    op.parameters = static_cast<int64_t>(random() % 2) * 1000000;
    op.forward_flops_per_sample = static_cast<int64_t>(random() % 2);
    constexpr double kFactors[] = {0, 0.5, 1, 1};
    op.live_factor = kFactors[random() % 4];
  }
  if (problem->ops.size() > 1) problem->ops.tied = {{{0, problem->ops.size() - 1}, 3000000}};
  TIDEPOOL_CHECK(problem->ops.Finish().ok(), "a random list is valid");
  auto table =
      ProfileTable::Build(testing::RandomProfile(random, problem->ops, {.batches = {1, 2}, .widths = {1, 2}}), problem->ops);
  TIDEPOOL_CHECK(table.ok(), "{}", ToString(table.status()));
  problem->table = std::make_unique<ProfileTable>(*std::move(table));
  problem->cluster = {.nodes = static_cast<int32_t>(1 + random() % 2),
                      .gpus_per_node = static_cast<int32_t>(1 + random() % 2),
                      .memory_limit_mib = 500.0 + static_cast<double>(random() % 2000)};
  constexpr int32_t kMicroBatches[] = {1, 2};
  auto model = MakeCalibratedModel(problem->ops, *problem->table, problem->cluster, kMicroBatches, options);
  TIDEPOOL_CHECK(model.ok(), "{}", ToString(model.status()));
  problem->model = *std::move(model);
  return problem;
}

// The fastest of all plans that fit: every cut, every split and recompute flag of every op. No stage can be chosen by itself,
// because the iteration is what the simulator says of all.
double ExhaustiveMs(const CostModel& model, const SearchRequest& request) {
  double best = kInfinity;
  const OpList& ops = model.ops();
  for (const int32_t micro_batch : request.micro_batches) {
    const std::vector<int32_t> sizes = model.StageSizes(micro_batch);
    Plan plan{request.global_batch, micro_batch, {}};
    const std::function<void(int32_t, int32_t)> add_stage = [&](int32_t first, int32_t gpu) {
      for (const int32_t size : sizes) {
        if (!model.cluster().IsStageRange(gpu, size)) continue;
        const bool last = gpu + size == model.cluster().gpus();
        for (int32_t end = last ? ops.size() : first + 1; end < ops.size() + (last ? 1 : 0); ++end) {
          if (!last && !ops.SkipsAllowStage(first, end - first)) continue;
          std::vector<OpChoice> choices(static_cast<size_t>(end - first));
          const std::function<void(size_t)> choose = [&](size_t at) {
            if (at < choices.size()) {
              for (OpChoice split : model.SplitsOf(size, micro_batch)) {
                for (const bool recompute : {false, true}) {
                  split.recompute = recompute;
                  // The runtime can change splits where resharding has a price, or at tunable ops.
                  if (at > 0 && !SameSplit(split, choices[at - 1]) && !ops.resharding_has_price &&
                      !ops.at(first + static_cast<int32_t>(at)).tunable) {
                    continue;
                  }
                  choices[at] = split;
                  choose(at + 1);
                }
              }
              return;
            }
            plan.stages.push_back(Stage::Make(first, choices));
            if (last) {
              const auto cost = model.Price(plan);
              if (cost.ok() && cost->fits) best = std::min(best, cost->iteration_ms);
            } else {
              add_stage(end, gpu + size);
            }
            plan.stages.pop_back();
          };
          choose(0);
        }
      }
    };
    add_stage(0, 0);
  }
  return best;
}

TEST(LowerBound, IsBelowTheBestOfAllPlansOfSmallCases) {
  std::mt19937 random(2);
  int found = 0, tight = 0, other_schedules = 0;
  for (int i = 0; i < 220; ++i) {
    SCOPED_TRACE(i);
    CalibratedOptions options;
    if (random() % 4 == 0) options.schedule = static_cast<PipelineSchedule>(1 + random() % 2);
    if (options.schedule == PipelineSchedule::kInterleaved) options.chunks = static_cast<int32_t>(1 + random() % 3);
    options.transfer_overlap = static_cast<double>(random() % 3) / 2;
    options.sync_overlap = static_cast<double>(random() % 3) / 2;
    options.zero1 = random() % 2 == 0;
    options.sequence_parallel = random() % 2 == 0;
    options.context_mib = static_cast<double>(random() % 2) * 50;
    const auto problem = SmallProblem(random, options);
    const SearchRequest request{.global_batch = static_cast<int64_t>(4 << random() % 6), .micro_batches = {1, 2}, .threads = 1};
    const auto bound = LowerBound(*problem->model, request);
    ASSERT_TRUE(bound.ok()) << ToString(bound.status());
    const double best = ExhaustiveMs(*problem->model, request);
    if (best == kInfinity) continue;
    ASSERT_GT(*bound, 0);
    ASSERT_LE(*bound, best);
    ++found;
    tight += *bound >= 0.9 * best;
    other_schedules += options.schedule != PipelineSchedule::kOneForwardOneBackward;
    // Asked for a bound below some plan, it gives one that is no better than the plan.
    Workers workers(1);
    const double below = LowerBoundBelow(*problem->model, request, best, &workers, [] { return false; });
    EXPECT_LE(below, best);
    EXPECT_GE(below, *bound * (1 - 1e-3));
  }
  EXPECT_GE(found, 150);
  EXPECT_GE(other_schedules, 20);
  EXPECT_GE(tight, found / 3);
}

TEST(LowerBound, DoesNotDependOnThreadsAndEndsWhenItIsInterrupted) {
  std::mt19937 random(3);
  const auto problem = SmallProblem(random, {});
  SearchRequest request{.global_batch = 64, .micro_batches = {1, 2}, .threads = 1};
  const auto one = LowerBound(*problem->model, request);
  request.threads = 4;
  const auto four = LowerBound(*problem->model, request);
  ASSERT_TRUE(one.ok() && four.ok());
  EXPECT_EQ(*one, *four);
  Workers workers(1);
  EXPECT_EQ(LowerBoundBelow(*problem->model, request, 1e9, &workers, [] { return true; }), 0);
}

TEST(LowerBound, IsNotKnownForDeviceGroups) {
  std::mt19937 random(4);
  const auto problem = SmallProblem(random, {});
  Cluster cluster = problem->cluster;
  cluster.groups = {{.name = "slow", .nodes = cluster.nodes, .time_scale = 0.5}};
  constexpr int32_t kMicroBatches[] = {1};
  const auto model = MakeCalibratedModel(problem->ops, *problem->table, cluster, kMicroBatches);
  ASSERT_TRUE(model.ok()) << ToString(model.status());
  EXPECT_EQ(*LowerBound(**model, {.global_batch = 8, .micro_batches = {1}, .threads = 1}), 0);
}

}  // namespace
}  // namespace tidepool::plan
