// The cost model of the published planner: Lin et al., Aceso, EuroSys 2024, section on the performance model, in the exact form
// of its artifact. docs/plan.md has the formulas and the list of defects that are kept here.
#include <algorithm>
#include <optional>

#include "plan/cost_model.h"
#include "plan/stage_walk.h"

namespace tidepool::plan {
namespace {

class ParityModel : public CostModel {
 public:
  ParityModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster, std::span<const int32_t> micro_batches)
      : CostModel(ops, table, cluster, true), state_factor_(ops.state_factor()) {
    PrepareEdges();
    if (!ops.resharding_has_price) return;
    // What was not measured among `ranks` is not in the table for any size, so no other number of ranks has a price.
    reshards_.emplace(
        ops, table, table.CollectiveRanks(),
        [&table](profile::CollectiveKind kind, int32_t ranks, double mib) { return table.Collective(kind, ranks, mib).us; },
        micro_batches);
  }
  std::string_view name() const override { return "parity"; }

  StageTotals TotalsOf(const Stage& stage, int32_t micro_batch) const override;
  StageTotals UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const override;
  ReshardCost ReshardBetween(int32_t position, const OpChoice& before, const OpChoice& after, int32_t micro_batch) const override;
  StageCost CostAt(const StageTotals& totals, const StagePlace& place) const override;
  double MemoryAt(const StageTotals& totals, const StagePlace& place) const override;
  PlanCost Combine(const Plan& plan, std::vector<StageCost> costs) const override;
  double LowerBoundMs(const Plan& plan, std::span<const StageCost> costs) const override;
  bool iteration_is_closed_form() const override { return true; }

 private:
  void Finish(int32_t first, int32_t last, int32_t first_row, int32_t out_row, StageWalk* walk) const;
  ReshardCost ReshardWithin(int32_t first, int32_t count, const OpChoice& choice, int32_t row, int32_t micro_batch) const {
    return reshards_ ? reshards_->Within(first, count, choice, row, micro_batch) : ReshardCost{};
  }
  void PrepareEdges();

  struct Edge {
    double in_us[kLinkClasses] = {}, out_us[kLinkClasses] = {};
  };

  double state_factor_;
  std::vector<Edge> edges_;  // [row][distinct op]: transfers of what it reads and gives
  std::optional<ReshardPrices> reshards_;
};

ReshardCost ParityModel::ReshardBetween(int32_t position, const OpChoice& before, const OpChoice& after,
                                        int32_t micro_batch) const {
  const int32_t row = RowOf(after, micro_batch);
  if (!reshards_ || row < 0) return {};
  return reshards_->Between(position, before, after, row);
}

void ParityModel::PrepareEdges() {
  edges_.resize(static_cast<size_t>(table_.rows()) * table_.distinct_ops());
  for (int32_t row = 0; row < table_.rows(); ++row) {
    for (int32_t op = 0; op < table_.distinct_ops(); ++op) {
      Edge& edge = edges_[static_cast<size_t>(row) * table_.distinct_ops() + op];
      for (int link = 0; link < kLinkClasses; ++link) {
        edge.in_us[link] = table_.TransferUs(static_cast<LinkClass>(link), table_.At(Column::kInputMib, row, op));
        edge.out_us[link] = table_.TransferUs(static_cast<LinkClass>(link), table_.At(Column::kOutputMib, row, op));
      }
    }
  }
}

// `out_row` prices what leaves the stage.
void ParityModel::Finish(int32_t first, int32_t last, int32_t first_row, int32_t out_row, StageWalk* walk) const {
  StageTotals& totals = walk->totals;
  totals.input_mib = table_.At(Column::kInputMib, first_row, ops_.ops[first]);
  const Edge& in = edges_[static_cast<size_t>(first_row) * table_.distinct_ops() + ops_.ops[first]];
  const Edge& out = edges_[static_cast<size_t>(out_row) * table_.distinct_ops() + ops_.ops[last - 1]];
  for (int link = 0; link < kLinkClasses; ++link) {
    totals.in_us[link] = in.in_us[link];
    totals.out_us[link] = out.out_us[link];
  }
  totals.state_mib = totals.weight_mib * state_factor_;
  // The gradients' all-reduce needs one flat buffer of the weights' size.
  totals.reserved_mib = std::max(walk->forward_reserved_mib + walk->backward_reserved_mib, totals.weight_mib);
}

StageTotals ParityModel::UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const {
  const int32_t row = RowOf(choice, micro_batch);
  if (row < 0 || count < 1) return UnpricedTotals();
  StageWalk walk(ops_, ranges_);
  walk.totals.gpus = choice.gpus();
  walk.AddRun(first, count, row, choice.recompute, false, first + count - 1);
  walk.AddReshard(ReshardWithin(first, count, choice, row, micro_batch));
  Finish(first, first + count, row, row, &walk);
  return walk.totals;
}

StageTotals ParityModel::TotalsOf(const Stage& stage, int32_t micro_batch) const {
  const std::vector<ChoiceRun>& runs = stage.runs();
  if (runs.size() == 1) return UniformTotals(stage.first(), stage.count(), runs[0].choice, micro_batch);
  StageWalk walk(ops_, ranges_);
  walk.totals.gpus = stage.gpus();
  int32_t first = stage.first(), first_row = -1, row = -1;
  for (size_t i = 0; i < runs.size(); ++i) {
    const ChoiceRun& run = runs[i];
    if (i == 0 || !SameSplit(run.choice, runs[i - 1].choice)) row = RowOf(run.choice, micro_batch);
    if (row < 0) return UnpricedTotals();
    if (i == 0) first_row = row;
    const bool last_run = i + 1 == runs.size();
    // The reserve of the stage's last op does not count.
    walk.AddRun(first, run.count, row, run.choice.recompute, !last_run && runs[i + 1].choice.recompute, stage.end() - 1);
    walk.AddReshard(ReshardWithin(first, run.count, run.choice, row, micro_batch));
    if (i > 0) walk.AddReshard(ReshardBetween(first, runs[i - 1].choice, run.choice, micro_batch));
    first += run.count;
  }
  // Defect: what leaves the stage is priced with the width of its first op.
  const OpChoice& back = runs.back().choice;
  int32_t out_row = table_.RowOf(micro_batch / back.data_parallel, runs.front().choice.tensor_parallel, back.algorithm);
  if (out_row < 0) out_row = row;
  Finish(stage.first(), stage.end(), first_row, out_row, &walk);
  return walk.totals;
}

double ParityModel::MemoryAt(const StageTotals& totals, const StagePlace& place) const {
  const double live = totals.input_mib + totals.activation_mib - totals.saved_mib;
  return totals.state_mib + live * place.stages_behind + (live + totals.peak_run_mib) + totals.reserved_mib;
}

StageCost ParityModel::CostAt(const StageTotals& totals, const StagePlace& place) const {
  StageCost cost;
  cost.forward_us = totals.forward_us;
  cost.backward_us = totals.backward_us;
  cost.recompute_us = totals.recompute_us;
  cost.reshard_forward_us = totals.reshard_forward_us;
  cost.reshard_backward_us = totals.reshard_backward_us;
  cost.in_us = totals.in_us[static_cast<int>(place.in_link)];
  cost.out_us = totals.out_us[static_cast<int>(place.out_link)];
  cost.time_us = cost.forward_us + cost.backward_us + cost.recompute_us + cost.in_us + cost.out_us + cost.reshard_forward_us +
                 cost.reshard_backward_us;
  const double live = totals.input_mib + totals.activation_mib - totals.saved_mib;
  cost.state_mib = totals.state_mib;
  cost.activation_mib = live * place.stages_behind;
  cost.peak_mib = live + totals.peak_run_mib;
  cost.reserved_mib = totals.reserved_mib;
  cost.memory_mib = MemoryAt(totals, place);
  return cost;
}

PlanCost ParityModel::Combine(const Plan& plan, std::vector<StageCost> costs) const {
  PlanCost result;
  double sum_us = 0;
  for (const StageCost& cost : costs) sum_us += cost.time_us;
  const auto rest = static_cast<double>(plan.micro_batches() - 1);
  for (size_t i = 0; i < costs.size(); ++i) {
    const double ms = (rest * costs[i].time_us + sum_us) / 1000;
    result.stage_iteration_ms.push_back(ms);
    if (ms > result.stage_iteration_ms[result.slowest]) result.slowest = static_cast<int32_t>(i);
    if (costs[i].memory_mib > costs[result.largest].memory_mib) result.largest = static_cast<int32_t>(i);
  }
  if (!costs.empty()) {
    result.iteration_ms = result.stage_iteration_ms[result.slowest];
    result.max_memory_mib = costs[result.largest].memory_mib;
    result.fits = result.max_memory_mib <= cluster_.memory_limit_mib;
  }
  result.stages = std::move(costs);
  return result;
}

double ParityModel::LowerBoundMs(const Plan& plan, std::span<const StageCost> costs) const {
  double sum_us = 0, slowest_us = 0;
  for (const StageCost& cost : costs) {
    sum_us += cost.time_us;
    slowest_us = std::max(slowest_us, cost.time_us);
  }
  return (static_cast<double>(plan.micro_batches() - 1) * slowest_us + sum_us) / 1000;
}

}  // namespace

StatusOr<std::unique_ptr<CostModel>> MakeParityModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster,
                                                     std::span<const int32_t> micro_batches) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(cluster));
  if (!cluster.groups.empty() || cluster.within_node || cluster.between_nodes) {
    return InvalidArgument("the parity model knows no device groups and no link speeds; use the calibrated model");
  }
  if (table.options().merge_width_one_duplicates || table.options().interpolate_collectives) {
    return InvalidArgument("the parity model needs a profile table as measured (kParityTable)");
  }
  if (table.distinct_ops() != static_cast<int32_t>(ops.distinct.size())) {
    return InvalidArgument("the profile table has {} distinct ops; allowed: {}, as in {}", table.distinct_ops(),
                           ops.distinct.size(), ops.name);
  }
  if (!table.has_links() && cluster.gpus() > 1) {
    return FailedPrecondition("the profile of {} has no transfers between devices, and the cluster has {}", ops.profile_model,
                              cluster.gpus());
  }
  for (const int32_t micro_batch : micro_batches) {
    if (micro_batch < 1) return InvalidArgument("micro-batch {}; allowed: 1 or more", micro_batch);
  }
  return std::unique_ptr<CostModel>(new ParityModel(ops, table, cluster, micro_batches));
}

}  // namespace tidepool::plan
