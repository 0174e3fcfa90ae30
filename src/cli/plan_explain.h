// Why a plan and not another: what each small change of it would cost.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "cli/plan_output.h"

namespace tidepool::cli {

struct Alternative {
  std::string change;       // "stage 1: 2x1 instead of 1x2"
  double iteration_ms = 0;  // infinite: not profiled
  double memory_mib = 0;    // of the fullest stage
  std::string refusal;      // why it cannot run; empty: it can
};

// One op or one layer moved over each edge, every other split of each stage, every other micro-batch, recomputation of all or of
// none; each with recomputation chosen anew where a stage changed. Those that can run come first, fastest first.
std::vector<Alternative> AlternativesOf(const PricedPlan& best, const std::vector<int32_t>& micro_batches);

nlohmann::ordered_json AlternativesJson(const std::vector<Alternative>& alternatives);
// The first `most` of those that can run and of those that cannot.
void PrintAlternatives(const PricedPlan& best, const std::vector<Alternative>& alternatives, size_t most);
// What makes the slowest stage slow, and how much the others could take over.
std::string BottleneckText(const PricedPlan& best);

}  // namespace tidepool::cli
