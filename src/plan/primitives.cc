#include "plan/primitives.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "plan/op_migration.h"

namespace tidepool::plan {
namespace {

// Stages that do not fit are taken only if nothing else is left.
double Score(const PlacedStage& placed) {
  if (!placed.priced) return std::numeric_limits<double>::infinity();
  return placed.cost.time_us * (placed.fits ? 1 : 10);
}

struct Resized {
  int32_t stage = -1;
  StagePtr made;
  double score = 0;
};

// The stage with twice or half the devices, along the axis that makes it faster. Null: it cannot be.
Resized Resize(PlanEditor* editor, const RankedPlan& from, const std::vector<StagePlace>& places, int32_t index, bool grow) {
  Resized best{.stage = index, .made = nullptr, .score = std::numeric_limits<double>::infinity()};
  const Rescale axes[] = {grow ? Rescale{.data_times = 2} : Rescale{.data_over = 2},
                          grow ? Rescale{.tensor_times = 2} : Rescale{.tensor_over = 2}};
  for (const Rescale& axis : axes) {
    const StagePtr made = Rescaled(editor->model(), from.plan.stages[index], from.plan.micro_batch, axis);
    if (made == nullptr) continue;
    const double score = Score(editor->Place(made, from.plan.micro_batch, places[index]));
    if (score < best.score) best = {index, made, score};
  }
  return best;
}

// Devices change hands between the stage and partners until none is left over. Stages double and halve, so where the amounts
// differ, more partners join: a partner that frees too many is followed by one that takes some, and so on.
class DeviceExchange {
 public:
  DeviceExchange(PlanEditor* editor, const RankedPlan& from, int32_t stage, bool grows)
      : editor_(editor), from_(from), stage_(stage), grows_(grows), places_(editor->model().PlacesOf(from.plan)) {
    for (int32_t i = 0; i < static_cast<int32_t>(from.plan.stages.size()); ++i) {
      if (i == stage) continue;
      for (const bool grow : {false, true}) {
        Resized resized = Resize(editor, from, places_, i, grow);
        if (resized.made != nullptr) (grow ? takers_ : givers_).push_back(std::move(resized));
      }
    }
    const auto faster = [](const Resized& a, const Resized& b) {
      return a.score != b.score ? a.score < b.score : a.stage < b.stage;
    };
    std::sort(givers_.begin(), givers_.end(), faster);
    std::sort(takers_.begin(), takers_.end(), faster);
  }

  // `made`: what the stage becomes.
  void Run(const StagePtr& made, int32_t partners, std::vector<RankedPlan>* plans) {
    int32_t found = 0;
    for (const Resized& first : grows_ ? givers_ : takers_) {
      if (found == partners) return;
      std::vector<StagePtr> stages = from_.plan.stages;
      std::vector<uint8_t> used(stages.size(), 0);
      stages[stage_] = made;
      used[stage_] = 1;
      int32_t free = from_.plan.stages[stage_]->gpus() - made->gpus();
      Take(first, &stages, &used, &free);
      if (!Balance(&stages, &used, &free)) continue;
      std::optional<RankedPlan> plan = editor_->Make(from_, from_.plan.micro_batch, std::move(stages));
      if (!plan) continue;
      plans->push_back(*std::move(plan));
      ++found;
    }
  }

 private:
  void Take(const Resized& partner, std::vector<StagePtr>* stages, std::vector<uint8_t>* used, int32_t* free) const {
    *free += (*stages)[partner.stage]->gpus() - partner.made->gpus();
    (*stages)[partner.stage] = partner.made;
    (*used)[partner.stage] = 1;
  }

  // Adds partners that do not overshoot, so it ends.
  bool Balance(std::vector<StagePtr>* stages, std::vector<uint8_t>* used, int32_t* free) const {
    while (*free != 0) {
      const Resized* next = nullptr;
      for (const Resized& partner : *free < 0 ? givers_ : takers_) {
        const int32_t change = (*stages)[partner.stage]->gpus() - partner.made->gpus();
        if ((*used)[partner.stage] != 0 || std::abs(change) > std::abs(*free)) continue;
        next = &partner;
        break;
      }
      if (next == nullptr) return false;
      Take(*next, stages, used, free);
    }
    return true;
  }

  PlanEditor* editor_;
  const RankedPlan& from_;
  int32_t stage_;
  bool grows_;
  std::vector<StagePlace> places_;
  std::vector<Resized> givers_, takers_;  // fastest first
};

void ExchangeDevices(PlanEditor* editor, const RankedPlan& from, int32_t stage, const Rescale& rescale,
                     const PrimitiveOptions& options, std::vector<RankedPlan>* plans) {
  const StagePtr made = Rescaled(editor->model(), from.plan.stages[stage], from.plan.micro_batch, rescale);
  if (made == nullptr) return;
  const bool grows = made->gpus() > from.plan.stages[stage]->gpus();
  DeviceExchange(editor, from, stage, grows).Run(made, options.partners, plans);
}

// The fastest split of the stage's devices, one for all its ops.
StagePtr BestUniform(PlanEditor* editor, const StagePtr& stage, int32_t micro_batch, const StagePlace& place) {
  StagePtr best;
  double best_score = std::numeric_limits<double>::infinity();
  for (const OpChoice& split : editor->model().SplitsOf(stage->gpus(), micro_batch)) {
    const StagePtr made = Stage::MakeUniform(stage->first(), stage->count(), split);
    const double score = Score(editor->Place(made, micro_batch, place));
    if (score < best_score) {
      best_score = score;
      best = made;
    }
  }
  return best;
}

// Two plans: all stages split anew, and all as they are where that was profiled.
void ChangeMicroBatch(PlanEditor* editor, const RankedPlan& from, int32_t step, std::vector<RankedPlan>* plans) {
  const std::vector<int32_t>& all = editor->micro_batches();
  const auto now = std::lower_bound(all.begin(), all.end(), from.plan.micro_batch);
  if (now == all.end() || *now != from.plan.micro_batch) return;
  const auto index = (now - all.begin()) + step;
  if (index < 0 || index >= static_cast<int64_t>(all.size())) return;
  const int32_t micro_batch = all[index];
  const std::vector<StagePlace> places = editor->model().PlacesOf(from.plan);
  std::vector<StagePtr> anew, kept;
  for (size_t i = 0; i < places.size(); ++i) {
    const StagePtr& stage = from.plan.stages[i];
    StagePtr best = BestUniform(editor, stage, micro_batch, places[i]);
    if (best == nullptr) return;
    StagePtr same = Rescaled(editor->model(), stage, micro_batch, {});
    if (same != nullptr &&
        Score(editor->Place(same, micro_batch, places[i])) < Score(editor->Place(best, micro_batch, places[i]))) {
      kept.push_back(std::move(same));
    } else {
      kept.push_back(best);
    }
    anew.push_back(std::move(best));
  }
  for (std::vector<StagePtr>* stages : {&anew, &kept}) {
    if (std::optional<RankedPlan> plan = editor->Make(from, micro_batch, std::move(*stages))) plans->push_back(*std::move(plan));
  }
}

void ReplaceStage(PlanEditor* editor, const RankedPlan& from, int32_t stage, const Rescale& rescale,
                  std::vector<RankedPlan>* plans) {
  std::vector<StagePtr> stages = from.plan.stages;
  stages[stage] = Rescaled(editor->model(), stages[stage], from.plan.micro_batch, rescale);
  if (stages[stage] == nullptr) return;
  if (std::optional<RankedPlan> plan = editor->Make(from, from.plan.micro_batch, std::move(stages))) {
    plans->push_back(*std::move(plan));
  }
}

void RemoveDuplicates(std::vector<RankedPlan>* plans) {
  std::vector<std::pair<Key128, size_t>> keys;
  for (size_t i = 0; i < plans->size(); ++i) keys.push_back({(*plans)[i].plan.Key(), i});
  std::vector<RankedPlan> unique;
  for (size_t i = 0; i < plans->size(); ++i) {
    const bool seen = std::any_of(keys.begin(), keys.begin() + static_cast<int64_t>(i),
                                  [&](const auto& k) { return k.first == keys[i].first; });
    if (!seen) unique.push_back(std::move((*plans)[i]));
  }
  *plans = std::move(unique);
}

}  // namespace

std::string_view NameOf(Primitive primitive) {
  constexpr std::array<std::string_view, kPrimitives> kNames = {
      "dec_op_num", "inc_dp", "inc_tp", "dec_dp", "dec_tp", "inc_mbs", "dec_mbs", "inc_tp_dec_dp", "inc_dp_dec_tp"};
  return kNames[static_cast<size_t>(primitive)];
}

PrimitiveEffect EffectOf(Primitive primitive) {
  switch (primitive) {
    case Primitive::kDecOps: return {.time = -1, .memory = -1, .work = -1};
    case Primitive::kIncData:
    case Primitive::kIncTensor: return {.time = -1, .memory = -1, .devices = 1, .efficiency = -1, .communication = 1};
    case Primitive::kDecData:
    case Primitive::kDecTensor: return {.time = 1, .memory = 1, .devices = -1, .efficiency = 1, .communication = -1};
    case Primitive::kIncMicroBatch: return {.time = -1, .memory = 1, .efficiency = 1};
    case Primitive::kDecMicroBatch: return {.time = 1, .memory = -1, .efficiency = -1};
    case Primitive::kIncTensorDecData: return {.time = 1, .memory = -1, .efficiency = -1, .communication = 1};
    case Primitive::kIncDataDecTensor: return {.time = -1, .memory = 1, .efficiency = 1, .communication = -1};
  }
  return {};
}

std::vector<int32_t> BottlenecksOf(const CostModel& model, const RankedPlan& plan) {
  const std::vector<StagePlace> places = model.PlacesOf(plan.plan);
  std::vector<std::pair<double, int32_t>> order;
  for (size_t i = 0; i < places.size(); ++i) {
    const double measure = plan.cost.fits ? plan.cost.stage_iteration_ms[i]
                                          : plan.cost.stages[i].memory_mib /
                                                model.cluster().MemoryLimitOf(places[i].first_gpu, plan.plan.stages[i]->gpus());
    order.push_back({-measure, static_cast<int32_t>(i)});
  }
  std::sort(order.begin(), order.end());
  std::vector<int32_t> stages;
  for (const auto& [measure, stage] : order) stages.push_back(stage);
  return stages;
}

int32_t BottleneckOf(const CostModel& model, const RankedPlan& plan) { return BottlenecksOf(model, plan).front(); }

std::vector<RankedPlan> Apply(PlanEditor* editor, Primitive primitive, const RankedPlan& from, int32_t stage,
                              const PrimitiveOptions& options) {
  std::vector<RankedPlan> plans;
  switch (primitive) {
    case Primitive::kDecOps: MigrateOps(editor, from, stage, options, &plans); break;
    case Primitive::kIncData: ExchangeDevices(editor, from, stage, {.data_times = 2}, options, &plans); break;
    case Primitive::kIncTensor: ExchangeDevices(editor, from, stage, {.tensor_times = 2}, options, &plans); break;
    case Primitive::kDecData: ExchangeDevices(editor, from, stage, {.data_over = 2}, options, &plans); break;
    case Primitive::kDecTensor: ExchangeDevices(editor, from, stage, {.tensor_over = 2}, options, &plans); break;
    case Primitive::kIncMicroBatch: ChangeMicroBatch(editor, from, 1, &plans); break;
    case Primitive::kDecMicroBatch: ChangeMicroBatch(editor, from, -1, &plans); break;
    case Primitive::kIncTensorDecData: ReplaceStage(editor, from, stage, {.tensor_times = 2, .data_over = 2}, &plans); break;
    case Primitive::kIncDataDecTensor: ReplaceStage(editor, from, stage, {.tensor_over = 2, .data_times = 2}, &plans); break;
  }
  RemoveDuplicates(&plans);
  return plans;
}

}  // namespace tidepool::plan
