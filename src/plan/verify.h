// Whether a plan can be executed, and if not, every reason why.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/cost_model.h"

namespace tidepool::plan {

struct VerifyOptions {
  bool allow_idle_gpus = false;  // fewer devices than the cluster has
  bool allow_dropped_samples =
      false;                // a global batch that the micro-batch does not divide; the published planner drops the rest
  bool check_skips = true;  // a skip tensor crosses one edge at most; the published planner does not know this rule
  bool check_memory = true;
};

struct PlanFault {
  enum class Kind : uint8_t { kBatch, kOps, kGpus, kSplit, kProfile, kNode, kSkip, kMemory } kind = Kind::kOps;
  int32_t stage = -1;  // -1: the whole plan
  int32_t op = -1;     // position in the op list; -1: none in particular
  std::string text;    // "stage 2, op 40 (enc-attention-qkv): ..."
};

// Empty: the plan is valid. Safe on any content; one fault per stage and kind.
std::vector<PlanFault> FindFaults(const CostModel& model, const Plan& plan, const VerifyOptions& options = {});
// INVALID_ARGUMENT with all texts; RESOURCE_EXHAUSTED if memory is the only fault.
Status Verify(const CostModel& model, const Plan& plan, const VerifyOptions& options = {});

}  // namespace tidepool::plan
