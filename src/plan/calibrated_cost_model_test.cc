#include "plan/calibrated_cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/units.h"
#include "plan/pricer.h"
#include "plan/recompute_rule.h"
#include "plan/testing.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;
using testing::RandomPlan;
using testing::RandomStage;

// Every field, in every bit.
void ExpectEqual(const StageTotals& a, const StageTotals& b) {
  EXPECT_EQ(a.gpus, b.gpus);
  EXPECT_EQ(a.forward_us, b.forward_us);
  EXPECT_EQ(a.backward_us, b.backward_us);
  EXPECT_EQ(a.weight_gradient_us, b.weight_gradient_us);
  EXPECT_EQ(a.recompute_us, b.recompute_us);
  EXPECT_EQ(a.reshard_forward_us, b.reshard_forward_us);
  EXPECT_EQ(a.reshard_backward_us, b.reshard_backward_us);
  EXPECT_EQ(a.sync_us, b.sync_us);
  EXPECT_EQ(a.optimizer_us, b.optimizer_us);
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

// What it takes to price plans; models refer to the rest.
struct Problem {
  OpList ops;
  profile::Bundle bundle;
  std::unique_ptr<ProfileTable> table;
  Cluster cluster;

  std::unique_ptr<CostModel> Model(const CalibratedOptions& options = {}) const { return ModelOn(cluster, options); }
  std::unique_ptr<CostModel> ModelOn(const Cluster& other, const CalibratedOptions& options = {}) const {
    constexpr int32_t kMicroBatches[] = {1, 2, 4};
    auto model = MakeCalibratedModel(ops, *table, other, kMicroBatches, options);
    TIDEPOOL_CHECK(model.ok(), "{}", ToString(model.status()));
    return *std::move(model);
  }
};

std::unique_ptr<Problem> RandomProblem(std::mt19937& random, const Cluster& cluster = {2, 4, 1 << 20}) {
  auto problem = std::make_unique<Problem>();
  testing::RandomListOptions options;
  options.layers = static_cast<int32_t>(1 + random() % 8);
  options.period = static_cast<int32_t>(2 + random() % 6);
  options.extra = static_cast<int32_t>(1 + random() % 3);
  options.reshards = random() % 3 != 0;
  problem->ops = testing::RandomOpList(random, options);
  for (DistinctOp& op : problem->ops.distinct) {
    op.parameters = static_cast<int64_t>(random() % 2) * 1000000;
    op.forward_flops_per_sample = static_cast<int64_t>(random() % 2);
    constexpr double kFactors[] = {0, 0.5, 1, 1};
    op.live_factor = kFactors[random() % 4];
  }
  problem->ops.tied = {{{0, problem->ops.size() - 1}, 3000000}};
  TIDEPOOL_CHECK(problem->ops.Finish().ok(), "a random list is valid");
  problem->bundle = testing::RandomProfile(random, problem->ops);
  if (random() % 2 == 0) problem->bundle.manifest.hardware.memory_bytes_per_s = 1e12;
  auto table = ProfileTable::Build(problem->bundle, problem->ops);
  TIDEPOOL_CHECK(table.ok(), "{}", ToString(table.status()));
  problem->table = std::make_unique<ProfileTable>(*std::move(table));
  problem->cluster = cluster;
  return problem;
}

CalibratedOptions RandomOptions(std::mt19937& random) {
  CalibratedOptions options;
  options.schedule = static_cast<PipelineSchedule>(random() % 3);
  if (options.schedule == PipelineSchedule::kInterleaved) options.chunks = static_cast<int32_t>(1 + random() % 3);
  options.transfer_overlap = static_cast<double>(random() % 3) / 2;
  options.sync_overlap = static_cast<double>(random() % 3) / 2;
  options.zero1 = random() % 2 == 0;
  options.sequence_parallel = random() % 2 == 0;
  options.context_mib = static_cast<double>(random() % 2) * 500;
  return options;
}

// The totals written down op by op, without tables; `ring` gives what an all-reduce takes.
StageTotals SlowTotals(const CostModel& model, const CalibratedOptions& options, const Stage& stage, int32_t micro_batch) {
  const OpList& ops = model.ops();
  const ProfileTable& table = model.table();
  const std::vector<OpChoice> choices = stage.Choices();
  StageTotals totals;
  totals.gpus = choices[0].gpus();
  double forward_reserved = 0, backward_reserved = 0, buffers = 0, run = 0;
  std::map<int32_t, double> weights;  // by replicas
  for (int32_t i = stage.count() - 1; i >= 0; --i) {
    const int32_t position = stage.first() + i, op = ops.ops[position], row = model.RowOf(choices[i], micro_batch);
    if (row < 0) return UnpricedTotals();
    const DistinctOp& distinct = ops.distinct[op];
    const auto at = [&](Column column) { return table.At(column, row, op); };
    const SplitAlgorithm& split = distinct.algorithms[choices[i].algorithm];
    const bool replicated = split.input.replicas == Split::kTensor && split.output.replicas == Split::kTensor;
    const double share = options.sequence_parallel && replicated ? choices[i].tensor_parallel : 1;
    const double activation = Quantized(at(Column::kActivationMib) * distinct.live_factor / share);
    totals.forward_us += at(Column::kForwardUs);
    totals.backward_us += at(Column::kBackwardUs);
    if (options.schedule == PipelineSchedule::kZeroBubble && distinct.parameters > 0 && distinct.forward_flops_per_sample > 0) {
      totals.weight_gradient_us += Quantized(at(Column::kBackwardUs) / 2);
    }
    totals.weight_mib += at(Column::kWeightMib);
    weights[choices[i].data_parallel] += at(Column::kWeightMib);
    totals.activation_mib += activation;
    if (choices[i].recompute) totals.recompute_us += at(Column::kForwardUs);
    forward_reserved = std::max(forward_reserved, at(Column::kForwardReservedMib));
    backward_reserved = std::max(backward_reserved, at(Column::kBackwardReservedMib));
    buffers = std::max(buffers, at(Column::kInputMib) + at(Column::kOutputMib));
    const bool inside = i + 1 < stage.count();
    if (inside) {
      const ReshardCost reshard = model.ReshardBetween(position + 1, choices[i], choices[i + 1], micro_batch);
      totals.reshard_forward_us += reshard.forward_us;
      totals.reshard_backward_us += reshard.backward_us;
    }
    if (inside && choices[i].recompute && choices[i + 1].recompute && !ops.at(position + 1).starts_layer) {
      totals.saved_mib += activation;
      run += activation;
      totals.peak_run_mib = std::max(totals.peak_run_mib, run);
    } else {
      run = 0;
    }
  }
  const double moments = ops.master_factor + ops.optimizer_factor;
  for (const auto& [replicas, mib] : weights) {
    totals.state_mib += mib * (1 + ops.gradient_factor + moments / (options.zero1 ? replicas : 1));
  }
  totals.reserved_mib = std::max(forward_reserved + backward_reserved, buffers);
  return totals;
}

StagePtr AnyStage(std::mt19937& random, const CostModel& model, int32_t micro_batch) {
  const int32_t size = model.ops().size(), first = static_cast<int32_t>(random() % size);
  const auto count = static_cast<int32_t>(1 + random() % (size - first));
  const std::vector<int32_t> sizes = model.StageSizes(micro_batch);
  return RandomStage(random, model, first, count, sizes[random() % sizes.size()], micro_batch);
}

TEST(CalibratedModel, SumsOfAnyStageEqualAWalkOverItsOpsInEveryBit) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    const auto problem = RandomProblem(random);
    const CalibratedOptions options = RandomOptions(random);
    const auto model = problem->Model(options);
    for (int i = 0; i < 30; ++i) {
      const int32_t micro_batch = 1 << (random() % 4);  // 8 was not prepared
      const StagePtr stage = AnyStage(random, *model, micro_batch);
      StageTotals expected = SlowTotals(*model, options, *stage, micro_batch);
      const StageTotals totals = model->TotalsOf(*stage, micro_batch);
      // These have tests of their own.
      expected.sync_us = totals.sync_us;
      expected.optimizer_us = totals.optimizer_us;
      expected.input_mib = totals.input_mib;
      for (int link = 0; link < kLinkClasses; ++link) {
        expected.in_us[link] = totals.in_us[link];
        expected.out_us[link] = totals.out_us[link];
      }
      ExpectEqual(totals, expected);
      if (::testing::Test::HasFailure()) FAIL() << "round " << round << ", stage " << i;
    }
  }
}

// A stage costs the same however it is cut into runs, and wherever an equal window stands.
TEST(CalibratedModel, UniformStagesCostTheSameInAnyForm) {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    const auto problem = RandomProblem(random);
    const auto model = problem->Model(RandomOptions(random));
    for (int i = 0; i < 30; ++i) {
      const int32_t size = problem->ops.size(), first = static_cast<int32_t>(random() % size);
      const auto count = static_cast<int32_t>(1 + random() % (size - first));
      const std::vector<OpChoice> splits = model->SplitsOf(1 << (random() % 4), 4);
      OpChoice choice = splits[random() % splits.size()];
      const StageTotals uniform = model->UniformTotals(first, count, choice, 4);
      ExpectEqual(uniform, model->UniformTotals(problem->ops.CanonicalFirst(first, count), count, choice, 4));
      ExpectEqual(uniform, model->TotalsOf(*Stage::MakeUniform(first, count, choice), 4));
      std::vector<uint8_t> flags(count);
      for (uint8_t& flag : flags) flag = random() % 2;
      const StageTotals flagged = model->TotalsOf(*Stage::MakeUniform(first, count, choice)->WithRecompute(flags), 4);
      EXPECT_EQ(flagged.forward_us, uniform.forward_us);
      EXPECT_EQ(flagged.state_mib, uniform.state_mib);
      EXPECT_EQ(flagged.sync_us, uniform.sync_us);
      EXPECT_EQ(flagged.optimizer_us, uniform.optimizer_us);
      EXPECT_EQ(flagged.reserved_mib, uniform.reserved_mib);
      if (::testing::Test::HasFailure()) FAIL() << "round " << round << ", stage " << i;
    }
  }
}

TEST(CalibratedModel, IncrementalPricesEqualFullOnesInEveryBit) {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    const auto problem = RandomProblem(random);
    const auto model = problem->Model(RandomOptions(random));
    Pricer pricer(*model);
    auto plan = RandomPlan(random, *model, 4, true);
    ASSERT_NE(plan, nullptr);
    for (int step = 0; step < 60; ++step) {
      const size_t at = random() % plan->stages.size();
      const StagePtr before = plan->stages[at];
      if (random() % 3 == 0 && at + 1 < plan->stages.size() && before->count() > 1) {
        std::vector<OpChoice> here = before->Choices(), there = plan->stages[at + 1]->Choices();
        here.pop_back();
        there.insert(there.begin(), there.front());
        plan->stages[at] = Stage::Make(before->first(), here);
        plan->stages[at + 1] = Stage::Make(before->end() - 1, there);
      } else {
        plan->stages[at] = RandomStage(random, *model, before->first(), before->count(), before->gpus(), 4);
      }
      const auto cached = pricer.Price(*plan);
      const auto full = model->Price(*plan);
      ASSERT_TRUE(cached.ok() && full.ok());
      ASSERT_EQ(cached->iteration_ms, full->iteration_ms);
      ASSERT_EQ(cached->max_memory_mib, full->max_memory_mib);
      ASSERT_EQ(cached->stage_iteration_ms, full->stage_iteration_ms);
    }
  }
}

TEST(CalibratedModel, AnIterationIsTheMakespanOfItsStagesAndNeverBelowItsBound) {
  std::mt19937 random(4);
  int finite = 0;
  for (int round = 0; round < 200; ++round) {
    const auto problem = RandomProblem(random);
    const auto model = problem->Model(RandomOptions(random));
    const auto plan = RandomPlan(random, *model, 1 << (random() % 3), true);
    if (plan == nullptr) continue;
    const auto cost = model->Price(*plan);
    ASSERT_TRUE(cost.ok());
    ASSERT_LE(model->LowerBoundMs(*plan, cost->stages), cost->iteration_ms);
    if (!std::isfinite(cost->iteration_ms)) continue;  // interleaved, and not a multiple of the stages
    ++finite;
    const auto trace = TracePipeline(model->PipelineOf(*plan, cost->stages));
    ASSERT_TRUE(trace.ok()) << ToString(trace.status());
    EXPECT_EQ(cost->iteration_ms, trace->makespan_us / 1000);
    for (const StageCost& stage : cost->stages) {
      const double busy = static_cast<double>(plan->micro_batches()) * stage.time_us + stage.sync_us + stage.optimizer_us;
      EXPECT_LE(busy, cost->iteration_ms * 1000 + 0.01) << "what iteration_is_closed_form promises";
      EXPECT_NEAR(stage.memory_mib,
                  stage.state_mib + stage.activation_mib + stage.peak_mib + stage.reserved_mib + stage.margin_mib, 1e-6);
    }
  }
  EXPECT_GT(finite, 100);
}

// --- By hand ---

// Two ops, each with 8 MiB of weights and 100 us forward, 200 us backward at width 1 and batch 1; 4 MiB go from one to the next.
std::unique_ptr<Problem> TwoOps() {
  auto problem = std::make_unique<Problem>();
  OpList& ops = problem->ops;
  ops.name = ops.profile_model = "two";
  ops.dtype = DType::kF16;
  ops.master_factor = 2;
  ops.optimizer_factor = 4;
  for (const char* name : {"a", "b"}) {
    DistinctOp op;
    op.name = name;
    op.parameters = 4 * kMiB;
    op.forward_flops_per_sample = 1;
    ops.ops.push_back(static_cast<uint16_t>(ops.distinct.size()));
    ops.distinct.push_back(std::move(op));
  }
  ops.tied = {{{0, 1}, kMiB}};
  TIDEPOOL_CHECK(ops.Finish().ok(), "a valid list");
  for (const auto& op : ops.distinct) {
    for (const int64_t batch : {1, 2}) {
      const double scale = static_cast<double>(batch);
      profile::OpRow row;
      row.key = {"two", op.name, profile::Phase::kForward, batch, DType::kF16, 1, 0};
      row.median_us = 100 * scale;
      row.memory = {4.0 * kMiB * scale, 4.0 * kMiB * scale, 8.0 * kMiB, 16.0 * kMiB * scale, 1.0 * kMiB};
      problem->bundle.ops.push_back(row);
      row.key.phase = profile::Phase::kBackward;
      row.median_us = 200 * scale;
      row.memory = {.reserved_bytes = 2.0 * kMiB};
      problem->bundle.ops.push_back(row);
    }
  }
  problem->bundle.manifest.hardware.memory_bytes_per_s = 1e6 * kMiB;  // 1 MiB per us
  auto table = ProfileTable::Build(problem->bundle, ops);
  TIDEPOOL_CHECK(table.ok(), "{}", ToString(table.status()));
  problem->table = std::make_unique<ProfileTable>(*std::move(table));
  // 0.25 and 0.125 MiB per us.
  problem->cluster = {.nodes = 2, .gpus_per_node = 2, .memory_limit_mib = 1000};
  problem->cluster.within_node = LinkSpeed{0.25e6 * kMiB, 1};
  problem->cluster.between_nodes = LinkSpeed{0.125e6 * kMiB, 2};
  return problem;
}

Plan TwoStages() {
  const OpChoice replicas{1, 2, 0, false};
  return {
      .global_batch = 8, .micro_batch = 2, .stages = {Stage::MakeUniform(0, 1, replicas), Stage::MakeUniform(1, 1, replicas)}};
}

TEST(CalibratedModel, ByHandTwoStagesOfTwoReplicas) {
  const auto problem = TwoOps();
  const auto model = problem->Model({.memory_margin = 0, .noise_factor = 0});
  const auto cost = model->Price(TwoStages());
  ASSERT_TRUE(cost.ok());
  const StageCost &first = cost->stages[0], &last = cost->stages[1];
  EXPECT_EQ(first.forward_us, 100);
  EXPECT_EQ(first.backward_us, 200);
  EXPECT_EQ(first.in_us, 0);
  // 4 MiB between nodes take 2 + 4 / 0.125 us, each way.
  EXPECT_EQ(first.out_us, 2 * 34);
  EXPECT_EQ(last.in_us, 2 * 34);
  EXPECT_EQ(last.out_us, 0);
  EXPECT_EQ(first.time_us, 368);
  // Two replicas within a node: all 8 MiB of gradients over each link, in 2 steps. The tied MiB of parameters are 2 MiB of
  // gradients, between two stages on two nodes.
  EXPECT_EQ(first.sync_us, (8 / 0.25 + 2 * 1) + (2 / 0.125 + 2 * 2));
  // Reads 8 of gradients, reads and writes 2 x 48, writes 8.
  EXPECT_EQ(first.optimizer_us, 8 + 96 + 8);
  // Stage 0: forwards at 0 and 134; the first gradient comes at 134 + 100 + 200 + 34, and from then on stage 1 sets the pace.
  const PipelineRun run = SimulatePipeline(model->PipelineOf(TwoStages(), cost->stages));
  EXPECT_EQ(run.stages[1].first_us, 134);
  // Stage 1: 4 x 300 of passes, 4 x 68 of messages, of which the first receive is hidden by waiting.
  EXPECT_EQ(run.stages[1].last_us, 134 + 4 * 300 + 3 * 68 + 34);
  // Its last gradient is sent when stage 0 has nothing else to do but its last backward pass.
  EXPECT_EQ(run.stages[0].last_us, run.stages[1].last_us + 200);
  EXPECT_EQ(cost->iteration_ms * 1000, run.stages[0].last_us + 54 + 112);
  // 8 MiB of weights, as many of gradients, 6 times that of the optimizer. A micro-batch holds its input and 16 MiB; two of them
  // on the first stage. Gradients of what the op read and gave need more than its workspace.
  EXPECT_EQ(first.state_mib, 64);
  EXPECT_EQ(first.activation_mib, 20);
  EXPECT_EQ(first.peak_mib, 20);
  EXPECT_EQ(first.reserved_mib, 8);
  EXPECT_EQ(first.memory_mib, 112);
  EXPECT_EQ(last.memory_mib, 92);
  EXPECT_EQ(cost->largest, 0);
  EXPECT_TRUE(cost->fits);
}

TEST(CalibratedModel, ByHandZeroOneDividesMastersMomentsAndTheirUpdate) {
  const auto problem = TwoOps();
  const auto cost = problem->Model({.zero1 = true})->Price(TwoStages());
  ASSERT_TRUE(cost.ok());
  EXPECT_EQ(cost->stages[0].state_mib, 16 + 48 / 2);
  EXPECT_EQ(cost->stages[0].optimizer_us, 56);
  EXPECT_EQ(cost->stages[0].sync_us, 54) << "scattering gradients and gathering weights is as much as an all-reduce";
}

TEST(CalibratedModel, ByHandTiedWeightsOfOneStageNeedNoSync) {
  const auto problem = TwoOps();
  const auto model = problem->Model();
  EXPECT_EQ(model->UniformTotals(0, 2, {1, 1, 0, false}, 2).sync_us, 0);
  EXPECT_EQ(model->UniformTotals(0, 1, {1, 1, 0, false}, 2).sync_us, 20);
  EXPECT_EQ(model->UniformTotals(0, 2, {1, 2, 0, false}, 2).sync_us, 16 / 0.25 + 2);
}

TEST(CalibratedModel, ByHandReplicasOnSeveralNodesSyncOverTheSlowLink) {
  const auto problem = TwoOps();
  const auto model = problem->Model();
  // Four replicas: 3 / 2 of 16 MiB over each link, in 6 steps.
  EXPECT_EQ(model->UniformTotals(0, 2, {1, 4, 0, false}, 4).sync_us, 24 / 0.125 + 6 * 2);
}

TEST(CalibratedModel, ByHandSyncHidesBehindTheLastBackwardPassAndNoMore) {
  const auto problem = TwoOps();
  Cluster slow = problem->cluster;
  slow.within_node = LinkSpeed{0.01e6 * kMiB, 0};
  EXPECT_EQ(problem->Model({.sync_overlap = 0.5})->UniformTotals(0, 2, {1, 2, 0, false}, 2).sync_us, 33);
  EXPECT_EQ(problem->ModelOn(slow, {.sync_overlap = 1})->UniformTotals(0, 2, {1, 2, 0, false}, 2).sync_us, 1600 - 400);
}

TEST(CalibratedModel, ByHandDeviceGroupsSlowDownTheirStagesAndLimitTheirMemory) {
  const auto problem = TwoOps();
  Cluster mixed = problem->cluster;
  mixed.groups = {{"new", 1, 1, 0}, {"old", 1, 3, 91}};
  const auto model = problem->ModelOn(mixed, {.memory_margin = 0, .noise_factor = 0});
  const auto cost = model->Price(TwoStages());
  ASSERT_TRUE(cost.ok());
  EXPECT_EQ(cost->stages[0].forward_us, 100);
  EXPECT_EQ(cost->stages[1].forward_us, 300);
  EXPECT_EQ(cost->stages[1].backward_us, 600);
  EXPECT_EQ(cost->stages[1].optimizer_us, 336);
  EXPECT_EQ(cost->slowest, 1);
  EXPECT_EQ(cost->largest, 1) << "92 of 91 MiB is more than 112 of 1000";
  EXPECT_FALSE(cost->fits);
  EXPECT_THAT(MessageOf(Verify(*model, TwoStages())), HasSubstr("stage 1: needs 92.00 MiB on each device; allowed: 91.00"));
  // A stage on both kinds waits for the slower one.
  EXPECT_EQ(model->CostAt(model->UniformTotals(0, 2, {1, 4, 0, false}, 4), {}).forward_us, 600);
}

TEST(CalibratedModel, ByHandMarginCoversActivationsAndWorkspaceOnly) {
  const auto problem = TwoOps();
  const auto cost = problem->Model({.memory_margin = 0.25, .context_mib = 10})->Price(TwoStages());
  ASSERT_TRUE(cost.ok());
  EXPECT_EQ(cost->stages[0].margin_mib, (20 + 20 + 8) / 4 + 10);
  EXPECT_EQ(cost->stages[0].memory_mib, 112 + 12 + 10);
}

TEST(CalibratedModel, ByHandSchedulesOfTheSamePlan) {
  const auto problem = TwoOps();
  const auto price = [&](const CalibratedOptions& options) { return *problem->Model(options)->Price(TwoStages()); };
  const PlanCost plain = price({.memory_margin = 0, .noise_factor = 0});
  const PlanCost zero_bubble = price({.schedule = PipelineSchedule::kZeroBubble, .memory_margin = 0, .noise_factor = 0});
  EXPECT_EQ(zero_bubble.stages[0].weight_gradient_us, 100) << "half of the backward pass of a matrix product";
  EXPECT_LT(zero_bubble.iteration_ms, plain.iteration_ms);
  EXPECT_EQ(zero_bubble.stages[1].activation_mib, 20) << "later stages hold micro-batches whose weight gradients wait";
  const PlanCost interleaved =
      price({.schedule = PipelineSchedule::kInterleaved, .chunks = 2, .memory_margin = 0, .noise_factor = 0});
  EXPECT_EQ(interleaved.stages[0].out_us, 2 * 2 * 34) << "twice as many messages";
  EXPECT_EQ(interleaved.stages[1].out_us, 2 * 34) << "the last stage sends to the first between chunks";
  EXPECT_EQ(interleaved.stages[0].activation_mib, 20 * (5.0 / 2 - 1)) << "2 + 2 + 1 half micro-batches";
  Plan odd = TwoStages();
  odd.global_batch = 6;
  const auto refused = problem->Model({.schedule = PipelineSchedule::kInterleaved, .chunks = 2})->Price(odd);
  ASSERT_TRUE(refused.ok());
  EXPECT_TRUE(std::isinf(refused->iteration_ms)) << "3 micro-batches on 2 stages";
  EXPECT_FALSE(refused->fits);
}

TEST(CalibratedModel, ByHandSequenceParallelismDividesWhatAllDevicesHold) {
  auto problem = TwoOps();
  for (profile::OpRow& row : problem->bundle.ops) row.key.tensor_parallel = row.key.batch == 2 ? 2 : 1;
  problem->ops.distinct[1].algorithms = {{{Split::kNone, {Split::kData, Split::kNone, Split::kTensor}},
                                          {Split::kNone, {Split::kData, Split::kNone, Split::kTensor}}}};
  ASSERT_TRUE(problem->ops.Finish().ok());
  problem->table = std::make_unique<ProfileTable>(*ProfileTable::Build(problem->bundle, problem->ops));
  const OpChoice wide{2, 1, 0, false};
  const StageTotals plain = problem->Model()->UniformTotals(0, 2, wide, 2);
  const StageTotals parallel = problem->Model({.sequence_parallel = true})->UniformTotals(0, 2, wide, 2);
  EXPECT_EQ(plain.activation_mib, 64);
  EXPECT_EQ(parallel.activation_mib, 16 + 32) << "the second op is split over the devices already";
  EXPECT_EQ(plain.input_mib, 8);
  EXPECT_EQ(parallel.input_mib, 4);
  EXPECT_EQ(parallel.in_us[0], 1 + 4 / 0.25);
  EXPECT_EQ(parallel.out_us[0], plain.out_us[0]);
}

// --- Memory ---

// Plays one stage's passes and tracks every tensor: what a micro-batch holds after its forward pass (without what is recomputed),
// what comes back before its backward pass, what each op leaves behind, and the gradients around the op that runs.
double WalkedPeak(const CostModel& model, const Stage& stage, int32_t micro_batch, int32_t stages_behind, int64_t micro_batches) {
  const OpList& ops = model.ops();
  const std::vector<OpChoice> choices = stage.Choices();
  const int32_t count = stage.count();
  std::vector<double> kept(count), freed(count), gradients(count);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t position = stage.first() + i, row = model.RowOf(choices[i], micro_batch);
    const double activation = model.ranges().Activation(row, position);
    const bool drops = i + 1 < count && choices[i].recompute && choices[i + 1].recompute && !ops.at(position + 1).starts_layer;
    kept[i] = drops ? 0 : activation;
    freed[i] = drops ? activation : 0;
    gradients[i] = model.table().At(Column::kInputMib, row, ops.ops[position]) +
                   model.table().At(Column::kOutputMib, row, ops.ops[position]);
  }
  const double input = model.TotalsOf(stage, micro_batch).input_mib;
  double now = model.TotalsOf(stage, micro_batch).state_mib, peak = now;
  const auto forward = [&] {
    now += input;
    for (const double mib : kept) now += mib;
    peak = std::max(peak, now);
  };
  const auto backward = [&] {
    for (int32_t last = count - 1; last >= 0;) {
      int32_t first = last;  // ops (first .. last) whose activations come back together
      while (first > 0 && freed[first - 1] > 0) --first;
      for (int32_t i = first; i <= last; ++i) now += freed[i];
      for (int32_t i = last; i >= first; --i) {
        peak = std::max(peak, now + gradients[i]);
        now -= freed[i] + kept[i];
      }
      last = first - 1;
    }
    now -= input;
  };
  const auto warm = std::min<int64_t>(stages_behind, micro_batches);
  for (int64_t i = 0; i < warm; ++i) forward();
  for (int64_t i = 0; i < micro_batches; ++i) {
    if (i + warm < micro_batches) forward();
    backward();
  }
  EXPECT_NEAR(now, model.TotalsOf(stage, micro_batch).state_mib, 1e-6);
  return peak;
}

TEST(CalibratedModel, MemoryIsNoLessThanAWalkOverAllTensorsOfAllMicroBatchesFinds) {
  std::mt19937 random(5);
  double ratio = 0;
  int count = 0;
  for (int round = 0; round < 60; ++round) {
    const auto problem = RandomProblem(random);
    const auto model = problem->Model({.memory_margin = 0, .noise_factor = 0});
    for (int i = 0; i < 20; ++i, ++count) {
      const StagePtr stage = AnyStage(random, *model, 4);
      const StagePlace place{.stages_behind = static_cast<int32_t>(random() % 4),
                             .micro_batches = static_cast<int64_t>(1 + random() % 6)};
      const double peak = WalkedPeak(*model, *stage, 4, place.stages_behind, place.micro_batches);
      const double memory = model->MemoryAt(model->TotalsOf(*stage, 4), place);
      ASSERT_GE(memory, peak - 1e-6) << "round " << round << ", stage " << i;
      ratio += peak / memory;
    }
  }
  EXPECT_GT(ratio / count, 0.75) << "not far above it either";
}

TEST(CalibratedModel, TheRecomputeRuleGivesTheTotalsOfTheStageWithItsFlags) {
  std::mt19937 random(6);
  int recomputed = 0;
  for (int round = 0; round < 200; ++round) {
    const auto problem = RandomProblem(random);
    const auto model = problem->Model(RandomOptions(random));
    const StagePtr stage = AnyStage(random, *model, 4);
    const StagePlace place{.stages_behind = static_cast<int32_t>(random() % 4)};
    const StagePtr plain = stage->WithRecompute(std::vector<uint8_t>(stage->count(), 0));
    const double limit =
        model->MemoryAt(model->TotalsOf(*plain, 4), place) * std::uniform_real_distribution<double>(0.6, 1.1)(random);
    const RecomputeResult result = ChooseRecompute(*model, *stage, 4, place, limit);
    const StagePtr chosen = WithChosenRecompute(*model, stage, 4, place, limit);
    ExpectEqual(result.totals, model->TotalsOf(*chosen, 4));
    EXPECT_EQ(result.memory_mib, model->MemoryAt(result.totals, place));
    recomputed += chosen->recomputes();
  }
  EXPECT_GT(recomputed, 60);
}

// --- What may only help ---

TEST(CalibratedModel, WhatMayOnlyHelpNeverHurts) {
  std::mt19937 random(7);
  int compared = 0;
  for (int round = 0; round < 300; ++round) {
    auto problem = RandomProblem(random);
    problem->cluster.within_node = LinkSpeed{1e10, 5};
    problem->cluster.between_nodes = LinkSpeed{1e9, 20};
    CalibratedOptions options = RandomOptions(random);
    options.zero1 = options.sequence_parallel = false;
    const auto model = problem->Model(options);
    const auto plan = RandomPlan(random, *model, 4, true);
    if (plan == nullptr) continue;
    const PlanCost before = *model->Price(*plan);
    // The limit is where half of the plans fit.
    Cluster cluster = problem->cluster;
    cluster.memory_limit_mib = before.max_memory_mib * (random() % 2 == 0 ? 0.99 : 1.01);
    const bool fits = problem->ModelOn(cluster, options)->Price(*plan)->fits;
    Cluster larger = cluster;
    larger.memory_limit_mib *= 1.5;
    EXPECT_GE(problem->ModelOn(larger, options)->Price(*plan)->fits, fits);
    Cluster faster = cluster;
    (random() % 2 == 0 ? faster.within_node : faster.between_nodes)->bytes_per_s *= 3;
    EXPECT_LE(problem->ModelOn(faster, options)->Price(*plan)->iteration_ms, before.iteration_ms);

    const auto with = [&](auto change) {
      CalibratedOptions changed = options;
      change(&changed);
      return *problem->Model(changed)->Price(*plan);
    };
    const PlanCost zero1 = with([](CalibratedOptions* o) { o->zero1 = true; });
    const PlanCost parallel = with([](CalibratedOptions* o) { o->sequence_parallel = true; });
    for (size_t i = 0; i < plan->stages.size(); ++i) {
      EXPECT_LE(zero1.stages[i].memory_mib, before.stages[i].memory_mib);
      EXPECT_LE(parallel.stages[i].memory_mib, before.stages[i].memory_mib);
    }
    EXPECT_LE(zero1.iteration_ms, before.iteration_ms);
    EXPECT_LE(with([](CalibratedOptions* o) { o->sync_overlap = 1; }).iteration_ms, before.iteration_ms);
    EXPECT_LE(with([](CalibratedOptions* o) { o->memory_bytes_per_s = 1e13; }).iteration_ms, before.iteration_ms);
    EXPECT_LE(before.max_memory_mib, with([](CalibratedOptions* o) { o->memory_margin = 0.5; }).max_memory_mib);
    ++compared;
  }
  EXPECT_GT(compared, 200);
}

TEST(CalibratedModel, AnswersAreTheSameForEveryModelOfTheSameInput) {
  std::mt19937 random(8);
  const auto problem = RandomProblem(random);
  const CalibratedOptions options = RandomOptions(random);
  const auto a = problem->Model(options), b = problem->Model(options);
  for (int i = 0; i < 100; ++i) {
    const StagePtr stage = AnyStage(random, *a, 4);
    ExpectEqual(a->TotalsOf(*stage, 4), b->TotalsOf(*stage, 4));
  }
}

// --- Profiles ---

TEST(CalibratedModel, CollectivesThatWereNotMeasuredAreEstimatedFromLinks) {
  std::mt19937 random(9);
  auto problem = RandomProblem(random);
  problem->bundle.collectives.clear();
  problem->table = std::make_unique<ProfileTable>(*ProfileTable::Build(problem->bundle, problem->ops));
  const auto model = problem->Model();
  for (int i = 0; i < 100; ++i) {
    const StageTotals totals = model->TotalsOf(*AnyStage(random, *model, 4), 4);
    EXPECT_LT(totals.reshard_forward_us + totals.reshard_backward_us, 1e6) << "parity would charge 100 s each";
  }
}

TEST(CalibratedModel, MemoryNoiseIsTheDifferenceOfWhatWasMeasuredTwice) {
  auto problem = TwoOps();
  EXPECT_EQ(problem->table->memory_noise(), 0) << "nothing was measured twice";
  const size_t size = problem->bundle.ops.size();
  for (size_t i = 0; i < size; ++i) {
    profile::OpRow row = problem->bundle.ops[i];
    row.key.algorithm = 1;
    row.memory.activation_bytes *= 1.5;
    row.memory.reserved_bytes *= 1.5;
    problem->bundle.ops.push_back(row);
  }
  problem->ops.distinct[0].algorithms.push_back({});
  problem->ops.distinct[1].algorithms.push_back({});
  ASSERT_TRUE(problem->ops.Finish().ok());
  const auto table = ProfileTable::Build(problem->bundle, problem->ops);
  ASSERT_TRUE(table.ok());
  EXPECT_NEAR(table->memory_noise(), 0.4, 1e-12);
}

TEST(CalibratedModel, ImpossibleInputsAreRefusedWithEveryReason) {
  std::mt19937 random(10);
  const auto problem = RandomProblem(random);
  const auto refuse = [&](const Cluster& cluster, const CalibratedOptions& options, std::span<const int32_t> micro_batches = {}) {
    return MessageOf(MakeCalibratedModel(problem->ops, *problem->table, cluster, micro_batches, options).status());
  };
  const std::string text =
      refuse(problem->cluster, {.chunks = 2, .transfer_overlap = 2, .sync_overlap = -1, .memory_margin = -1});
  EXPECT_THAT(text, HasSubstr("chunks is 2; allowed: 1, if not interleaved"));
  EXPECT_THAT(text, HasSubstr("transfer_overlap is 2; allowed: 0 to 1"));
  EXPECT_THAT(text, HasSubstr("sync_overlap is -1; allowed: 0 to 1"));
  EXPECT_THAT(text, HasSubstr("memory_margin is -1; allowed: 0 or more"));
  EXPECT_THAT(refuse({.nodes = 0, .memory_limit_mib = 1}, {}), HasSubstr("nodes is 0"));
  constexpr int32_t kZero[] = {0};
  EXPECT_THAT(refuse(problem->cluster, {}, kZero), HasSubstr("micro-batch 0"));
  profile::Bundle bundle = problem->bundle;
  bundle.links.clear();
  const auto table = ProfileTable::Build(bundle, problem->ops);
  ASSERT_TRUE(table.ok());
  EXPECT_THAT(MessageOf(MakeCalibratedModel(problem->ops, *table, problem->cluster, {}).status()), HasSubstr("no transfers"));
  Cluster described = problem->cluster;
  described.within_node = described.between_nodes = LinkSpeed{1e9, 0};
  EXPECT_TRUE(MakeCalibratedModel(problem->ops, *table, described, {}).ok());
}

}  // namespace
}  // namespace tidepool::plan
