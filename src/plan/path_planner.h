// Stages whose ops are split and recomputed one by one, for the stage programme.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "plan/op_paths.h"
#include "plan/programme_search.h"

namespace tidepool::plan {

struct PriceGrid {
  int32_t prices = 18;
  double ratio = 1.6;
};
// By group of waiting micro-batches, how often each price was one of those between which the memory limit lies. Counting is the
// only thing that threads do with it at once.
struct PathPriceUse {
  static constexpr size_t kGroups = 10, kPrices = 18;
  std::array<std::atomic<int64_t>, kGroups* kPrices> counts = {};
  // The used prices of a group and one more on both sides; all if none was used.
  std::pair<int32_t, int32_t> RangeOf(int32_t group, int32_t prices) const;
};
// The prices of memory that all windows share, for `waiting_lo` to `waiting_hi` micro-batches that wait. The first is 0. `use`:
// leaves out what is of no use; null: nothing is left out.
std::vector<PathLane> SharedLanes(int32_t waiting_lo, int32_t waiting_hi, const PriceGrid& grid, const PathPriceUse* use);

class PathPlanner : public StagePlanner, private StageOracle {
 public:
  explicit PathPlanner(const StageProgramme& programme);
  const StageOracle& oracle() const override { return *this; }
  int32_t rounds() const override { return 24; }
  double tolerance() const override { return 3e-5; }
  void Learn(const StagePlanner& quick) override;
  StagePtr StageOf(const StageProgramme& programme, const CutStage& cut) override;
  const OpSplits& splits(int32_t size) const { return *splits_[size]; }

 private:
  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override;
  StagePtr MakeStage(const StageProgramme& programme, const CutStage& cut) const;

  std::shared_ptr<PathPriceUse> use_ = std::make_shared<PathPriceUse>();              // of this planner's tables
  std::shared_ptr<const PathPriceUse> learned_;                                       // of another one's; null: none
  std::vector<std::unique_ptr<OpSplits>> splits_;                                     // [size]
  std::map<std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t>, StagePtr> made_;  // by ops, devices and place
};

}  // namespace tidepool::plan
