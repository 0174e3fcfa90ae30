#include "plan/calibrated_cost_model.h"

#include <absl/container/inlined_vector.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "base/units.h"
#include "plan/stage_walk.h"

namespace tidepool::plan {
namespace {

using profile::CollectiveKind;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMicroseconds = 1e6;

// Megabytes per microsecond over links, and what collectives take on them.
class LinkPrices {
 public:
  LinkPrices(const ProfileTable& table, const Cluster& cluster) : table_(table), cluster_(cluster) {
    for (int link = 0; link < kLinkClasses; ++link) {
      const auto& own = link == 0 ? cluster.within_node : cluster.between_nodes;
      const double measured = table.TransferUs(static_cast<LinkClass>(link), kLargeMib);
      rate_[link] = own ? own->bytes_per_s / kMiB / kMicroseconds : measured > 0 ? kLargeMib / measured : 0;
      latency_[link] = own ? own->latency_us : 0;
    }
    if (cluster.within_node) return;
    // Rings within a node may be faster than single transfers: other links, several channels.
    for (const int32_t ranks : table.CollectiveRanks()) {
      const double us = table.Collective(CollectiveKind::kAllReduce, ranks, kLargeMib).us;
      if (us > 0 && us < kUnknownCollectiveUs) ring_rates_.push_back({ranks, RingShare(ranks) * kLargeMib / us});
    }
  }
  bool known() const { return cluster_.gpus() == 1 || (rate_[0] > 0 && (cluster_.nodes == 1 || rate_[1] > 0)); }

  double TransferUs(LinkClass link, double mib) const {
    const auto& own = link == LinkClass::kWithinNode ? cluster_.within_node : cluster_.between_nodes;
    if (!own) return table_.TransferUs(link, mib);
    return mib > 0 ? Quantized(own->latency_us + mib / rate_[static_cast<int>(link)]) : 0;
  }

  // A ring all-reduce of `mib` per device: 2 (d - 1) / d of it go over each link, in 2 (d - 1) steps. Rings that leave a node are
  // as fast as the link between nodes.
  double AllReduceUs(int32_t ranks, double mib, bool between_nodes) const {
    if (ranks < 2 || mib <= 0) return 0;
    const int link = between_nodes ? 1 : 0;
    double rate = rate_[link];
    if (!between_nodes) {
      for (const auto& [measured, ring_rate] : ring_rates_) {
        rate = ring_rate;  // the smallest ring that is large enough, else the largest
        if (measured >= ranks) break;
      }
    }
    return Quantized(RingShare(ranks) * mib / rate + 2.0 * (ranks - 1) * latency_[link]);
  }

  // Collectives between ops: as measured, else as a ring would do them.
  double CollectiveUs(CollectiveKind kind, int32_t ranks, double mib) const {
    if (!cluster_.within_node) {
      const double us = table_.Collective(kind, ranks, mib).us;
      if (us < kUnknownCollectiveUs) return us;
    }
    const double all_reduce = AllReduceUs(ranks, mib, ranks > cluster_.gpus_per_node);
    switch (kind) {
      case CollectiveKind::kAllReduce: return all_reduce;
      case CollectiveKind::kAllGather:
      case CollectiveKind::kReduceScatter: return Quantized(all_reduce / 2);
      case CollectiveKind::kAllToAll: return Quantized(all_reduce / 2 / ranks);
    }
    return all_reduce;
  }

 private:
  static constexpr double kLargeMib = 1024;
  static double RingShare(int32_t ranks) { return 2.0 * (ranks - 1) / ranks; }

  const ProfileTable& table_;
  const Cluster& cluster_;
  double rate_[kLinkClasses] = {}, latency_[kLinkClasses] = {};
  std::vector<std::pair<int32_t, double>> ring_rates_;  // by number of devices, ascending
};

bool IsReplicated(const DistinctOp& op, int32_t algorithm, bool output) {
  const SplitAlgorithm& split = op.algorithms[static_cast<size_t>(algorithm) < op.algorithms.size() ? algorithm : 0];
  return (output ? split.output : split.input).replicas == Split::kTensor;
}

// What of each op's output stays until the backward pass.
std::vector<double> LiveActivations(const OpList& ops, const ProfileTable& table, const CalibratedOptions& options) {
  std::vector<double> activations;
  for (int32_t row = 0; row < table.rows(); ++row) {
    const ProfileTable::RowKey key = table.KeyOf(row);
    for (int32_t op = 0; op < table.distinct_ops(); ++op) {
      const DistinctOp& distinct = ops.distinct[op];
      double mib = table.At(Column::kActivationMib, row, op) * distinct.live_factor;
      const bool replicated = IsReplicated(distinct, key.algorithm, false) && IsReplicated(distinct, key.algorithm, true);
      if (options.sequence_parallel && replicated) mib /= key.width;
      activations.push_back(Quantized(mib));
    }
  }
  return activations;
}

class CalibratedModel : public CostModel {
 public:
  CalibratedModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster, LinkPrices links,
                  std::span<const int32_t> micro_batches, const CalibratedOptions& options)
      : CostModel(ops, table, cluster, LiveActivations(ops, table, options)),
        options_(options),
        links_(std::move(links)),
        reshards_(
            ops, table, table.CollectiveRanks(),
            [this](CollectiveKind kind, int32_t ranks, double mib) { return links_.CollectiveUs(kind, ranks, mib); },
            micro_batches) {
    double bytes_per_s = options.memory_bytes_per_s;
    if (bytes_per_s <= 0) bytes_per_s = table.memory_bytes_per_s();
    if (bytes_per_s <= 0) bytes_per_s = kDefaultMemoryBytesPerS;
    memory_mib_per_us_ = bytes_per_s / kMiB / kMicroseconds;
    margin_ = options.memory_margin + options.noise_factor * table.memory_noise();
    PrepareOps();
  }
  std::string_view name() const override { return "calibrated"; }

  StageTotals TotalsOf(const Stage& stage, int32_t micro_batch) const override;
  StageTotals UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const override;
  ReshardCost ReshardBetween(int32_t position, const OpChoice& before, const OpChoice& after,
                             int32_t micro_batch) const override {
    const int32_t row = RowOf(after, micro_batch);
    return row < 0 ? ReshardCost{} : reshards_.Between(position, before, after, row);
  }
  StageCost CostAt(const StageTotals& totals, const StagePlace& place) const override;
  double MemoryAt(const StageTotals& totals, const StagePlace& place) const override;
  PlanCost Combine(const Plan& plan, std::vector<StageCost> costs) const override;
  double LowerBoundMs(const Plan& plan, std::span<const StageCost> costs) const override;
  bool iteration_is_closed_form() const override { return false; }
  PipelineOptions pipeline() const override { return {options_.schedule, options_.chunks, options_.transfer_overlap}; }

 private:
  // Weights by how many replicas they have, by number ascending. Their sums are exact, so the order of ops does not matter.
  struct Replicated {
    int32_t replicas = 1;
    double weight_mib = 0;
  };
  using Weights = absl::InlinedVector<Replicated, 4>;

  void PrepareOps();
  void AddRun(int32_t first, int32_t count, const OpChoice& choice, int32_t row, bool next_recomputes, int32_t end,
              StageWalk* walk, Weights* weights, double* buffers_mib) const;
  void Finish(int32_t first, int32_t end, int32_t first_row, int32_t last_row, const Weights& weights, double buffers_mib,
              StageWalk* walk) const;
  double TiedSyncUs(int32_t first, int32_t end, int32_t first_row, int32_t last_row) const;
  double LiveMib(const StageTotals& totals) const { return totals.input_mib + totals.activation_mib - totals.saved_mib; }
  bool CanRun(const Plan& plan) const {
    return options_.schedule != PipelineSchedule::kInterleaved || plan.micro_batches() % std::ssize(plan.stages) == 0;
  }

  // Of one op in one profile row.
  struct Edge {
    double in_us[kLinkClasses] = {}, out_us[kLinkClasses] = {};
    double in_mib = 0;
  };

  CalibratedOptions options_;
  LinkPrices links_;
  ReshardPrices reshards_;
  double memory_mib_per_us_ = 1;
  double margin_ = 0;
  std::vector<Edge> edges_;                 // [row][distinct op]
  std::vector<RangeMax> buffers_;           // [row], over positions: what an op reads and gives, as gradients
  std::vector<double> weight_gradient_us_;  // [row][position]: prefix sums; empty unless the schedule asks for them
};

void CalibratedModel::PrepareOps() {
  const auto distinct = static_cast<size_t>(table_.distinct_ops());
  edges_.resize(distinct * table_.rows());
  const bool split_backward = options_.schedule == PipelineSchedule::kZeroBubble;
  for (int32_t row = 0; row < table_.rows(); ++row) {
    const ProfileTable::RowKey key = table_.KeyOf(row);
    for (size_t op = 0; op < distinct; ++op) {
      const auto id = static_cast<int32_t>(op);
      Edge& edge = edges_[row * distinct + op];
      double in_mib = table_.At(Column::kInputMib, row, id), out_mib = table_.At(Column::kOutputMib, row, id);
      if (options_.sequence_parallel) {
        if (IsReplicated(ops_.distinct[op], key.algorithm, false)) in_mib = Quantized(in_mib / key.width);
        if (IsReplicated(ops_.distinct[op], key.algorithm, true)) out_mib = Quantized(out_mib / key.width);
      }
      edge.in_mib = in_mib;
      for (int link = 0; link < kLinkClasses; ++link) {
        edge.in_us[link] = links_.TransferUs(static_cast<LinkClass>(link), in_mib);
        edge.out_us[link] = links_.TransferUs(static_cast<LinkClass>(link), out_mib);
      }
    }
    std::vector<double> buffers;
    buffers.reserve(ops_.ops.size());
    for (const uint16_t op : ops_.ops) {
      buffers.push_back(table_.At(Column::kInputMib, row, op) + table_.At(Column::kOutputMib, row, op));
    }
    buffers_.emplace_back(std::move(buffers));
    if (!split_backward) continue;
    // Matrix products and convolutions need as much for the gradients of their weights as for those of their inputs; other ops do
    // not part the two.
    double sum = 0;
    weight_gradient_us_.push_back(sum);
    for (const uint16_t op : ops_.ops) {
      const bool divides = ops_.distinct[op].parameters > 0 && ops_.distinct[op].forward_flops_per_sample > 0;
      if (divides) sum += Quantized(table_.At(Column::kBackwardUs, row, op) / 2);
      weight_gradient_us_.push_back(sum);
    }
  }
}

// Stages hold a copy of a tied weight each, and add their gradients up, unless one of them has all its ops.
double CalibratedModel::TiedSyncUs(int32_t first, int32_t end, int32_t first_row, int32_t last_row) const {
  double us = 0;
  for (const TiedWeight& weight : ops_.tied) {
    int32_t inside = -1;
    bool outside = false;
    for (const int32_t op : weight.ops) {
      if (op >= first && op < end) {
        inside = op;
      } else {
        outside = true;
      }
    }
    if (inside < 0 || !outside) continue;
    const int32_t row = inside == first ? first_row : last_row;
    const double mib = std::min(table_.At(Column::kWeightMib, row, ops_.ops[inside]),
                                static_cast<double>(weight.parameters * SizeOf(ops_.dtype)) / kMiB);
    us += links_.AllReduceUs(static_cast<int32_t>(weight.ops.size()), Quantized(mib * ops_.gradient_factor), cluster_.nodes > 1);
  }
  return us;
}

void CalibratedModel::AddRun(int32_t first, int32_t count, const OpChoice& choice, int32_t row, bool next_recomputes, int32_t end,
                             StageWalk* walk, Weights* weights, double* buffers_mib) const {
  const double before_mib = walk->totals.weight_mib;
  walk->AddRun(first, count, row, choice.recompute, next_recomputes, end);
  const double weight_mib = walk->totals.weight_mib - before_mib;
  auto at = weights->begin();
  while (at != weights->end() && at->replicas < choice.data_parallel) ++at;
  if (at == weights->end() || at->replicas != choice.data_parallel) at = weights->insert(at, {choice.data_parallel, 0});
  at->weight_mib += weight_mib;
  *buffers_mib = std::max(*buffers_mib, buffers_[row].Over(first, first + count));
  if (!weight_gradient_us_.empty()) {
    const double* sums = weight_gradient_us_.data() + static_cast<size_t>(row) * (ops_.ops.size() + 1);
    walk->totals.weight_gradient_us += sums[first + count] - sums[first];
  }
}

void CalibratedModel::Finish(int32_t first, int32_t end, int32_t first_row, int32_t last_row, const Weights& weights,
                             double buffers_mib, StageWalk* walk) const {
  StageTotals& totals = walk->totals;
  const auto distinct = static_cast<size_t>(table_.distinct_ops());
  const Edge& in = edges_[first_row * distinct + ops_.ops[first]];
  const Edge& out = edges_[last_row * distinct + ops_.ops[end - 1]];
  totals.input_mib = in.in_mib;
  for (int link = 0; link < kLinkClasses; ++link) {
    totals.in_us[link] = in.in_us[link];
    totals.out_us[link] = out.out_us[link];
  }
  // Per device: weights and gradients in full; masters and moments in full, or a share of them. The optimizer reads gradients,
  // reads and writes masters and moments, and writes weights (and reads them, if they have no masters).
  const double sharded = ops_.master_factor + ops_.optimizer_factor;
  const double touched = ops_.gradient_factor + 2 * sharded + (ops_.master_factor > 0 ? 1 : 2);
  const bool between_nodes = totals.gpus > cluster_.gpus_per_node;
  double sync_us = 0, touched_mib = 0;
  for (const Replicated& part : weights) {
    const double shards = options_.zero1 ? part.replicas : 1;
    totals.state_mib += part.weight_mib * (1 + ops_.gradient_factor + sharded / shards);
    touched_mib += part.weight_mib * touched / shards;
    // ZeRO-1 scatters gradients and gathers weights: together as much as one all-reduce.
    sync_us += links_.AllReduceUs(part.replicas, part.weight_mib * ops_.gradient_factor, between_nodes);
  }
  const double hidden_us = Quantized(std::min(options_.sync_overlap * sync_us, totals.backward_us));
  totals.sync_us = sync_us - hidden_us + TiedSyncUs(first, end, first_row, last_row);
  totals.optimizer_us = Quantized(touched_mib / memory_mib_per_us_);
  // While an op goes backward, the gradients of what it gave and of what it read are there, beside its workspace.
  totals.reserved_mib = std::max(walk->forward_reserved_mib + walk->backward_reserved_mib, buffers_mib);
}

StageTotals CalibratedModel::UniformTotals(int32_t first, int32_t count, const OpChoice& choice, int32_t micro_batch) const {
  const int32_t row = RowOf(choice, micro_batch);
  if (row < 0 || count < 1) return UnpricedTotals();
  StageWalk walk(ops_, ranges_);
  Weights weights;
  double buffers_mib = 0;
  walk.totals.gpus = choice.gpus();
  AddRun(first, count, choice, row, false, first + count, &walk, &weights, &buffers_mib);
  walk.AddReshard(reshards_.Within(first, count, choice, row, micro_batch));
  Finish(first, first + count, row, row, weights, buffers_mib, &walk);
  return walk.totals;
}

StageTotals CalibratedModel::TotalsOf(const Stage& stage, int32_t micro_batch) const {
  const std::vector<ChoiceRun>& runs = stage.runs();
  if (runs.size() == 1) return UniformTotals(stage.first(), stage.count(), runs[0].choice, micro_batch);
  StageWalk walk(ops_, ranges_);
  Weights weights;
  double buffers_mib = 0;
  walk.totals.gpus = stage.gpus();
  int32_t first = stage.first(), first_row = -1, row = -1;
  for (size_t i = 0; i < runs.size(); ++i) {
    const ChoiceRun& run = runs[i];
    if (i == 0 || !SameSplit(run.choice, runs[i - 1].choice)) row = RowOf(run.choice, micro_batch);
    if (row < 0) return UnpricedTotals();
    if (i == 0) first_row = row;
    const bool next_recomputes = i + 1 < runs.size() && runs[i + 1].choice.recompute;
    AddRun(first, run.count, run.choice, row, next_recomputes, stage.end(), &walk, &weights, &buffers_mib);
    walk.AddReshard(reshards_.Within(first, run.count, run.choice, row, micro_batch));
    if (i > 0) walk.AddReshard(reshards_.Between(first, runs[i - 1].choice, run.choice, row));
    first += run.count;
  }
  Finish(stage.first(), stage.end(), first_row, row, weights, buffers_mib, &walk);
  return walk.totals;
}

double CalibratedModel::MemoryAt(const StageTotals& totals, const StagePlace& place) const {
  const double held = InFlight(options_.schedule, options_.chunks, place.stages_behind, place.stages, place.micro_batches);
  const double moving = LiveMib(totals) * held + totals.peak_run_mib + totals.reserved_mib;
  return totals.state_mib + moving + moving * margin_ + options_.context_mib;
}

StageCost CalibratedModel::CostAt(const StageTotals& totals, const StagePlace& place) const {
  const double scale = cluster_.groups.empty() ? 1 : cluster_.TimeScaleOf(place.first_gpu, totals.gpus);
  const auto scaled = [scale](double us) { return scale == 1 ? us : Quantized(us * scale); };
  StageCost cost;
  cost.forward_us = scaled(totals.forward_us);
  cost.backward_us = scaled(totals.backward_us);
  cost.weight_gradient_us = scaled(totals.weight_gradient_us);
  cost.recompute_us = scaled(totals.recompute_us);
  cost.optimizer_us = scaled(totals.optimizer_us);
  cost.sync_us = totals.sync_us;
  cost.reshard_forward_us = totals.reshard_forward_us;
  cost.reshard_backward_us = totals.reshard_backward_us;
  // Messages of one micro-batch over an edge, one way. Chunks of an interleaved pipeline are linked in a ring.
  const bool is_first = place.first_gpu == 0, is_last = place.stages_behind == 0;
  const double inner = options_.chunks, outer = is_first && is_last ? 0 : options_.chunks - 1;
  cost.in_us = 2 * (is_first ? outer : inner) * totals.in_us[static_cast<int>(place.in_link)];
  cost.out_us = 2 * (is_last ? outer : inner) * totals.out_us[static_cast<int>(place.out_link)];
  cost.hidden_us = options_.transfer_overlap * (cost.in_us + cost.out_us);
  cost.time_us = cost.forward_us + cost.backward_us + cost.recompute_us + cost.in_us + cost.out_us + cost.reshard_forward_us +
                 cost.reshard_backward_us - cost.hidden_us;
  const double live = LiveMib(totals);
  const double held = InFlight(options_.schedule, options_.chunks, place.stages_behind, place.stages, place.micro_batches);
  cost.state_mib = totals.state_mib;
  cost.activation_mib = live * (held - 1);
  cost.peak_mib = live + totals.peak_run_mib;
  cost.reserved_mib = totals.reserved_mib;
  cost.memory_mib = MemoryAt(totals, place);
  cost.margin_mib = cost.memory_mib - cost.state_mib - cost.activation_mib - cost.peak_mib - cost.reserved_mib;
  return cost;
}

double CalibratedModel::LowerBoundMs(const Plan& plan, std::span<const StageCost> costs) const {
  return CanRun(plan) ? LowerBoundUs(PipelineOf(plan, costs)) / 1000 : kInfinity;
}

PlanCost CalibratedModel::Combine(const Plan& plan, std::vector<StageCost> costs) const {
  PlanCost result;
  result.fits = !costs.empty();
  double fullest = -1;  // memory relative to its limit
  int32_t gpu = 0;
  for (size_t i = 0; i < costs.size(); ++i) {
    const int32_t gpus = plan.stages[i]->gpus();
    const double limit = cluster_.MemoryLimitOf(gpu, gpus);
    gpu += gpus;
    result.fits = result.fits && costs[i].memory_mib <= limit;
    result.max_memory_mib = std::max(result.max_memory_mib, costs[i].memory_mib);
    if (costs[i].memory_mib / limit > fullest) {
      fullest = costs[i].memory_mib / limit;
      result.largest = static_cast<int32_t>(i);
    }
  }
  if (!costs.empty()) {
    const PipelineSpec spec = PipelineOf(plan, costs);
    result.iteration_ms = CanRun(plan) ? SimulatePipeline(spec).makespan_us / 1000 : kInfinity;
    result.fits = result.fits && std::isfinite(result.iteration_ms);
    for (const double us : StageBoundsUs(spec)) result.stage_iteration_ms.push_back(us / 1000);
    const auto slowest = std::max_element(result.stage_iteration_ms.begin(), result.stage_iteration_ms.end());
    result.slowest = static_cast<int32_t>(slowest - result.stage_iteration_ms.begin());
  }
  result.stages = std::move(costs);
  return result;
}

}  // namespace

Status Validate(const CalibratedOptions& options) {
  std::vector<std::string> faults;
  const auto require = [&](bool good, std::string text) {
    if (!good) faults.push_back(std::move(text));
  };
  const auto share = [&](const char* what, double value) {
    require(value >= 0 && value <= 1, fmt::format("{} is {}; allowed: 0 to 1", what, value));
  };
  share("transfer_overlap", options.transfer_overlap);
  share("sync_overlap", options.sync_overlap);
  const bool interleaved = options.schedule == PipelineSchedule::kInterleaved;
  require(options.chunks >= 1 && options.chunks <= 1024 && (interleaved || options.chunks == 1),
          fmt::format("chunks is {}; allowed: {}", options.chunks, interleaved ? "1 to 1024" : "1, if not interleaved"));
  for (const auto& [what, value] :
       {std::pair("memory_bytes_per_s", options.memory_bytes_per_s), std::pair("memory_margin", options.memory_margin),
        std::pair("noise_factor", options.noise_factor), std::pair("context_mib", options.context_mib)}) {
    require(std::isfinite(value) && value >= 0, fmt::format("{} is {}; allowed: 0 or more", what, value));
  }
  return faults.empty() ? Status() : InvalidArgument("{}", JoinText(faults, "; "));
}

StatusOr<std::unique_ptr<CostModel>> MakeCalibratedModel(const OpList& ops, const ProfileTable& table, const Cluster& cluster,
                                                         std::span<const int32_t> micro_batches,
                                                         const CalibratedOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(cluster));
  TIDEPOOL_RETURN_IF_ERROR(Validate(options));
  if (table.distinct_ops() != static_cast<int32_t>(ops.distinct.size())) {
    return InvalidArgument("the profile table has {} distinct ops; allowed: {}, as in {}", table.distinct_ops(),
                           ops.distinct.size(), ops.name);
  }
  for (const int32_t micro_batch : micro_batches) {
    if (micro_batch < 1) return InvalidArgument("micro-batch {}; allowed: 1 or more", micro_batch);
  }
  LinkPrices links(table, cluster);
  if (!links.known()) {
    return FailedPrecondition(
        "the profile of {} has no transfers between devices, the cluster has {}; say how fast its links are", ops.profile_model,
        cluster.gpus());
  }
  return std::unique_ptr<CostModel>(new CalibratedModel(ops, table, cluster, std::move(links), micro_batches, options));
}

}  // namespace tidepool::plan
