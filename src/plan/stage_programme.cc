#include "plan/stage_programme.h"

#include <absl/cleanup/cleanup.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>

namespace tidepool::plan {
namespace {

constexpr double kSlack = 1 - 1e-12;  // so that rounding never excludes what is just allowed

}  // namespace

ClassExtent ExtentOf(const StartClass& blocks) {
  ClassExtent extent{.first = 1 << 30, .q_lo = 1 << 30, .q_hi = 0};
  const auto see = [&](const WindowBlock& block) {
    if (block.empty()) return;
    extent.first = std::min(extent.first, block.first);
    extent.q_lo = std::min(extent.q_lo, block.q_lo);
    extent.q_hi = std::max(extent.q_hi, block.q_hi);
  };
  see(blocks.inside);
  for (const WindowBlock& block : blocks.beyond) see(block);
  return extent;
}

StageProgramme::StageProgramme(const CostModel& model, int32_t micro_batch, int64_t micro_batches, StageBounds bounds)
    : model_(model),
      micro_batch_(micro_batch),
      micro_batches_(micro_batches),
      bounds_(std::move(bounds)),
      gpus_(model.cluster().gpus()),
      sizes_(model.StageSizes(micro_batch)) {
  std::erase_if(sizes_, [&](int32_t size) { return size < bounds_.least_gpus; });
  PreparePoints();
  PrepareClasses();
  const int32_t most = std::min(points_, gpus_ / std::max(1, sizes_.empty() ? 1 : sizes_.front()));
  bounds_.max_stages = bounds_.max_stages == 0 ? most : std::min(bounds_.max_stages, most);
  PrepareOps();
  const Cluster& cluster = model_.cluster();
  // Models other than the published one may let the first stage receive nothing.
  const bool first_differs = model_.name() != "parity";
  std::map<std::tuple<int32_t, LinkClass, LinkClass, bool>, int32_t> known;
  for (int32_t first = 0; first < gpus_; ++first) {
    for (const int32_t size : sizes_) {
      int32_t kind = -1;
      if (cluster.IsStageRange(first, size)) {
        const StagePlace place{.in_link = cluster.LinkAt(first), .out_link = cluster.LinkAt(first + size), .first_gpu = first};
        const auto [entry, fresh] =
            known.try_emplace({cluster.GroupOf(first), place.in_link, place.out_link, first_differs && first == 0},
                              static_cast<int32_t>(kinds_.size()));
        if (fresh) kinds_.push_back(place);
        kind = entry->second;
      }
      kind_of_.push_back(kind);
    }
  }
}

int32_t StageProgramme::KindOf(int32_t first_gpu, int32_t count) const {
  const auto at = std::lower_bound(sizes_.begin(), sizes_.end(), count) - sizes_.begin();
  return kind_of_[static_cast<size_t>(first_gpu) * sizes_.size() + at];
}

void StageProgramme::PreparePoints() {
  const OpList& list = model_.ops();
  op_at_ = bounds_.cuts;
  if (op_at_.empty()) {
    op_at_.resize(list.size());
    std::iota(op_at_.begin(), op_at_.end(), 0);
  }
  points_ = static_cast<int32_t>(op_at_.size());
  op_at_.push_back(list.size());
}

// Points of a segment are alike if each repeat has the same ones.
void StageProgramme::PrepareClasses() {
  class_of_.resize(points_);
  segment_end_.resize(points_);
  period_.assign(points_, 0);
  std::vector<int32_t> canonical(op_at_.begin(), op_at_.end() - 1);
  for (int32_t i = 0; i < points_; ++i) segment_end_[i] = i;
  for (const Segment& segment : model_.ops().segments) {
    const auto index = [&](int32_t op) {
      return static_cast<int32_t>(std::lower_bound(op_at_.begin(), op_at_.end(), op) - op_at_.begin());
    };
    const int32_t begin = index(segment.first), end = index(segment.end()), step = index(segment.first + segment.period) - begin;
    bool alike = step > 0;
    for (int32_t i = begin; alike && i + step < end; ++i) alike = op_at_[i] + segment.period == op_at_[i + step];
    if (!alike) continue;
    // The segment's end is reached if a stage may end there.
    const int32_t last = op_at_[end] == segment.end() ? end : end - 1;
    for (int32_t i = begin; i < end; ++i) {
      canonical[i] = segment.first + (op_at_[i] - segment.first) % segment.period;
      segment_end_[i] = last;
      period_[i] = step;
    }
  }
  std::map<int32_t, int32_t> class_ids;
  for (int32_t i = 0; i < points_; ++i) {
    class_of_[i] = class_ids.try_emplace(canonical[i], static_cast<int32_t>(class_ids.size())).first->second;
  }
}

void StageProgramme::PrepareOps() {
  const OpList& list = model_.ops();
  const auto at_points = [&](const std::vector<double>& of_distinct) {
    std::vector<double> sums(points_ + 1, 0);
    double sum = 0;
    for (int32_t point = 0, op = 0; point <= points_; ++point) {
      for (; op < op_at_[point]; ++op) sum += of_distinct[list.ops[op]];
      sums[point] = sum;
    }
    return sums;
  };
  std::vector<double> work(list.distinct.size(), kNever);
  for (const int32_t size : sizes_) {
    const std::vector<OpChoice> splits = model_.SplitsOf(size, micro_batch_);
    std::vector<double> us(list.distinct.size(), kNever), mib(list.distinct.size(), kNever);
    for (size_t op = 0; op < list.distinct.size(); ++op) {
      const auto places = list.PlacesOf(static_cast<uint16_t>(op));
      if (places.empty()) continue;
      for (const OpChoice& split : splits) {
        const StageTotals totals = model_.UniformTotals(places[0], 1, split, micro_batch_);
        if (!totals.priced()) continue;
        us[op] = std::min(us[op], totals.forward_us + totals.backward_us);
        mib[op] = std::min(mib[op], totals.state_mib);
      }
      work[op] = std::min(work[op], us[op] * size);
    }
    fastest_us_.push_back(at_points(us));
    least_state_mib_.push_back(at_points(mib));
  }
  work_us_ = at_points(work);
  for (int32_t i = 0; i < points_; ++i) {
    int32_t length = 1;
    while (i + length < points_ && !list.SkipsAllowStage(op_at_[i], op_at_[i + length] - op_at_[i])) ++length;
    least_length_.push_back(length);
  }
}

double StageProgramme::LeastSumUs(double slowest_us) const {
  if (sizes_.empty()) return kNever;
  return std::max(slowest_us, work_us_[points_] / sizes_.back());
}

double StageProgramme::FloorUs() const {
  if (sizes_.empty() || gpus_ < sizes_.front()) return kNever;
  const double slowest = work_us_[points_] / gpus_;
  return static_cast<double>(micro_batches_ - 1) * slowest + LeastSumUs(slowest);
}

void StageProgramme::SetBands() {
  band_lo_.assign(gpus_ + 1, 0);
  band_hi_.assign(gpus_ + 1, -1);
  const double all = work_us_[points_];
  if (sizes_.empty() || all / limit_us_ * kSlack > gpus_) return;
  int32_t unit = 0;  // devices of stages come in multiples of it
  for (const int32_t size : sizes_) unit = std::gcd(unit, size);
  // What stands before and behind a point needs devices.
  std::vector<int32_t> least(points_ + 1), most(points_ + 1);
  for (int32_t i = 0; i <= points_; ++i) {
    const double behind = (all - work_us_[i]) / limit_us_ * kSlack, before = work_us_[i] / limit_us_ * kSlack;
    least[i] = i == 0 ? gpus_ : std::max(static_cast<int32_t>(std::ceil(behind)), i < points_ ? 1 : 0);
    most[i] = i == points_ ? 0 : gpus_ - std::max(static_cast<int32_t>(std::ceil(before)), i > 0 ? 1 : 0);
  }
  for (int32_t gpus = 0; gpus <= gpus_; gpus += unit) {
    const auto first = std::partition_point(least.begin(), least.end(), [&](int32_t value) { return value > gpus; });
    const auto last = std::partition_point(most.begin(), most.end(), [&](int32_t value) { return value >= gpus; });
    band_lo_[gpus] = static_cast<int32_t>(first - least.begin());
    band_hi_[gpus] = static_cast<int32_t>(last - most.begin()) - 1;
    if (bounds_.corridor.empty()) continue;
    const auto [lowest, highest] = bounds_.corridor[gpus];
    band_lo_[gpus] =
        std::max(band_lo_[gpus], static_cast<int32_t>(std::lower_bound(op_at_.begin(), op_at_.end(), lowest) - op_at_.begin()));
    band_hi_[gpus] = std::min(band_hi_[gpus],
                              static_cast<int32_t>(std::upper_bound(op_at_.begin(), op_at_.end(), highest) - op_at_.begin()) - 1);
  }
}

void StageProgramme::Limit(double limit_us) {
  limit_us_ = limit_us;
  SetBands();
  gpus_lo_.assign(points_ + 1, gpus_ + 1);
  gpus_hi_.assign(points_ + 1, -1);
  offset_.assign(gpus_ + 1, 0);
  states_ = 0;
  for (int32_t gpus = 0; gpus <= gpus_; ++gpus) {
    for (int32_t i = band_lo_[gpus]; i <= band_hi_[gpus]; ++i) {
      gpus_lo_[i] = std::min(gpus_lo_[i], gpus);
      gpus_hi_[i] = std::max(gpus_hi_[i], gpus);
    }
    offset_[gpus] = states_;
    states_ += static_cast<size_t>(std::max(0, band_hi_[gpus] - band_lo_[gpus] + 1));
  }
  state_.assign(states_ * (bounds_.max_stages + 1), kNever);
  narrowed_.assign(static_cast<size_t>(bounds_.max_stages + 1) * (gpus_ + 1), Range{});
  for (int32_t stages = 0; stages <= bounds_.max_stages; ++stages) {
    for (int32_t gpus = 0; gpus <= gpus_; ++gpus) Narrowed(stages, gpus) = {band_lo_[gpus], band_hi_[gpus]};
  }

  const double memory = [&] {
    double most = 0;
    for (int32_t kind = 0; kind < kinds(); ++kind) most = std::max(most, limit_mib(kind));
    return most;
  }();
  const auto classes = static_cast<size_t>(*std::max_element(class_of_.begin(), class_of_.end()) + 1);
  table_.assign(sizes_.size(), std::vector<StartClass>(classes));
  beyond_of_.assign(sizes_.size(), std::vector<int32_t>(points_, -1));
  for (size_t z = 0; z < sizes_.size(); ++z) {
    const int32_t size = sizes_[z];
    int32_t time_end = 0;
    for (int32_t i = 0; i < points_; ++i) {
      // The last end that time and memory allow grows with i.
      time_end = std::max(time_end, i);
      const auto fits = [&](int32_t end) {
        return (fastest_us_[z][end] - fastest_us_[z][i]) * kSlack <= limit_us_ &&
               (least_state_mib_[z][end] - least_state_mib_[z][i]) * kSlack <= memory;
      };
      while (time_end < points_ && fits(time_end + 1)) ++time_end;
      if (gpus_lo_[i] > gpus_hi_[i] || gpus_hi_[i] < size) continue;
      const int32_t most_behind = gpus_hi_[i] - size, least_behind = std::max(0, gpus_lo_[i] - size);
      // Bands fall as devices grow.
      int32_t few = least_behind, many = most_behind;
      while (few <= many && band_hi_[few] < band_lo_[few]) ++few;
      while (many > few && band_hi_[many] < band_lo_[many]) --many;
      if (few > many) continue;
      const int32_t lo = std::max(band_lo_[many], i + 1), hi = band_hi_[few];
      WindowBlock block;
      block.first = i;
      block.lo = std::max(lo - i, std::min(least_length_[i], points_ - i));
      block.hi = std::min(hi, time_end) - i;
      block.q_lo = std::max(0, (least_behind + sizes_.back() - 1) / sizes_.back());
      block.q_hi = std::min({most_behind, points_ - i - block.lo, bounds_.max_stages - 1});
      if (block.lo + i == points_) block.q_hi = 0;
      if (block.hi + i == points_) block.q_lo = 0;
      if (block.empty()) continue;
      StartClass& start = table_[z][class_of_[i]];
      const int32_t within = segment_end_[i] - i;
      if (block.lo <= within) {
        WindowBlock& inside = start.inside;
        const int32_t until = std::min(block.hi, within);
        if (inside.empty()) {
          inside = block;
          inside.hi = until;
        } else {
          inside.lo = std::min(inside.lo, block.lo);
          inside.hi = std::max(inside.hi, until);
          inside.q_lo = std::min(inside.q_lo, block.q_lo);
          inside.q_hi = std::max(inside.q_hi, block.q_hi);
        }
      }
      if (block.hi > within) {
        block.lo = std::max(block.lo, within + 1);
        beyond_of_[z][i] = static_cast<int32_t>(start.beyond.size());
        start.beyond.push_back(std::move(block));
      }
    }
  }
}

namespace {

void FindLeast(WindowBlock* block) {
  if (block->empty()) return;
  const int32_t lengths = block->lengths(), chunks = block->chunks();
  const size_t rows = block->us.size() / lengths;
  block->least_us.resize(rows * chunks);
  for (size_t row = 0; row < rows; ++row) {
    double least = kNever;
    for (int32_t length = lengths - 1; length >= 0; --length) {
      least = std::min(least, block->us[row * lengths + length]);
      if (length % WindowBlock::kChunk == 0) block->least_us[row * chunks + length / WindowBlock::kChunk] = least;
    }
  }
}

}  // namespace

void StageProgramme::Fill(const StageOracle& oracle, Workers* workers) {
  std::vector<std::pair<int32_t, StartClass*>> jobs;
  for (size_t z = 0; z < sizes_.size(); ++z) {
    for (StartClass& start : table_[z]) {
      if (start.inside.empty() && start.beyond.empty()) continue;
      const auto prepare = [&](WindowBlock* block) {
        if (block->empty()) return;
        const size_t count = static_cast<size_t>(block->q_hi - block->q_lo + 1) * kinds_.size() * block->lengths();
        block->us.assign(count, kNever);
        evaluations_ += static_cast<int64_t>(count);
      };
      prepare(&start.inside);
      for (WindowBlock& block : start.beyond) prepare(&block);
      jobs.emplace_back(static_cast<int32_t>(z), &start);
    }
  }
  std::reverse(jobs.begin(), jobs.end());  // large sizes have the longest windows
  workers->Run(static_cast<int32_t>(jobs.size()), [&](int32_t job) {
    StartClass* const start = jobs[job].second;
    oracle.Fill(*this, jobs[job].first, limit_us_, start);
    FindLeast(&start->inside);
    for (WindowBlock& block : start->beyond) FindLeast(&block);
  });
}

// The best of what Limit lets through, into *best if it is better. False: interrupted.
bool StageProgramme::SolveLimited(Workers* workers, const std::function<bool()>& interrupted, CutSolution* best) {
  const double least_us = MaxPass(limit_us_, workers);
  if (least_us == kNever) return true;
  const double rest = static_cast<double>(micro_batches_ - 1);
  const double table_limit = limit_us_;
  double whole_limit = std::min(limit_us_, Cap(best->objective_us));
  if (least_us > whole_limit) return true;
  // Solutions only get better, so what is left out now is not wanted later.
  Narrow(whole_limit, workers);
  // The sum at a limit, and the solution if it is the best so far.
  const auto sum_at = [&](double limit_us) {
    limit_us_ = limit_us;
    Sum sum = SumPass(limit_us, workers);
    if (sum.us < kNever) {
      std::vector<CutStage> cuts = Trace(sum.stages);
      for (const CutStage& cut : cuts) sum.slowest_us = std::max(sum.slowest_us, cut.us);
      const double objective = rest * sum.slowest_us + sum.us;
      if (objective < best->objective_us) *best = {objective, std::move(cuts)};
    }
    limit_us_ = table_limit;
    return sum;
  };
  struct Interval {
    double lo_us = 0, hi_us = 0;  // limits in [lo, hi) are open
    double lo_sum_us = 0;         // of limits just below lo: a limit with this sum is no better
    double hi_sum_us = 0;         // no limit in the interval has a smaller sum
  };
  std::vector<Interval> open;
  const Sum first = sum_at(least_us);
  if (interrupted()) return false;
  // What the first solution excludes is left out for the time being; when stages were looked at closely, it may be wanted again.
  const std::vector<Range> wide = narrowed_;
  const auto restore = absl::MakeCleanup([&] { narrowed_ = wide; });
  if (const double tight = Cap(best->objective_us); tight < whole_limit) {
    whole_limit = tight;
    MaxPass(whole_limit, workers);
    Narrow(whole_limit, workers);
  }
  if (first.next_us < kNever && rest * first.next_us + LeastSumUs(first.next_us) < best->objective_us * (1 - tolerance_)) {
    const Sum last = sum_at(whole_limit);
    if (last.us < first.us) open.push_back({first.next_us, last.slowest_us, first.us, last.us});
  }
  while (!open.empty()) {
    if (interrupted()) return false;
    const Interval interval = open.back();
    open.pop_back();
    const double enough = best->objective_us * (1 - tolerance_);
    if (rest * interval.lo_us + interval.hi_sum_us >= enough || interval.lo_sum_us <= interval.hi_sum_us) continue;
    const double useful = rest > 0 ? (best->objective_us - interval.hi_sum_us) / rest : interval.hi_us;
    const double hi = std::min(interval.hi_us, useful);
    if (!(interval.lo_us < hi)) continue;
    const double middle = interval.lo_us + (hi - interval.lo_us) / 2;
    const Sum sum = sum_at(middle);
    open.push_back({sum.next_us, interval.hi_us, sum.us, interval.hi_sum_us});
    if (sum.us < interval.lo_sum_us) open.push_back({interval.lo_us, sum.slowest_us, interval.lo_sum_us, sum.us});
  }
  return true;
}

int32_t StageProgramme::PointOf(int32_t op) const {
  return static_cast<int32_t>(std::lower_bound(op_at_.begin(), op_at_.end(), op) - op_at_.begin());
}

void StageProgramme::SetTime(const CutStage& cut) {
  const auto z = std::lower_bound(sizes_.begin(), sizes_.end(), cut.gpus) - sizes_.begin();
  const int32_t first = PointOf(cut.first), end = PointOf(cut.end);
  StartClass& start = table_[z][class_of_[first]];
  WindowBlock& block = end <= segment_end_[first] ? start.inside : start.beyond[beyond_of_[z][first]];
  const int32_t kind = KindOf(cut.place.first_gpu, cut.gpus), length = end - first - block.lo;
  const size_t row = static_cast<size_t>(cut.place.stages_behind - block.q_lo) * kinds_.size() + kind;
  block.us[row * block.lengths() + length] = cut.us;
  for (int32_t chunk = 0; chunk <= length / WindowBlock::kChunk; ++chunk) {
    double& least = block.least_us[row * block.chunks() + chunk];
    least = std::min(least, cut.us);
  }
}

void StageProgramme::Actualize(CutSolution solution, const std::function<double(const CutStage&)>& actual, CutSolution* best) {
  double slowest = 0, sum = 0;
  for (CutStage& cut : solution.stages) {
    cut.us = actual(cut);
    SetTime(cut);
    slowest = std::max(slowest, cut.us);
    sum += cut.us;
  }
  solution.objective_us = static_cast<double>(micro_batches_ - 1) * slowest + sum;
  if (solution.objective_us < best->objective_us) *best = std::move(solution);
}

double StageProgramme::Cap(double objective_us) const {
  const double by_all = objective_us / static_cast<double>(micro_batches_);
  const double rest = static_cast<double>(micro_batches_ - 1);
  const double cap = rest > 0 ? std::min(by_all, (objective_us - LeastSumUs(0)) / rest) : by_all;
  return std::min(cap, bounds_.slowest_us) / kSlack;
}

double StageProgramme::Prepare(const StageOracle& oracle, double most_us, Workers* workers,
                               const std::function<bool()>& interrupted) {
  prepared_ = true;
  if (!(FloorUs() < kNever)) return kNever;
  const double base = work_us_[points_] / gpus_;
  std::vector<double> limits;
  if (expected_us_ > 0) limits.push_back(expected_us_);
  for (const double factor : {1.04, 1.12, 1.3, 1.7, 2.5, 5.0, 20.0, kNever}) {
    if (base * factor > expected_us_ * 1.04) limits.push_back(base * factor);
  }
  for (const double limit : limits) {
    const bool last = limit >= most_us;
    Limit(std::min(limit, most_us));
    Fill(oracle, workers);
    least_slowest_us_ = MaxPass(limit_us_, workers);
    if (last || least_slowest_us_ < kNever) break;
    if (interrupted()) {
      was_interrupted_ = true;
      break;
    }
  }
  if (least_slowest_us_ == kNever) return kNever;
  const std::vector<Range> wide = narrowed_;
  Narrow(least_slowest_us_, workers);
  const double sum = SumPass(least_slowest_us_, workers).us;
  narrowed_ = wide;
  return static_cast<double>(micro_batches_ - 1) * least_slowest_us_ + sum;
}

std::optional<CutSolution> StageProgramme::Solve(const StageOracle& oracle, double bound_us, Workers* workers,
                                                 const std::function<bool()>& interrupted,
                                                 const std::function<double(const CutStage&)>& actual, int32_t rounds,
                                                 double tolerance) {
  const double rest = static_cast<double>(micro_batches_ - 1), floor = FloorUs();
  if (!(floor < kNever) || floor * kSlack > bound_us) return std::nullopt;
  tolerance_ = tolerance;
  CutSolution best;
  const double most = Cap(bound_us);
  if (!prepared_) Prepare(oracle, most, workers, interrupted);
  // No plan has a slowest stage below the least that was found.
  if (rest * least_slowest_us_ + LeastSumUs(least_slowest_us_) > bound_us / kSlack) return std::nullopt;
  // The best of the table; with `actual`, the best that was looked at.
  const auto solve = [&] {
    for (int32_t round = 0; !was_interrupted_; ++round) {
      CutSolution found{std::min(bound_us / kSlack, best.objective_us * (1 - tolerance_)), {}};
      was_interrupted_ = interrupted() || !SolveLimited(workers, interrupted, &found);
      if (found.stages.empty()) break;
      if (actual == nullptr) {
        best = std::move(found);
        break;
      }
      Actualize(std::move(found), actual, &best);
      if (round >= rounds) break;
    }
  };
  solve();
  const double needed = std::min(most, Cap(best.objective_us));
  if (!was_interrupted_ && needed > limit_us_) {  // plans with a slower stage may still be better
    Limit(needed);
    Fill(oracle, workers);
    solve();
  }
  if (best.stages.empty() || best.objective_us * kSlack > bound_us) return std::nullopt;
  return best;
}

}  // namespace tidepool::plan
