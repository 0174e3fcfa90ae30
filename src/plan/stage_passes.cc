// Passes of the stage programme over its table: f of every number of stages, devices and point; which states matter; the way
// back.
#include <algorithm>
#include <cstring>

#include "plan/stage_programme.h"

namespace tidepool::plan {
namespace {

// The least t + rest over both, where t is at most `limit_us`, and the least t above it.
struct Least {
  double value = kNever, next = kNever;
};
void ScanOne(double us, double rest, double limit_us, Least* least) {
  if (us <= limit_us) {
    least->value = std::min(least->value, us + rest);
  } else if (rest < kNever) {
    least->next = std::min(least->next, us);
  }
}

// Two by two: the inner loop of the programme.
using Two = double __attribute__((vector_size(16)));
void ScanTwo(const double* us, const double* rest, const Two& limit, Two* value, Two* next) {
  const Two never = {kNever, kNever};
  Two t, behind;
  std::memcpy(&t, us, sizeof(t));
  std::memcpy(&behind, rest, sizeof(behind));
  const Two candidate = t <= limit ? t + behind : never;
  const Two above = ((t > limit) & (behind < never)) ? t : never;
  *value = candidate < *value ? candidate : *value;
  *next = above < *next ? above : *next;
}
void ScanSum(const double* us, const double* rest, int32_t count, double limit_us, Least* least) {
  const Two limit = {limit_us, limit_us}, never = {kNever, kNever};
  Two value[2] = {never, never}, next[2] = {never, never};
  int32_t i = 0;
  for (; i + 4 <= count; i += 4) {
    ScanTwo(us + i, rest + i, limit, &value[0], &next[0]);
    ScanTwo(us + i + 2, rest + i + 2, limit, &value[1], &next[1]);
  }
  for (int32_t lane = 0; lane < 4; ++lane) {
    least->value = std::min(least->value, value[lane / 2][lane % 2]);
    least->next = std::min(least->next, next[lane / 2][lane % 2]);
  }
  for (; i < count; ++i) ScanOne(us[i], rest[i], limit_us, least);
}

}  // namespace

template <typename Visit>
void StageProgramme::ForWindows(int32_t stages, int32_t gpus, int32_t size, int32_t i, const Visit& visit) const {
  const int32_t q = stages - 1, behind = gpus - sizes_[size];
  if (behind < 0 || (behind == 0) != (stages == 1)) return;
  const int32_t kind = kind_of_[static_cast<size_t>(gpus_ - gpus) * sizes_.size() + size];
  if (kind < 0) return;
  const Range& ends = Narrowed(q, behind);
  const int32_t shortest = std::max(ends.lo - i, std::min(least_length_[i], points_ - i));
  const int32_t longest = (stages == 1 ? points_ : std::min(ends.hi, points_ - 1)) - i;
  if (longest < shortest) return;
  const StartClass& start = table_[size][class_of_[i]];
  const int32_t within = segment_end_[i] - i;
  const auto part = [&](const WindowBlock& block, int32_t most) {
    if (q < block.q_lo || q > block.q_hi) return;
    const int32_t lo = std::max(block.lo, shortest), hi = std::min({block.hi, longest, most});
    if (hi < lo) return;
    const size_t row = static_cast<size_t>(q - block.q_lo) * kinds_.size() + kind;
    const int32_t skipped = lo - block.lo;
    visit(Row{&block.us[row * block.lengths() + skipped], &block.least_us[row * block.chunks()], lo, hi, skipped});
  };
  if (!start.inside.empty() && within > 0) part(start.inside, within);
  if (const int32_t at = beyond_of_[size][i]; at >= 0) part(start.beyond[at], points_);
}

void StageProgramme::RelaxSum(int32_t stages, int32_t gpus, double limit_us, double* next_us) {
  const Range range = Narrowed(stages, gpus);
  for (int32_t i = range.lo; i <= range.hi; ++i) {
    Least least;
    for (int32_t z = 0; z < static_cast<int32_t>(sizes_.size()) && sizes_[z] <= gpus; ++z) {
      ForWindows(stages, gpus, z, i, [&](const Row& row) {
        ScanSum(row.us, &State(stages - 1, gpus - sizes_[z], i + row.lo), row.hi - row.lo + 1, limit_us, &least);
      });
    }
    State(stages, gpus, i) = least.value;
    *next_us = std::min(*next_us, least.next);
  }
}

// The least max(t, rest), if it is below *value. Longer windows take longer, and what is left is less, so it is about where the
// two cross; the least of all further on says when to stop. `least_rest`: of each end and those before it.
void StageProgramme::ScanMax(const Row& row, const double* rest, const double* least_rest, double limit_us, double* value) {
  const int32_t count = row.hi - row.lo + 1;
  int32_t cross = 0;
  for (int32_t end = count; cross < end;) {
    const int32_t middle = cross + (end - cross) / 2;
    if (row.us[middle] < rest[middle]) {
      cross = middle + 1;
    } else {
      end = middle;
    }
  }
  const auto see = [&](int32_t k) {
    if (row.us[k] <= limit_us) *value = std::min(*value, std::max(row.us[k], rest[k]));
  };
  for (int32_t k = cross; k < count;) {
    const int32_t chunk = (row.skipped + k) / WindowBlock::kChunk;
    if (!(row.least_us[chunk] < *value)) break;
    const int32_t end = std::min(count, (chunk + 1) * WindowBlock::kChunk - row.skipped);
    for (; k < end; ++k) see(k);
  }
  for (int32_t k = cross - 1; k >= 0 && least_rest[k] < *value; --k) see(k);
}

void StageProgramme::RelaxMax(int32_t stages, int32_t gpus, double limit_us) {
  const Range range = Narrowed(stages, gpus);
  double least = kNever;
  for (int32_t i = range.lo; i <= range.hi; ++i) {
    double value = kNever;
    for (int32_t z = 0; z < static_cast<int32_t>(sizes_.size()) && sizes_[z] <= gpus; ++z) {
      ForWindows(stages, gpus, z, i, [&](const Row& row) {
        const int32_t behind = gpus - sizes_[z], end = i + row.lo;
        ScanMax(row, &State(stages - 1, behind, end), &LeastState(stages - 1, behind, end), limit_us, &value);
      });
    }
    State(stages, gpus, i) = value;
    least = std::min(least, value);
    LeastState(stages, gpus, i) = least;
  }
}

StageProgramme::Sum StageProgramme::LeastOfAll() const {
  Sum sum;
  for (int32_t stages = 1; stages <= bounds_.max_stages; ++stages) {
    const Range& whole = Narrowed(stages, gpus_);
    double us = kNever;
    if (whole.lo == 0 && whole.hi == 0) us = State(stages, gpus_, 0);
    if (bounds_.Allows(stages) && us < sum.us) sum = {us, stages, 0, kNever};
  }
  return sum;
}

StageProgramme::Sum StageProgramme::SumPass(double limit_us, Workers* workers) {
  ++passes_;
  if (!CanBeCut()) return {};
  std::vector<double> next(gpus_ + 1, kNever);
  State(0, 0, points_) = 0;
  for (int32_t stages = 1; stages <= bounds_.max_stages; ++stages) {
    workers->Run(gpus_, [&](int32_t at) { RelaxSum(stages, at + 1, limit_us, &next[at + 1]); });
  }
  Sum sum = LeastOfAll();
  sum.next_us = *std::min_element(next.begin(), next.end());
  return sum;
}

double StageProgramme::MaxPass(double limit_us, Workers* workers) {
  ++passes_;
  if (!CanBeCut()) return kNever;
  least_state_.assign(2 * states_, kNever);
  State(0, 0, points_) = LeastState(0, 0, points_) = 0;
  for (int32_t stages = 1; stages <= bounds_.max_stages; ++stages) {
    workers->Run(gpus_, [&](int32_t at) { RelaxMax(stages, at + 1, limit_us); });
  }
  return LeastOfAll().us;
}

void StageProgramme::Narrow(double limit_us, Workers* workers) {
  // From the whole list down to what its last stages do.
  std::vector<Range> narrowed(narrowed_.size());
  const auto at = [&](int32_t stages, int32_t gpus) { return static_cast<size_t>(stages) * (gpus_ + 1) + gpus; };
  std::vector<uint8_t> marks(states_, 0), next(states_, 0);
  for (int32_t stages = bounds_.max_stages; stages >= 1; --stages) {
    const Range& whole = Narrowed(stages, gpus_);
    if (bounds_.Allows(stages) && whole.lo == 0 && whole.hi == 0 && State(stages, gpus_, 0) <= limit_us) {
      marks[offset_[gpus_]] = 1;
      narrowed[at(stages, gpus_)] = {0, 0};
    }
    workers->Run(gpus_, [&](int32_t behind) {
      const Range& ends = Narrowed(stages - 1, behind);
      if (ends.hi < ends.lo) return;
      uint8_t* const reached = &next[offset_[behind]];
      const int32_t band = band_lo_[behind];
      std::fill(reached, reached + (band_hi_[behind] - band + 1), 0);
      for (int32_t z = 0; z < static_cast<int32_t>(sizes_.size()) && behind + sizes_[z] <= gpus_; ++z) {
        const int32_t gpus = behind + sizes_[z];
        const Range& range = narrowed[at(stages, gpus)];
        for (int32_t i = range.lo; i <= range.hi; ++i) {
          if (marks[offset_[gpus] + static_cast<size_t>(i - band_lo_[gpus])] == 0) continue;
          ForWindows(stages, gpus, z, i, [&](const Row& row) {
            const double* rest = &State(stages - 1, behind, i + row.lo);
            uint8_t* mark = reached + (i + row.lo - band);
            for (int32_t k = 0; k <= row.hi - row.lo; ++k) {
              mark[k] |= static_cast<uint8_t>(row.us[k] <= limit_us && rest[k] <= limit_us);
            }
          });
        }
      }
      Range& hull = narrowed[at(stages - 1, behind)];
      for (int32_t i = ends.lo; i <= ends.hi; ++i) {
        if (reached[i - band] == 0) continue;
        if (hull.hi < hull.lo) hull.lo = i;
        hull.hi = i;
      }
    });
    std::swap(marks, next);
  }
  narrowed_ = std::move(narrowed);
}

// Follows the states of the last sum pass.
std::vector<CutStage> StageProgramme::Trace(int32_t stages) const {
  std::vector<CutStage> cuts;
  int32_t gpus = gpus_, i = 0;
  for (; stages > 0; --stages) {
    const double want = State(stages, gpus, i);
    bool found = false;
    for (int32_t z = 0; z < static_cast<int32_t>(sizes_.size()) && sizes_[z] <= gpus && !found; ++z) {
      ForWindows(stages, gpus, z, i, [&](const Row& row) {
        for (int32_t length = row.lo; length <= row.hi && !found; ++length) {
          const double stage_us = row.us[length - row.lo];
          if (stage_us > limit_us_ || stage_us + State(stages - 1, gpus - sizes_[z], i + length) != want) continue;
          StagePlace place = kinds_[kind_of_[static_cast<size_t>(gpus_ - gpus) * sizes_.size() + z]];
          place.stages_behind = stages - 1;
          place.first_gpu = gpus_ - gpus;
          cuts.push_back({op_at_[i], op_at_[i + length], sizes_[z], place, stage_us});
          found = true;
        }
      });
    }
    TIDEPOOL_CHECK(found, "stage {} from the end cannot be traced", stages);
    i = PointOf(cuts.back().end);
    gpus -= cuts.back().gpus;
  }
  return cuts;
}

}  // namespace tidepool::plan
