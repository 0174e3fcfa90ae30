#include "plan/op_migration.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "plan/search_run.h"

namespace tidepool::plan {
namespace {

// Splits off the first `count` ops.
std::pair<std::vector<ChoiceRun>, std::vector<ChoiceRun>> SplitRuns(const std::vector<ChoiceRun>& runs, int32_t count) {
  std::vector<ChoiceRun> head, tail;
  for (const ChoiceRun& run : runs) {
    const int32_t taken = std::min(run.count, count);
    if (taken > 0) head.push_back({taken, run.choice});
    if (run.count > taken) tail.push_back({run.count - taken, run.choice});
    count -= taken;
  }
  return {std::move(head), std::move(tail)};
}

// The stage without `count` ops at its end or beginning, and without recomputation.
StagePtr Without(const StagePtr& giver, int32_t count, bool at_end) {
  auto [head, tail] = SplitRuns(giver->runs(), at_end ? giver->count() - count : count);
  std::vector<ChoiceRun>& kept = at_end ? head : tail;
  for (ChoiceRun& run : kept) run.choice.recompute = false;
  return Stage::MakeRuns(at_end ? giver->first() : giver->first() + count, kept);
}

class Migration {
 public:
  Migration(PlanEditor* editor, const RankedPlan& from)
      : editor_(editor), model_(editor->model()), from_(from), places_(editor->model().PlacesOf(from.plan)) {}

  // Partners that could take ops of the stage, best first.
  std::vector<int32_t> Partners(int32_t stage) const {
    std::vector<std::pair<double, int32_t>> order;
    for (int32_t i = 0; i < static_cast<int32_t>(places_.size()); ++i) {
      if (i == stage || Measure(i) >= Measure(stage)) continue;
      order.push_back({from_.cost.fits ? -Idle(stage, i) : Measure(i), i});
    }
    std::sort(order.begin(), order.end());
    std::vector<int32_t> partners;
    for (const auto& [score, partner] : order) partners.push_back(partner);
    return partners;
  }

  std::optional<RankedPlan> Run(int32_t stage, int32_t partner, double share_of_gap) {
    const double goal = Measure(stage) - share_of_gap * (Measure(stage) - Measure(partner));
    std::vector<StagePtr> stages = from_.plan.stages;
    const int32_t step = partner > stage ? 1 : -1;
    for (int32_t at = stage; at != partner; at += step) {
      const std::optional<Moved> moved = Shed(stages[at], stages[at + step], at, goal);
      if (!moved) return std::nullopt;
      stages[at] = moved->giver;
      stages[at + step] = moved->taker;
      if (IsBelow(stages[at + step], at + step, goal)) return editor_->Make(from_, from_.plan.micro_batch, std::move(stages));
    }
    return std::nullopt;
  }

 private:
  // What is to be reduced: time, or memory relative to the limit if the plan does not fit.
  double Measure(int32_t stage) const { return MeasureOf(from_.cost.stages[stage], stage); }
  double MeasureOf(const StageCost& cost, int32_t stage) const {
    return from_.cost.fits ? cost.time_us : cost.memory_mib / editor_->LimitAt(places_[stage], from_.plan.stages[stage]->gpus());
  }

  // How much work the partner could take in its idle time. One that recomputes would recompute more; one whose memory is short
  // could take what fits, and half of the rest.
  double Idle(int32_t stage, int32_t partner) const {
    const StageCost& cost = from_.cost.stages[partner];
    const double gap = Measure(stage) - Measure(partner);
    double idle = gap / 2;
    if (cost.time_us <= 0 || cost.memory_mib <= 0) return gap * from_.plan.stages[partner]->gpus();
    if (cost.recompute_us == 0) {
      const double headroom =
          std::max(0.0, editor_->LimitAt(places_[partner], from_.plan.stages[partner]->gpus()) / cost.memory_mib - 1) *
          cost.time_us;
      idle = headroom >= gap ? gap : headroom + (gap - headroom) / 2;
    }
    const double useful = cost.forward_us + cost.backward_us;
    return idle * from_.plan.stages[partner]->gpus() * (useful / cost.time_us);
  }

  bool IsBelow(const StagePtr& made, int32_t stage, double goal) {
    const PlacedStage placed = editor_->Place(made, from_.plan.micro_batch, places_[stage]);
    if (!placed.priced || (from_.cost.fits && !placed.fits)) return false;
    return MeasureOf(placed.cost, stage) < goal;
  }

  // The fewest ops whose leaving brings the giver below the goal, as far as doubling and halving finds them.
  std::optional<Moved> Shed(const StagePtr& giver, const StagePtr& taker, int32_t stage, double goal) {
    const bool forward = taker->first() >= giver->end();
    const auto is_enough = [&](int32_t count) { return IsBelow(Without(giver, count, forward), stage, goal); };
    const int32_t most = giver->count() - 1;
    if (most < 1) return std::nullopt;
    int32_t below = 0, enough = 1;
    while (!is_enough(enough)) {
      if (enough == most) return std::nullopt;
      below = enough;
      enough = std::min(most, 2 * enough);
    }
    while (enough - below > 1) {
      const int32_t middle = below + (enough - below) / 2;
      (is_enough(middle) ? enough : below) = middle;
    }
    for (; enough <= most; ++enough) {
      const int32_t first = forward ? giver->first() : giver->first() + enough;
      if (model_.ops().SkipsAllowStage(first, giver->count() - enough)) {
        return MoveOps(model_, giver, taker, enough, from_.plan.micro_batch);
      }
    }
    return std::nullopt;
  }

  PlanEditor* editor_;
  const CostModel& model_;
  const RankedPlan& from_;
  std::vector<StagePlace> places_;
};

}  // namespace

Moved MoveOps(const CostModel& model, const StagePtr& giver, const StagePtr& taker, int32_t count, int32_t micro_batch) {
  const bool forward = taker->first() >= giver->end();
  auto [head, tail] = SplitRuns(giver->runs(), forward ? giver->count() - count : count);
  std::vector<ChoiceRun>& moved = forward ? tail : head;
  const OpChoice& beside = forward ? taker->runs().front().choice : taker->runs().back().choice;
  for (ChoiceRun& run : moved) {
    const uint8_t algorithm = run.choice.algorithm;
    run.choice = beside;
    run.choice.algorithm = algorithm;
    run.choice.recompute = false;
    if (model.RowOf(run.choice, micro_batch) < 0) run.choice.algorithm = beside.algorithm;
  }
  std::vector<ChoiceRun> taken;
  const std::vector<ChoiceRun>&first = forward ? moved : taker->runs(), &second = forward ? taker->runs() : moved;
  std::copy(first.begin(), first.end(), std::back_inserter(taken));
  std::copy(second.begin(), second.end(), std::back_inserter(taken));
  const int32_t taker_first = forward ? taker->first() - count : taker->first();
  return {Without(giver, count, forward), Stage::MakeRuns(taker_first, taken)};
}

void MigrateOps(PlanEditor* editor, const RankedPlan& from, int32_t stage, const PrimitiveOptions& options,
                std::vector<RankedPlan>* plans) {
  constexpr double kShares[] = {0.4, 0.2, 0};
  RankedPlan now = from;
  for (int32_t i = 0; i < options.migrations; ++i) {
    Migration migration(editor, now);
    std::optional<RankedPlan> best;
    int32_t found = 0;
    for (const int32_t partner : migration.Partners(stage)) {
      if (found == options.partners) break;
      bool any = false;
      for (const double share : kShares) {
        std::optional<RankedPlan> plan = migration.Run(stage, partner, share);
        if (!plan) continue;
        any = true;
        if (!best || IsBetter(*plan, *best)) best = plan;
        plans->push_back(*std::move(plan));
      }
      found += any ? 1 : 0;
    }
    if (!best || !IsBetter(*best, now)) return;
    now = *std::move(best);
    stage = BottleneckOf(editor->model(), now);
  }
}

}  // namespace tidepool::plan
