// Plans that the searches which change plans start from.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "plan/plan_editor.h"

namespace tidepool::plan {

// Numbers of devices of `stages` stages in order, together all of the cluster's, none over a node's edge: as equal as possible,
// or as unequal. Empty: there are none. O(stages * devices * sizes).
std::vector<int32_t> DivideDevices(const Cluster& cluster, const std::vector<int32_t>& sizes, int32_t stages, bool equal);

// Ends of stages near the wanted ones (ascending, the last is the number of ops), so that no skip tensor passes over a stage.
// Empty: none were found.
std::vector<int32_t> NearestCuts(const OpList& ops, const std::vector<double>& wanted);

// Starts with this many stages, best first, none twice; they need not fit. Those of the published search, with the smallest
// micro-batch that works and width as large as the stage: equally many ops and devices; half of the ops in the first stage;
// devices as unequal as can be. And for each micro-batch some that divide the devices equally or at random, with equally much
// work per device and each stage's fastest split.
std::vector<RankedPlan> InitialPlans(PlanEditor* editor, int64_t global_batch, int32_t stages);

// A start drawn at random: micro-batch, devices, cuts, one split per stage. None if a few attempts found nothing valid.
std::optional<RankedPlan> RandomStart(PlanEditor* editor, int64_t global_batch, int32_t stages, std::mt19937_64* random);

}  // namespace tidepool::plan
