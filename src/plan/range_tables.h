// Sums and maxima over ranges of ops that all have one profile row, in constant time.
//
// A row's sums are prefix sums (exact, see profile_table.h), its maxima block tables. Built once; may be read by any number of
// threads. Memory: about 130 bytes per op and row.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/op_list.h"
#include "plan/profile_table.h"

namespace tidepool::plan {

// Maximum over any range of a fixed list. O(1) but for ranges within one block of 16, which are scanned.
class RangeMax {
 public:
  RangeMax() = default;
  explicit RangeMax(std::vector<double> values);
  // Over [first, last); 0 for an empty range. Values are not negative.
  double Over(int32_t first, int32_t last) const;

 private:
  static constexpr int32_t kBlock = 16;
  std::vector<double> values_, prefix_, suffix_;  // maxima from the block's start, to the block's end
  std::vector<std::vector<double>> levels_;       // [k][i]: over blocks i .. i + 2^k - 1
};

struct RangeSums {
  double forward_us = 0;
  double backward_us = 0;
  double weight_mib = 0;
  double activation_mib = 0;  // corrected, see RangeTables
};

class RangeTables {
 public:
  // corrected: activations are multiplied with DistinctOp::activation_factor. Both must outlive the tables.
  RangeTables(const OpList& list, const ProfileTable& table, bool corrected);
  // With activations of one's own, [row][distinct op] in MiB, rounded like the table's.
  RangeTables(const OpList& list, const ProfileTable& table, std::vector<double> activation_mib);

  // All over ops [first, last) in the profile row `row`.
  RangeSums Sums(int32_t row, int32_t first, int32_t last) const;
  double ForwardUs(int32_t row, int32_t first, int32_t last) const {
    return At(row, last).forward_us - At(row, first).forward_us;
  }
  double MaxForwardReserved(int32_t row, int32_t first, int32_t last) const {
    return rows_[row].forward_reserved.Over(first, last);
  }
  double MaxBackwardReserved(int32_t row, int32_t first, int32_t last) const {
    return rows_[row].backward_reserved.Over(first, last);
  }

  // The corrected activation of one op.
  double Activation(int32_t row, int32_t position) const {
    return activation_[static_cast<size_t>(row) * distinct_ + list_.ops[position]];
  }
  // As measured.
  double RawActivation(int32_t row, int32_t position) const {
    return table_.At(Column::kActivationMib, row, list_.ops[position]);
  }

  // Recomputing both of two neighbours k and k + 1 frees the activation of k, unless k + 1 starts a layer. Freed: the sum over k
  // in [first, last) without those; LargestFreedRun: the largest sum between two layer starts. What k = last - 1 does depends on
  // op `last`, which the caller knows to be recomputed.
  double Freed(int32_t row, int32_t first, int32_t last) const { return At(row, last).freed_mib - At(row, first).freed_mib; }
  // The index in OpList::layer_starts of the first layer start at or after the position.
  int32_t LayerAt(int32_t position) const { return layer_at_[position]; }
  // Over whole layers [first, last), by index in OpList::layer_starts; the last layer has no end there and is not allowed.
  double LargestLayer(int32_t row, int32_t first, int32_t last) const { return rows_[row].layers.Over(first, last); }

 private:
  struct Prefix {
    double forward_us = 0, backward_us = 0, weight_mib = 0, activation_mib = 0, freed_mib = 0;
  };
  struct Row {
    RangeMax forward_reserved, backward_reserved, layers;
  };
  const Prefix& At(int32_t row, int32_t position) const { return prefix_[static_cast<size_t>(row) * stride_ + position]; }

  const OpList& list_;
  const ProfileTable& table_;
  size_t stride_ = 0, distinct_ = 0;
  std::vector<Prefix> prefix_;  // [row][position]
  std::vector<Row> rows_;
  std::vector<double> activation_;  // [row][distinct op]
  std::vector<int32_t> layer_at_;
};

}  // namespace tidepool::plan
