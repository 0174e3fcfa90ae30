#include "plan/range_tables.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace tidepool::plan {

RangeMax::RangeMax(std::vector<double> values) : values_(std::move(values)) {
  const auto size = static_cast<int32_t>(values_.size());
  prefix_ = suffix_ = values_;
  for (int32_t i = 0; i < size; ++i) {
    if (i % kBlock != 0) prefix_[i] = std::max(prefix_[i], prefix_[i - 1]);
  }
  for (int32_t i = size - 2; i >= 0; --i) {
    if (i % kBlock != kBlock - 1) suffix_[i] = std::max(suffix_[i], suffix_[i + 1]);
  }
  std::vector<double> level;
  for (int32_t i = 0; i < size; i += kBlock) level.push_back(prefix_[std::min(i + kBlock, size) - 1]);
  for (size_t width = 1; !level.empty(); width *= 2) {
    levels_.push_back(level);
    if (level.size() <= width) break;
    for (size_t i = 0; i + width < level.size(); ++i) level[i] = std::max(level[i], level[i + width]);
    level.resize(level.size() - width);
  }
}

double RangeMax::Over(int32_t first, int32_t last) const {
  if (first >= last) return 0;
  const int32_t first_block = first / kBlock, last_block = (last - 1) / kBlock;
  if (first_block == last_block) return *std::max_element(values_.begin() + first, values_.begin() + last);
  double result = std::max(suffix_[first], prefix_[last - 1]);
  const int32_t blocks = last_block - first_block - 1;
  if (blocks > 0) {
    const int level = static_cast<int>(std::bit_width(static_cast<uint32_t>(blocks))) - 1;
    result = std::max({result, levels_[level][first_block + 1], levels_[level][last_block - (1 << level)]});
  }
  return result;
}

namespace {

std::vector<double> Activations(const OpList& list, const ProfileTable& table, bool corrected) {
  std::vector<double> activations;
  for (int32_t row = 0; row < table.rows(); ++row) {
    for (size_t op = 0; op < list.distinct.size(); ++op) {
      const double raw = table.At(Column::kActivationMib, row, static_cast<int32_t>(op));
      activations.push_back(corrected ? Quantized(raw * list.distinct[op].activation_factor) : raw);
    }
  }
  return activations;
}

}  // namespace

RangeTables::RangeTables(const OpList& list, const ProfileTable& table, bool corrected)
    : RangeTables(list, table, Activations(list, table, corrected)) {}

RangeTables::RangeTables(const OpList& list, const ProfileTable& table, std::vector<double> activation_mib)
    : list_(list),
      table_(table),
      stride_(list.ops.size() + 1),
      distinct_(list.distinct.size()),
      activation_(std::move(activation_mib)) {
  const int32_t size = list.size();
  prefix_.resize(stride_ * table.rows());
  rows_.resize(table.rows());
  layer_at_.resize(stride_);
  int32_t layer = 0;
  for (int32_t i = 0; i <= size; ++i) {
    while (layer < static_cast<int32_t>(list.layer_starts.size()) && list.layer_starts[layer] < i) ++layer;
    layer_at_[i] = layer;
  }
  for (int32_t row = 0; row < table.rows(); ++row) {
    Prefix* prefix = &prefix_[static_cast<size_t>(row) * stride_];
    std::vector<double> forward_reserved(size), backward_reserved(size);
    for (int32_t i = 0; i < size; ++i) {
      const int32_t op = list.ops[i];
      const double activation = activation_[row * distinct_ + op];
      const bool kept = i + 1 < size && list.at(i + 1).starts_layer;
      prefix[i + 1] = {prefix[i].forward_us + table.At(Column::kForwardUs, row, op),
                       prefix[i].backward_us + table.At(Column::kBackwardUs, row, op),
                       prefix[i].weight_mib + table.At(Column::kWeightMib, row, op), prefix[i].activation_mib + activation,
                       prefix[i].freed_mib + (kept ? 0 : activation)};
      forward_reserved[i] = table.At(Column::kForwardReservedMib, row, op);
      backward_reserved[i] = table.At(Column::kBackwardReservedMib, row, op);
    }
    std::vector<double> layers;
    for (size_t i = 1; i < list.layer_starts.size(); ++i) {
      layers.push_back(prefix[list.layer_starts[i]].freed_mib - prefix[list.layer_starts[i - 1]].freed_mib);
    }
    rows_[row] = {RangeMax(std::move(forward_reserved)), RangeMax(std::move(backward_reserved)), RangeMax(std::move(layers))};
  }
}

RangeSums RangeTables::Sums(int32_t row, int32_t first, int32_t last) const {
  const Prefix &a = At(row, first), &b = At(row, last);
  return {b.forward_us - a.forward_us, b.backward_us - a.backward_us, b.weight_mib - a.weight_mib,
          b.activation_mib - a.activation_mib};
}

}  // namespace tidepool::plan
