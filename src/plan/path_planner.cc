#include "plan/path_planner.h"

#include <algorithm>
#include <cmath>

namespace tidepool::plan {
namespace {

constexpr double kLeastLambda = 0.02;  // us per MiB
constexpr int32_t kExactPrices = 32;   // for the stages of solutions
constexpr double kExactRatio = 1.25;
constexpr int32_t kFineDevices = 8;  // clusters up to this size have a fine grid in the table
constexpr int32_t kWaiting[] = {1, 2, 3, 4, 6, 8, 16, 32, 64, 128};
constexpr int32_t kMixes = 6;  // faster paths that are mixed with one that fits

// What the windows of one block cost, read off a front that stands at their last op.
class BlockWriter {
 public:
  BlockWriter(const StageProgramme& programme, const OpSplits& splits, double limit_us, int32_t prices)
      : programme_(programme), splits_(splits), limit_us_(limit_us), prices_(prices) {}

  void Write(const PathFront& front, int32_t last_position, int32_t length, WindowBlock* block) {
    const int32_t kinds = programme_.kinds(), lengths = block->lengths(), depth = block->q_hi - block->q_lo + 1;
    best_.assign(static_cast<size_t>(depth) * kinds, kNever);
    ends_.resize(front.lanes().size());
    if (front.End(0).us > limit_us_) return;  // the fastest path, whatever its memory
    for (size_t lane = 0; lane < front.lanes().size(); ++lane) {
      const PathEnd& end = ends_[lane] = front.End(static_cast<int32_t>(lane));
      if (end.us > limit_us_) continue;
      for (int32_t kind = 0; kind < kinds; ++kind) {
        const StagePlace& place = programme_.kind(kind);
        const double room = programme_.limit_mib(kind) - end.MemoryMib(0);
        if (room < end.live_mib * (block->q_lo + 1)) continue;
        // It fits with up to this many micro-batches that wait.
        const double waiting = end.live_mib > 0 ? std::floor(room / end.live_mib) : block->q_hi + 1;
        const auto q = static_cast<int32_t>(std::min<double>(waiting - 1, block->q_hi));
        const double us = Us(end, block->first, last_position, place);
        double& best = best_[static_cast<size_t>(q - block->q_lo) * kinds + kind];
        best = std::min(best, us);
      }
    }
    for (int32_t kind = 0; kind < kinds; ++kind) {
      double best = kNever;
      for (int32_t q = depth - 1; q >= 0; --q) {
        best = std::min(best, best_[static_cast<size_t>(q) * kinds + kind]);
        const double mixed = Mixed(front, block->first, last_position, kind, block->q_lo + q, best);
        best_[static_cast<size_t>(q) * kinds + kind] = best;
        if (std::min(best, mixed) <= limit_us_) {
          block->us[(static_cast<size_t>(q) * kinds + kind) * lengths + (length - block->lo)] = std::min(best, mixed);
        }
      }
    }
  }

 private:
  double Us(const PathEnd& end, int32_t first_position, int32_t last_position, const StagePlace& place) const {
    return end.us + splits_.At(first_position, end.first_split).in_us[static_cast<int>(place.in_link)] +
           splits_.OutUs(last_position, end.first_split, end.last_split, place.out_link);
  }
  // A stage can follow one path for some of its ops and a neighbouring one for the rest: the time that this promises, for the
  // two paths of neighbouring prices between which the limit lies.
  double Mixed(const PathFront& front, int32_t first_position, int32_t last_position, int32_t kind, int32_t q,
               double best) const {
    const double limit = programme_.limit_mib(kind);
    const StagePlace& place = programme_.kind(kind);
    const std::vector<PathLane>& lanes = front.lanes();
    if (ends_[0].MemoryMib(q + 1) <= limit) return best;  // the fastest path fits
    // Paths for this many waiting micro-batches, or the next numbers below and above.
    const size_t groups = (lanes.size() - 1) / prices_;
    size_t below = 0, above = groups - 1;
    while (below + 1 < groups && lanes[1 + (below + 1) * prices_].waiting <= q + 1) ++below;
    while (above > 0 && lanes[1 + (above - 1) * prices_].waiting >= q + 1) --above;
    for (size_t i = 1 + std::min(below, above) * prices_; i < 1 + (std::max(below, above) + 1) * prices_; ++i) {
      const bool cheapest = lanes[i].lambda == lanes[1].lambda;
      const PathEnd &slow = ends_[i], &fast = cheapest ? ends_[0] : ends_[i - 1];
      const double slow_mib = slow.MemoryMib(q + 1), fast_mib = fast.MemoryMib(q + 1);
      if (slow_mib > limit || fast_mib <= limit) continue;
      const double slow_us = Us(slow, first_position, last_position, place),
                   fast_us = Us(fast, first_position, last_position, place);
      best = std::min(best, slow_us + (fast_us - slow_us) * (limit - slow_mib) / (fast_mib - slow_mib));
    }
    return best;
  }

  const StageProgramme& programme_;
  const OpSplits& splits_;
  double limit_us_;
  int32_t prices_;
  std::vector<double> best_;   // [q - q_lo][kind]
  std::vector<PathEnd> ends_;  // [lane]
};

struct Candidate {
  double us = 0;
  StagePtr stage;
};

}  // namespace

std::vector<PathLane> SharedLanes(int32_t waiting_lo, int32_t waiting_hi, const PriceGrid& grid) {
  std::vector<PathLane> lanes = {{0, 1}};
  for (size_t i = 0; i < std::size(kWaiting); ++i) {
    if (kWaiting[i] > waiting_hi && i > 0 && kWaiting[i - 1] >= waiting_hi) break;
    if (i + 1 < std::size(kWaiting) && kWaiting[i + 1] <= waiting_lo) continue;
    for (int32_t k = 0; k < grid.prices; ++k)
      lanes.push_back({kLeastLambda * std::pow(grid.ratio, k), static_cast<double>(kWaiting[i])});
  }
  return lanes;
}

PathPlanner::PathPlanner(const StageProgramme& programme) {
  for (const int32_t size : programme.sizes()) {
    splits_.push_back(std::make_unique<OpSplits>(programme.model(), size, programme.micro_batch(), programme.micro_batches()));
  }
}

void PathPlanner::Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const {
  const OpSplits& splits = *splits_[size];
  WindowBlock& inside = blocks->inside;
  // Walk from the earliest start; windows that reach over the segment's end go on from where they leave it.
  int32_t start = inside.empty() ? blocks->beyond.front().first : inside.first, q_lo = 1 << 30, q_hi = 0;
  const auto see = [&](const WindowBlock& block) {
    if (block.empty()) return;
    start = std::min(start, block.first);
    q_lo = std::min(q_lo, block.q_lo);
    q_hi = std::max(q_hi, block.q_hi);
  };
  see(inside);
  for (const WindowBlock& block : blocks->beyond) see(block);
  // A coarse grid does for large clusters: what solutions use is looked at with a fine one.
  const PriceGrid grid = programme.model().cluster().gpus() > kFineDevices ? PriceGrid{12, 2} : PriceGrid{18, 1.6};
  BlockWriter writer(programme, splits, limit_us, grid.prices);
  PathFront front(programme.model(), splits, SharedLanes(q_lo + 1, q_hi + 1, grid));
  const auto go_on = [&](PathFront from, int32_t length, WindowBlock* block) {  // `length` ops are behind
    while (length < block->hi) {
      const int32_t position = block->first + length;
      length == 0 ? from.Start(position) : from.Step(position);
      ++length;
      if (length >= block->lo) writer.Write(from, position, length, block);
    }
  };
  int32_t longest = inside.empty() ? 0 : inside.hi;
  for (const WindowBlock& block : blocks->beyond) longest = std::max(longest, programme.SegmentEnd(block.first) - block.first);
  for (int32_t length = 0; length <= longest; ++length) {
    if (length > 0) {
      const int32_t position = start + length - 1;
      length == 1 ? front.Start(position) : front.Step(position);
      if (!inside.empty() && length >= inside.lo && length <= inside.hi) writer.Write(front, position, length, &inside);
    }
    for (WindowBlock& block : blocks->beyond) {
      if (programme.SegmentEnd(block.first) - block.first == length) go_on(front, length, &block);
    }
  }
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
  std::vector<PathLane> lanes = SharedLanes(cut.place.stages_behind + 1, cut.place.stages_behind + 1, {18, 1.6});
  for (int32_t k = 0; k < kExactPrices; ++k) {
    lanes.push_back({kLeastLambda * std::pow(kExactRatio, k), cut.place.stages_behind + 1.0});
  }
  PathFront front(model, splits, std::move(lanes));
  front.Start(cut.first);
  for (int32_t i = 1; i < count; ++i) front.Step(cut.first + i);
  std::vector<std::pair<double, int32_t>> order;
  for (size_t lane = 0; lane < front.lanes().size(); ++lane) {
    order.emplace_back(front.End(static_cast<int32_t>(lane)).us, static_cast<int32_t>(lane));
  }
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
  if (best.stage == nullptr) return nullptr;
  // One path up to some op, the other from there on.
  for (size_t i = faster.size(); i-- > 0 && faster.size() - i <= kMixes;) {
    for (int32_t at = 1; at < count; ++at) {
      for (const bool faster_first : {false, true}) {
        const std::vector<OpChoice>&head = faster_first ? faster[i] : fitting, &tail = faster_first ? fitting : faster[i];
        if (!SameSplit(head[at - 1], tail[at]) && !splits.MaySwitch(cut.first + at)) continue;
        std::vector<OpChoice> mixed(head.begin(), head.begin() + at);
        mixed.insert(mixed.end(), tail.begin() + at, tail.end());
        const StagePtr stage = Stage::Make(cut.first, mixed);
        double us = 0;
        if (price(stage, &us) && us < best.us) best = {us, stage};
      }
    }
  }
  return best.stage;
}

}  // namespace tidepool::plan
