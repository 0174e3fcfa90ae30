// Stages whose ops are split and recomputed one by one, for the stage programme.
#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "plan/op_paths.h"
#include "plan/programme_search.h"

namespace tidepool::plan {

struct PriceGrid {
  int32_t prices = 18;
  double ratio = 1.6;
};
// The prices of memory that all windows share, for up to `waiting` micro-batches that wait. The first is 0.
std::vector<PathLane> SharedLanes(int32_t waiting_lo, int32_t waiting_hi, const PriceGrid& grid);

class PathPlanner : public StagePlanner, private StageOracle {
 public:
  explicit PathPlanner(const StageProgramme& programme);
  const StageOracle& oracle() const override { return *this; }
  int32_t rounds() const override { return 24; }
  double tolerance() const override { return 3e-5; }
  StagePtr StageOf(const StageProgramme& programme, const CutStage& cut) override;
  const OpSplits& splits(int32_t size) const { return *splits_[size]; }

 private:
  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override;
  StagePtr MakeStage(const StageProgramme& programme, const CutStage& cut) const;

  std::vector<std::unique_ptr<OpSplits>> splits_;                                     // [size]
  std::map<std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t>, StagePtr> made_;  // by ops, devices and place
};

}  // namespace tidepool::plan
