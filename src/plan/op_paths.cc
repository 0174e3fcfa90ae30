#include "plan/op_paths.h"

#include <algorithm>
#include <limits>

namespace tidepool::plan {
namespace {

constexpr int32_t kAlign = 8;
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
}

void PathFront::Start(int32_t position) {
  last_ = position;
  std::fill(now_.begin(), now_.end(), 0.0);
  for (int32_t state = 0; state < states_; ++state) {
    const OpSplitCost& cost = splits_.At(position, state / 2);
    const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0), live = cost.input_mib + cost.activation_mib;
    for (int32_t lane = 0; lane < width_; ++lane) {
      At(now_, kUs, state)[lane] = us;
      At(now_, kState, state)[lane] = cost.state_mib;
      At(now_, kWeight, state)[lane] = cost.weight_mib;
      At(now_, kLive, state)[lane] = live;
      At(now_, kFirst, state)[lane] = state / 2;
      // The transfer in is paid by the first op's split.
      At(now_, kObjective, state)[lane] = us + cost.in_us[0] + lambda_[lane] * cost.state_mib + nu_[lane] * live;
    }
  }
}

// The best state before, for each lane.
void PathFront::Choose(int32_t position, int32_t split, int32_t recompute) {
  std::fill(best_.begin(), best_.end(), kInfinity);
  const bool frees = recompute != 0 && !model_.ops().at(position).starts_layer;
  const double* reshard = splits_.Reshard(position);
  const int32_t begin = splits_.MaySwitch(position) ? 0 : split, end = splits_.MaySwitch(position) ? splits_.size() : split + 1;
  double* best = best_.data();
  double* from = from_.data();
  const double* nu = nu_.data();
  for (int32_t before = begin; before < end; ++before) {
    const double reshard_us = reshard[static_cast<size_t>(before) * splits_.size() + split];
    for (int32_t again = 0; again < 2; ++again) {
      const double freed = again != 0 && frees ? splits_.At(last_, before).activation_mib : 0;
      const double* objective = At(now_, kObjective, before * 2 + again);
      const double code = before * 2 + again;
      for (int32_t lane = 0; lane < width_; ++lane) {
        const double value = objective[lane] + reshard_us - nu[lane] * freed;
        const bool better = value < best[lane];
        best[lane] = better ? value : best[lane];
        from[lane] = better ? code : from[lane];
      }
    }
  }
}

void PathFront::Extend(int32_t position, int32_t split, int32_t recompute) {
  const int32_t state = split * 2 + recompute;
  const OpSplitCost& cost = splits_.At(position, split);
  const bool frees = recompute != 0 && !model_.ops().at(position).starts_layer;
  const double* reshard = splits_.Reshard(position);
  const double us = cost.us + (recompute != 0 ? cost.again_us : 0);
  for (int32_t lane = 0; lane < width_; ++lane) {
    const auto before = static_cast<int32_t>(from_[lane]);
    const OpSplitCost& last = splits_.At(last_, before / 2);
    const bool freed = before % 2 != 0 && frees;
    const double freed_mib = freed ? last.activation_mib : 0;
    At(next_, kObjective, state)[lane] = best_[lane] + us + lambda_[lane] * cost.state_mib + nu_[lane] * cost.activation_mib;
    At(next_, kUs, state)[lane] =
        At(now_, kUs, before)[lane] + us + reshard[static_cast<size_t>(before / 2) * splits_.size() + split];
    At(next_, kState, state)[lane] = At(now_, kState, before)[lane] + cost.state_mib;
    At(next_, kWeight, state)[lane] = At(now_, kWeight, before)[lane] + cost.weight_mib;
    At(next_, kLive, state)[lane] = At(now_, kLive, before)[lane] + cost.activation_mib - freed_mib;
    const double open = freed ? At(now_, kOpen, before)[lane] + freed_mib : 0;
    At(next_, kOpen, state)[lane] = open;
    At(next_, kPeak, state)[lane] = std::max(At(now_, kPeak, before)[lane], open);
    At(next_, kForward, state)[lane] = std::max(At(now_, kForward, before)[lane], last.forward_reserved_mib);
    At(next_, kBackward, state)[lane] = std::max(At(now_, kBackward, before)[lane], last.backward_reserved_mib);
    At(next_, kFirst, state)[lane] = At(now_, kFirst, before)[lane];
  }
}

void PathFront::Step(int32_t position) {
  for (int32_t split = 0; split < splits_.size(); ++split) {
    for (int32_t recompute = 0; recompute < 2; ++recompute) {
      Choose(position, split, recompute);
      Extend(position, split, recompute);
    }
  }
  std::swap(now_, next_);
  last_ = position;
}

PathEnd PathFront::End(int32_t lane) const {
  int32_t best = 0;
  double least = kInfinity;
  for (int32_t state = 0; state < states_; ++state) {
    const auto first = static_cast<int32_t>(At(now_, kFirst, state)[lane]);
    const double objective = At(now_, kObjective, state)[lane] + splits_.OutUs(last_, first, state / 2, LinkClass::kWithinNode);
    if (objective < least) {
      least = objective;
      best = state;
    }
  }
  const auto get = [&](Field field) { return At(now_, field, best)[lane]; };
  return {get(kUs),
          get(kState),
          get(kLive),
          get(kPeak),
          std::max(get(kForward) + get(kBackward), get(kWeight)),
          static_cast<int32_t>(get(kFirst)),
          best / 2};
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
