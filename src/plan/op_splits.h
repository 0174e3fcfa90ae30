// What one op costs with each split of a number of devices, as dense arrays for programmes over ops.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/cost_model.h"

namespace tidepool::plan {

struct OpSplitCost {
  double us = 0;         // forward and backward, and its part of what is once per iteration
  double again_us = 0;   // forward, if it is recomputed
  double state_mib = 0;  // weights, gradients, optimizer
  double weight_mib = 0;
  double activation_mib = 0;
  double input_mib = 0;
  double forward_reserved_mib = 0, backward_reserved_mib = 0;
  double in_us[kLinkClasses] = {}, out_us[kLinkClasses] = {};
  double once_us = 0;  // per iteration
};

// Splits of `gpus` devices with one micro-batch. Immutable; the model must outlive it.
class OpSplits {
 public:
  OpSplits(const CostModel& model, int32_t gpus, int32_t micro_batch, int64_t micro_batches);

  int32_t size() const { return static_cast<int32_t>(choices_.size()); }
  const OpChoice& choice(int32_t split) const { return choices_[split]; }
  const OpSplitCost& At(int32_t position, int32_t split) const {
    return costs_[static_cast<size_t>(model_.ops().ops[position]) * choices_.size() + split];
  }
  // Time of the collectives between op position - 1 with one split and op `position` with another, in one stage: [before][after].
  const double* Reshard(int32_t position) const { return &reshard_[pair_of_[position] * choices_.size() * choices_.size()]; }
  // Whether op `position` may have another split than the op before it.
  bool MaySwitch(int32_t position) const { return may_switch_[position] != 0; }
  // What leaves a stage whose first op has one split and whose last op, at `position`, another.
  double OutUs(int32_t position, int32_t first_split, int32_t last_split, LinkClass link) const;

 private:
  const CostModel& model_;
  bool published_out_;
  std::vector<OpChoice> choices_;
  std::vector<OpSplitCost> costs_;  // [distinct op][split]
  std::vector<double> reshard_;     // [pair][before][after]
  std::vector<size_t> pair_of_;     // of a position
  std::vector<uint8_t> may_switch_;
  std::vector<double> out_us_;  // [distinct op][first split][last split][link]
};

}  // namespace tidepool::plan
