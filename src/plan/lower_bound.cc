// Lagrangian bound. A stage that fits has state + waiting * live + reserved <= limit, whatever its splits and recomputation are.
// So for any price lambda >= 0 its time is at least
//   min over paths of (time + lambda * (state + waiting * live)) - lambda * (limit - least reserved),
// and a programme over such times is below every plan. What recomputation brings back at once is left out, so the bound is not
// tight where that is large. docs/plan.md has the proof.
#include "plan/lower_bound.h"

#include <algorithm>
#include <cmath>

#include "plan/op_splits.h"
#include "plan/stage_programme.h"

namespace tidepool::plan {
namespace {

constexpr double kLeastLambda = 0.01, kLambdaRatio = 1.6;
constexpr int32_t kLambdas = 20;
constexpr int32_t kWaiting[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
constexpr double kTolerance = 1e-4;  // the bound is made this much weaker, to save passes

struct Lane {
  double lambda = 0, waiting = 1;
  bool with_weights = false;  // the reserve is at least a buffer of the weights' size; else: at least what some op needs
};

// The least objective of every lane over all paths to an op, by the state at the op.
class BoundFront {
 public:
  BoundFront(const CostModel& model, const OpSplits& splits, const std::vector<Lane>& lanes)
      : model_(model), splits_(splits), lanes_(lanes), width_(static_cast<int32_t>(lanes.size())) {
    for (const Lane& lane : lanes_) {
      lambda_.push_back(lane.lambda);
      nu_.push_back(lane.lambda * lane.waiting);
      weights_.push_back(lane.with_weights ? lane.lambda : 0);
    }
    now_.resize(static_cast<size_t>(splits.size()) * 2 * width_);
    next_ = now_;
  }

  void Start(int32_t position) {
    last_ = position;
    reserved_mib_ = 0;
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      const OpSplitCost& cost = splits_.At(position, state / 2);
      const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0) + cost.in_us[0];
      const double live = cost.input_mib + cost.activation_mib;
      double* now = &now_[static_cast<size_t>(state) * width_];
      for (int32_t i = 0; i < width_; ++i) {
        now[i] = us + lambda_[i] * cost.state_mib + nu_[i] * live + weights_[i] * cost.weight_mib;
      }
    }
  }

  void Step(int32_t position) {
    double least = kNever;  // what the op before needs at least; the stage's last op does not count
    for (int32_t split = 0; split < splits_.size(); ++split) {
      const OpSplitCost& cost = splits_.At(last_, split);
      least = std::min(least, cost.forward_reserved_mib + cost.backward_reserved_mib);
    }
    reserved_mib_ = std::max(reserved_mib_, least);
    const bool may_switch = splits_.MaySwitch(position), starts = model_.ops().at(position).starts_layer;
    const double* reshard = splits_.Reshard(position);
    const double* nu = nu_.data();
    for (int32_t split = 0; split < splits_.size(); ++split) {
      const OpSplitCost& cost = splits_.At(position, split);
      for (int32_t again = 0; again < 2; ++again) {
        double* next = &next_[static_cast<size_t>(split * 2 + again) * width_];
        std::fill(next, next + width_, kNever);
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

  // Of the window that ends here, with each link behind it: a bound on its time for every lane, for a limit of 0.
  void Ends(LinkClass out_link, std::vector<double>* bounds) const {
    bounds->assign(width_, kNever);
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      double out = kNever;
      for (int32_t first = 0; first < splits_.size(); ++first)
        out = std::min(out, splits_.OutUs(last_, first, state / 2, out_link));
      const double* now = &now_[static_cast<size_t>(state) * width_];
      for (int32_t i = 0; i < width_; ++i) (*bounds)[i] = std::min((*bounds)[i], now[i] + out);
    }
  }
  double reserved_mib() const { return reserved_mib_; }
  const std::vector<Lane>& lanes() const { return lanes_; }

 private:
  const CostModel& model_;
  const OpSplits& splits_;
  std::vector<Lane> lanes_;
  int32_t width_, last_ = -1;
  double reserved_mib_ = 0;
  std::vector<double> lambda_, nu_, weights_;
  std::vector<double> now_, next_;  // [state][lane]
};

std::vector<Lane> LanesFor(int32_t waiting_lo, int32_t waiting_hi) {
  std::vector<Lane> lanes = {{0, 1, false}};
  for (size_t i = 0; i < std::size(kWaiting) && kWaiting[i] <= waiting_hi; ++i) {
    if (i + 1 < std::size(kWaiting) && kWaiting[i + 1] <= waiting_lo) continue;
    for (int32_t k = 0; k < kLambdas; ++k) {
      for (const bool with_weights : {false, true}) {
        lanes.push_back({kLeastLambda * std::pow(kLambdaRatio, k), static_cast<double>(kWaiting[i]), with_weights});
      }
    }
  }
  return lanes;
}

class BoundOracle : public StageOracle {
 public:
  explicit BoundOracle(const StageProgramme& programme) {
    for (const int32_t size : programme.sizes()) {
      splits_.emplace_back(programme.model(), size, programme.micro_batch(), programme.micro_batches());
    }
  }

  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override {
    const OpSplits& splits = splits_[size];
    WindowBlock& inside = blocks->inside;
    int32_t start = inside.empty() ? blocks->beyond.front().first : inside.first, q_lo = 1 << 30, q_hi = 0;
    const auto see = [&](const WindowBlock& block) {
      if (block.empty()) return;
      start = std::min(start, block.first);
      q_lo = std::min(q_lo, block.q_lo);
      q_hi = std::max(q_hi, block.q_hi);
    };
    see(inside);
    int32_t longest = inside.empty() ? 0 : inside.hi;
    for (const WindowBlock& block : blocks->beyond) {
      see(block);
      longest = std::max(longest, programme.SegmentEnd(block.first) - block.first);
    }
    BoundFront front(programme.model(), splits, LanesFor(q_lo + 1, q_hi + 1));
    std::vector<double> ends[kLinkClasses];
    const auto write = [&](const BoundFront& at, int32_t length, WindowBlock* block) {
      for (int link = 0; link < kLinkClasses; ++link) at.Ends(static_cast<LinkClass>(link), &ends[link]);
      Write(programme, splits, limit_us, at, ends, length, block);
    };
    const auto go_on = [&](BoundFront from, int32_t length, WindowBlock* block) {
      while (length < block->hi) {
        const int32_t position = block->first + length;
        length == 0 ? from.Start(position) : from.Step(position);
        if (++length >= block->lo) write(from, length, block);
      }
    };
    for (int32_t length = 0; length <= longest; ++length) {
      if (length > 0) {
        length == 1 ? front.Start(start) : front.Step(start + length - 1);
        if (!inside.empty() && length >= inside.lo && length <= inside.hi) write(front, length, &inside);
      }
      for (WindowBlock& block : blocks->beyond) {
        if (programme.SegmentEnd(block.first) - block.first == length) go_on(front, length, &block);
      }
    }
  }

 private:
  static void Write(const StageProgramme& programme, const OpSplits& splits, double limit_us, const BoundFront& front,
                    const std::vector<double> (&ends)[kLinkClasses], int32_t length, WindowBlock* block) {
    const std::vector<Lane>& lanes = front.lanes();
    for (int32_t kind = 0; kind < programme.kinds(); ++kind) {
      const StagePlace& place = programme.kind(kind);
      double in_us = kNever;  // what the link before adds to a transfer within a node, at least
      for (int32_t split = 0; split < splits.size(); ++split) {
        const OpSplitCost& first = splits.At(block->first, split);
        in_us = std::min(in_us, first.in_us[static_cast<int>(place.in_link)] - first.in_us[0]);
      }
      const std::vector<double>& bounds = ends[static_cast<int>(place.out_link)];
      double best = 0;
      size_t lane = 0;
      for (int32_t q = 0; q <= block->q_hi; ++q) {
        // Lanes ascend by waiting micro-batches; fewer of them give a bound too.
        for (; lane < lanes.size() && lanes[lane].waiting <= q + 1; ++lane) {
          const double room = programme.limit_mib(kind) - (lanes[lane].with_weights ? 0 : front.reserved_mib());
          best = std::max(best, bounds[lane] - lanes[lane].lambda * room);
        }
        if (q < block->q_lo || best + in_us > limit_us) continue;
        block->us[(static_cast<size_t>(q - block->q_lo) * programme.kinds() + kind) * block->lengths() + (length - block->lo)] =
            best + in_us;
      }
    }
  }

  std::vector<OpSplits> splits_;  // [size]
};

}  // namespace

double LowerBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                       const std::function<bool()>& interrupted) {
  // Other models are not sums over ops in the way that this bound needs.
  if (model.name() != "parity") return 0;
  double bound_us = upper_ms * 1000;
  const StageBounds bounds{.min_stages = request.min_stages, .max_stages = request.max_stages};
  for (const int32_t micro_batch : request.micro_batches) {
    StageProgramme programme(model, micro_batch, request.global_batch / micro_batch, bounds);
    if (programme.FloorUs() > bound_us) continue;
    const BoundOracle oracle(programme);
    const std::optional<CutSolution> cuts = programme.Solve(oracle, bound_us, workers, interrupted, nullptr, 0, kTolerance);
    if (programme.was_interrupted()) return 0;
    if (cuts) bound_us = std::min(bound_us, cuts->objective_us);
  }
  return bound_us < kNever ? bound_us * (1 - kTolerance) / 1000 : 0;
}

StatusOr<double> LowerBound(const CostModel& model, const SearchRequest& request) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(request, model));
  Workers workers(request.threads);
  return LowerBoundBelow(model, request, kNever, &workers, [] { return false; });
}

}  // namespace tidepool::plan
