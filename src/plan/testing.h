// Random op lists, profiles and plans for the tests of this folder and of what is built on it.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "plan/cost_model.h"
#include "plan/op_list.h"
#include "plan/plan.h"
#include "plan/profile_table.h"

namespace tidepool::plan::testing {

struct RandomListOptions {
  int32_t layers = 3, period = 4, extra = 2;  // ops: extra, then layers * period
  int32_t algorithms = 2;
  bool reshards = true;  // layouts differ between ops
};
OpList RandomOpList(std::mt19937& random, const RandomListOptions& options = {});

struct RandomProfileOptions {
  std::vector<int32_t> batches = {1, 2, 4};
  std::vector<int32_t> widths = {1, 2, 4};
  double missing = 0;  // how many of the (batch, width, algorithm) tables are left out; batch 1, width 1, algorithm 0 never
};
// Times of 1 to 1000 us and sizes of up to 64 MiB, all with three decimals, as published tables have.
profile::Bundle RandomProfile(std::mt19937& random, const OpList& list, const RandomProfileOptions& options = {});

// A list with everything that is needed to price its plans. Not movable: the model refers to the rest.
struct RandomProblem {
  OpList ops;
  std::unique_ptr<ProfileTable> table;
  Cluster cluster;
  std::unique_ptr<CostModel> model;  // parity
};
struct RandomProblemOptions {
  RandomListOptions list;
  RandomProfileOptions profile;
  Cluster cluster = {.nodes = 1, .gpus_per_node = 4, .memory_limit_mib = 4096};
  std::vector<int32_t> micro_batches = {1, 2, 4};
};
std::unique_ptr<RandomProblem> MakeRandomProblem(std::mt19937& random, const RandomProblemOptions& options = {});

// A plan of all ops and all devices whose splits are profiled; stages need not fit into memory. `mixed`: each op has its own
// split and recompute flag, else each stage one split and no recomputation. Null if none was found in a few hundred attempts.
std::unique_ptr<Plan> RandomPlan(std::mt19937& random, const CostModel& model, int32_t micro_batch, bool mixed);
// Stage ops with random splits of `gpus` devices, which must have one.
StagePtr RandomStage(std::mt19937& random, const CostModel& model, int32_t first, int32_t count, int32_t gpus,
                     int32_t micro_batch);

// The parity model written down op by op, without tables: what TotalsOf must equal in every bit.
StageTotals ReferenceTotals(const CostModel& model, const Stage& stage, int32_t micro_batch);

}  // namespace tidepool::plan::testing
