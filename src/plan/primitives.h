// The moves of the published search: each takes a plan and one of its stages, and gives plans in which that stage has less of
// something. What it gives up goes to partners, so that every move keeps the network's ops, the devices and the global batch;
// recomputation is chosen again for the stages that changed. Source: Lin et al., Aceso, EuroSys 2024 (reconfiguration
// primitives). Beyond the source: several partners are tried, and a stage never becomes so short that a skip tensor would cross
// two edges.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "plan/plan_editor.h"

namespace tidepool::plan {

enum class Primitive : uint8_t {
  kDecOps,         // ops move over neighbours to a partner that idles
  kIncData,        // twice the replicas; partners give devices
  kIncTensor,      // twice the width; partners give devices
  kDecData,        // half the replicas; partners take the devices
  kDecTensor,      // half the width; partners take the devices
  kIncMicroBatch,  // the next larger micro-batch, all stages split anew
  kDecMicroBatch,  // the next smaller one
  kIncTensorDecData,
  kIncDataDecTensor,
};
inline constexpr int kPrimitives = 9;
// Names of the published search: "dec_op_num", "inc_dp", ...
std::string_view NameOf(Primitive primitive);

// What a move does to its stage: 1 more, -1 less, 0 the same.
struct PrimitiveEffect {
  int8_t time = 0, memory = 0, devices = 0, work = 0, efficiency = 0, communication = 0;
};
PrimitiveEffect EffectOf(Primitive primitive);

struct PrimitiveOptions {
  int32_t partners = 3;    // of those that could take or give, best first
  int32_t migrations = 5;  // of ops, one after the other, each from the stage that is then the bottleneck
};

// The stage that should change: the one with the most memory relative to its limit if any does not fit, else the slowest.
int32_t BottleneckOf(const CostModel& model, const RankedPlan& plan);
// All stages, the bottleneck first, by the same measure; ties by index.
std::vector<int32_t> BottlenecksOf(const CostModel& model, const RankedPlan& plan);

// The plans that the move leads to, none twice; they need not be better, nor fit. Empty if the move cannot be made.
std::vector<RankedPlan> Apply(PlanEditor* editor, Primitive primitive, const RankedPlan& from, int32_t stage,
                              const PrimitiveOptions& options = {});

// The primitives in groups, in the order in which they should be tried on the stage: first those that reduce the resource of
// which it has the largest share, without worsening another of which it has more than the average.
std::vector<std::vector<Primitive>> OrderedPrimitives(const CostModel& model, const RankedPlan& plan, int32_t stage);

}  // namespace tidepool::plan
