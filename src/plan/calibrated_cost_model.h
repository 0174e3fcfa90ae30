// What a plan costs on a real cluster, as far as a profile can tell: the planner's default cost model. Beside what parity charges
// it knows gradient synchronisation, the optimizer step, tied weights, both ways of every transfer, the pipeline's schedule
// (pipeline_schedule.h), ZeRO-1, sequence parallelism, device groups and links of a cluster's own. docs/plan.md has the formulas.
#pragma once

#include <memory>
#include <span>

#include "plan/cost_model.h"

namespace tidepool::plan {

struct CalibratedOptions {
  PipelineSchedule schedule = PipelineSchedule::kOneForwardOneBackward;
  int32_t chunks = 1;  // per stage of an interleaved pipeline; the ops of a stage are taken to be spread evenly over them
  double transfer_overlap = 0;  // 0: stages wait for their messages; 1: messages run beside the passes
  // The part of the gradients' all-reduce that runs beside the last backward pass; never more than that pass takes.
  double sync_overlap = 0;
  bool zero1 = false;              // each replica holds and updates 1 / d of master weights and moments
  bool sequence_parallel = false;  // ops whose tensors all t devices hold keep 1 / t of them
  // Of device memory, for the optimizer step. 0: the profile's hardware description; if it has none, kDefaultMemoryBytesPerS.
  double memory_bytes_per_s = 0;
  // Added to activations and workspace: this share of them, and noise_factor times the profile's memory noise.
  double memory_margin = 0.05;
  double noise_factor = 1;
  double context_mib = 0;  // added to every device: driver, libraries
};
// What a V100 with 32 GB, on which the published profiles were made, reaches of its 900 GB/s in a copy; an estimate.
inline constexpr double kDefaultMemoryBytesPerS = 7.5e11;

// Reports every fault at once.
Status Validate(const CalibratedOptions& options);

// `micro_batches` as in MakeParityModel. The table should have been built with default options (any will do). INVALID_ARGUMENT:
// the cluster or the options are not valid, or the table is of another list; FAILED_PRECONDITION: several devices, and neither
// profile nor cluster say how fast links are.
//
// Stages at first_gpu 0 receive nothing, stages with none behind send nothing. If the schedule is not 1F1B, memory is right only
// for places that say how many stages there are.
StatusOr<std::unique_ptr<CostModel>> MakeCalibratedModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster,
                                                         std::span<const int32_t> micro_batches,
                                                         const CalibratedOptions& options = {});

}  // namespace tidepool::plan
