#include "plan/path_planner.h"

#include <algorithm>
#include <cmath>

#include "plan/recompute_rule.h"
#include "plan/window_walk.h"

namespace tidepool::plan {
namespace {

constexpr double kLeastLambda = 0.02;  // us per MiB
constexpr int32_t kExactPrices = 32;   // for the stages of solutions
constexpr double kExactRatio = 1.25;
constexpr int32_t kFineDevices = 8;  // clusters up to this size have a fine grid in the table
constexpr int32_t kWaiting[] = {1, 2, 3, 4, 6, 8, 16, 32, 64, 128};
constexpr int32_t kMixedEverywhere = 160;  // ops of a stage; of longer ones, not all places are tried
constexpr int32_t kMixes = 6;              // faster paths that are mixed with one that fits

// What windows cost, read off fronts: the table of WindowWalk.
class PathTable {
 public:
  using Ends = PathEnds;

  PathTable(const StageProgramme& programme, const OpSplits& splits, double limit_us, const std::vector<PathLane>& lanes)
      : programme_(programme), splits_(splits), limit_us_(limit_us), lanes_(lanes), counts_(lanes.size(), 0) {
    for (int32_t lane = 1; lane < static_cast<int32_t>(lanes.size()); ++lane) {
      if (groups_.empty() || lanes[lane].group != lanes[lane - 1].group) groups_.push_back({lanes[lane].waiting, lane, lane});
      ++groups_.back().end;
    }
    for (int32_t kind = 0; kind < programme.kinds(); ++kind) {
      const double mib = programme.limit_mib(kind);
      auto known = std::find_if(limits_.begin(), limits_.end(), [&](const MemoryLimit& limit) { return limit.mib == mib; });
      if (known == limits_.end()) known = limits_.insert(limits_.end(), MemoryLimit{mib, {}});
      known->kinds.push_back(kind);
    }
  }

  void CountInto(PathPriceUse* use) const {
    for (size_t lane = 1; lane < lanes_.size(); ++lane) {
      use->counts[lanes_[lane].group * PathPriceUse::kPrices + lanes_[lane].price].fetch_add(counts_[lane],
                                                                                             std::memory_order_relaxed);
    }
  }

  bool joins() const { return true; }
  void Read(const PathFront& front, PathEnds* ends) const { front.Ends(ends); }
  void Join(const PathEnds& head, const PathEnds& tail, int32_t op, PathEnds* ends) const {
    JoinEnds(splits_, head, tail, op, ends);
  }

  void Shift(const PathShift& shift, double count, PathEnds* ends) const { shift.AddTo(ends, count); }

  void Write(const PathEnds& ends, int32_t last_op, int32_t length, WindowBlock* block) {
    if (ends.us[0] > limit_us_) return;  // the fastest path, whatever its memory
    ends_ = &ends;
    first_op_ = programme_.OpAt(block->first);
    last_op_ = last_op;
    fixed_mib_.resize(ends.lanes());
    for (int32_t lane = 0; lane < ends.lanes(); ++lane) {
      fixed_mib_[lane] = ends.state_mib[lane] + ends.peak_mib[lane] + ends.ReservedMib(lane);
    }
    for (const MemoryLimit& limit : limits_) {
      FindFastest(limit.mib, block->q_lo, block->q_hi);
      int32_t fits = -1;  // the fastest that fits
      for (int32_t q = block->q_hi; q >= block->q_lo; --q) {
        if (const int32_t lane = fastest_[q - block->q_lo]; lane >= 0 && (fits < 0 || ends.us[lane] < ends.us[fits])) fits = lane;
        const Mixture mixture = Mixed(limit.mib, q + 1);
        for (const int32_t kind : limit.kinds) {
          const StagePlace& place = programme_.kind(kind);
          double us = fits >= 0 ? Us(fits, place) : kNever;
          if (mixture.slow >= 0) {
            const double slow_us = Us(mixture.slow, place), fast_us = Us(mixture.fast, place);
            us = std::min(us, slow_us + (fast_us - slow_us) * mixture.share);
          }
          if (us > limit_us_) continue;
          for (const int32_t lane : {fits, mixture.slow, mixture.fast}) {
            if (lane > 0) ++counts_[lane];
          }
          block
              ->us[(static_cast<size_t>(q - block->q_lo) * programme_.kinds() + kind) * block->lengths() + (length - block->lo)] =
              us;
        }
      }
    }
  }

 private:
  struct MemoryLimit {
    double mib = 0;
    std::vector<int32_t> kinds;  // of places that have it
  };
  // Paths of two neighbouring prices between which the limit lies; `share` of the way from the slow one to the fast one.
  struct Mixture {
    int32_t slow = -1, fast = -1;
    double share = 0, us = kNever;
  };

  double Us(int32_t lane, const StagePlace& place) const {
    const int32_t first = ends_->first_split[lane];
    return ends_->us[lane] + splits_.At(first_op_, first).in_us[static_cast<int>(place.in_link)] +
           splits_.OutUs(last_op_, first, ends_->last_split[lane], place.out_link);
  }

  // By the most stages behind with which a lane fits: the fastest of them, or -1.
  void FindFastest(double limit_mib, int32_t q_lo, int32_t q_hi) {
    fastest_.assign(q_hi - q_lo + 1, -1);
    for (int32_t lane = 0; lane < ends_->lanes(); ++lane) {
      if (ends_->us[lane] > limit_us_) continue;
      const double room = limit_mib - fixed_mib_[lane], live = ends_->live_mib[lane];
      if (room < live * (q_lo + 1)) continue;
      const double waiting = live > 0 ? std::floor(room / live) : q_hi + 1;
      int32_t& fastest = fastest_[static_cast<int32_t>(std::min<double>(waiting - 1, q_hi)) - q_lo];
      if (fastest < 0 || ends_->us[lane] < ends_->us[fastest]) fastest = lane;
    }
  }

  // A stage can follow one path for some of its ops and a neighbouring one for the rest: the time that this promises.
  Mixture Mixed(double limit_mib, int32_t waiting) const {
    Mixture best;
    const auto mib = [&](int32_t lane) { return fixed_mib_[lane] + ends_->live_mib[lane] * waiting; };
    if (mib(0) <= limit_mib) return best;  // the fastest path fits
    // Paths for this many waiting micro-batches, or the next numbers below and above.
    const auto groups = static_cast<int32_t>(groups_.size());
    int32_t below = 0, above = groups - 1;
    while (below + 1 < groups && groups_[below + 1].waiting <= waiting) ++below;
    while (above > 0 && groups_[above - 1].waiting >= waiting) --above;
    for (int32_t group = std::min(below, above); group <= std::max(below, above); ++group) {
      int32_t fast = 0;
      double fast_mib = mib(0);
      for (int32_t lane = groups_[group].begin; lane < groups_[group].end; ++lane) {
        const double slow_mib = mib(lane);
        if (slow_mib <= limit_mib && fast_mib > limit_mib) {
          const double share = (limit_mib - slow_mib) / (fast_mib - slow_mib);
          const double us = ends_->us[lane] + (ends_->us[fast] - ends_->us[lane]) * share;
          if (us < best.us) best = {lane, fast, share, us};
        }
        fast = lane;
        fast_mib = slow_mib;
      }
    }
    return best;
  }

  const StageProgramme& programme_;
  const OpSplits& splits_;
  double limit_us_;
  const std::vector<PathLane> lanes_;
  struct Group {
    double waiting = 0;
    int32_t begin = 0, end = 0;  // lanes
  };
  std::vector<Group> groups_;
  std::vector<int64_t> counts_;  // [lane]: windows that it was good for
  std::vector<MemoryLimit> limits_;
  // Of the window that is being written.
  const PathEnds* ends_ = nullptr;
  int32_t first_op_ = 0, last_op_ = 0;
  std::vector<double> fixed_mib_;  // [lane]: state, peak and reserve
  std::vector<int32_t> fastest_;   // [q - q_lo]
};

struct Candidate {
  double us = 0;
  StagePtr stage;
};

}  // namespace

std::pair<int32_t, int32_t> PathPriceUse::RangeOf(int32_t group, int32_t prices) const {
  int32_t lo = prices, hi = -1;
  for (int32_t price = 0; price < prices; ++price) {
    if (counts[group * kPrices + price].load(std::memory_order_relaxed) == 0) continue;
    lo = std::min(lo, price);
    hi = price;
  }
  return hi < 0 ? std::pair{0, prices - 1} : std::pair{std::max(0, lo - 1), std::min(prices - 1, hi + 1)};
}

std::vector<PathLane> SharedLanes(int32_t waiting_lo, int32_t waiting_hi, const PriceGrid& grid, const PathPriceUse* use) {
  static_assert(std::size(kWaiting) == PathPriceUse::kGroups);
  std::vector<PathLane> lanes = {{0, 1}};
  for (int32_t i = 0; i < static_cast<int32_t>(std::size(kWaiting)); ++i) {
    if (kWaiting[i] > waiting_hi && i > 0 && kWaiting[i - 1] >= waiting_hi) break;
    if (i + 1 < static_cast<int32_t>(std::size(kWaiting)) && kWaiting[i + 1] <= waiting_lo) continue;
    const auto [from, to] = use == nullptr ? std::pair{0, grid.prices - 1} : use->RangeOf(i, grid.prices);
    for (int32_t k = from; k <= to; ++k)
      lanes.push_back({kLeastLambda * std::pow(grid.ratio, k), static_cast<double>(kWaiting[i]), i, k});
  }
  return lanes;
}

void PathPlanner::Learn(const StagePlanner& quick) { learned_ = static_cast<const PathPlanner&>(quick).use_; }

PathPlanner::PathPlanner(const StageProgramme& programme) {
  for (const int32_t size : programme.sizes()) {
    splits_.push_back(std::make_unique<OpSplits>(programme.model(), size, programme.micro_batch(), programme.micro_batches()));
  }
}

void PathPlanner::Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const {
  const OpSplits& splits = *splits_[size];
  // A coarse grid does for large clusters: what solutions use is looked at with a fine one.
  const PriceGrid grid = programme.model().cluster().gpus() > kFineDevices ? PriceGrid{12, 2} : PriceGrid{18, 1.6};
  const ClassExtent extent = ExtentOf(*blocks);
  const PathFront front(programme.model(), splits, SharedLanes(extent.q_lo + 1, extent.q_hi + 1, grid, learned_.get()));
  PathTable table(programme, splits, limit_us, front.lanes());
  WindowWalk<PathFront, PathTable>(programme, blocks, &table).Run(front);
  table.CountInto(use_.get());
}

StagePtr PathPlanner::StageOf(const StageProgramme& programme, const CutStage& cut) {
  const int32_t kind = programme.KindOf(cut.place.first_gpu, cut.gpus);
  const auto [entry, fresh] = made_.try_emplace({cut.first, cut.end, cut.gpus, cut.place.stages_behind, kind});
  if (fresh) entry->second = MakeStage(programme, cut);
  return entry->second;
}

StagePtr PathPlanner::MakeStage(const StageProgramme& programme, const CutStage& cut) const {
  const CostModel& model = programme.model();
  const auto size = std::lower_bound(programme.sizes().begin(), programme.sizes().end(), cut.gpus) - programme.sizes().begin();
  const OpSplits& splits = *splits_[size];
  const int32_t count = cut.end - cut.first;
  const double limit_mib = model.cluster().MemoryLimitOf(cut.place.first_gpu);
  const auto price = [&](const StagePtr& stage, double* us) {
    const StageTotals totals = model.TotalsOf(*stage, programme.micro_batch());
    *us = EffectiveUs(model.CostAt(totals, cut.place), programme.micro_batches());
    return totals.priced() && model.MemoryAt(totals, cut.place) <= limit_mib;
  };
  // All paths, fastest first; those above the first that fits are candidates to be mixed with it.
  std::vector<PathLane> lanes = SharedLanes(cut.place.stages_behind + 1, cut.place.stages_behind + 1, {18, 1.6}, nullptr);
  for (int32_t k = 0; k < kExactPrices; ++k) {
    lanes.push_back({kLeastLambda * std::pow(kExactRatio, k), cut.place.stages_behind + 1.0});
  }
  const PathFront front(model, splits, std::move(lanes));
  const PathTable table(programme, splits, kNever, front.lanes());
  PathEnds ends;
  const int32_t begin = programme.PointOf(cut.first), end = programme.PointOf(cut.end);
  PointWalk<PathFront, PathTable> walk(programme, table, front, begin, PointWalk<PathFront, PathTable>::From::kStage);
  for (int32_t point = begin; point < end; ++point) walk.Next();
  walk.Read(&ends);
  std::vector<std::pair<double, int32_t>> order;
  for (int32_t lane = 0; lane < ends.lanes(); ++lane) order.emplace_back(ends.us[lane], lane);
  std::sort(order.begin(), order.end());
  Candidate best{kNever, nullptr};
  std::vector<std::vector<OpChoice>> faster;
  std::vector<OpChoice> fitting;
  for (const auto& [ignored, lane] : order) {
    std::vector<OpChoice> path = BestPath(model, splits, cut.first, count, front.lanes()[lane]);
    const StagePtr stage = Stage::Make(cut.first, path);
    double us = 0;
    if (price(stage, &us)) {
      best = {us, stage};
      fitting = std::move(path);
      break;
    }
    if (faster.empty() || faster.back() != path) faster.push_back(std::move(path));
  }
  // One split for all ops, recomputation by the published rule: what the exact search would take.
  for (const OpChoice& split : model.SplitsOf(cut.gpus, programme.micro_batch())) {
    const RecomputeResult rule =
        ChooseRecomputeUniform(model, cut.first, count, split, programme.micro_batch(), cut.place, limit_mib);
    if (!rule.fits) continue;
    StagePtr stage = Stage::MakeUniform(cut.first, count, split);
    if (!rule.flags.empty()) stage = stage->WithRecompute(rule.flags);
    double us = 0;
    if (price(stage, &us) && us < best.us) best = {us, stage};
  }
  if (best.stage == nullptr || fitting.empty()) return best.stage;
  // One path up to some op, the other from there on.
  const auto try_mixed = [&](const std::vector<OpChoice>& head, const std::vector<OpChoice>& tail, int32_t at) {
    if (!SameSplit(head[at - 1], tail[at]) && !splits.MaySwitch(cut.first + at)) return false;
    std::vector<OpChoice> mixed(head.begin(), head.begin() + at);
    mixed.insert(mixed.end(), tail.begin() + at, tail.end());
    const StagePtr stage = Stage::Make(cut.first, mixed);
    double us = 0;
    const bool fits = price(stage, &us);
    if (fits && us < best.us) best = {us, stage};
    return fits;
  };
  for (size_t i = faster.size(); i-- > 0 && faster.size() - i <= kMixes;) {
    for (const bool faster_first : {false, true}) {
      const std::vector<OpChoice>&head = faster_first ? faster[i] : fitting, &tail = faster_first ? fitting : faster[i];
      int32_t from = 1, until = count;
      if (count > kMixedEverywhere) {
        // The more ops of the faster path, the more memory: about where does it stop to fit?
        int32_t few = 0, many = count;  // ops of the faster path that fit, and that do not
        while (many - few > kMixedEverywhere / 8) {
          const int32_t middle = few + (many - few) / 2;
          (try_mixed(head, tail, faster_first ? middle : count - middle) ? few : many) = middle;
        }
        const int32_t around = faster_first ? few : count - few;
        from = std::max(1, around - kMixedEverywhere / 4);
        until = std::min(count, around + kMixedEverywhere / 4);
      }
      for (int32_t at = from; at < until; ++at) try_mixed(head, tail, at);
    }
  }
  return best.stage;
}

}  // namespace tidepool::plan
