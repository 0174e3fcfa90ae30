#include "plan/recompute_rule.h"

#include <algorithm>

namespace tidepool::plan {
namespace {

// Flags of one stage and what follows from them, kept up to date op by op.
class Marker {
 public:
  Marker(const CostModel& model, int32_t first, std::vector<int32_t> rows, const StageTotals& plain)
      : model_(model), first_(first), rows_(std::move(rows)), flags_(rows_.size(), 0), totals_(plain) {}

  double Raw(int32_t at) const { return model_.ranges().RawActivation(rows_[at], first_ + at); }
  const StageTotals& totals() const { return totals_; }
  std::vector<uint8_t> TakeFlags() { return std::move(flags_); }

  void Mark(int32_t at) {
    if (at >= size() || flags_[at] != 0) return;
    flags_[at] = 1;
    totals_.recompute_us += model_.table().At(Column::kForwardUs, rows_[at], model_.ops().ops[first_ + at]);
    if (at > 0 && flags_[at - 1] != 0) Free(at - 1);
    if (at + 1 < size() && flags_[at + 1] != 0) Free(at);
  }

 private:
  int32_t size() const { return static_cast<int32_t>(rows_.size()); }
  double Activation(int32_t at) const { return model_.ranges().Activation(rows_[at], first_ + at); }
  bool IsFreed(int32_t at) const {
    return at >= 0 && at + 1 < size() && flags_[at] != 0 && flags_[at + 1] != 0 && !model_.ops().at(first_ + at + 1).starts_layer;
  }
  // Op `at` and the one after it are recomputed now: its activation is freed, and comes back with its run.
  void Free(int32_t at) {
    if (!IsFreed(at)) return;
    totals_.saved_mib += Activation(at);
    double run = Activation(at);
    for (int32_t i = at - 1; IsFreed(i); --i) run += Activation(i);
    for (int32_t i = at + 1; IsFreed(i); ++i) run += Activation(i);
    totals_.peak_run_mib = std::max(totals_.peak_run_mib, run);
  }

  const CostModel& model_;
  int32_t first_;
  std::vector<int32_t> rows_;
  std::vector<uint8_t> flags_;
  StageTotals totals_;
};

struct Name {
  uint16_t op = 0;
  double total_mib = 0;
  std::vector<int32_t> places;  // in the stage, ascending
};

// Names that may be seeds, in the order in which the rule takes them.
std::vector<Name> Candidates(const CostModel& model, int32_t first, int32_t count, const Marker& marker) {
  const OpList& ops = model.ops();
  std::vector<int32_t> index(ops.distinct.size(), -1);
  std::vector<Name> names;
  for (int32_t i = 0; i < count; ++i) {
    const uint16_t op = ops.ops[first + i];
    if (!ops.distinct[op].recompute_seed) continue;
    if (index[op] < 0) {
      index[op] = static_cast<int32_t>(names.size());
      names.push_back({op, 0, {}});
    }
    Name& name = names[index[op]];
    name.total_mib += marker.Raw(i);
    name.places.push_back(i);
  }
  std::stable_sort(names.begin(), names.end(), [](const Name& a, const Name& b) { return a.total_mib > b.total_mib; });
  return names;
}

RecomputeResult Choose(const CostModel& model, int32_t first, std::vector<int32_t> rows, const StageTotals& plain,
                       const StagePlace& place, double limit_mib) {
  const OpList& ops = model.ops();
  const auto count = static_cast<int32_t>(rows.size());
  Marker marker(model, first, std::move(rows), plain);
  const std::vector<Name> names = Candidates(model, first, count, marker);
  std::vector<uint8_t> done(ops.distinct.size(), 0);
  double memory = model.MemoryAt(plain, place);
  for (const Name& name : names) {
    if (!(memory > limit_mib)) break;
    if (done[name.op] != 0) continue;
    if (name.places.front() == count - 1) break;
    const double excess = memory - limit_mib;
    double marked = 0;
    for (const int32_t at : name.places) {
      marker.Mark(at);
      marker.Mark(at + 1);
      marked += marker.Raw(at) * (place.stages_behind + 1);
      if (marked > excess) break;
    }
    done[name.op] = 1;
    done[ops.ops[first + name.places.front() + 1]] = 1;
    memory = model.MemoryAt(marker.totals(), place);
  }
  RecomputeResult result;
  result.totals = marker.totals();
  result.memory_mib = memory;
  result.fits = memory <= limit_mib;
  result.flags = marker.TakeFlags();
  return result;
}

}  // namespace

RecomputeResult ChooseRecompute(const CostModel& model, const Stage& stage, int32_t micro_batch, const StagePlace& place,
                                double limit_mib) {
  std::vector<int32_t> rows;
  rows.reserve(stage.count());
  std::vector<ChoiceRun> plain = stage.runs();
  for (ChoiceRun& run : plain) {
    run.choice.recompute = false;
    rows.insert(rows.end(), run.count, model.RowOf(run.choice, micro_batch));
  }
  const StagePtr stripped = Stage::MakeRuns(stage.first(), std::move(plain));
  const StageTotals totals = model.TotalsOf(*stripped, micro_batch);
  if (!totals.priced()) {
    return {std::vector<uint8_t>(stage.count(), 0), totals, model.MemoryAt(totals, place), false};
  }
  return Choose(model, stage.first(), std::move(rows), totals, place, limit_mib);
}

RecomputeResult ChooseRecomputeUniform(const CostModel& model, int32_t first, int32_t count, const OpChoice& split,
                                       int32_t micro_batch, const StagePlace& place, double limit_mib) {
  const OpChoice plain{split.tensor_parallel, split.data_parallel, split.algorithm, false};
  const StageTotals totals = model.UniformTotals(first, count, plain, micro_batch);
  const double memory = model.MemoryAt(totals, place);
  if (!totals.priced() || memory <= limit_mib) return {{}, totals, memory, totals.priced()};
  return Choose(model, first, std::vector<int32_t>(count, model.RowOf(plain, micro_batch)), totals, place, limit_mib);
}

StagePtr WithChosenRecompute(const CostModel& model, const StagePtr& stage, int32_t micro_batch, const StagePlace& place,
                             double limit_mib) {
  return stage->WithRecompute(ChooseRecompute(model, *stage, micro_batch, place, limit_mib).flags);
}

}  // namespace tidepool::plan
