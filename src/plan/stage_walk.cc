#include "plan/stage_walk.h"

#include <algorithm>
#include <map>
#include <utility>

namespace tidepool::plan {

void StageWalk::AddFreed(int32_t first, int32_t last, int32_t row) {
  if (first >= last) return;
  totals.saved_mib += ranges_.Freed(row, first, last);
  // The part up to the first layer start goes on with the open run; then whole layers; then a new open run.
  const int32_t from = ranges_.LayerAt(first + 1), until = ranges_.LayerAt(last + 1);  // layer starts in (first, last]
  if (from == until) {
    open_run_ += ranges_.Freed(row, first, last);
    totals.peak_run_mib = std::max(totals.peak_run_mib, open_run_);
    return;
  }
  const int32_t head_end = ops_.layer_starts[from], tail_begin = ops_.layer_starts[until - 1];
  open_run_ += ranges_.Freed(row, first, head_end);
  totals.peak_run_mib = std::max({totals.peak_run_mib, open_run_, ranges_.LargestLayer(row, from, until - 1)});
  open_run_ = ranges_.Freed(row, tail_begin, last);
  totals.peak_run_mib = std::max(totals.peak_run_mib, open_run_);
}

void StageWalk::AddRun(int32_t first, int32_t count, int32_t row, bool recompute, bool next_recomputes, int32_t reserve_end) {
  const int32_t last = first + count, counted = std::min(last, reserve_end);
  const RangeSums sums = ranges_.Sums(row, first, last);
  totals.forward_us += sums.forward_us;
  totals.backward_us += sums.backward_us;
  totals.weight_mib += sums.weight_mib;
  totals.activation_mib += sums.activation_mib;
  forward_reserved_mib = std::max(forward_reserved_mib, ranges_.MaxForwardReserved(row, first, counted));
  backward_reserved_mib = std::max(backward_reserved_mib, ranges_.MaxBackwardReserved(row, first, counted));
  if (!recompute) {
    open_run_ = 0;
    return;
  }
  totals.recompute_us += sums.forward_us;
  AddFreed(first, next_recomputes ? last : last - 1, row);
  if (!next_recomputes) open_run_ = 0;
}

namespace {

const SplitAlgorithm& AlgorithmOf(const DistinctOp& op, const OpChoice& choice) {
  return op.algorithms[choice.algorithm < op.algorithms.size() ? choice.algorithm : 0];
}

}  // namespace

ReshardPrices::ReshardPrices(const OpList& ops, const ProfileTable& table, std::vector<int32_t> ranks, CollectiveUs price,
                             std::span<const int32_t> micro_batches)
    : ops_(ops), table_(table), ranks_(std::move(ranks)), price_(std::move(price)) {
  for (int32_t row = 0; row < table_.rows(); ++row) {
    for (int32_t op = 0; op < table_.distinct_ops(); ++op) {
      const double mib = table_.At(Column::kInputMib, row, op);
      for (int kind = 0; kind < kKinds; ++kind) {
        for (const int32_t count : ranks_) prices_.push_back(price_(static_cast<profile::CollectiveKind>(kind), count, mib));
      }
    }
  }
  for (const int32_t micro_batch : micro_batches) Prepare(micro_batch);
}

double ReshardPrices::PriceOf(profile::CollectiveKind kind, int32_t ranks, int32_t row, uint16_t consumer) const {
  const size_t base = (static_cast<size_t>(row) * table_.distinct_ops() + consumer) * kKinds + static_cast<size_t>(kind);
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (ranks_[i] == ranks) return prices_[base * ranks_.size() + i];
  }
  return price_(kind, ranks, table_.At(Column::kInputMib, row, consumer));
}

ReshardCost ReshardPrices::Price(uint16_t producer, uint16_t consumer, const OpChoice& before, const OpChoice& after,
                                 int32_t row) const {
  const Layout& from = AlgorithmOf(ops_.distinct[producer], before).output;
  const Layout& to = AlgorithmOf(ops_.distinct[consumer], after).input;
  const Reshard reshard = PlanReshard(ShardingOf(from, before.tensor_parallel, before.data_parallel),
                                      ShardingOf(to, after.tensor_parallel, after.data_parallel));
  if (!reshard.forward && !reshard.backward) return {};
  ReshardCost cost;
  if (reshard.forward) cost.forward_us = PriceOf(*reshard.forward, reshard.ranks, row, consumer);
  if (reshard.backward) cost.backward_us = PriceOf(*reshard.backward, reshard.ranks, row, consumer);
  return cost;
}

// Uniform stages of the published lists hardly ever reshard; where they do, prefix sums over the list make it O(1).
void ReshardPrices::Prepare(int32_t micro_batch) {
  if (micro_batch < 1 || prefixes_.contains(micro_batch)) return;
  std::vector<Prefix>& prefixes = prefixes_[micro_batch];
  prefixes.resize(table_.rows());
  for (int32_t row = 0; row < table_.rows(); ++row) {
    const ProfileTable::RowKey key = table_.KeyOf(row);
    if (micro_batch % key.batch != 0) continue;
    const OpChoice choice{key.width, micro_batch / key.batch, static_cast<uint8_t>(key.algorithm), false};
    std::map<std::pair<uint16_t, uint16_t>, ReshardCost> known;
    Prefix prefix(ops_.ops.size());
    for (size_t i = 1; i < prefix.size(); ++i) {
      const auto [entry, fresh] = known.try_emplace({ops_.ops[i - 1], ops_.ops[i]});
      if (fresh) entry->second = Price(ops_.ops[i - 1], ops_.ops[i], choice, choice, row);
      prefix[i] = {prefix[i - 1].forward_us + entry->second.forward_us, prefix[i - 1].backward_us + entry->second.backward_us};
    }
    if (prefix.back().forward_us + prefix.back().backward_us > 0) prefixes[row] = std::move(prefix);
  }
}

ReshardCost ReshardPrices::Within(int32_t first, int32_t count, const OpChoice& choice, int32_t row, int32_t micro_batch) const {
  if (count < 2) return {};
  const auto prepared = prefixes_.find(micro_batch);
  if (prepared != prefixes_.end()) {
    const Prefix& prefix = prepared->second[row];
    if (prefix.empty()) return {};
    const ReshardCost &a = prefix[first], &b = prefix[first + count - 1];
    return {b.forward_us - a.forward_us, b.backward_us - a.backward_us};
  }
  ReshardCost sum;
  for (int32_t i = first + 1; i < first + count; ++i) {
    const ReshardCost cost = Price(ops_.ops[i - 1], ops_.ops[i], choice, choice, row);
    sum.forward_us += cost.forward_us;
    sum.backward_us += cost.backward_us;
  }
  return sum;
}

}  // namespace tidepool::plan
