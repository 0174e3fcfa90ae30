// How long a pipeline takes: its passes are played through in the order in which a runtime would run them.
//
// Every stage has a fixed order of forward and backward passes (the schedule). A pass starts when the stage is free and what it
// needs has arrived; nothing else delays it. Schedules of stage i of S, N micro-batches:
//   1F1B          S - 1 - i forwards, then one forward and one backward in turn, then backwards. Narayanan et al.,
//   Memory-Efficient
//                 Pipeline-Parallel DNN Training, ICML 2021.
//   interleaved   every stage holds v chunks of the network, chunk c of stage i being number c S + i of v S; 2 (S - 1 - i) + (v -
//   1) S
//                 forwards of chunks first. N must be a multiple of S. Narayanan et al., Efficient Large-Scale Language Model
//                 Training on GPU Clusters Using Megatron-LM, SC 2021.
//   zero-bubble   1F1B with the weight gradients as passes of their own, on stage i by i micro-batches late, so that they fill
//   what
//                 is idle. Every stage holds up to S micro-batches. Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024
//                 (ZB-H1).
//
// A message takes its time on its edge, one message at a time per direction. During `1 - transfer_overlap` of that time its
// sender and its receiver do nothing else; a receiver that waits anyway loses nothing by it.
//
// Times in microseconds, rounded to multiples of 2^-20 on entry, so that sums are exact and skipping ahead changes no bit. All
// functions are pure.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::plan {

enum class PipelineSchedule : uint8_t { kOneForwardOneBackward, kInterleaved, kZeroBubble };
std::string_view NameOf(PipelineSchedule schedule);                      // "1f1b", "interleaved", "zero-bubble"
StatusOr<PipelineSchedule> PipelineScheduleFrom(std::string_view name);  // INVALID_ARGUMENT lists what is allowed

// Of one micro-batch through all chunks of the stage.
struct PipelineStage {
  double forward_us = 0;
  double recompute_us = 0;               // before each backward pass
  double backward_us = 0;                // with weight gradients
  double weight_gradient_us = 0;         // part of backward_us that may run later (zero-bubble)
  double sync_us = 0, optimizer_us = 0;  // once, after all passes of the stage
};

// One message each way.
struct PipelineEdge {
  double forward_us = 0, backward_us = 0;
};

struct PipelineSpec {
  PipelineSchedule schedule = PipelineSchedule::kOneForwardOneBackward;
  int32_t chunks = 1;  // per stage; above 1 with kInterleaved only
  int64_t micro_batches = 1;
  double transfer_overlap = 0;  // 0: senders and receivers wait; 1: transfers run beside the passes
  std::vector<PipelineStage> stages;
  // [i]: between stages i and i + 1. Interleaved: the last one leads from the last stage to the first.
  std::vector<PipelineEdge> edges;
};
// Reports every fault at once: no stages, edges missing, numbers that are negative or not finite, N not a multiple of S.
Status Validate(const PipelineSpec& spec);

struct PipelineEvent {
  enum class Kind : uint8_t {
    kForward,
    kRecompute,
    kBackward,
    kWeightGradient,
    kSendForward,   // over the edge behind the stage
    kSendBackward,  // over the edge before the stage
    kSync,
    kOptimizer
  } kind = Kind::kForward;
  int32_t stage = 0;
  int32_t chunk = 0;
  int64_t micro_batch = 0;
  double start_us = 0, end_us = 0;
};
std::string_view NameOf(PipelineEvent::Kind kind);

struct StageRun {
  double first_us = 0;    // its first pass starts
  double last_us = 0;     // its last pass, and the message after it, are done
  double compute_us = 0;  // in passes
  double blocked_us = 0;  // occupied by messages
  double idle_us = 0;     // of the makespan: neither, nor synchronisation or optimizer
};

struct PipelineRun {
  double makespan_us = 0;  // until the last stage has made its optimizer step
  std::vector<StageRun> stages;
  std::vector<PipelineEvent> events;  // TracePipeline only; by stage, then start
};

// O(stages x micro-batches), and less for many micro-batches: once every stage repeats itself, whole periods are skipped
// (1F1B and zero-bubble). Interleaved runs of more than a quarter of a million passes are extrapolated from shorter ones. `spec`
// must be valid. Infinite or NaN times give an infinite makespan.
PipelineRun SimulatePipeline(const PipelineSpec& spec);

// The same with all events. INVALID_ARGUMENT as Validate; RESOURCE_EXHAUSTED: more than `limit` events.
StatusOr<PipelineRun> TracePipeline(const PipelineSpec& spec, int64_t limit = 1 << 20);

// (N - 1) x the slowest stage + the sum of all, for 1F1B. A stage's time includes both ways of the messages over both of its
// edges, as far as they block; what does not block is added once per edge. It is what 1F1B takes if all stages are equal and
// there are no messages. If messages block and are alike both ways, and all stages have one ratio of forward to backward time,
// 1F1B takes no longer. (With other ratios it can: a stage with a slow forward pass runs its warm-up although it could go
// backward already; docs/plan.md has an example.) The largest sync_us + optimizer_us is added.
double ClosedFormUs(const PipelineSpec& spec);

// No more than SimulatePipeline(spec).makespan_us, for any schedule; exact for equal stages in 1F1B without transfers. O(stages).
double LowerBoundUs(const PipelineSpec& spec);
// The same through one stage: it could take no less if all others were as they are. The largest one is LowerBoundUs.
std::vector<double> StageBoundsUs(const PipelineSpec& spec);

// How many micro-batches a stage holds at most, in forward passes whose memory is not free again (chunks count 1 / chunks).
// `stages` 0 or `micro_batches` 0: not known; 1F1B does not need `stages`, the others then assume as many as stages_behind + 1.
double InFlight(PipelineSchedule schedule, int32_t chunks, int32_t stages_behind, int32_t stages, int64_t micro_batches);

}  // namespace tidepool::plan
