// How fast stages and plans are priced. With the reference data, on its profiles; else on estimated ones of the same op lists.
// "items_per_second" is evaluations of one stage (or plan) per second on one core. The published planner makes 60 to 100
// evaluations of a whole plan per second (Python, one core of a machine like the one its baseline was measured on).
#include <benchmark/benchmark.h>

#include <memory>
#include <random>

#include "plan/calibrated_cost_model.h"
#include "plan/estimate.h"
#include "plan/pricer.h"
#include "plan/recompute_rule.h"
#include "plan/testing.h"
#include "profile/plan_csv.h"
#include "profile/testing.h"

namespace {

using namespace tidepool;        // NOLINT
using namespace tidepool::plan;  // NOLINT

struct Problem {
  OpList ops;
  std::unique_ptr<ProfileTable> table;
  std::unique_ptr<ProfileTable> merged;  // built with default options
  Cluster cluster;
  std::unique_ptr<CostModel> model, calibrated;
};

StatusOr<profile::Bundle> BundleFor(const OpList& ops) {
  const std::string root = tidepool::testing::ReferenceFolder("aceso", TIDEPOOL_SOURCE_DIR);
  if (!root.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(profile::PlanCsvDatabase database,
                              profile::ReadPlanCsv(root + "/profiled-time-eurosys", {.models = {ops.profile_model}}));
    return std::move(database.bundle);
  }
  profile::Hardware hardware;
  hardware.name = "bench";
  hardware.memory_bytes_per_s = 9e11;
  hardware.peak_flops = {{DType::kF16, 1.1e14}, {DType::kF32, 1.5e13}};
  hardware.link_bytes_per_s = {{profile::LinkKind::kPeer, 4e10}, {profile::LinkKind::kNetwork, 5e9}};
  hardware.launch_us = 10;
  return EstimateBundle(ops, hardware, {.batches = {1, 2, 4, 8, 16, 32, 48, 64}});
}

std::unique_ptr<Problem> MakeProblem(const char* name, Cluster cluster, int32_t micro_batch,
                                     const CalibratedOptions& options = {}) {
  auto problem = std::make_unique<Problem>();
  auto ops = PublishedOpList(name);
  TIDEPOOL_CHECK(ops.ok(), "{}", ToString(ops.status()));
  problem->ops = *std::move(ops);
  const auto bundle = BundleFor(problem->ops);
  TIDEPOOL_CHECK(bundle.ok(), "{}", ToString(bundle.status()));
  auto table = ProfileTable::Build(*bundle, problem->ops, kParityTable);
  TIDEPOOL_CHECK(table.ok(), "{}", ToString(table.status()));
  problem->table = std::make_unique<ProfileTable>(*std::move(table));
  problem->cluster = cluster;
  const int32_t micro_batches[] = {micro_batch};
  auto model = MakeParityModel(problem->ops, *problem->table, problem->cluster, micro_batches);
  TIDEPOOL_CHECK(model.ok(), "{}", ToString(model.status()));
  problem->model = *std::move(model);
  auto merged = ProfileTable::Build(*bundle, problem->ops);
  TIDEPOOL_CHECK(merged.ok(), "{}", ToString(merged.status()));
  problem->merged = std::make_unique<ProfileTable>(*std::move(merged));
  auto calibrated = MakeCalibratedModel(problem->ops, *problem->merged, problem->cluster, micro_batches, options);
  TIDEPOOL_CHECK(calibrated.ok(), "{}", ToString(calibrated.status()));
  problem->calibrated = *std::move(calibrated);
  return problem;
}

struct Setting {
  const char* name;
  Cluster cluster;
  int32_t micro_batch;
};
const Setting kSettings[] = {{"gpt:13b", {4, 8, 28000}, 2},
                             {"t5:22b", {4, 8, 28000}, 1},
                             {"wresnet:13b", {4, 8, 28000}, 32},
                             {"gpt-layers:1024", {1, 8, 28000}, 4}};

struct Window {
  int32_t first, count;
  OpChoice split;
};
std::vector<Window> RandomWindows(const Problem& problem, int32_t micro_batch) {
  std::mt19937 random(1);
  std::vector<Window> windows;
  for (int i = 0; i < 4096; ++i) {
    const int32_t size = problem.ops.size(), count = static_cast<int32_t>(8 + random() % (size / 4));
    const std::vector<int32_t> sizes = problem.model->StageSizes(micro_batch);
    const std::vector<OpChoice> splits = problem.model->SplitsOf(sizes[random() % sizes.size()], micro_batch);
    windows.push_back({static_cast<int32_t>(random() % (size - count)), count, splits[random() % splits.size()]});
  }
  return windows;
}

// A uniform stage at a place: time and memory.
void BM_UniformStage(benchmark::State& state) {
  const Setting& setting = kSettings[state.range(0)];
  const auto problem = MakeProblem(setting.name, setting.cluster, setting.micro_batch);
  const std::vector<Window> windows = RandomWindows(*problem, setting.micro_batch);
  size_t i = 0;
  for (auto _ : state) {
    const Window& window = windows[i++ % windows.size()];
    const StageTotals totals = problem->model->UniformTotals(window.first, window.count, window.split, setting.micro_batch);
    benchmark::DoNotOptimize(problem->model->CostAt(totals, {.stages_behind = 3}));
  }
  state.SetItemsProcessed(state.iterations());
  state.SetLabel(setting.name);
}

// The same under the calibrated model.
void BM_CalibratedUniformStage(benchmark::State& state) {
  const Setting& setting = kSettings[state.range(0)];
  const auto problem = MakeProblem(setting.name, setting.cluster, setting.micro_batch);
  const std::vector<Window> windows = RandomWindows(*problem, setting.micro_batch);
  size_t i = 0;
  for (auto _ : state) {
    const Window& window = windows[i++ % windows.size()];
    const StageTotals totals = problem->calibrated->UniformTotals(window.first, window.count, window.split, setting.micro_batch);
    benchmark::DoNotOptimize(problem->calibrated->CostAt(totals, {.stages_behind = 3, .first_gpu = 8}));
  }
  state.SetItemsProcessed(state.iterations());
  state.SetLabel(setting.name);
}

// Stages that were priced already, put together: simulated, and bounded only. 32 stages of one device each, 256 micro-batches.
void CombinePlan(benchmark::State& state, PipelineSchedule schedule, bool bound) {
  CalibratedOptions options{.schedule = schedule, .chunks = schedule == PipelineSchedule::kInterleaved ? 2 : 1};
  const auto problem = MakeProblem("gpt:13b", {4, 8, 28000}, 1, options);
  Plan plan{.global_batch = 256, .micro_batch = 1, .stages = {}};
  const int32_t size = problem->ops.size();
  std::mt19937 random(4);
  for (int32_t i = 0, first = 0; i < 32; ++i) {
    const int32_t end = i == 31 ? size : (i + 1) * size / 32 + static_cast<int32_t>(random() % 3) - 1;
    plan.stages.push_back(Stage::MakeUniform(first, end - first, {}));
    first = end;
  }
  const auto cost = problem->calibrated->Price(plan);
  TIDEPOOL_CHECK(cost.ok(), "{}", ToString(cost.status()));
  for (auto _ : state) {
    if (bound) {
      benchmark::DoNotOptimize(problem->calibrated->LowerBoundMs(plan, cost->stages));
    } else {
      benchmark::DoNotOptimize(problem->calibrated->Combine(plan, cost->stages));
    }
  }
  state.counters["iteration_ms"] = cost->iteration_ms;
  state.counters["bound_ms"] = problem->calibrated->LowerBoundMs(plan, cost->stages);
  state.SetItemsProcessed(state.iterations());
}

// A uniform stage with recomputation chosen by the rule, for a limit that about half of the stages do not meet.
void BM_UniformStageWithRecompute(benchmark::State& state) {
  const Setting& setting = kSettings[state.range(0)];
  const auto problem = MakeProblem(setting.name, setting.cluster, setting.micro_batch);
  const std::vector<Window> windows = RandomWindows(*problem, setting.micro_batch);
  std::vector<double> needs;
  for (const Window& window : windows) {
    needs.push_back(problem->model->MemoryAt(
        problem->model->UniformTotals(window.first, window.count, window.split, setting.micro_batch), {.stages_behind = 3}));
  }
  std::nth_element(needs.begin(), needs.begin() + needs.size() / 2, needs.end());
  const double limit = needs[needs.size() / 2];
  size_t i = 0;
  for (auto _ : state) {
    const Window& window = windows[i++ % windows.size()];
    benchmark::DoNotOptimize(ChooseRecomputeUniform(*problem->model, window.first, window.count, window.split,
                                                    setting.micro_batch, {.stages_behind = 3}, limit));
  }
  state.SetItemsProcessed(state.iterations());
  state.SetLabel(setting.name);
}

// A stage whose ops have random splits and recompute flags, from nothing.
void MixedStage(benchmark::State& state, bool calibrated) {
  const Setting& setting = kSettings[state.range(0)];
  const auto problem = MakeProblem(setting.name, setting.cluster, setting.micro_batch);
  std::mt19937 random(2);
  std::vector<StagePtr> stages;
  double runs = 0;
  for (const Window& window : RandomWindows(*problem, setting.micro_batch)) {
    stages.push_back(plan::testing::RandomStage(random, *problem->model, window.first, std::min(window.count, 60),
                                                window.split.gpus(), setting.micro_batch));
    runs += static_cast<double>(stages.back()->runs().size());
  }
  const CostModel& model = calibrated ? *problem->calibrated : *problem->model;
  size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(model.TotalsOf(*stages[i++ % stages.size()], setting.micro_batch));
  state.SetItemsProcessed(state.iterations());
  state.counters["runs_per_stage"] = runs / static_cast<double>(stages.size());
  state.SetLabel(setting.name);
}

// A whole plan after one stage of it changed, through the cache.
void BM_PlanAfterOneChange(benchmark::State& state) {
  const Setting& setting = kSettings[state.range(0)];
  const auto problem = MakeProblem(setting.name, setting.cluster, setting.micro_batch);
  std::mt19937 random(3);
  const auto plan = plan::testing::RandomPlan(random, *problem->model, setting.micro_batch, false);
  TIDEPOOL_CHECK(plan != nullptr, "no plan");
  std::vector<StagePtr> changes;
  const StagePtr changed = plan->stages[0];
  for (int i = 0; i < 4096; ++i) {
    std::vector<uint8_t> flags(changed->count());
    for (uint8_t& flag : flags) flag = random() % 8 == 0;
    changes.push_back(changed->WithRecompute(flags));
  }
  Pricer pricer(*problem->model, {.limit = 1 << 12});
  size_t i = 0;
  for (auto _ : state) {
    plan->stages[0] = changes[i++ % changes.size()];
    benchmark::DoNotOptimize(pricer.Price(*plan));
  }
  state.SetItemsProcessed(state.iterations());
  state.counters["stages"] = static_cast<double>(plan->stages.size());
  state.SetLabel(setting.name);
}

// Reading the profile and building table and model, which every run of the planner does once.
void BM_Setup(benchmark::State& state) {
  const Setting& setting = kSettings[state.range(0)];
  for (auto _ : state) benchmark::DoNotOptimize(MakeProblem(setting.name, setting.cluster, setting.micro_batch));
  state.SetLabel(setting.name);
}

BENCHMARK(BM_UniformStage)->DenseRange(0, 3);
BENCHMARK(BM_CalibratedUniformStage)->DenseRange(0, 3);
BENCHMARK_CAPTURE(CombinePlan, one_forward_one_backward, PipelineSchedule::kOneForwardOneBackward, false);
BENCHMARK_CAPTURE(CombinePlan, zero_bubble, PipelineSchedule::kZeroBubble, false);
BENCHMARK_CAPTURE(CombinePlan, interleaved, PipelineSchedule::kInterleaved, false);
BENCHMARK_CAPTURE(CombinePlan, bound_only, PipelineSchedule::kOneForwardOneBackward, true);
BENCHMARK(BM_UniformStageWithRecompute)->DenseRange(0, 3);
BENCHMARK_CAPTURE(MixedStage, parity, false)->DenseRange(0, 3);
BENCHMARK_CAPTURE(MixedStage, calibrated, true)->DenseRange(0, 3);
BENCHMARK(BM_PlanAfterOneChange)->DenseRange(0, 2);
BENCHMARK(BM_Setup)->DenseRange(0, 3)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
