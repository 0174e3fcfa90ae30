#include "plan/fine_tune.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace tidepool::plan {
namespace {

// Which of two versions of one stage is to be kept: one that fits, then the faster, or the smaller if neither fits.
bool IsBetterStage(const PlacedStage& a, const PlacedStage& b) {
  if (a.priced != b.priced) return a.priced;
  if (a.fits != b.fits) return a.fits;
  return a.fits ? a.cost.time_us < b.cost.time_us : a.cost.memory_mib < b.cost.memory_mib;
}

class StageTuner {
 public:
  StageTuner(PlanEditor* editor, int32_t micro_batch, const StagePlace& place, int64_t last_evaluation)
      : editor_(editor), model_(editor->model()), micro_batch_(micro_batch), place_(place), last_evaluation_(last_evaluation) {}

  PlacedStage Tune(const PlacedStage& from, const FineTuneOptions& options) {
    best_ = from;
    if (options.uniform) TryUniform();
    bool better = true;
    while (better && !Exhausted()) {
      better = false;
      if (options.splits) better = ShiftRuns() || better;
      if (options.algorithms) better = FlipAlgorithms() || better;
    }
    if (options.recompute && best_.stage->count() <= options.recompute_ops) RechooseRecompute();
    return best_;
  }

 private:
  bool Exhausted() const { return editor_->evaluations() >= last_evaluation_; }

  bool Offer(const StagePtr& stage) { return Keep(editor_->Place(stage, micro_batch_, place_)); }
  bool Keep(const PlacedStage& placed) {
    if (!IsBetterStage(placed, best_)) return false;
    best_ = placed;
    return true;
  }

  void TryUniform() {
    const StagePtr stage = best_.stage;
    for (const OpChoice& split : model_.SplitsOf(stage->gpus(), micro_batch_)) {
      Offer(Stage::MakeUniform(stage->first(), stage->count(), split));
    }
  }

  // From every tunable op, to the left and to the right, the longest run of ops with its width takes a step from width to
  // replicas or back. What helps is kept at once.
  bool ShiftRuns() {
    bool better = false;
    std::vector<OpChoice> choices = WithoutRecompute(best_.stage)->Choices();
    const int32_t first = best_.stage->first(), count = best_.stage->count();
    for (int32_t at = 0; at < count && !Exhausted(); ++at) {
      if (!model_.ops().at(first + at).tunable) continue;
      for (const int32_t step : {-1, 1}) {
        for (const bool widen : {false, true}) {
          int32_t end = at;
          while (end + step >= 0 && end + step < count && SameWidth(choices[end + step], choices[at])) end += step;
          if (!OfferShift(choices, std::min(at, end), std::max(at, end) + 1, widen)) continue;
          better = true;
          choices = WithoutRecompute(best_.stage)->Choices();
        }
      }
    }
    return better;
  }

  static bool SameWidth(const OpChoice& a, const OpChoice& b) {
    return a.tensor_parallel == b.tensor_parallel && a.data_parallel == b.data_parallel;
  }

  bool OfferShift(const std::vector<OpChoice>& choices, int32_t from, int32_t to, bool widen) {
    std::vector<OpChoice> shifted = choices;
    for (int32_t i = from; i < to; ++i) {
      OpChoice& choice = shifted[i];
      int32_t& less = widen ? choice.data_parallel : choice.tensor_parallel;
      int32_t& more = widen ? choice.tensor_parallel : choice.data_parallel;
      if (less % 2 != 0) return false;
      less /= 2;
      more *= 2;
      if (model_.RowOf(choice, micro_batch_) < 0) choice.algorithm = 0;
      if (model_.RowOf(choice, micro_batch_) < 0) return false;
    }
    return Offer(Stage::Make(best_.stage->first(), shifted));
  }

  // Op by op, the other algorithms; what helps is kept at once.
  bool FlipAlgorithms() {
    if (model_.table().algorithms() < 2) return false;
    std::vector<OpChoice> choices = WithoutRecompute(best_.stage)->Choices();
    bool better = false;
    for (int32_t at = 0; at < best_.stage->count() && !Exhausted(); ++at) {
      const DistinctOp& op = model_.ops().at(best_.stage->first() + at);
      if (!op.tunable) continue;
      for (size_t algorithm = 0; algorithm < op.algorithms.size(); ++algorithm) {
        const uint8_t before = choices[at].algorithm;
        if (algorithm == before) continue;
        choices[at].algorithm = static_cast<uint8_t>(algorithm);
        if (model_.RowOf(choices[at], micro_batch_) >= 0 && Offer(Stage::Make(best_.stage->first(), choices))) {
          better = true;
        } else {
          choices[at].algorithm = before;
        }
      }
    }
    return better;
  }

  // Two starts: the flags that there are, and all. From each, flags are taken back one by one, that with the most time for its
  // memory first, while the stage fits.
  void RechooseRecompute() {
    if (!best_.stage->recomputes()) return;
    std::vector<uint8_t> all(best_.stage->count(), 1), now;
    for (const OpChoice& choice : best_.stage->Choices()) now.push_back(choice.recompute ? 1 : 0);
    const StagePtr stage = best_.stage;
    for (std::vector<uint8_t>* flags : {&now, &all}) TakeBack(stage, std::move(*flags));
  }

  void TakeBack(const StagePtr& stage, std::vector<uint8_t> flags) {
    PlacedStage now = editor_->PlaceAsIs(stage->WithRecompute(flags), micro_batch_, place_);
    if (!now.fits) return;
    while (!Exhausted()) {
      std::optional<PlacedStage> next;
      double best_rate = 0;
      int32_t best_at = -1;
      for (int32_t at = 0; at < stage->count(); ++at) {
        if (flags[at] == 0) continue;
        flags[at] = 0;
        PlacedStage without = editor_->PlaceAsIs(stage->WithRecompute(flags), micro_batch_, place_);
        flags[at] = 1;
        if (!without.fits) continue;
        const double saved = now.cost.time_us - without.cost.time_us;
        const double memory = std::max(without.cost.memory_mib - now.cost.memory_mib, 1e-3);
        if (saved / memory <= best_rate) continue;
        best_rate = saved / memory;
        best_at = at;
        next = std::move(without);
      }
      if (!next) break;
      flags[best_at] = 0;
      now = *std::move(next);
    }
    Keep(now);
  }

  PlanEditor* editor_;
  const CostModel& model_;
  int32_t micro_batch_;
  StagePlace place_;
  int64_t last_evaluation_;
  PlacedStage best_;
};

}  // namespace

std::optional<RankedPlan> FineTune(PlanEditor* editor, const RankedPlan& from, const FineTuneOptions& options,
                                   TunedStages* tuned) {
  constexpr size_t kMostRemembered = size_t{1} << 16;
  const int64_t last = options.budget > 0 ? editor->evaluations() + options.budget : std::numeric_limits<int64_t>::max();
  const std::vector<StagePlace> places = editor->model().PlacesOf(from.plan);
  Plan plan = from.plan;
  bool better = false;
  for (size_t i = 0; i < places.size(); ++i) {
    StagePtr& stage = plan.stages[i];
    const StageCost& cost = from.cost.stages[i];
    const PlacedStage now{
        .stage = stage, .cost = cost, .priced = true, .fits = cost.memory_mib <= editor->LimitAt(places[i], stage->gpus())};
    const Key128 key = PlacedKey(editor->model(), *stage, plan.micro_batch, places[i]);
    PlacedStage best;
    if (tuned != nullptr && tuned->contains(key)) {
      best = editor->PlaceAsIs(tuned->at(key), plan.micro_batch, places[i]);
    } else {
      best = StageTuner(editor, plan.micro_batch, places[i], last).Tune(now, options);
      if (tuned != nullptr && editor->evaluations() < last) {
        if (tuned->size() >= kMostRemembered) tuned->clear();
        (*tuned)[key] = best.stage;
        (*tuned)[PlacedKey(editor->model(), *best.stage, plan.micro_batch, places[i])] = best.stage;
      }
    }
    if (!IsBetterStage(best, now)) continue;
    stage = best.stage;
    better = true;
  }
  if (!better) return std::nullopt;
  return editor->MakeAsIs(plan);
}

}  // namespace tidepool::plan
