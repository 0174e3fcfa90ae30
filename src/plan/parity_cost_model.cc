// The cost model of the published planner: Lin et al., Aceso, EuroSys 2024, section on the performance model, in the exact form
// of its artifact. docs/plan.md has the formulas and the list of defects that are kept here.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <unordered_map>

#include "plan/cost_model.h"

namespace tidepool::plan {
namespace {

class ParityModel : public CostModel {
 public:
  ParityModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster, std::span<const int32_t> micro_batches)
      : CostModel(ops, table, cluster, true), state_factor_(ops.state_factor()) {
    PrepareEdges();
    PrepareCollectives();
    for (const int32_t micro_batch : micro_batches) PrepareReshards(micro_batch);
  }
  std::string_view name() const override { return "parity"; }

  StageTotals TotalsOf(const Stage& stage, int32_t micro_batch) const override;
  StageTotals UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const override;
  ReshardCost ReshardBetween(int32_t position, const OpChoice& before, const OpChoice& after, int32_t micro_batch) const override;
  StageCost CostAt(const StageTotals& totals, const StagePlace& place) const override;
  double MemoryAt(const StageTotals& totals, const StagePlace& place) const override;
  PlanCost Combine(const Plan& plan, std::vector<StageCost> costs) const override;

 private:
  using ReshardPrefix = std::vector<ReshardCost>;  // [i]: sum over op pairs up to (i - 1, i); empty: nothing to pay anywhere

  // Sums and maxima of a stage while its runs are visited in order.
  struct Walk {
    StageTotals totals;
    double forward_reserved = 0, backward_reserved = 0;
    double open_run = 0;  // freed activations of the recomputed run so far, since the last layer start
  };
  void AddRun(int32_t first, int32_t count, int32_t row, bool recompute, bool next_recomputes, bool last_run, Walk* walk) const;
  void AddFreed(int32_t first, int32_t last, int32_t row, Walk* walk) const;
  void Finish(int32_t first, int32_t last, int32_t first_row, int32_t out_row, Walk* walk) const;
  // Pairs whose second op is in (first, first + count), all with one split.
  ReshardCost ReshardWithin(int32_t first, int32_t count, const OpChoice& choice, int32_t row, int32_t micro_batch) const;
  void PrepareEdges();
  void PrepareCollectives();
  void PrepareReshards(int32_t micro_batch);
  double CollectiveUs(profile::CollectiveKind kind, int32_t ranks, int32_t row, uint16_t consumer) const;
  ReshardCost PriceReshard(uint16_t producer, uint16_t consumer, const OpChoice& before, const OpChoice& after,
                           int32_t row) const;

  struct Edge {
    double in_us[kLinkClasses] = {}, out_us[kLinkClasses] = {};
  };
  static constexpr int kKinds = 4;  // of collectives

  double state_factor_;
  std::vector<Edge> edges_;  // [row][distinct op]: transfers of what it reads and gives
  std::vector<int32_t> ranks_;
  std::vector<double> collectives_;  // [row][distinct op][kind][index in ranks_]: of what it reads
  std::unordered_map<int32_t, std::vector<ReshardPrefix>> reshards_;  // micro-batch -> [row]
};

const SplitAlgorithm& AlgorithmOf(const DistinctOp& op, const OpChoice& choice) {
  return op.algorithms[choice.algorithm < op.algorithms.size() ? choice.algorithm : 0];
}

ReshardCost ParityModel::PriceReshard(uint16_t producer, uint16_t consumer, const OpChoice& before, const OpChoice& after,
                                      int32_t row) const {
  const Layout& from = AlgorithmOf(ops_.distinct[producer], before).output;
  const Layout& to = AlgorithmOf(ops_.distinct[consumer], after).input;
  const Reshard reshard = PlanReshard(ShardingOf(from, before.tensor_parallel, before.data_parallel),
                                      ShardingOf(to, after.tensor_parallel, after.data_parallel));
  if (!reshard.forward && !reshard.backward) return {};
  ReshardCost cost;
  if (reshard.forward) cost.forward_us = CollectiveUs(*reshard.forward, reshard.ranks, row, consumer);
  if (reshard.backward) cost.backward_us = CollectiveUs(*reshard.backward, reshard.ranks, row, consumer);
  return cost;
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

void ParityModel::PrepareCollectives() {
  if (!ops_.resharding_has_price) return;
  ranks_ = table_.CollectiveRanks();
  for (int32_t row = 0; row < table_.rows(); ++row) {
    for (int32_t op = 0; op < table_.distinct_ops(); ++op) {
      const double mib = table_.At(Column::kInputMib, row, op);
      for (int kind = 0; kind < kKinds; ++kind) {
        for (const int32_t ranks : ranks_) {
          collectives_.push_back(table_.Collective(static_cast<profile::CollectiveKind>(kind), ranks, mib).us);
        }
      }
    }
  }
}

double ParityModel::CollectiveUs(profile::CollectiveKind kind, int32_t ranks, int32_t row, uint16_t consumer) const {
  const size_t base = (static_cast<size_t>(row) * table_.distinct_ops() + consumer) * kKinds + static_cast<size_t>(kind);
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (ranks_[i] == ranks) return collectives_[base * ranks_.size() + i];
  }
  return kUnknownCollectiveUs;
}

ReshardCost ParityModel::ReshardBetween(int32_t position, const OpChoice& before, const OpChoice& after,
                                        int32_t micro_batch) const {
  const int32_t row = RowOf(after, micro_batch);
  if (!ops_.resharding_has_price || row < 0) return {};
  return PriceReshard(ops_.ops[position - 1], ops_.ops[position], before, after, row);
}

// Uniform stages of the published lists hardly ever reshard; where they do, prefix sums over the list make it O(1).
void ParityModel::PrepareReshards(int32_t micro_batch) {
  if (!ops_.resharding_has_price || micro_batch < 1 || reshards_.contains(micro_batch)) return;
  std::vector<ReshardPrefix>& prefixes = reshards_[micro_batch];
  prefixes.resize(table_.rows());
  for (int32_t row = 0; row < table_.rows(); ++row) {
    const ProfileTable::RowKey key = table_.KeyOf(row);
    if (micro_batch % key.batch != 0) continue;
    const OpChoice choice{key.width, micro_batch / key.batch, static_cast<uint8_t>(key.algorithm), false};
    std::map<std::pair<uint16_t, uint16_t>, ReshardCost> known;
    ReshardPrefix prefix(ops_.ops.size());
    for (size_t i = 1; i < prefix.size(); ++i) {
      const auto [entry, fresh] = known.try_emplace({ops_.ops[i - 1], ops_.ops[i]});
      if (fresh) entry->second = PriceReshard(ops_.ops[i - 1], ops_.ops[i], choice, choice, row);
      prefix[i] = {prefix[i - 1].forward_us + entry->second.forward_us, prefix[i - 1].backward_us + entry->second.backward_us};
    }
    if (prefix.back().forward_us + prefix.back().backward_us > 0) prefixes[row] = std::move(prefix);
  }
}

ReshardCost ParityModel::ReshardWithin(int32_t first, int32_t count, const OpChoice& choice, int32_t row,
                                       int32_t micro_batch) const {
  if (!ops_.resharding_has_price || count < 2) return {};
  const auto prepared = reshards_.find(micro_batch);
  ReshardCost sum;
  if (prepared != reshards_.end()) {
    const ReshardPrefix& prefix = prepared->second[row];
    if (prefix.empty()) return {};
    const ReshardCost &a = prefix[first], &b = prefix[first + count - 1];
    return {b.forward_us - a.forward_us, b.backward_us - a.backward_us};
  }
  for (int32_t i = first + 1; i < first + count; ++i) {
    const ReshardCost cost = PriceReshard(ops_.ops[i - 1], ops_.ops[i], choice, choice, row);
    sum.forward_us += cost.forward_us;
    sum.backward_us += cost.backward_us;
  }
  return sum;
}

// Frees ops [first, last): each of them and the op after it are recomputed.
void ParityModel::AddFreed(int32_t first, int32_t last, int32_t row, Walk* walk) const {
  if (first >= last) return;
  StageTotals& totals = walk->totals;
  totals.saved_mib += ranges_.Freed(row, first, last);
  // The part up to the first layer start goes on with the open run; then whole layers; then a new open run.
  const int32_t from = ranges_.LayerAt(first + 1), until = ranges_.LayerAt(last + 1);  // layer starts in (first, last]
  if (from == until) {
    walk->open_run += ranges_.Freed(row, first, last);
    totals.peak_run_mib = std::max(totals.peak_run_mib, walk->open_run);
    return;
  }
  const int32_t head_end = ops_.layer_starts[from], tail_begin = ops_.layer_starts[until - 1];
  walk->open_run += ranges_.Freed(row, first, head_end);
  totals.peak_run_mib = std::max({totals.peak_run_mib, walk->open_run, ranges_.LargestLayer(row, from, until - 1)});
  walk->open_run = ranges_.Freed(row, tail_begin, last);
  totals.peak_run_mib = std::max(totals.peak_run_mib, walk->open_run);
}

void ParityModel::AddRun(int32_t first, int32_t count, int32_t row, bool recompute, bool next_recomputes, bool last_run,
                         Walk* walk) const {
  const int32_t last = first + count;
  const RangeSums sums = ranges_.Sums(row, first, last);
  StageTotals& totals = walk->totals;
  totals.forward_us += sums.forward_us;
  totals.backward_us += sums.backward_us;
  totals.weight_mib += sums.weight_mib;
  totals.activation_mib += sums.activation_mib;
  // The reserve of the stage's last op does not count.
  const int32_t counted = last_run ? last - 1 : last;
  walk->forward_reserved = std::max(walk->forward_reserved, ranges_.MaxForwardReserved(row, first, counted));
  walk->backward_reserved = std::max(walk->backward_reserved, ranges_.MaxBackwardReserved(row, first, counted));
  if (!recompute) {
    walk->open_run = 0;
    return;
  }
  totals.recompute_us += sums.forward_us;
  AddFreed(first, next_recomputes ? last : last - 1, row, walk);
  if (!next_recomputes) walk->open_run = 0;
}

// `out_row` prices what leaves the stage.
void ParityModel::Finish(int32_t first, int32_t last, int32_t first_row, int32_t out_row, Walk* walk) const {
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
  totals.reserved_mib = std::max(walk->forward_reserved + walk->backward_reserved, totals.weight_mib);
}

StageTotals ParityModel::UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const {
  const int32_t row = RowOf(choice, micro_batch);
  if (row < 0 || count < 1) return UnpricedTotals();
  Walk walk;
  walk.totals.gpus = choice.gpus();
  AddRun(first, count, row, choice.recompute, false, true, &walk);
  const ReshardCost reshard = ReshardWithin(first, count, choice, row, micro_batch);
  walk.totals.reshard_forward_us = reshard.forward_us;
  walk.totals.reshard_backward_us = reshard.backward_us;
  Finish(first, first + count, row, row, &walk);
  return walk.totals;
}

StageTotals ParityModel::TotalsOf(const Stage& stage, int32_t micro_batch) const {
  const std::vector<ChoiceRun>& runs = stage.runs();
  if (runs.size() == 1) return UniformTotals(stage.first(), stage.count(), runs[0].choice, micro_batch);
  Walk walk;
  walk.totals.gpus = stage.gpus();
  int32_t first = stage.first(), first_row = -1, row = -1;
  for (size_t i = 0; i < runs.size(); ++i) {
    const ChoiceRun& run = runs[i];
    if (i == 0 || !SameSplit(run.choice, runs[i - 1].choice)) row = RowOf(run.choice, micro_batch);
    if (row < 0) return UnpricedTotals();
    if (i == 0) first_row = row;
    const bool last_run = i + 1 == runs.size();
    AddRun(first, run.count, row, run.choice.recompute, !last_run && runs[i + 1].choice.recompute, last_run, &walk);
    ReshardCost reshard = ReshardWithin(first, run.count, run.choice, row, micro_batch);
    if (i > 0) {
      const ReshardCost edge = ReshardBetween(first, runs[i - 1].choice, run.choice, micro_batch);
      reshard.forward_us += edge.forward_us;
      reshard.backward_us += edge.backward_us;
    }
    walk.totals.reshard_forward_us += reshard.forward_us;
    walk.totals.reshard_backward_us += reshard.backward_us;
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
