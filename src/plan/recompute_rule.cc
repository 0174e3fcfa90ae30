#include "plan/recompute_rule.h"

#include <algorithm>
#include <span>
#include <utility>

namespace tidepool::plan {
namespace {

// The profile row of each op of a stage: one for all, or one each.
struct Rows {
  int32_t one = -1;
  std::vector<int32_t> each;
  int32_t At(int32_t at) const { return each.empty() ? one : each[at]; }
};

// Flags of one stage and what follows from them, kept up to date op by op.
class Marker {
 public:
  Marker(const CostModel& model, int32_t first, int32_t count, Rows rows, const StageTotals& plain)
      : model_(model), first_(first), count_(count), rows_(std::move(rows)), flags_(count, 0), totals_(plain) {}

  double Raw(int32_t at) const { return model_.ranges().RawActivation(rows_.At(at), first_ + at); }
  const Rows& rows() const { return rows_; }
  const StageTotals& totals() const { return totals_; }
  std::vector<uint8_t> TakeFlags() { return std::move(flags_); }

  void Mark(int32_t at) {
    if (at >= count_ || flags_[at] != 0) return;
    flags_[at] = 1;
    totals_.recompute_us += model_.table().At(Column::kForwardUs, rows_.At(at), model_.ops().ops[first_ + at]);
    if (at > 0 && flags_[at - 1] != 0) Free(at - 1);
    if (at + 1 < count_ && flags_[at + 1] != 0) Free(at);
  }

 private:
  double Activation(int32_t at) const { return model_.ranges().Activation(rows_.At(at), first_ + at); }
  bool IsFreed(int32_t at) const {
    return at >= 0 && at + 1 < count_ && flags_[at] != 0 && flags_[at + 1] != 0 && !model_.ops().at(first_ + at + 1).starts_layer;
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
  int32_t first_, count_;
  Rows rows_;
  std::vector<uint8_t> flags_;
  StageTotals totals_;
};

struct Name {
  uint16_t op = 0;
  double total_mib = 0;
  std::span<const int32_t> places;  // in the op list, ascending; those in the stage
};

// Names that may be seeds, in the order in which the rule takes them.
std::vector<Name> Candidates(const CostModel& model, int32_t first, int32_t count, const Marker& marker) {
  const OpList& ops = model.ops();
  std::vector<int32_t> first_places;
  first_places.reserve(std::min<size_t>(count, ops.distinct.size()));
  ops.FirstPlaces(first, first + count, &first_places);
  std::vector<Name> names;
  names.reserve(first_places.size());
  for (const int32_t place : first_places) {
    const uint16_t op = ops.ops[place];
    if (!ops.distinct[op].recompute_seed) continue;
    const std::span<const int32_t> all = ops.PlacesOf(op);
    const auto begin = std::lower_bound(all.begin(), all.end(), place);
    const auto end = std::lower_bound(begin, all.end(), first + count);
    Name name{op, 0, {begin, end}};
    if (marker.rows().each.empty()) {
      name.total_mib = static_cast<double>(name.places.size()) * marker.Raw(place - first);
    } else {
      for (const int32_t at : name.places) name.total_mib += marker.Raw(at - first);
    }
    names.push_back(name);
  }
  std::sort(names.begin(), names.end(), [](const Name& a, const Name& b) {
    return a.total_mib != b.total_mib ? a.total_mib > b.total_mib : a.places.front() < b.places.front();
  });
  return names;
}

RecomputeResult Choose(const CostModel& model, int32_t first, int32_t count, Rows rows, const StageTotals& plain,
                       const StagePlace& place, double limit_mib) {
  const OpList& ops = model.ops();
  Marker marker(model, first, count, std::move(rows), plain);
  const std::vector<Name> names = Candidates(model, first, count, marker);
  std::vector<uint8_t> done(ops.distinct.size(), 0);
  double memory = model.MemoryAt(plain, place);
  for (const Name& name : names) {
    if (!(memory > limit_mib)) break;
    if (done[name.op] != 0) continue;
    if (name.places.front() == first + count - 1) break;
    const double excess = memory - limit_mib;
    double marked = 0;
    for (const int32_t at : name.places) {
      marker.Mark(at - first);
      marker.Mark(at - first + 1);
      marked += marker.Raw(at - first) * (place.stages_behind + 1);
      if (marked > excess) break;
    }
    done[name.op] = 1;
    done[ops.ops[name.places.front() + 1]] = 1;
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
  Rows rows;
  rows.each.reserve(stage.count());
  std::vector<ChoiceRun> plain = stage.runs();
  for (ChoiceRun& run : plain) {
    run.choice.recompute = false;
    rows.each.insert(rows.each.end(), run.count, model.RowOf(run.choice, micro_batch));
  }
  const StagePtr stripped = Stage::MakeRuns(stage.first(), plain);
  const StageTotals totals = model.TotalsOf(*stripped, micro_batch);
  if (!totals.priced()) {
    return {std::vector<uint8_t>(stage.count(), 0), totals, model.MemoryAt(totals, place), false};
  }
  return Choose(model, stage.first(), stage.count(), std::move(rows), totals, place, limit_mib);
}

RecomputeResult ChooseRecomputeUniform(const CostModel& model, int32_t first, int32_t count, const OpChoice& split,
                                       int32_t micro_batch, const StagePlace& place, double limit_mib) {
  const OpChoice plain{split.tensor_parallel, split.data_parallel, split.algorithm, false};
  const StageTotals totals = model.UniformTotals(first, count, plain, micro_batch);
  const double memory = model.MemoryAt(totals, place);
  if (!totals.priced() || memory <= limit_mib) return {{}, totals, memory, totals.priced()};
  return Choose(model, first, count, {model.RowOf(plain, micro_batch), {}}, totals, place, limit_mib);
}

StagePtr WithChosenRecompute(const CostModel& model, const StagePtr& stage, int32_t micro_batch, const StagePlace& place,
                             double limit_mib) {
  return stage->WithRecompute(ChooseRecompute(model, *stage, micro_batch, place, limit_mib).flags);
}

}  // namespace tidepool::plan
