#include "plan/op_splits.h"

#include <map>

namespace tidepool::plan {

OpSplits::OpSplits(const CostModel& model, int32_t gpus, int32_t micro_batch, int64_t micro_batches)
    : model_(model), published_out_(model.name() == "parity"), choices_(model.SplitsOf(gpus, micro_batch)) {
  const OpList& ops = model.ops();
  const ProfileTable& table = model.table();
  const size_t splits = choices_.size();
  costs_.resize(ops.distinct.size() * splits);
  out_us_.resize(ops.distinct.size() * splits * splits * kLinkClasses);
  for (size_t op = 0; op < ops.distinct.size(); ++op) {
    const auto places = ops.PlacesOf(static_cast<uint16_t>(op));
    if (places.empty()) continue;
    for (size_t split = 0; split < splits; ++split) {
      const OpChoice& choice = choices_[split];
      const int32_t row = model.RowOf(choice, micro_batch);
      const StageTotals totals = model.UniformTotals(places.front(), 1, choice, micro_batch);
      OpSplitCost& cost = costs_[op * splits + split];
      cost.us = totals.forward_us + totals.backward_us;
      const double once_us = totals.sync_us + totals.optimizer_us;
      if (once_us > 0) cost.us += once_us / static_cast<double>(micro_batches);
      cost.again_us = totals.forward_us;
      cost.state_mib = totals.state_mib;
      cost.weight_mib = totals.weight_mib;
      cost.activation_mib = totals.activation_mib;
      cost.input_mib = totals.input_mib;
      cost.forward_reserved_mib = table.At(Column::kForwardReservedMib, row, static_cast<int32_t>(op));
      cost.backward_reserved_mib = table.At(Column::kBackwardReservedMib, row, static_cast<int32_t>(op));
      for (int link = 0; link < kLinkClasses; ++link) {
        cost.in_us[link] = totals.in_us[link];
        cost.out_us[link] = totals.out_us[link];
      }
      for (size_t first = 0; first < splits; ++first) {
        // The published model prices what leaves with the first op's width (docs/plan.md).
        const int32_t out_row =
            published_out_ ? table.RowOf(micro_batch / choice.data_parallel, choices_[first].tensor_parallel, choice.algorithm)
                           : -1;
        for (int link = 0; link < kLinkClasses; ++link) {
          out_us_[((op * splits + first) * splits + split) * kLinkClasses + link] =
              out_row < 0 ? totals.out_us[link]
                          : table.TransferUs(static_cast<LinkClass>(link),
                                             table.At(Column::kOutputMib, out_row, static_cast<int32_t>(op)));
        }
      }
    }
  }
  std::map<std::pair<uint16_t, uint16_t>, size_t> pairs;
  pair_of_.assign(ops.size(), 0);
  may_switch_.assign(ops.size(), 0);
  for (int32_t i = 0; i < ops.size(); ++i) {
    // Where resharding has no price, nothing but the list says where a runtime could do it.
    may_switch_[i] = ops.resharding_has_price || ops.at(i).tunable;
    if (i == 0) continue;
    const auto [entry, fresh] = pairs.try_emplace({ops.ops[i - 1], ops.ops[i]}, pairs.size());
    pair_of_[i] = entry->second;
    if (!fresh) continue;
    for (const OpChoice& before : choices_) {
      for (const OpChoice& after : choices_) {
        const ReshardCost cost = model.ReshardBetween(i, before, after, micro_batch);
        reshard_.push_back(cost.forward_us + cost.backward_us);
      }
    }
  }
}

double OpSplits::OutUs(int32_t position, int32_t first_split, int32_t last_split, LinkClass link) const {
  const size_t splits = choices_.size();
  return out_us_[((static_cast<size_t>(model_.ops().ops[position]) * splits + first_split) * splits + last_split) * kLinkClasses +
                 static_cast<size_t>(link)];
}

}  // namespace tidepool::plan
