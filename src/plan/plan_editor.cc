#include "plan/plan_editor.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "plan/recompute_rule.h"

namespace tidepool::plan {
namespace {

// Whether the stages cost the same at both.
bool SamePlace(const CostModel& model, const StagePlace& a, const StagePlace& b, int32_t gpus) {
  return a.stages_behind == b.stages_behind && a.in_link == b.in_link && a.out_link == b.out_link && a.stages == b.stages &&
         a.micro_batches == b.micro_batches && (a.first_gpu == 0) == (b.first_gpu == 0) &&
         model.cluster().GroupOf(a.first_gpu) == model.cluster().GroupOf(b.first_gpu) &&
         model.cluster().GroupOf(a.first_gpu + gpus - 1) == model.cluster().GroupOf(b.first_gpu + gpus - 1);
}

}  // namespace

Key128 PlacedKey(const CostModel& model, const Stage& stage, int32_t micro_batch, const StagePlace& place) {
  Key128 key = stage.key();
  // Groups are numbered in order, so the first and the last tell which the stage is on.
  const auto group = static_cast<uint64_t>(model.cluster().GroupOf(place.first_gpu) + 1) << 32 |
                     static_cast<uint64_t>(model.cluster().GroupOf(place.first_gpu + stage.gpus() - 1) + 1);
  const uint64_t pipeline = static_cast<uint64_t>(place.stages) << 40 ^ static_cast<uint64_t>(place.micro_batches);
  key.low ^= group * 0x9E3779B97F4A7C15ull + pipeline * 0xC2B2AE3D27D4EB4Full;
  const uint64_t where = static_cast<uint64_t>(micro_batch) << 32 | static_cast<uint64_t>(place.stages_behind) << 16 |
                         static_cast<uint64_t>(place.in_link) << 1 | static_cast<uint64_t>(place.out_link);
  key.high ^= where * 0x9E3779B97F4A7C15ull;
  return key;
}

StagePtr WithoutRecompute(const StagePtr& stage) {
  if (!stage->recomputes()) return stage;
  std::vector<ChoiceRun> runs = stage->runs();
  for (ChoiceRun& run : runs) run.choice.recompute = false;
  return Stage::MakeRuns(stage->first(), runs);
}

StagePtr Rescaled(const CostModel& model, const StagePtr& stage, int32_t micro_batch, const Rescale& rescale) {
  std::vector<ChoiceRun> runs = stage->runs();
  for (ChoiceRun& run : runs) {
    OpChoice& choice = run.choice;
    const int32_t tensor = choice.tensor_parallel * rescale.tensor_times, data = choice.data_parallel * rescale.data_times;
    if (tensor % rescale.tensor_over != 0 || data % rescale.data_over != 0) return nullptr;
    choice.tensor_parallel = tensor / rescale.tensor_over;
    choice.data_parallel = data / rescale.data_over;
    choice.recompute = false;
    if (model.RowOf(choice, micro_batch) < 0) choice.algorithm = 0;
    if (model.RowOf(choice, micro_batch) < 0) return nullptr;
  }
  return Stage::MakeRuns(stage->first(), runs);
}

PlacedStage PlanEditor::Place(const StagePtr& stage, int32_t micro_batch, const StagePlace& place) {
  const StagePtr plain = WithoutRecompute(stage);
  const Key128 key = PlacedKey(model_, *plain, micro_batch, place);
  ++evaluations_;
  const auto found = placed_.find(key);
  if (found != placed_.end()) return found->second;
  const double limit = LimitAt(place, stage->gpus());
  PlacedStage placed;
  RecomputeResult chosen = plain->runs().size() == 1 ? ChooseRecomputeUniform(model_, plain->first(), plain->count(),
                                                                              plain->runs()[0].choice, micro_batch, place, limit)
                                                     : ChooseRecompute(model_, *plain, micro_batch, place, limit);
  placed.stage = chosen.flags.empty() ? plain : plain->WithRecompute(chosen.flags);
  placed.priced = chosen.totals.priced();
  // Not the rule's own totals: a model may charge more for flags than the rule sees.
  placed.cost = model_.CostAt(chosen.flags.empty() ? chosen.totals : model_.TotalsOf(*placed.stage, micro_batch), place);
  placed.fits = placed.priced && placed.cost.memory_mib <= limit;
  if (placed_.size() >= cache_limit_) placed_.clear();
  return placed_.emplace(key, std::move(placed)).first->second;
}

PlacedStage PlanEditor::PlaceAsIs(const StagePtr& stage, int32_t micro_batch, const StagePlace& place) {
  ++evaluations_;
  const StageTotals totals = model_.TotalsOf(*stage, micro_batch);
  PlacedStage placed{.stage = stage, .cost = model_.CostAt(totals, place), .priced = totals.priced()};
  placed.fits = placed.priced && placed.cost.memory_mib <= LimitAt(place, stage->gpus());
  return placed;
}

bool PlanEditor::IsLegal(const Plan& plan) const {
  const Cluster& cluster = model_.cluster();
  int32_t gpu = 0, op = 0;
  for (const StagePtr& stage : plan.stages) {
    if (stage->first() != op || !cluster.IsStageRange(gpu, stage->gpus())) return false;
    if (!model_.ops().SkipsAllowStage(stage->first(), stage->count())) return false;
    gpu += stage->gpus();
    op = stage->end();
  }
  return op == model_.ops().size() && gpu == cluster.gpus() && plan.global_batch % plan.micro_batch == 0;
}

std::optional<RankedPlan> PlanEditor::Make(const RankedPlan& from, int32_t micro_batch, std::vector<StagePtr> stages) {
  RankedPlan made{.plan = {.global_batch = from.plan.global_batch, .micro_batch = micro_batch, .stages = std::move(stages)}};
  if (!IsLegal(made.plan)) return std::nullopt;
  const std::vector<StagePlace> places = model_.PlacesOf(made.plan);
  const bool comparable = from.plan.micro_batch == micro_batch && from.plan.stages.size() == places.size();
  const std::vector<StagePlace> old_places = comparable ? model_.PlacesOf(from.plan) : std::vector<StagePlace>();
  std::vector<StageCost> costs(places.size());
  for (size_t i = 0; i < places.size(); ++i) {
    StagePtr& stage = made.plan.stages[i];
    if (comparable && stage == from.plan.stages[i]) {
      if (SamePlace(model_, places[i], old_places[i], stage->gpus())) {
        costs[i] = from.cost.stages[i];
        continue;
      }
      const PlacedStage kept = PlaceAsIs(stage, micro_batch, places[i]);
      if (kept.fits) {
        costs[i] = kept.cost;
        continue;
      }
    }
    const PlacedStage placed = Place(stage, micro_batch, places[i]);
    if (!placed.priced) return std::nullopt;
    stage = placed.stage;
    costs[i] = placed.cost;
  }
  made.cost = model_.Combine(made.plan, std::move(costs));
  return made;
}

std::optional<RankedPlan> PlanEditor::MakeNew(int64_t global_batch, int32_t micro_batch, std::vector<StagePtr> stages) {
  return Make({.plan = {.global_batch = global_batch}}, micro_batch, std::move(stages));
}

std::optional<RankedPlan> PlanEditor::MakeAsIs(const Plan& plan) {
  if (plan.stages.empty() || plan.micro_batch < 1 || !IsLegal(plan)) return std::nullopt;
  const std::vector<StagePlace> places = model_.PlacesOf(plan);
  RankedPlan made{.plan = plan};
  std::vector<StageCost> costs;
  for (size_t i = 0; i < places.size(); ++i) {
    const PlacedStage placed = PlaceAsIs(plan.stages[i], plan.micro_batch, places[i]);
    if (!placed.priced) return std::nullopt;
    costs.push_back(placed.cost);
  }
  made.cost = model_.Combine(plan, std::move(costs));
  return made;
}

}  // namespace tidepool::plan
