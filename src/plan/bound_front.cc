#include "plan/bound_front.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "plan/vectorize.h"

namespace tidepool::plan {
namespace {

constexpr double kSameShift = 1e-7;  // of a shift: by so much it may be larger for some states
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

BoundFront::BoundFront(const CostModel& model, const BoundTerms& terms, const OpSplits& splits,
                       const std::vector<double>& least_reserved_mib, std::vector<BoundLane> lanes)
    : model_(model),
      terms_(terms),
      splits_(splits),
      least_reserved_mib_(least_reserved_mib),
      lanes_(std::move(lanes)),
      width_(static_cast<int32_t>(lanes_.size())) {
  for (const BoundLane& lane : lanes_) {
    lambda_.push_back(lane.lambda);
    nu_.push_back(lane.lambda * lane.waiting * terms.scale);
    weights_.push_back(lane.with_weights ? lane.lambda : 0);
  }
  now_.resize(static_cast<size_t>(splits.size()) * 2 * width_);
  next_ = now_;
}

bool BoundFront::Receives(int32_t position) const {
  return terms_.pays_at_list_ends || model_.ops().ops[position] != model_.ops().ops.front();
}
bool BoundFront::Sends(int32_t position) const {
  return terms_.pays_at_list_ends || model_.ops().ops[position] != model_.ops().ops.back();
}

double BoundFront::ReservedWithLast() const { return std::max(reserved_mib_, least_reserved_mib_[model_.ops().ops[last_]]); }

void BoundFront::Start(int32_t position, bool edge) {
  last_ = position;
  reserved_mib_ = 0;
  const double messages = edge && Receives(position) ? terms_.messages : 0;
  for (int32_t state = 0; state < splits_.size() * 2; ++state) {
    const OpSplitCost& cost = splits_.At(position, state / 2);
    const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0) + messages * cost.in_us[0];
    const double live = (edge ? cost.input_mib : 0) + cost.activation_mib;
    double* now = &now_[static_cast<size_t>(state) * width_];
    for (int32_t i = 0; i < width_; ++i) {
      now[i] = us + lambda_[i] * cost.state_mib + nu_[i] * live + weights_[i] * cost.weight_mib;
    }
  }
}

TIDEPOOL_PLAN_WIDE void BoundFront::Step(int32_t position) {
  reserved_mib_ = ReservedWithLast();  // a stage's last op does not count
  const bool may_switch = splits_.MaySwitch(position), starts = model_.ops().at(position).starts_layer;
  const double* reshard = splits_.Reshard(position);
  const double* nu = nu_.data();
  for (int32_t split = 0; split < splits_.size(); ++split) {
    const OpSplitCost& cost = splits_.At(position, split);
    for (int32_t again = 0; again < 2; ++again) {
      double* next = &next_[static_cast<size_t>(split * 2 + again) * width_];
      std::fill(next, next + width_, kInfinity);
      for (int32_t before = may_switch ? 0 : split; before < (may_switch ? splits_.size() : split + 1); ++before) {
        const double add = reshard[static_cast<size_t>(before) * splits_.size() + split];
        const double freed = again != 0 && !starts ? splits_.At(last_, before).activation_mib : 0;
        const double* plain = &now_[static_cast<size_t>(before) * 2 * width_];
        const double* recomputed = plain + width_;
        for (int32_t i = 0; i < width_; ++i) {
          const double a = plain[i], b = recomputed[i] - nu[i] * freed;
          const double value = (a < b ? a : b) + add;
          next[i] = value < next[i] ? value : next[i];
        }
      }
      const double us = cost.us + (again != 0 ? cost.again_us : 0);
      for (int32_t i = 0; i < width_; ++i) {
        next[i] += us + lambda_[i] * cost.state_mib + nu[i] * cost.activation_mib + weights_[i] * cost.weight_mib;
      }
    }
  }
  std::swap(now_, next_);
  last_ = position;
}

TIDEPOOL_PLAN_WIDE bool BoundFront::Repeats(const BoundFront& before, std::vector<double>* shift) const {
  shift->assign(width_, kInfinity);
  std::vector<double> most(width_, 0);
  double *lo = shift->data(), *hi = most.data();
  for (int32_t state = 0; state < splits_.size() * 2; ++state) {
    const double *now = &now_[static_cast<size_t>(state) * width_], *old = &before.now_[static_cast<size_t>(state) * width_];
    for (int32_t i = 0; i < width_; ++i) {
      const double by = now[i] - old[i];
      lo[i] = std::min(lo[i], by);
      hi[i] = std::max(hi[i], by);
    }
  }
  int32_t others = 0;
  for (int32_t i = 0; i < width_; ++i) others += static_cast<int32_t>(!(hi[i] - lo[i] <= kSameShift * hi[i]));
  return others == 0 && reserved_mib_ == before.reserved_mib_;
}

TIDEPOOL_PLAN_WIDE void BoundFront::Advance(const std::vector<double>& shift, double count) {
  const double* by = shift.data();
  for (int32_t state = 0; state < splits_.size() * 2; ++state) {
    double* now = &now_[static_cast<size_t>(state) * width_];
    for (int32_t i = 0; i < width_; ++i) now[i] += by[i] * count;
  }
}

TIDEPOOL_PLAN_WIDE void BoundFront::Ends(LinkClass out_link, std::vector<double>* bounds) const {
  bounds->assign(width_, kInfinity);
  const double messages = Sends(last_) ? terms_.messages : 0;
  for (int32_t state = 0; state < splits_.size() * 2; ++state) {
    double out = kInfinity;
    for (int32_t first = 0; first < splits_.size(); ++first) {
      out = std::min(out, messages * splits_.OutUs(last_, first, state / 2, out_link));
    }
    const double* now = &now_[static_cast<size_t>(state) * width_];
    double* bound = bounds->data();
    for (int32_t i = 0; i < width_; ++i) bound[i] = std::min(bound[i], now[i] + out);
  }
}

TIDEPOOL_PLAN_WIDE void BoundFront::Open(std::vector<double>* bounds) const {
  bounds->assign(width_, kInfinity);
  for (int32_t state = 0; state < splits_.size() * 2; ++state) {
    const double* now = &now_[static_cast<size_t>(state) * width_];
    double* bound = bounds->data();
    for (int32_t i = 0; i < width_; ++i) bound[i] = std::min(bound[i], now[i]);
  }
}

}  // namespace tidepool::plan
