// Measured times and sizes of the ops of one op list, as dense columns.
//
// A row is one (batch per data-parallel replica, tensor-parallel width, algorithm) that was profiled for every distinct op; a
// column has one entry per distinct op of the row. Times in microseconds, sizes in MiB.
//
// Exact sums: every number is rounded to a multiple of 2^-20 (a picosecond, a byte). Sums and differences of such numbers below
// 2^33 (two hours, 8 PiB) are exact in double, so that costs do not depend on the order in which they were added: prefix sums,
// increments and a walk over all ops agree in every bit.
//
// Immutable; may be read by any number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "plan/cluster.h"
#include "plan/op_list.h"
#include "profile/bundle.h"

namespace tidepool::plan {

// The nearest multiple of 2^-20.
double Quantized(double value);

struct ProfileTableOptions {
  // The split algorithms are the same computation where nothing is split. True: at width 1 every algorithm has the mean of those
  // measured. False: as measured.
  bool merge_width_one_duplicates = true;
  // Collectives of sizes that were not measured. True: log-linear between the neighbours, and linear in the size beyond them.
  // False: as the published planner does (the size in whole MiB, else one less, else 100 s).
  bool interpolate_collectives = true;
};
inline constexpr ProfileTableOptions kParityTable = {.merge_width_one_duplicates = false, .interpolate_collectives = false};

enum class Column : uint8_t {
  kForwardUs,
  kBackwardUs,
  kInputMib,
  kOutputMib,
  kWeightMib,
  kActivationMib,
  kForwardReservedMib,
  kBackwardReservedMib,
};
inline constexpr int kColumns = 8;

struct CollectivePrice {
  double us = 0;
  profile::Origin origin = profile::Origin::kMeasured;
};
// What stands for a collective that is not in the table, as in the published planner: 100 s.
inline constexpr double kUnknownCollectiveUs = 1e8;

class ProfileTable {
 public:
  // NOT_FOUND: the bundle has no rows of the list's profile_model (names those it has), or no row is complete (names the first op
  // that is missing). INVALID_ARGUMENT: times or sizes that are negative, not finite, or above 2^30.
  static StatusOr<ProfileTable> Build(const profile::Bundle& bundle, const OpList& list, const ProfileTableOptions& options = {});

  const ProfileTableOptions& options() const { return options_; }
  std::span<const int32_t> batches() const { return batches_; }  // ascending; not every combination need be there
  std::span<const int32_t> widths() const { return widths_; }
  int32_t algorithms() const { return algorithms_; }  // 0 .. algorithms - 1
  int32_t rows() const { return rows_; }
  int32_t distinct_ops() const { return distinct_; }
  // -1 if it was not profiled. O(1).
  int32_t RowOf(int32_t batch, int32_t width, int32_t algorithm) const;
  struct RowKey {
    int32_t batch = 0, width = 0, algorithm = 0;
  };
  RowKey KeyOf(int32_t row) const { return keys_[row]; }

  std::span<const double> Of(Column column, int32_t row) const {
    return std::span(columns_[static_cast<int>(column)]).subspan(static_cast<size_t>(row) * distinct_, distinct_);
  }
  double At(Column column, int32_t row, int32_t distinct_op) const {
    return columns_[static_cast<int>(column)][static_cast<size_t>(row) * distinct_ + distinct_op];
  }

  // `mib`: the message of one device. No such table at all: kUnknownCollectiveUs, estimated. O(log sizes).
  CollectivePrice Collective(profile::CollectiveKind kind, int32_t ranks, double mib) const;
  // The numbers of devices for which collectives were measured, ascending.
  std::vector<int32_t> CollectiveRanks() const;
  // One transfer between stages. With interpolate_collectives: log-linear between measured sizes. Without: as the published
  // planner prices it, by the bandwidth at about half the size (docs/plan.md). Links between nodes that were not measured are
  // like those within. 0 for nothing to send, and if !has_links().
  double TransferUs(LinkClass link, double mib) const;
  bool has_links() const { return !links_[0].empty(); }

  // Relative difference of the algorithms' forward + backward times at width 1, |a - b| / mean: the median and the largest over
  // ops and batches. How far a search may get by picking the better of two measurements of one thing. 0 if there is nothing to
  // compare.
  double duplicate_spread_median() const { return spread_median_; }
  double duplicate_spread_max() const { return spread_max_; }

  // The same for memory: the sum of the differences of activations and reserves, relative to the sum of their means. 0 if there
  // is nothing to compare.
  double memory_noise() const { return memory_noise_; }
  // Of device memory, as the profile's hardware description says; 0: it does not.
  double memory_bytes_per_s() const { return memory_bytes_per_s_; }

  // 32 hex digits over all that prices depend on.
  const std::string& hash() const { return hash_; }

 private:
  using Curve = std::vector<std::pair<double, double>>;  // MiB, us; ascending
  ProfileTable() = default;
  struct Grid;
  Status FindRows(const Grid& grid, const OpList& list);
  void MergeDuplicates();
  void MeasureSpread();
  Status ReadCollectives(const profile::Bundle& bundle, const OpList& list);
  void ReadLinks(const profile::Bundle& bundle);
  void ComputeHash(const OpList& list);

  ProfileTableOptions options_;
  std::vector<int32_t> batches_, widths_;
  int32_t algorithms_ = 1, rows_ = 0, distinct_ = 0;
  std::vector<RowKey> keys_;
  std::vector<int32_t> row_of_;                     // [batch index][width index][algorithm]
  std::vector<int32_t> batch_index_, width_index_;  // of a value; -1: none
  std::array<std::vector<double>, kColumns> columns_;
  std::map<std::pair<profile::CollectiveKind, int32_t>, Curve> collectives_;
  std::array<Curve, kLinkClasses> links_;
  double spread_median_ = 0, spread_max_ = 0, memory_noise_ = 0;
  double memory_bytes_per_s_ = 0;
  std::string hash_;
};

}  // namespace tidepool::plan
