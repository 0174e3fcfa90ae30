#include "cli/plan_explain.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/print.h"
#include "plan/recompute_rule.h"

namespace tidepool::cli {
namespace {

using plan::OpChoice;
using plan::Plan;
using plan::StagePtr;
using Json = nlohmann::ordered_json;

class Explorer {
 public:
  explicit Explorer(const PricedPlan& best) : best_(best), model_(*best.setting->model) { seen_.insert(best.plan.Key()); }

  void MoveOps() {
    const plan::OpList& ops = model_.ops();
    for (size_t edge = 1; edge < best_.plan.stages.size(); ++edge) {
      const int32_t at = best_.plan.stages[edge]->first();
      std::set<int32_t> places = {at - 1, at + 1};
      const auto next = std::upper_bound(ops.layer_starts.begin(), ops.layer_starts.end(), at);
      if (next != ops.layer_starts.end()) places.insert(*next);
      const auto before = std::lower_bound(ops.layer_starts.begin(), ops.layer_starts.end(), at);
      if (before != ops.layer_starts.begin()) places.insert(*std::prev(before));
      for (const int32_t place : places) MoveEdge(edge, place);
    }
  }

  void ChangeSplits() {
    for (size_t i = 0; i < best_.plan.stages.size(); ++i) {
      const plan::Stage& stage = *best_.plan.stages[i];
      for (const OpChoice& split : model_.SplitsOf(stage.gpus(), best_.plan.micro_batch)) {
        if (stage.is_uniform() && plan::SameSplit(split, stage.runs()[0].choice)) continue;
        Plan plan = best_.plan;
        plan.stages[i] = plan::Stage::MakeUniform(stage.first(), stage.count(), split);
        Try(fmt::format("stage {}: {}x{}{} instead of {}", i, split.tensor_parallel, split.data_parallel,
                        split.algorithm == 0 ? "" : fmt::format(", algorithm {}", split.algorithm), SplitsText(stage)),
            std::move(plan), {i});
      }
    }
  }

  void ChangeMicroBatch(const std::vector<int32_t>& micro_batches) {
    for (const int32_t micro_batch : micro_batches) {
      if (micro_batch == best_.plan.micro_batch) continue;
      Plan plan = best_.plan;
      plan.micro_batch = micro_batch;
      std::vector<size_t> all(plan.stages.size());
      for (size_t i = 0; i < all.size(); ++i) all[i] = i;
      Try(fmt::format("micro-batch {} instead of {}", micro_batch, best_.plan.micro_batch), std::move(plan), all);
    }
  }

  void ChangeRecompute() {
    for (const bool recompute : {false, true}) {
      Plan plan = best_.plan;
      for (StagePtr& stage : plan.stages) {
        stage = stage->WithRecompute(std::vector<uint8_t>(static_cast<size_t>(stage->count()), recompute ? 1 : 0));
      }
      Try(recompute ? "recompute everything" : "recompute nothing", std::move(plan), {});
    }
  }

  std::vector<Alternative> Finish() {
    std::stable_sort(alternatives_.begin(), alternatives_.end(), [](const Alternative& a, const Alternative& b) {
      if (a.refusal.empty() != b.refusal.empty()) return a.refusal.empty();
      return a.iteration_ms < b.iteration_ms;
    });
    return std::move(alternatives_);
  }

 private:
  // The edge before stage `edge` at op `place`; ops that change sides take the splits of their new stage's nearest op.
  void MoveEdge(size_t edge, int32_t place) {
    const plan::Stage& left = *best_.plan.stages[edge - 1];
    const plan::Stage& right = *best_.plan.stages[edge];
    if (place <= left.first() || place >= right.end()) return;
    std::vector<OpChoice> all = left.Choices();
    const std::vector<OpChoice> others = right.Choices();
    all.insert(all.end(), others.begin(), others.end());
    const auto at = static_cast<size_t>(right.first() - left.first()), to = static_cast<size_t>(place - left.first());
    const OpChoice last = all[at - 1], first = all[at];
    for (size_t i = at; i < to; ++i) all[i] = last;
    for (size_t i = to; i < at; ++i) all[i] = first;
    Plan plan = best_.plan;
    plan.stages[edge - 1] = plan::Stage::Make(left.first(), std::span(all).first(to));
    plan.stages[edge] = plan::Stage::Make(place, std::span(all).subspan(to));
    const int32_t moved = std::abs(place - right.first());
    const bool forward = place < right.first();
    Try(fmt::format("{} op{} from stage {} to stage {}", moved, moved == 1 ? "" : "s", forward ? edge - 1 : edge,
                    forward ? edge : edge - 1),
        std::move(plan), {edge - 1, edge});
  }

  // `changed`: stages whose recomputation is chosen anew, as far as they are profiled.
  void Try(std::string change, Plan plan, const std::vector<size_t>& changed) {
    Alternative alternative{.change = std::move(change), .iteration_ms = INFINITY};
    const std::vector<plan::StagePlace> places = model_.PlacesOf(plan);
    for (const size_t i : changed) {
      if (!model_.TotalsOf(*plan.stages[i], plan.micro_batch).priced()) continue;
      const double limit = best_.setting->cluster.MemoryLimitOf(places[i].first_gpu);
      plan.stages[i] = plan::WithChosenRecompute(model_, plan.stages[i], plan.micro_batch, places[i], limit);
    }
    if (!seen_.insert(plan.Key()).second) return;
    const auto cost = model_.Price(plan);
    const std::vector<plan::PlanFault> faults = plan::FindFaults(model_, plan, {.allow_idle_gpus = true});
    if (!faults.empty()) alternative.refusal = faults[0].text;
    if (cost.ok()) {
      alternative.iteration_ms = cost->iteration_ms;
      alternative.memory_mib = cost->max_memory_mib;
    }
    alternatives_.push_back(std::move(alternative));
  }

  const PricedPlan& best_;
  const plan::CostModel& model_;
  std::set<plan::Key128> seen_;
  std::vector<Alternative> alternatives_;
};

}  // namespace

std::vector<Alternative> AlternativesOf(const PricedPlan& best, const std::vector<int32_t>& micro_batches) {
  Explorer explorer(best);
  explorer.MoveOps();
  explorer.ChangeSplits();
  explorer.ChangeMicroBatch(micro_batches);
  explorer.ChangeRecompute();
  return explorer.Finish();
}

Json AlternativesJson(const std::vector<Alternative>& alternatives) {
  Json json = Json::array();
  for (const Alternative& one : alternatives) {
    json.push_back({{"change", one.change},
                    {"iteration_seconds", std::isfinite(one.iteration_ms) ? Json(one.iteration_ms / 1000) : Json(nullptr)},
                    {"max_memory_mib", std::isfinite(one.memory_mib) ? Json(one.memory_mib) : Json(nullptr)},
                    {"refused", one.refusal.empty() ? Json(nullptr) : Json(one.refusal)}});
  }
  return json;
}

void PrintAlternatives(const PricedPlan& best, const std::vector<Alternative>& alternatives, size_t most) {
  const auto refused =
      std::find_if(alternatives.begin(), alternatives.end(), [](const Alternative& one) { return !one.refusal.empty(); });
  const auto possible = static_cast<size_t>(refused - alternatives.begin());
  fmt::print("{} small changes of the plan; {} can run", alternatives.size(), possible);
  if (possible > most) fmt::print(", the {} fastest are shown", most);
  fmt::print("\n");
  std::vector<std::vector<std::string>> rows = {{"CHANGE", "ITERATION", "AGAINST THE PLAN", "MEMORY"}};
  for (size_t i = 0; i < std::min(possible, most); ++i) {
    const Alternative& one = alternatives[i];
    rows.push_back({one.change, PlanTimeText(one.iteration_ms * 1000),
                    fmt::format("{:+.2f} %", 100 * (one.iteration_ms / best.cost.iteration_ms - 1)),
                    fmt::format("{:.0f} MiB", one.memory_mib)});
  }
  if (possible > 0) PrintTable(rows, "lrrr");
  if (possible == alternatives.size()) return;
  fmt::print("\nrefused{}:\n",
             alternatives.size() - possible > most ? fmt::format(" ({} of {})", most, alternatives.size() - possible) : "");
  for (size_t i = possible; i < std::min(alternatives.size(), possible + most); ++i) {
    fmt::print("  {}: {}\n", alternatives[i].change, alternatives[i].refusal);
  }
}

std::string BottleneckText(const PricedPlan& best) {
  const auto index = static_cast<size_t>(best.cost.slowest);
  const plan::StageCost& cost = best.cost.stages[index];
  const std::pair<const char*, double> parts[] = {{"compute", cost.forward_us + cost.backward_us},
                                                  {"recompute", cost.recompute_us},
                                                  {"transfers", cost.in_us + cost.out_us},
                                                  {"resharding", cost.reshard_forward_us + cost.reshard_backward_us}};
  std::string text = fmt::format("stage {} is the slowest:", index);
  for (const auto& [name, us] : parts) {
    if (us > 0) text += fmt::format(" {} {:.1f} %,", name, 100 * us / cost.time_us);
  }
  text.pop_back();
  double least = INFINITY;
  size_t idle = index;
  for (size_t i = 0; i < best.cost.stages.size(); ++i) {
    if (best.cost.stage_iteration_ms[i] >= least) continue;
    least = best.cost.stage_iteration_ms[i];
    idle = i;
  }
  if (idle != index) {
    text += fmt::format("; most slack has stage {}: {}", idle, PlanTimeText(best.slack_ms(static_cast<int32_t>(idle)) * 1000));
  }
  return text;
}

}  // namespace tidepool::cli
