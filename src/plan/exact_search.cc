// The best plan of stages whose ops have one split each, with recomputation by the published rule.
#include <algorithm>

#include "plan/programme_search.h"
#include "plan/recompute_rule.h"

namespace tidepool::plan {
namespace {

class UniformPlanner : public StagePlanner, private StageOracle {
 public:
  explicit UniformPlanner(const StageProgramme& programme) {
    for (const int32_t size : programme.sizes()) {
      splits_.push_back(programme.model().SplitsOf(size, programme.micro_batch()));
    }
    for (int32_t kind = 0; kind < programme.kinds(); ++kind) {
      groups_.push_back(programme.model().cluster().GroupOf(programme.kind(kind).first_gpu));
    }
  }
  const StageOracle& oracle() const override { return *this; }
  StagePtr StageOf(const StageProgramme& programme, const CutStage& cut) override;

 private:
  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override;
  void FillBlock(const StageProgramme& programme, int32_t size, double limit_us, WindowBlock* block) const;

  std::vector<std::vector<OpChoice>> splits_;  // [size]
  std::vector<int32_t> groups_;                // [place kind]
};

void UniformPlanner::Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const {
  if (!blocks->inside.empty()) FillBlock(programme, size, limit_us, &blocks->inside);
  for (WindowBlock& block : blocks->beyond) FillBlock(programme, size, limit_us, &block);
}

void UniformPlanner::FillBlock(const StageProgramme& programme, int32_t size, double limit_us, WindowBlock* block) const {
  const CostModel& model = programme.model();
  const int32_t kinds = programme.kinds(), lengths = block->lengths();
  const int32_t first = programme.OpAt(block->first);
  for (int32_t length = block->lo; length <= block->hi; ++length) {
    const int32_t count = programme.OpAt(block->first + length) - first;
    for (const OpChoice& split : splits_[size]) {
      const StageTotals plain = model.UniformTotals(first, count, split, programme.micro_batch());
      if (!plain.priced() || plain.forward_us + plain.backward_us > limit_us) continue;
      for (int32_t q = block->q_lo; q <= block->q_hi; ++q) {
        StageTotals totals;
        bool fits = false, known = false;
        for (int32_t kind = 0; kind < kinds; ++kind) {
          StagePlace place = programme.kind(kind);
          place.stages_behind = q;
          const double plain_us = EffectiveUs(model.CostAt(plain, place), programme.micro_batches());
          double& us = block->us[(static_cast<size_t>(q - block->q_lo) * kinds + kind) * lengths + (length - block->lo)];
          if (plain_us > limit_us || plain_us >= us) continue;  // recomputing makes it no faster
          if (!known || groups_[kind] != groups_[kind - 1]) {
            RecomputeResult chosen =
                ChooseRecomputeUniform(model, first, count, split, programme.micro_batch(), place, programme.limit_mib(kind));
            totals = chosen.totals;
            fits = chosen.fits;
            known = true;
          }
          if (fits) us = std::min(us, EffectiveUs(model.CostAt(totals, place), programme.micro_batches()));
        }
      }
    }
  }
}

StagePtr UniformPlanner::StageOf(const StageProgramme& programme, const CutStage& cut) {
  const CostModel& model = programme.model();
  const int32_t count = cut.end - cut.first;
  const auto size = std::lower_bound(programme.sizes().begin(), programme.sizes().end(), cut.gpus) - programme.sizes().begin();
  const double limit_mib = model.cluster().MemoryLimitOf(cut.place.first_gpu);
  double best_us = kNever;
  StagePtr best;
  for (const OpChoice& split : splits_[size]) {
    const RecomputeResult chosen =
        ChooseRecomputeUniform(model, cut.first, count, split, programme.micro_batch(), cut.place, limit_mib);
    if (!chosen.fits) continue;
    const double us = EffectiveUs(model.CostAt(chosen.totals, cut.place), programme.micro_batches());
    if (us >= best_us) continue;
    best_us = us;
    best = Stage::MakeUniform(cut.first, count, split);
    if (!chosen.flags.empty()) best = best->WithRecompute(chosen.flags);
  }
  return best;
}

}  // namespace

StatusOr<SearchResult> SearchExact(const CostModel& model, const SearchRequest& request) {
  return SearchByProgramme(model, request,
                           [](const StageProgramme& programme) { return std::make_unique<UniformPlanner>(programme); });
}

}  // namespace tidepool::plan
