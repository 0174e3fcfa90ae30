#include "plan/profile_table.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>

#include "base/units.h"
#include "plan/hash.h"

namespace tidepool::plan {

using profile::Bundle;
using profile::CollectiveKind;
using profile::OpRow;
using profile::Origin;
using profile::Phase;

namespace {

constexpr double kLargest = 1073741824.0;  // of one number, microseconds or MiB
constexpr int32_t kLargestBatch = 1 << 16;
constexpr double kMibPerByte = 1.0 / kMiB;

Status CheckNumber(double value, const OpRow& row, const char* what) {
  if (std::isfinite(value) && value >= 0 && value <= kLargest) return {};
  return InvalidArgument("{} of op '{}' of {} (batch {}, width {}, algorithm {}, {}) is {}; allowed: 0 to {}", what, row.key.op,
                         row.key.model, row.key.batch, row.key.tensor_parallel, row.key.algorithm, NameOf(row.key.phase), value,
                         kLargest);
}

// Log-linear between neighbours, proportional to the size beyond them. `curve` is not empty.
double Interpolate(const std::vector<std::pair<double, double>>& curve, double mib) {
  const auto above = std::lower_bound(curve.begin(), curve.end(), std::pair(mib, 0.0));
  if (above != curve.end() && above->first == mib) return above->second;
  if (above == curve.begin()) return above->second;  // shorter than the shortest: latency
  if (above == curve.end()) {
    return curve.back().first <= 0 ? curve.back().second : curve.back().second * (mib / curve.back().first);
  }
  const auto below = above - 1;
  if (below->first <= 0 || below->second <= 0) return above->second;
  const double part = std::log(mib / below->first) / std::log(above->first / below->first);
  return below->second * std::pow(above->second / below->second, part);
}

}  // namespace

double Quantized(double value) { return std::nearbyint(value * 1048576.0) / 1048576.0; }

// Pointers to the rows of one op list, [key][distinct op].
struct ProfileTable::Grid {
  struct Cell {
    const OpRow* forward = nullptr;
    const OpRow* backward = nullptr;
  };
  std::map<std::tuple<int32_t, int32_t, int32_t>, std::vector<Cell>> cells;  // (batch, width, algorithm)
};

StatusOr<ProfileTable> ProfileTable::Build(const Bundle& bundle, const OpList& list, const ProfileTableOptions& options) {
  ProfileTable table;
  table.options_ = options;
  table.distinct_ = static_cast<int32_t>(list.distinct.size());
  std::unordered_map<std::string_view, int32_t> id_of;
  for (int32_t i = 0; i < table.distinct_; ++i) id_of[list.distinct[i].name] = i;

  Grid grid;
  std::set<std::string> models;
  for (const OpRow& row : bundle.ops) {
    if (row.key.model != list.profile_model) {
      models.insert(row.key.model);
      continue;
    }
    if (row.key.phase != Phase::kForward && row.key.phase != Phase::kBackward) continue;
    const auto id = id_of.find(row.key.op);
    if (id == id_of.end() || row.key.dtype != list.dtype) continue;
    if (row.key.batch < 1 || row.key.batch > kLargestBatch || row.key.tensor_parallel < 1 ||
        row.key.tensor_parallel > kLargestBatch || row.key.algorithm < 0 || row.key.algorithm > 7) {
      return InvalidArgument("op '{}' of {}: batch {}, width {}, algorithm {}; allowed: 1 to {}, 1 to {}, 0 to 7", row.key.op,
                             row.key.model, row.key.batch, row.key.tensor_parallel, row.key.algorithm, kLargestBatch,
                             kLargestBatch);
    }
    TIDEPOOL_RETURN_IF_ERROR(CheckNumber(row.median_us, row, "the time"));
    for (const double bytes : {row.memory.input_bytes, row.memory.output_bytes, row.memory.weight_bytes,
                               row.memory.activation_bytes, row.memory.reserved_bytes}) {
      TIDEPOOL_RETURN_IF_ERROR(CheckNumber(bytes * kMibPerByte, row, "a size in MiB"));
    }
    auto& cells = grid.cells[{static_cast<int32_t>(row.key.batch), row.key.tensor_parallel, row.key.algorithm}];
    cells.resize(table.distinct_);
    (row.key.phase == Phase::kForward ? cells[id->second].forward : cells[id->second].backward) = &row;
  }
  if (grid.cells.empty()) {
    return NotFound("the profile has no rows of {} with the ops of {}; it has: {}", list.profile_model, list.name,
                    models.empty() ? "nothing else" : fmt::format("{}", fmt::join(models, ", ")));
  }
  TIDEPOOL_RETURN_IF_ERROR(table.FindRows(grid, list));
  table.MeasureSpread();
  if (options.merge_width_one_duplicates) table.MergeDuplicates();
  TIDEPOOL_RETURN_IF_ERROR(table.ReadCollectives(bundle, list));
  table.ReadLinks(bundle);
  const double memory_rate = bundle.manifest.hardware.memory_bytes_per_s;
  if (std::isfinite(memory_rate) && memory_rate > 0) table.memory_bytes_per_s_ = memory_rate;
  table.ComputeHash(list);
  return table;
}

// Rows of which every distinct op was measured. An op without this algorithm has the numbers of algorithm 0.
Status ProfileTable::FindRows(const Grid& grid, const OpList& list) {
  std::string missing;
  std::vector<const std::vector<Grid::Cell>*> found, fallback;
  for (const auto& [key, cells] : grid.cells) {
    const auto [batch, width, algorithm] = key;
    const auto plain = grid.cells.find({batch, width, 0});
    const auto* zero = plain == grid.cells.end() ? nullptr : &plain->second;
    bool complete = true;
    for (int32_t i = 0; i < distinct_ && complete; ++i) {
      const auto whole = [](const Grid::Cell& cell) { return cell.forward != nullptr && cell.backward != nullptr; };
      complete = whole(cells[i]) || (zero != nullptr && whole((*zero)[i]));
      if (!complete && missing.empty()) {
        missing = fmt::format("op '{}' at batch {}, width {}, algorithm {}", list.distinct[i].name, batch, width, algorithm);
      }
    }
    if (!complete) continue;
    keys_.push_back({batch, width, algorithm});
    found.push_back(&cells);
    fallback.push_back(zero);
  }
  if (keys_.empty()) {
    return NotFound("the profile of {} has no row for every op of {}: first missing is {}", list.profile_model, list.name,
                    missing);
  }
  rows_ = static_cast<int32_t>(keys_.size());
  for (auto& column : columns_) column.assign(static_cast<size_t>(rows_) * distinct_, 0);
  for (int32_t row = 0; row < rows_; ++row) {
    for (int32_t i = 0; i < distinct_; ++i) {
      Grid::Cell cell = (*found[row])[i];
      if (cell.forward == nullptr || cell.backward == nullptr) cell = (*fallback[row])[i];
      const size_t at = static_cast<size_t>(row) * distinct_ + i;
      const profile::OpMemory& memory = cell.forward->memory;
      const auto set = [&](Column column, double value) { columns_[static_cast<int>(column)][at] = Quantized(value); };
      set(Column::kForwardUs, cell.forward->median_us);
      set(Column::kBackwardUs, cell.backward->median_us);
      set(Column::kInputMib, memory.input_bytes * kMibPerByte);
      set(Column::kOutputMib, memory.output_bytes * kMibPerByte);
      set(Column::kWeightMib, memory.weight_bytes * kMibPerByte);
      set(Column::kActivationMib, memory.activation_bytes * kMibPerByte);
      set(Column::kForwardReservedMib, memory.reserved_bytes * kMibPerByte);
      set(Column::kBackwardReservedMib, cell.backward->memory.reserved_bytes * kMibPerByte);
    }
  }
  std::set<int32_t> batches, widths;
  for (const RowKey& key : keys_) {
    batches.insert(key.batch);
    widths.insert(key.width);
    algorithms_ = std::max(algorithms_, key.algorithm + 1);
  }
  const auto index = [](const std::set<int32_t>& values, std::vector<int32_t>* list_of, std::vector<int32_t>* index_of) {
    list_of->assign(values.begin(), values.end());
    index_of->assign(static_cast<size_t>(list_of->back()) + 1, -1);
    for (size_t i = 0; i < list_of->size(); ++i) (*index_of)[(*list_of)[i]] = static_cast<int32_t>(i);
  };
  index(batches, &batches_, &batch_index_);
  index(widths, &widths_, &width_index_);
  row_of_.assign(batches_.size() * widths_.size() * algorithms_, -1);
  for (int32_t row = 0; row < rows_; ++row) {
    const RowKey& key = keys_[row];
    row_of_[(batch_index_[key.batch] * widths_.size() + width_index_[key.width]) * algorithms_ + key.algorithm] = row;
  }
  return {};
}

int32_t ProfileTable::RowOf(int32_t batch, int32_t width, int32_t algorithm) const {
  const auto find = [](const std::vector<int32_t>& index, int32_t value) {
    return value >= 0 && static_cast<size_t>(value) < index.size() ? index[value] : -1;
  };
  const int32_t b = find(batch_index_, batch), w = find(width_index_, width);
  if (b < 0 || w < 0 || algorithm < 0 || algorithm >= algorithms_) return -1;
  return row_of_[(static_cast<size_t>(b) * widths_.size() + w) * algorithms_ + algorithm];
}

void ProfileTable::MeasureSpread() {
  std::vector<double> spreads;
  double memory_difference = 0, memory_mean = 0;
  for (const int32_t batch : batches_) {
    const int32_t a = RowOf(batch, 1, 0), b = RowOf(batch, 1, 1);
    if (a < 0 || b < 0) continue;
    for (int32_t op = 0; op < distinct_; ++op) {
      const double first = At(Column::kForwardUs, a, op) + At(Column::kBackwardUs, a, op);
      const double second = At(Column::kForwardUs, b, op) + At(Column::kBackwardUs, b, op);
      if (first + second > 0) spreads.push_back(std::abs(first - second) / ((first + second) / 2));
      for (const Column column : {Column::kActivationMib, Column::kForwardReservedMib, Column::kBackwardReservedMib}) {
        memory_difference += std::abs(At(column, a, op) - At(column, b, op));
        memory_mean += (At(column, a, op) + At(column, b, op)) / 2;
      }
    }
  }
  if (memory_mean > 0) memory_noise_ = memory_difference / memory_mean;
  if (spreads.empty()) return;
  const auto middle = spreads.begin() + static_cast<ptrdiff_t>(spreads.size() / 2);
  std::nth_element(spreads.begin(), middle, spreads.end());
  spread_median_ = *middle;
  spread_max_ = *std::max_element(spreads.begin(), spreads.end());
}

void ProfileTable::MergeDuplicates() {
  for (const int32_t batch : batches_) {
    std::vector<int32_t> same;
    for (int32_t algorithm = 0; algorithm < algorithms_; ++algorithm) {
      if (const int32_t row = RowOf(batch, 1, algorithm); row >= 0) same.push_back(row);
    }
    if (same.size() < 2) continue;
    for (std::vector<double>& column : columns_) {
      for (int32_t op = 0; op < distinct_; ++op) {
        double sum = 0;
        for (const int32_t row : same) sum += column[static_cast<size_t>(row) * distinct_ + op];
        for (const int32_t row : same) {
          column[static_cast<size_t>(row) * distinct_ + op] = Quantized(sum / static_cast<double>(same.size()));
        }
      }
    }
  }
}

Status ProfileTable::ReadCollectives(const Bundle& bundle, const OpList& list) {
  for (const profile::CollectiveRow& row : bundle.collectives) {
    if (!row.model.empty() && row.model != list.profile_model) continue;
    const double mib = row.bytes * kMibPerByte;
    if (!(mib >= 0 && mib <= kLargest && row.median_us >= 0 && row.median_us <= kLargest) || row.ranks < 2) {
      return InvalidArgument("{} of {} devices with {} MiB takes {} us; allowed: 2 or more devices, numbers from 0 to {}",
                             NameOf(row.kind), row.ranks, mib, row.median_us, kLargest);
    }
    collectives_[{row.kind, row.ranks}].push_back({mib, Quantized(row.median_us)});
  }
  for (auto& [key, curve] : collectives_) std::sort(curve.begin(), curve.end());
  return {};
}

void ProfileTable::ReadLinks(const Bundle& bundle) {
  for (const profile::LinkRow& row : bundle.links) {
    if (row.kind != profile::LinkKind::kPeer && row.kind != profile::LinkKind::kNetwork) continue;
    if (!(row.bytes > 0) || !(row.median_us > 0) || !std::isfinite(row.bytes) || !std::isfinite(row.median_us)) continue;
    const LinkClass link = row.kind == profile::LinkKind::kPeer ? LinkClass::kWithinNode : LinkClass::kBetweenNodes;
    links_[static_cast<int>(link)].push_back({row.bytes * kMibPerByte, row.median_us});
  }
  for (Curve& curve : links_) std::sort(curve.begin(), curve.end());
  if (links_[0].empty()) links_[0] = links_[1];
  if (links_[1].empty()) links_[1] = links_[0];
}

CollectivePrice ProfileTable::Collective(CollectiveKind kind, int32_t ranks, double mib) const {
  const auto found = collectives_.find({kind, ranks});
  if (found == collectives_.end() || found->second.empty()) return {kUnknownCollectiveUs, Origin::kEstimated};
  const Curve& curve = found->second;
  if (options_.interpolate_collectives) {
    // The published tables are keyed by whole MiB, rounded down.
    const auto exact = std::lower_bound(curve.begin(), curve.end(), std::pair(std::floor(mib), 0.0));
    if (exact != curve.end() && exact->first == std::floor(mib)) return {exact->second, Origin::kMeasured};
    return {Quantized(Interpolate(curve, mib)), Origin::kFitted};
  }
  // Half goes to the even number, as Python's round does.
  for (const double size : {std::nearbyint(mib), std::nearbyint(mib) - 1}) {
    const auto exact = std::lower_bound(curve.begin(), curve.end(), std::pair(size, 0.0));
    if (exact != curve.end() && exact->first == size) return {exact->second, Origin::kMeasured};
  }
  return {kUnknownCollectiveUs, Origin::kEstimated};
}

std::vector<int32_t> ProfileTable::CollectiveRanks() const {
  std::set<int32_t> ranks;
  for (const auto& [key, curve] : collectives_) ranks.insert(key.second);
  return {ranks.begin(), ranks.end()};
}

double ProfileTable::TransferUs(LinkClass link, double mib) const {
  const Curve& curve = links_[static_cast<int>(link)];
  if (mib <= 0 || curve.empty()) return 0;
  if (options_.interpolate_collectives) return Quantized(Interpolate(curve, mib));
  // Entry i is the bandwidth at 2^i MiB. Sizes of 2 MiB and more use the entry below their own; sizes below half a MiB get an
  // index below zero, which counts from the end of the list.
  const int size = static_cast<int>(curve.size());
  int index = static_cast<int>(std::log2(mib));
  if (index > 0) index = std::min(index - 1, size - 1);
  if (index < 0) index = std::max(index + size, 0);
  const auto& [at_mib, us] = curve[index];
  return Quantized(mib * (us / at_mib));
}

void ProfileTable::ComputeHash(const OpList& list) {
  std::string bytes =
      fmt::format("{} {} {} {}", list.hash, options_.merge_width_one_duplicates, options_.interpolate_collectives, rows_);
  for (const RowKey& key : keys_) fmt::format_to(std::back_inserter(bytes), " {}/{}/{}", key.batch, key.width, key.algorithm);
  for (const auto& column : columns_) {
    bytes.append(reinterpret_cast<const char*>(column.data()), column.size() * sizeof(double));
  }
  const auto append = [&](const Curve& curve) {
    for (const auto& [mib, us] : curve) fmt::format_to(std::back_inserter(bytes), " {}:{}", mib, us);
  };
  for (const auto& [key, curve] : collectives_) {
    fmt::format_to(std::back_inserter(bytes), "\n{} {}", static_cast<int>(key.first), key.second);
    append(curve);
  }
  for (const Curve& curve : links_) append(curve);
  if (memory_bytes_per_s_ > 0) fmt::format_to(std::back_inserter(bytes), "\n{}", memory_bytes_per_s_);
  hash_ = HexHash(bytes);
}

}  // namespace tidepool::plan
