// What a plan costs: time of one iteration and memory per device.
//
// A cost is made in three steps, so that searches redo only what changed:
//   1. StageTotals: a stage by itself, for one micro-batch, wherever it stands in the pipeline. O(1) if all its ops have one
//   split and
//      the same recompute flag, else O(runs).
//   2. StageCost: the totals at a place (how many stages follow, which links, which devices). O(1).
//   3. PlanCost: the stages together. O(stages).
// Implementations are immutable and may be used by any number of threads. Results do not depend on how a stage was reached: sums
// are exact (profile_table.h), so incremental and full evaluation agree in every bit.
//
// What cannot be priced (a split that was not profiled) has infinite time and memory.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "plan/cluster.h"
#include "plan/op_list.h"
#include "plan/pipeline_schedule.h"
#include "plan/plan.h"
#include "plan/profile_table.h"
#include "plan/range_tables.h"

namespace tidepool::plan {

// One micro-batch through one stage, microseconds; memory of one of its devices, MiB.
struct StageTotals {
  int32_t gpus = 0;
  double forward_us = 0, backward_us = 0;
  double recompute_us = 0;                                     // forward time of the ops that are computed again
  double reshard_forward_us = 0, reshard_backward_us = 0;      // between ops of the stage
  double in_us[kLinkClasses] = {}, out_us[kLinkClasses] = {};  // transfers over the edges, by the link they would use
  double weight_gradient_us = 0;                               // part of backward_us; calibrated only
  double sync_us = 0, optimizer_us = 0;                        // once per iteration; calibrated only
  double input_mib = 0;
  double weight_mib = 0;
  double state_mib = 0;       // weights, gradients, optimizer
  double activation_mib = 0;  // of one micro-batch, if nothing is recomputed
  double saved_mib = 0;       // what recomputation frees of it
  double peak_run_mib = 0;    // the most that is there again at once while recomputing
  double reserved_mib = 0;    // workspace and buffers
  bool priced() const;        // all its splits are profiled
};
// Infinite everywhere.
StageTotals UnpricedTotals();

struct StagePlace {
  int32_t stages_behind = 0;  // how many stages follow
  LinkClass in_link = LinkClass::kWithinNode, out_link = LinkClass::kWithinNode;
  int32_t first_gpu = 0;      // 0: the first stage
  int32_t stages = 0;         // of the pipeline; 0: not known. 1F1B does not need it
  int64_t micro_batches = 0;  // of an iteration; 0: many
};

struct StageCost {
  // Per micro-batch.
  double forward_us = 0, backward_us = 0, recompute_us = 0;
  double in_us = 0, out_us = 0;
  double reshard_forward_us = 0, reshard_backward_us = 0;
  double hidden_us = 0;           // transfers that run beside the rest; calibrated only
  double time_us = 0;             // all of the above, without what is hidden
  double weight_gradient_us = 0;  // part of backward_us; calibrated only
  // Per iteration.
  double sync_us = 0, optimizer_us = 0;
  // Of one device.
  double state_mib = 0;
  double activation_mib = 0;  // of micro-batches that wait for their backward pass
  double peak_mib = 0;        // of the micro-batch that runs, with what recomputation brings back
  double reserved_mib = 0;
  double margin_mib = 0;  // for what the profile does not know; calibrated only
  double memory_mib = 0;  // all of the above

  // time_us with its share of what is done once per iteration. Searches that add up stages use it as the stage's time:
  // (N - 1) * the largest + the sum of all is the iteration in the parity model, and close to it in the calibrated one.
  double AmortizedUs(int64_t all_micro_batches) const {
    return time_us + (sync_us + optimizer_us) / static_cast<double>(all_micro_batches);
  }
};

struct PlanCost {
  std::vector<StageCost> stages;
  std::vector<double> stage_iteration_ms;  // the iteration as if the stage were the slowest one
  double iteration_ms = 0;
  int32_t slowest = 0;  // stage with the largest stage_iteration_ms; the first of several
  double max_memory_mib = 0;
  int32_t largest = 0;  // stage with the most memory relative to its limit
  bool fits = false;    // every stage within the limit of its devices
};

// How a model lets the stages of a plan run together.
struct PipelineOptions {
  PipelineSchedule schedule = PipelineSchedule::kOneForwardOneBackward;
  int32_t chunks = 1;           // per stage; more than one with kInterleaved only
  double transfer_overlap = 0;  // of transfers between stages with passes; 0 to 1
};

struct ReshardCost {
  double forward_us = 0, backward_us = 0;
};

class CostModel {
 public:
  virtual ~CostModel() = default;
  virtual std::string_view name() const = 0;  // "parity", "calibrated"

  const OpList& ops() const { return ops_; }
  const ProfileTable& table() const { return table_; }
  const Cluster& cluster() const { return cluster_; }
  const RangeTables& ranges() const { return ranges_; }

  // The profile row of a split with this micro-batch; -1: not profiled, or replicas that do not divide the micro-batch. O(1).
  int32_t RowOf(const OpChoice& choice, int32_t micro_batch) const {
    if (choice.data_parallel < 1 || micro_batch % choice.data_parallel != 0) return -1;
    return table_.RowOf(micro_batch / choice.data_parallel, choice.tensor_parallel, choice.algorithm);
  }
  // Every profiled split of `gpus` devices, without recompute, by width, then algorithm.
  std::vector<OpChoice> SplitsOf(int32_t gpus, int32_t micro_batch) const;
  // Every number of devices that has a split and that a stage on this cluster may have, ascending.
  std::vector<int32_t> StageSizes(int32_t micro_batch) const;

  // --- Step 1 ---
  virtual StageTotals TotalsOf(const Stage& stage, int32_t micro_batch) const = 0;
  // Equal to TotalsOf(*Stage::MakeUniform(first, count, choice), micro_batch), without making one.
  virtual StageTotals UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const = 0;
  // From op position - 1 with `before` to op `position` with `after`, both in one stage.
  virtual ReshardCost ReshardBetween(int32_t position, const OpChoice& before, const OpChoice& after,
                                     int32_t micro_batch) const = 0;

  // --- Step 2 ---
  virtual StageCost CostAt(const StageTotals& totals, const StagePlace& place) const = 0;
  // Memory alone: CostAt(totals, place).memory_mib.
  virtual double MemoryAt(const StageTotals& totals, const StagePlace& place) const = 0;
  std::vector<StagePlace> PlacesOf(const Plan& plan) const;  // of every stage; O(stages)

  // --- Step 3 ---
  // `plan` gives devices and micro-batches; costs[i] is of plan.stages[i].
  virtual PlanCost Combine(const Plan& plan, std::vector<StageCost> costs) const = 0;
  // No more than Combine(...).iteration_ms, in O(stages): for searches that drop a plan before they simulate it. Equal to it in
  // the parity model.
  virtual double LowerBoundMs(const Plan& plan, std::span<const StageCost> costs) const = 0;
  // True: iteration_ms is (N - 1) * the largest time_us + the sum of all. False: it is at least N * time_us + sync_us +
  // optimizer_us of every stage, and may be more or less than that sum.
  virtual bool iteration_is_closed_form() const = 0;
  virtual PipelineOptions pipeline() const { return {}; }
  // The stages as a pipeline, for SimulatePipeline and TracePipeline.
  PipelineSpec PipelineOf(const Plan& plan, std::span<const StageCost> costs) const;

  // All three. Errors as CheckShape.
  StatusOr<PlanCost> Price(const Plan& plan) const;
  // INVALID_ARGUMENT if the plan has no stages, ops outside of the list, or no micro-batch; verify.h checks the rest.
  Status CheckShape(const Plan& plan) const;

 protected:
  // The three must outlive the model.
  CostModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster, bool corrected_activations)
      : ops_(ops), table_(table), cluster_(cluster), ranges_(ops, table, corrected_activations) {}
  // Activations of its own, see RangeTables.
  CostModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster, std::vector<double> activation_mib)
      : ops_(ops), table_(table), cluster_(cluster), ranges_(ops, table, std::move(activation_mib)) {}

  const OpList& ops_;
  const ProfileTable& table_;
  const Cluster& cluster_;
  RangeTables ranges_;
};

// The published planner's model, with its defects (docs/plan.md lists them). Iteration = (N - 1) * slowest stage + sum of all.
// `micro_batches`: those that will be priced most; others are priced too, but resharding inside of uniform stages takes O(ops)
// then. INVALID_ARGUMENT: the cluster is not valid, has device groups or link speeds of its own, or the table was not built with
// kParityTable; FAILED_PRECONDITION: several devices, and no link was measured.
StatusOr<std::unique_ptr<CostModel>> MakeParityModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster,
                                                     std::span<const int32_t> micro_batches);

}  // namespace tidepool::plan
