// What all cost models share: sums of a stage while its runs of equal choices are visited in order, and the prices of bringing
// tensors into other layouts between its ops.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "plan/cost_model.h"
#include "plan/range_tables.h"

namespace tidepool::plan {

// One stage, front to back. What it adds up are sums, recomputed activations and the longest run of them; O(1) for a run.
class StageWalk {
 public:
  StageWalk(const OpList& ops, const RangeTables& ranges) : ops_(ops), ranges_(ranges) {}

  // Ops [first, first + count) in one profile row. Reserves count for ops before `reserve_end`. `next_recomputes`: the op behind
  // the run is in the stage and is recomputed.
  void AddRun(int32_t first, int32_t count, int32_t row, bool recompute, bool next_recomputes, int32_t reserve_end);
  void AddReshard(const ReshardCost& cost) {
    totals.reshard_forward_us += cost.forward_us;
    totals.reshard_backward_us += cost.backward_us;
  }

  StageTotals totals;
  double forward_reserved_mib = 0, backward_reserved_mib = 0;  // maxima

 private:
  // Frees ops [first, last): each of them and the op after it are recomputed.
  void AddFreed(int32_t first, int32_t last, int32_t row);

  const OpList& ops_;
  const RangeTables& ranges_;
  double open_run_ = 0;  // freed activations of the recomputed run so far, since the last layer start
};

// Immutable once made; the op list and the table must outlive it.
class ReshardPrices {
 public:
  using CollectiveUs = std::function<double(profile::CollectiveKind kind, int32_t ranks, double mib)>;
  // `price` is asked once for every kind, row, op and number in `ranks`; other numbers of ranks, when they come up. Inside of
  // uniform stages: O(1) for `micro_batches`, O(ops) for others.
  ReshardPrices(const OpList& ops, const ProfileTable& table, std::vector<int32_t> ranks, CollectiveUs price,
                std::span<const int32_t> micro_batches);

  // From op position - 1 with `before` to op `position` with `after`, which has the profile row `row`.
  ReshardCost Between(int32_t position, const OpChoice& before, const OpChoice& after, int32_t row) const {
    return Price(ops_.ops[position - 1], ops_.ops[position], before, after, row);
  }
  // Pairs whose second op is in (first, first + count), all with one split.
  ReshardCost Within(int32_t first, int32_t count, const OpChoice& choice, int32_t row, int32_t micro_batch) const;

 private:
  using Prefix = std::vector<ReshardCost>;  // [i]: sum over op pairs up to (i - 1, i); empty: nothing to pay anywhere
  static constexpr int kKinds = 4;          // of collectives

  void Prepare(int32_t micro_batch);
  ReshardCost Price(uint16_t producer, uint16_t consumer, const OpChoice& before, const OpChoice& after, int32_t row) const;
  double PriceOf(profile::CollectiveKind kind, int32_t ranks, int32_t row, uint16_t consumer) const;

  const OpList& ops_;
  const ProfileTable& table_;
  std::vector<int32_t> ranks_;
  CollectiveUs price_;
  std::vector<double> prices_;                                 // [row][distinct op][kind][index in ranks_]: of what the op reads
  std::unordered_map<int32_t, std::vector<Prefix>> prefixes_;  // micro-batch -> [row]
};

}  // namespace tidepool::plan
