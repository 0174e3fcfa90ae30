// The bound of the parity model: a programme over Lagrangian bounds of windows (bound_oracle.h). What recomputation brings back
// at once is left out, so the bound is not tight where that is large. docs/plan.md has the proof.
#include "plan/lower_bound.h"

#include <algorithm>
#include <utility>

#include "plan/bound_oracle.h"
#include "plan/calibrated_bound.h"
#include "plan/programme_search.h"

namespace tidepool::plan {
namespace {

constexpr int32_t kFewCuts = 100;
constexpr int64_t kLarge = 2000;     // ops * devices: below, all prices are tried, which is quick enough
constexpr double kTolerance = 2e-5;  // the bound is made this much weaker, to save passes

// Memory of the parity model: state + waiting * live + peak run + the larger of two reserves. The workspace of some op, which is
// at least what the op needs with any split; or a buffer of the weights' size.
BoundOracle::Options ParityBound(const StageProgramme& programme) {
  BoundOracle::Options options;
  for (int32_t q = 0; q < programme.model().cluster().gpus(); ++q) options.terms.held.push_back(q + 1);
  options.micro_batches = programme.micro_batches();
  options.with_weights = true;
  options.joins = true;
  options.reserved_mib = [](const OpSplits& splits, int32_t split, int32_t position) {
    const OpSplitCost& cost = splits.At(position, split);
    return cost.forward_reserved_mib + cost.backward_reserved_mib;
  };
  return options;
}

}  // namespace

double LowerBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                       const std::function<bool()>& interrupted) {
  if (model.name() == "calibrated") return CalibratedBoundBelow(model, request, upper_ms, workers, interrupted);
  if (model.name() != "parity") return 0;
  double bound_us = upper_ms * 1000;
  const StageBounds bounds{.min_stages = request.min_stages, .max_stages = request.max_stages};
  for (const int32_t micro_batch : request.micro_batches) {
    StageProgramme programme(model, micro_batch, request.global_batch / micro_batch, bounds);
    if (programme.FloorUs() > bound_us) continue;
    if (model.cluster().gpus() > kManyGpus) {  // work alone, as if memory were no matter
      bound_us = programme.FloorUs();
      continue;
    }
    // What prices are good for is seen at few cuts.
    BoundPriceUse use;
    StageBounds few = bounds;
    few.cuts = SomeCuts(model.ops(), kFewCuts);
    const bool large = int64_t{model.ops().size()} * model.cluster().gpus() >= kLarge;
    const bool learns = large && 2 * few.cuts.size() < model.ops().ops.size() && bound_us < kNever;
    if (learns) {
      StageProgramme quick(model, micro_batch, request.global_batch / micro_batch, few);
      quick.Expect(quick.Cap(bound_us));
      BoundOracle::Options all = ParityBound(quick);
      all.learned = &use;
      quick.Prepare(BoundOracle(quick, std::move(all)), quick.Cap(bound_us), workers, interrupted);
    }
    programme.Expect(bound_us < kNever ? programme.Cap(bound_us) : 0);
    BoundOracle::Options options = ParityBound(programme);
    if (learns) options.use = &use;
    const BoundOracle oracle(programme, std::move(options));
    const std::optional<CutSolution> cuts = programme.Solve(oracle, bound_us, workers, interrupted, nullptr, 0, kTolerance);
    if (programme.was_interrupted()) return 0;
    if (cuts) bound_us = std::min(bound_us, cuts->objective_us);
  }
  return bound_us < kNever ? bound_us * (1 - kTolerance) / 1000 : 0;
}

StatusOr<double> LowerBound(const CostModel& model, const SearchRequest& request) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(request, model));
  Workers workers(request.threads);
  return LowerBoundBelow(model, request, kNever, &workers, [] { return false; });
}

}  // namespace tidepool::plan
