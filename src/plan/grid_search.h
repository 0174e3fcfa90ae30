// The baseline that people set by hand, as for Megatron-LM: every stage has equally many layers and devices, all ops have one
// split, and either all is recomputed or nothing.
#pragma once

#include <cstdint>
#include <optional>

#include "plan/op_list.h"
#include "plan/plan.h"

namespace tidepool::plan {

struct GridPoint {
  int32_t stages = 1;
  int32_t micro_batch = 1;
  OpChoice split;  // of every op
  bool recompute = false;
};

// The plan of a point. Layers that cannot be divided equally are left over for the last stage; a list without layers is cut into
// equally many ops. What stands before the first layer belongs to the first stage, what follows the last layer to the last one,
// and an embedding in the middle to the layers behind it. An embedding at the beginning and a loss at the end are never
// recomputed. None if there are fewer layers than stages.
std::optional<Plan> GridPlan(const OpList& ops, int64_t global_batch, const GridPoint& point);

}  // namespace tidepool::plan
