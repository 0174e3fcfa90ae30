// Stage times that no stage is faster than, for the stage programme: Lagrangian bounds of windows. Both lower bounds use it, with
// terms of their own.
//
// A stage that fits has context + state + scale * (held * live + reserved) <= limit, so for any price lambda >= 0 its time is at
// least
//   min over paths of (time + lambda * (state + scale * held * live)) - lambda * (limit - context - scale * least reserved)
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "plan/bound_front.h"
#include "plan/op_splits.h"
#include "plan/stage_programme.h"

namespace tidepool::plan {

// Numbers of waiting micro-batches that have prices of their own, and how many prices each of them has. Fewer than what waits
// gives a bound too.
inline constexpr int32_t kBoundWaiting[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
inline constexpr int32_t kBoundLambdas = 20;

// Which prices of memory give the best bounds, by number of waiting micro-batches. Counting is the only thing that threads do
// with it at once, so the choice does not depend on them.
class BoundPriceUse {
 public:
  static constexpr size_t kPrices = static_cast<size_t>(kBoundLambdas) * 2;  // lambda * 2 + (with weights)

  void Count(size_t waiting, const std::vector<int64_t>& counts);
  // The most used prices, which give nearly all of the best bounds.
  std::vector<uint8_t> MostUsed(size_t waiting) const;

 private:
  std::array<std::atomic<int64_t>, std::size(kBoundWaiting)* kPrices> counts_ = {};
};

class BoundOracle : public StageOracle {
 public:
  struct Options {
    BoundTerms terms;
    int64_t micro_batches = 1;  // over which is spread what is once per iteration
    bool with_weights = false;  // the reserve is at least a buffer of the weights' size: prices of those too
    // Windows that reach far over a segment's end: joined from two parts (quicker, weaker), or walked to the end.
    bool joins = false;
    // By size and split, what a stage of op `place` alone reserves.
    std::function<double(const OpSplits& splits, int32_t split, int32_t place)> reserved_mib;
    const BoundPriceUse* use = nullptr;  // prices that are tried; null: all. With fewer, a bound is weaker and quicker to find.
    BoundPriceUse* learned = nullptr;    // gets those that gave the best bounds; null: nobody wants to know
  };
  BoundOracle(const StageProgramme& programme, Options options);

  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override;

 private:
  Options options_;
  std::vector<OpSplits> splits_;                         // [size]
  std::vector<std::vector<double>> least_reserved_mib_;  // [size][distinct op]: of any split
};

}  // namespace tidepool::plan
