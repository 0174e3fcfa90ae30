#include "plan/op_paths.h"

#include <algorithm>
#include <limits>

#include "plan/vectorize.h"

namespace tidepool::plan {
namespace {

constexpr int32_t kAlign = 8;
constexpr double kSameShift = 1e-9;  // of a shift, and us or MiB: what rounding may do to it
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

PathFront::PathFront(const CostModel& model, const OpSplits& splits, std::vector<PathLane> lanes)
    : model_(model), splits_(splits), lanes_(std::move(lanes)), states_(splits.size() * 2) {
  width_ = (static_cast<int32_t>(lanes_.size()) + kAlign - 1) / kAlign * kAlign;
  lambda_.assign(width_, 0);
  nu_.assign(width_, 0);
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lambda_[i] = lanes_[i].lambda;
    nu_[i] = lanes_[i].lambda * lanes_[i].waiting;
  }
  now_.assign(static_cast<size_t>(kFields) * states_ * width_, 0);
  next_ = now_;
  best_.assign(width_, 0);
  from_.assign(width_, 0);
  pair_.assign(static_cast<size_t>(states_) * width_, 0);
  pair_from_ = pair_;
}

void PathFront::Start(int32_t position, bool edge) {
  last_ = position;
  std::fill(now_.begin(), now_.end(), 0.0);
  for (int32_t state = 0; state < states_; ++state) {
    const OpSplitCost& cost = splits_.At(position, state / 2);
    const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0);
    const double live = (edge ? cost.input_mib : 0) + cost.activation_mib;
    const double in_us = edge ? cost.in_us[0] : 0;  // the transfer in is paid by the first op's split
    for (int32_t lane = 0; lane < width_; ++lane) {
      At(now_, kUs, state)[lane] = us;
      At(now_, kState, state)[lane] = cost.state_mib;
      At(now_, kWeight, state)[lane] = cost.weight_mib;
      At(now_, kLive, state)[lane] = live;
      At(now_, kFirst, state)[lane] = state / 2;
      At(now_, kObjective, state)[lane] = us + in_us + lambda_[lane] * cost.state_mib + nu_[lane] * live;
    }
  }
}

// For each split before, with and without what recomputation of both ops frees: the better of recomputing it or not.
TIDEPOOL_PLAN_WIDE void PathFront::Pair(int32_t position) {
  const bool starts_layer = model_.ops().at(position).starts_layer;
  const double* nu = nu_.data();
  for (int32_t recompute = 0; recompute < 2; ++recompute) {
    for (int32_t before = 0; before < splits_.size(); ++before) {
      const double freed = recompute != 0 && !starts_layer ? splits_.At(last_, before).activation_mib : 0;
      const double *plain = At(now_, kObjective, before * 2), *again = At(now_, kObjective, before * 2 + 1);
      double* pair = &pair_[static_cast<size_t>(recompute * splits_.size() + before) * width_];
      double* from = &pair_from_[static_cast<size_t>(recompute * splits_.size() + before) * width_];
      const double code = before * 2;
      for (int32_t lane = 0; lane < width_; ++lane) {
        const double value = again[lane] - nu[lane] * freed;
        const bool better = value < plain[lane];
        pair[lane] = better ? value : plain[lane];
        from[lane] = better ? code + 1 : code;
      }
    }
  }
}

// The best state before, for each lane.
TIDEPOOL_PLAN_WIDE void PathFront::Choose(int32_t position, int32_t split, int32_t recompute) {
  const bool may_switch = splits_.MaySwitch(position);
  const double* reshard = splits_.Reshard(position);
  double* best = best_.data();
  double* best_from = from_.data();
  std::fill(best_.begin(), best_.end(), kInfinity);
  for (int32_t before = may_switch ? 0 : split; before < (may_switch ? splits_.size() : split + 1); ++before) {
    const double reshard_us = reshard[static_cast<size_t>(before) * splits_.size() + split];
    const double* pair = &pair_[static_cast<size_t>(recompute * splits_.size() + before) * width_];
    const double* from = &pair_from_[static_cast<size_t>(recompute * splits_.size() + before) * width_];
    for (int32_t lane = 0; lane < width_; ++lane) {
      const double value = pair[lane] + reshard_us;
      const bool better = value < best[lane];
      best[lane] = better ? value : best[lane];
      best_from[lane] = better ? from[lane] : best_from[lane];
    }
  }
}

TIDEPOOL_PLAN_WIDE void PathFront::Extend(int32_t position, int32_t split, int32_t recompute) {
  const int32_t state = split * 2 + recompute;
  const OpSplitCost& cost = splits_.At(position, split);
  const bool frees = recompute != 0 && !model_.ops().at(position).starts_layer;
  const double* reshard = splits_.Reshard(position);
  const double us = cost.us + (recompute != 0 ? cost.again_us : 0);
  // Lanes [lane, end), which all come from one state.
  const auto extend = [&](int32_t before, int32_t lane, int32_t end) __attribute__((always_inline)) {
    const OpSplitCost& last = splits_.At(last_, before / 2);
    const bool freed = before % 2 != 0 && frees;
    const double freed_mib = freed ? last.activation_mib : 0, keep_open = freed ? 1 : 0;
    const double add_us = us + reshard[static_cast<size_t>(before / 2) * splits_.size() + split];
    const auto each = [&](Field field, const auto& after) {
      double* __restrict next = At(next_, field, state);
      const double* now = At(now_, field, before);
      for (int32_t i = lane; i < end; ++i) next[i] = after(now[i]);
    };
    each(kUs, [&](double value) { return value + add_us; });
    each(kState, [&](double value) { return value + cost.state_mib; });
    each(kWeight, [&](double value) { return value + cost.weight_mib; });
    each(kLive, [&](double value) { return value + cost.activation_mib - freed_mib; });
    each(kOpen, [&](double value) { return (value + freed_mib) * keep_open; });
    each(kForward, [&](double value) { return std::max(value, last.forward_reserved_mib); });
    each(kBackward, [&](double value) { return std::max(value, last.backward_reserved_mib); });
    each(kFirst, [](double value) { return value; });
    const double* open = At(next_, kOpen, state);
    const double* peak_before = At(now_, kPeak, before);
    double* __restrict peak = At(next_, kPeak, state);
    for (int32_t i = lane; i < end; ++i) peak[i] = std::max(peak_before[i], open[i]);
  };
  const double *best = best_.data(), *lambda = lambda_.data(), *nu = nu_.data();
  double* __restrict objective = At(next_, kObjective, state);
  for (int32_t lane = 0; lane < width_; ++lane) {
    objective[lane] = best[lane] + us + lambda[lane] * cost.state_mib + nu[lane] * cost.activation_mib;
  }
  for (int32_t lane = 0; lane < width_;) {
    int32_t end = lane + 1;
    while (end < width_ && from_[end] == from_[lane]) ++end;
    extend(static_cast<int32_t>(from_[lane]), lane, end);
    lane = end;
  }
}

void PathFront::Step(int32_t position) {
  Pair(position);
  for (int32_t split = 0; split < splits_.size(); ++split) {
    for (int32_t recompute = 0; recompute < 2; ++recompute) {
      Choose(position, split, recompute);
      Extend(position, split, recompute);
    }
  }
  std::swap(now_, next_);
  last_ = position;
}

namespace {

// Whether now - before is the same in all rows of `stride`; which is then in *shift.
TIDEPOOL_PLAN_WIDE bool SameShift(const double* now, const double* before, int32_t rows, size_t stride, int32_t width,
                                  std::vector<double>* shift) {
  shift->resize(width);
  double* first = shift->data();
  for (int32_t i = 0; i < width; ++i) first[i] = now[i] - before[i];
  for (int32_t row = 1; row < rows; ++row) {
    const double *to = now + row * stride, *from = before + row * stride;
    int32_t others = 0;
    for (int32_t i = 0; i < width; ++i) {
      const double apart = to[i] - from[i] - first[i];
      others += static_cast<int32_t>(std::max(apart, -apart) > kSameShift * std::max(first[i], -first[i]) + kSameShift);
    }
    if (others > 0) return false;
  }
  return true;
}

}  // namespace

bool PathFront::Repeats(const PathFront& before, PathShift* shift) const {
  const size_t stride = static_cast<size_t>(kFields) * width_;
  const auto same = [&](Field field, std::vector<double>* of_lanes) {
    return SameShift(At(now_, field, 0), At(before.now_, field, 0), states_, stride, width_, of_lanes);
  };
  if (!same(kObjective, &shift->objective) || !same(kUs, &shift->us) || !same(kState, &shift->state_mib) ||
      !same(kWeight, &shift->weight_mib) || !same(kLive, &shift->live_mib)) {
    return false;
  }
  for (const Field field : {kOpen, kPeak, kForward, kBackward, kFirst}) {
    for (int32_t state = 0; state < states_; ++state) {
      const double* now = At(now_, field, state);
      if (!std::equal(now, now + width_, At(before.now_, field, state))) return false;
    }
  }
  return true;
}

TIDEPOOL_PLAN_WIDE void PathFront::Advance(const PathShift& shift, double count) {
  const auto add = [&](Field field, const std::vector<double>& of_lanes) __attribute__((always_inline)) {
    const double* by = of_lanes.data();
    for (int32_t state = 0; state < states_; ++state) {
      double* now = At(now_, field, state);
      for (int32_t i = 0; i < width_; ++i) now[i] += by[i] * count;
    }
  };
  add(kObjective, shift.objective);
  add(kUs, shift.us);
  add(kState, shift.state_mib);
  add(kWeight, shift.weight_mib);
  add(kLive, shift.live_mib);
}

TIDEPOOL_PLAN_WIDE void PathShift::AddTo(PathEnds* ends, double count) const {
  const auto add = [&](const std::vector<double>& by, std::vector<double>* field) __attribute__((always_inline)) {
    for (size_t i = 0; i < field->size(); ++i) (*field)[i] += by[i] * count;
  };
  add(us, &ends->us);
  add(state_mib, &ends->state_mib);
  add(weight_mib, &ends->weight_mib);
  add(live_mib, &ends->live_mib);
}

void PathFront::Ends(PathEnds* ends) const {
  const auto lanes = static_cast<int32_t>(lanes_.size());
  ends->Resize(lanes);
  std::vector<double> best(lanes, kInfinity);
  std::vector<int32_t> from(lanes, 0);
  for (int32_t state = 0; state < states_; ++state) {
    const double out_us = splits_.OutUs(last_, state / 2, state / 2, LinkClass::kWithinNode);
    const double* objective = At(now_, kObjective, state);
    for (int32_t lane = 0; lane < lanes; ++lane) {
      const double value = objective[lane] + out_us;
      const bool better = value < best[lane];
      best[lane] = better ? value : best[lane];
      from[lane] = better ? state : from[lane];
    }
  }
  for (int32_t lane = 0; lane < lanes; ++lane) {
    const double* now = At(now_, 0, from[lane]) + lane;
    ends->us[lane] = now[static_cast<size_t>(kUs) * width_];
    ends->state_mib[lane] = now[static_cast<size_t>(kState) * width_];
    ends->weight_mib[lane] = now[static_cast<size_t>(kWeight) * width_];
    ends->live_mib[lane] = now[static_cast<size_t>(kLive) * width_];
    ends->peak_mib[lane] = now[static_cast<size_t>(kPeak) * width_];
    ends->forward_mib[lane] = now[static_cast<size_t>(kForward) * width_];
    ends->backward_mib[lane] = now[static_cast<size_t>(kBackward) * width_];
    ends->first_split[lane] = static_cast<int32_t>(now[static_cast<size_t>(kFirst) * width_]);
    ends->last_split[lane] = from[lane] / 2;
  }
}

void PathEnds::Resize(int32_t lanes) {
  for (std::vector<double>* field : {&us, &state_mib, &weight_mib, &live_mib, &peak_mib, &forward_mib, &backward_mib}) {
    field->resize(lanes);
  }
  first_split.resize(lanes);
  last_split.resize(lanes);
}

TIDEPOOL_PLAN_WIDE void JoinEnds(const OpSplits& splits, const PathEnds& head, const PathEnds& tail, int32_t position,
                                 PathEnds* joined) {
  const int32_t lanes = head.lanes();
  joined->Resize(lanes);
  for (int32_t i = 0; i < lanes; ++i) {
    joined->us[i] = head.us[i] + tail.us[i];
    joined->state_mib[i] = head.state_mib[i] + tail.state_mib[i];
    joined->weight_mib[i] = head.weight_mib[i] + tail.weight_mib[i];
    joined->live_mib[i] = head.live_mib[i] + tail.live_mib[i];
    joined->peak_mib[i] = std::max(head.peak_mib[i], tail.peak_mib[i]);
    const OpSplitCost& last = splits.At(position - 1, head.last_split[i]);  // is not the last one here
    joined->forward_mib[i] = std::max({head.forward_mib[i], tail.forward_mib[i], last.forward_reserved_mib});
    joined->backward_mib[i] = std::max({head.backward_mib[i], tail.backward_mib[i], last.backward_reserved_mib});
  }
  joined->first_split = head.first_split;
  joined->last_split = tail.last_split;
}

std::vector<OpChoice> BestPath(const CostModel& model, const OpSplits& splits, int32_t first, int32_t count,
                               const PathLane& lane) {
  const int32_t states = splits.size() * 2, n = splits.size();
  const double lambda = lane.lambda, nu = lane.lambda * lane.waiting;
  std::vector<double> now(states), next(states), first_of(states), next_first(states);
  std::vector<int32_t> from(static_cast<size_t>(count) * states, 0);
  for (int32_t state = 0; state < states; ++state) {
    const OpSplitCost& cost = splits.At(first, state / 2);
    now[state] = cost.us + (state % 2 != 0 ? cost.again_us : 0) + cost.in_us[0] + lambda * cost.state_mib +
                 nu * (cost.input_mib + cost.activation_mib);
    first_of[state] = state / 2;
  }
  for (int32_t i = 1; i < count; ++i) {
    const int32_t position = first + i;
    const double* reshard = splits.Reshard(position);
    const bool may_switch = splits.MaySwitch(position), starts = model.ops().at(position).starts_layer;
    for (int32_t state = 0; state < states; ++state) {
      const int32_t split = state / 2;
      const bool frees = state % 2 != 0 && !starts;
      double best = kInfinity;
      int32_t arg = 0;
      for (int32_t before = may_switch ? 0 : split * 2; before < (may_switch ? states : split * 2 + 2); ++before) {
        const double freed = before % 2 != 0 && frees ? splits.At(position - 1, before / 2).activation_mib : 0;
        const double value = now[before] + reshard[static_cast<size_t>(before / 2) * n + split] - nu * freed;
        if (value < best) {
          best = value;
          arg = before;
        }
      }
      const OpSplitCost& cost = splits.At(position, split);
      const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0);
      next[state] = best + us + lambda * cost.state_mib + nu * cost.activation_mib;
      next_first[state] = first_of[arg];
      from[static_cast<size_t>(i) * states + state] = arg;
    }
    std::swap(now, next);
    std::swap(first_of, next_first);
  }
  int32_t state = 0;
  double least = kInfinity;
  for (int32_t end = 0; end < states; ++end) {
    const double objective =
        now[end] + splits.OutUs(first + count - 1, static_cast<int32_t>(first_of[end]), end / 2, LinkClass::kWithinNode);
    if (objective < least) {
      least = objective;
      state = end;
    }
  }
  std::vector<OpChoice> path(count);
  for (int32_t i = count - 1; i >= 0; --i) {
    path[i] = splits.choice(state / 2);
    path[i].recompute = state % 2 != 0;
    state = from[static_cast<size_t>(i) * states + state];
  }
  return path;
}

}  // namespace tidepool::plan
