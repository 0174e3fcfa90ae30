// Lagrangian bound. A stage that fits has state + waiting * live + reserved <= limit, whatever its splits and recomputation are.
// So for any price lambda >= 0 its time is at least
//   min over paths of (time + lambda * (state + waiting * live)) - lambda * (limit - least reserved),
// and a programme over such times is below every plan. What recomputation brings back at once is left out, so the bound is not
// tight where that is large. docs/plan.md has the proof.
#include "plan/lower_bound.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>

#include "plan/calibrated_bound.h"
#include "plan/op_splits.h"
#include "plan/programme_search.h"
#include "plan/vectorize.h"
#include "plan/window_walk.h"

namespace tidepool::plan {
namespace {

constexpr double kLeastLambda = 0.01, kLambdaRatio = 1.6;
constexpr int32_t kLambdas = 20;
constexpr int32_t kFewCuts = 100;
constexpr int64_t kLarge = 2000;  // ops * devices: below, all prices are tried, which is quick enough
constexpr int32_t kWaiting[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
constexpr double kTolerance = 2e-5;  // the bound is made this much weaker, to save passes

struct Lane {
  double lambda = 0, waiting = 1;
  bool with_weights = false;  // the reserve is at least a buffer of the weights' size; else: at least what some op needs
  int32_t waiting_index = 0, price = -1;  // of PriceUse
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

  // `edge`: a stage begins here, and what comes in is paid for.
  void Start(int32_t position, bool edge) {
    last_ = position;
    reserved_mib_ = 0;
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      const OpSplitCost& cost = splits_.At(position, state / 2);
      const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0) + (edge ? cost.in_us[0] : 0);
      const double live = (edge ? cost.input_mib : 0) + cost.activation_mib;
      double* now = &now_[static_cast<size_t>(state) * width_];
      for (int32_t i = 0; i < width_; ++i) {
        now[i] = us + lambda_[i] * cost.state_mib + nu_[i] * live + weights_[i] * cost.weight_mib;
      }
    }
  }

  TIDEPOOL_PLAN_WIDE void Step(int32_t position) {
    reserved_mib_ = ReservedWithLast();  // a stage's last op does not count
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

  // Of the window that ends here, with one link behind it: a bound on its time for every lane, for a limit of 0.
  TIDEPOOL_PLAN_WIDE void Ends(LinkClass out_link, std::vector<double>* bounds) const {
    bounds->assign(width_, kNever);
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      double out = kNever;
      for (int32_t first = 0; first < splits_.size(); ++first)
        out = std::min(out, splits_.OutUs(last_, first, state / 2, out_link));
      const double* now = &now_[static_cast<size_t>(state) * width_];
      double* bound = bounds->data();
      for (int32_t i = 0; i < width_; ++i) bound[i] = std::min(bound[i], now[i] + out);
    }
  }
  // The same without anything that leaves.
  TIDEPOOL_PLAN_WIDE void Open(std::vector<double>* bounds) const {
    bounds->assign(width_, kNever);
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      const double* now = &now_[static_cast<size_t>(state) * width_];
      double* bound = bounds->data();
      for (int32_t i = 0; i < width_; ++i) bound[i] = std::min(bound[i], now[i]);
    }
  }
  // What any op but the last needs at least; any op.
  double ReservedWithLast() const {
    double least = kNever;
    for (int32_t split = 0; split < splits_.size(); ++split) {
      const OpSplitCost& cost = splits_.At(last_, split);
      least = std::min(least, cost.forward_reserved_mib + cost.backward_reserved_mib);
    }
    return std::max(reserved_mib_, least);
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

// Which prices of memory give the best bounds, by number of waiting micro-batches. Counting is the only thing that threads do
// with it at once, so the choice does not depend on them.
class PriceUse {
 public:
  static constexpr size_t kPrices = static_cast<size_t>(kLambdas) * 2;

  void Count(size_t waiting, const std::vector<int64_t>& counts) {
    for (size_t i = 0; i < kPrices; ++i) counts_[waiting * kPrices + i].fetch_add(counts[i], std::memory_order_relaxed);
  }
  // The most used prices, which give nearly all of the best bounds.
  std::vector<uint8_t> MostUsed(size_t waiting) const {
    std::vector<std::pair<int64_t, size_t>> order;
    int64_t all = 0;
    for (size_t i = 0; i < kPrices; ++i) {
      const int64_t count = counts_[waiting * kPrices + i].load(std::memory_order_relaxed);
      order.emplace_back(-count, i);
      all += count;
    }
    std::sort(order.begin(), order.end());
    std::vector<uint8_t> used(kPrices, 0);
    int64_t sum = 0;
    for (const auto& [count, index] : order) {
      if (count == 0 || static_cast<double>(sum) >= kMostUses * static_cast<double>(all)) break;
      used[index] = 1;
      sum -= count;
    }
    return used;
  }

 private:
  static constexpr double kMostUses = 0.98;
  std::array<std::atomic<int64_t>, std::size(kWaiting)* kPrices> counts_ = {};
};

// `use`: only prices that were useful; null: all.
std::vector<Lane> LanesFor(int32_t waiting_lo, int32_t waiting_hi, const PriceUse* use) {
  std::vector<Lane> lanes = {{0, 1, false, 0, -1}};
  for (size_t i = 0; i < std::size(kWaiting) && kWaiting[i] <= waiting_hi; ++i) {
    if (i + 1 < std::size(kWaiting) && kWaiting[i + 1] <= waiting_lo) continue;
    const std::vector<uint8_t> used = use == nullptr ? std::vector<uint8_t>(PriceUse::kPrices, 1) : use->MostUsed(i);
    for (int32_t k = 0; k < kLambdas; ++k) {
      for (const bool with_weights : {false, true}) {
        const int32_t price = k * 2 + (with_weights ? 1 : 0);
        if (used[price] == 0) continue;
        lanes.push_back({kLeastLambda * std::pow(kLambdaRatio, k), static_cast<double>(kWaiting[i]), with_weights,
                         static_cast<int32_t>(i), price});
      }
    }
  }
  return lanes;
}

// The table of WindowWalk.
class BoundTable {
 public:
  struct Ends {
    std::vector<double> us[kLinkClasses], open;  // [lane]: by the link behind; without what leaves
    double reserved_mib = 0, reserved_with_last_mib = 0;
  };

  BoundTable(const StageProgramme& programme, const OpSplits& splits, double limit_us, std::vector<Lane> lanes)
      : programme_(programme),
        splits_(splits),
        limit_us_(limit_us),
        lanes_(std::move(lanes)),
        counts_(std::size(kWaiting), std::vector<int64_t>(PriceUse::kPrices, 0)) {}
  const std::vector<std::vector<int64_t>>& counts() const { return counts_; }  // [waiting][price]: best bounds that it gave

  void Read(const BoundFront& front, Ends* ends) const {
    for (int link = 0; link < kLinkClasses; ++link) front.Ends(static_cast<LinkClass>(link), &ends->us[link]);
    front.Open(&ends->open);
    ends->reserved_mib = front.reserved_mib();
    ends->reserved_with_last_mib = front.ReservedWithLast();
  }

  // The two parts may have different splits where they meet, resharding is free there, and recomputation frees what it can:
  // still a bound.
  void Join(const Ends& head, const Ends& tail, int32_t op, Ends* ends) const {
    double freed_mib = 0;
    if (!programme_.model().ops().at(op).starts_layer) {
      for (int32_t split = 0; split < splits_.size(); ++split) {
        freed_mib = std::max(freed_mib, splits_.At(op - 1, split).activation_mib);
      }
    }
    for (int link = 0; link < kLinkClasses; ++link) {
      ends->us[link].resize(lanes_.size());
      for (size_t i = 0; i < lanes_.size(); ++i) {
        ends->us[link][i] = head.open[i] + tail.us[link][i] - lanes_[i].lambda * lanes_[i].waiting * freed_mib;
      }
    }
    ends->reserved_mib = std::max(head.reserved_with_last_mib, tail.reserved_mib);
  }

  void Write(const Ends& ends, int32_t last_op, int32_t length, WindowBlock* block) {
    (void)last_op;
    for (int32_t kind = 0; kind < programme_.kinds(); ++kind) {
      const StagePlace& place = programme_.kind(kind);
      double in_us = kNever;  // what the link before adds to a transfer within a node, at least
      for (int32_t split = 0; split < splits_.size(); ++split) {
        const OpSplitCost& first = splits_.At(programme_.OpAt(block->first), split);
        in_us = std::min(in_us, first.in_us[static_cast<int>(place.in_link)] - first.in_us[0]);
      }
      const std::vector<double>& bounds = ends.us[static_cast<int>(place.out_link)];
      double best = 0;
      size_t lane = 0, best_lane = 0;
      for (int32_t q = 0; q <= block->q_hi; ++q) {
        // Lanes ascend by waiting micro-batches; fewer of them give a bound too.
        for (; lane < lanes_.size() && lanes_[lane].waiting <= q + 1; ++lane) {
          const double room = programme_.limit_mib(kind) - (lanes_[lane].with_weights ? 0 : ends.reserved_mib);
          const double bound = bounds[lane] - lanes_[lane].lambda * room;
          if (bound <= best) continue;
          best = bound;
          best_lane = lane;
        }
        if (q < block->q_lo || best + in_us > limit_us_) continue;
        if (lanes_[best_lane].price >= 0) ++counts_[lanes_[best_lane].waiting_index][lanes_[best_lane].price];
        block->us[(static_cast<size_t>(q - block->q_lo) * programme_.kinds() + kind) * block->lengths() + (length - block->lo)] =
            best + in_us;
      }
    }
  }

 private:
  const StageProgramme& programme_;
  const OpSplits& splits_;
  double limit_us_;
  std::vector<Lane> lanes_;
  std::vector<std::vector<int64_t>> counts_;
};

class BoundOracle : public StageOracle {
 public:
  // `use`: prices that are tried; null: all of them. With fewer, a bound is weaker and quicker to find. `learned`: gets those
  // that gave the best bounds.
  BoundOracle(const StageProgramme& programme, const PriceUse* use, PriceUse* learned) : use_(use), learned_(learned) {
    for (const int32_t size : programme.sizes()) {
      splits_.emplace_back(programme.model(), size, programme.micro_batch(), programme.micro_batches());
    }
  }

  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override {
    const ClassExtent extent = ExtentOf(*blocks);
    const BoundFront front(programme.model(), splits_[size], LanesFor(extent.q_lo + 1, extent.q_hi + 1, use_));
    BoundTable table(programme, splits_[size], limit_us, front.lanes());
    WindowWalk<BoundFront, BoundTable>(programme, blocks, &table).Run(front);
    if (learned_ == nullptr) return;
    for (size_t i = 0; i < table.counts().size(); ++i) learned_->Count(i, table.counts()[i]);
  }

 private:
  const PriceUse* use_;
  PriceUse* learned_;
  std::vector<OpSplits> splits_;  // [size]
};

}  // namespace

double LowerBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                       const std::function<bool()>& interrupted) {
  if (model.name() == "calibrated") return CalibratedBoundBelow(model, request, upper_ms, workers, interrupted);
  if (model.name() != "parity") return 0;
  double bound_us = upper_ms * 1000;
  const StageBounds bounds{.min_stages = request.min_stages, .max_stages = request.max_stages};
  for (const int32_t micro_batch : request.micro_batches) {
    StageProgramme programme(model, micro_batch, request.global_batch / micro_batch, bounds);
    if (programme.FloorUs() > bound_us) continue;
    if (model.cluster().gpus() > kManyGpus) {  // work alone, as if memory were no matter
      bound_us = programme.FloorUs();
      continue;
    }
    // What prices are good for is seen at few cuts.
    PriceUse use;
    StageBounds few = bounds;
    few.cuts = SomeCuts(model.ops(), kFewCuts);
    const bool large = int64_t{model.ops().size()} * model.cluster().gpus() >= kLarge;
    const bool learns = large && 2 * few.cuts.size() < model.ops().ops.size() && bound_us < kNever;
    if (learns) {
      StageProgramme quick(model, micro_batch, request.global_batch / micro_batch, few);
      quick.Expect(quick.Cap(bound_us));
      quick.Prepare(BoundOracle(quick, nullptr, &use), quick.Cap(bound_us), workers, interrupted);
    }
    programme.Expect(bound_us < kNever ? programme.Cap(bound_us) : 0);
    const BoundOracle oracle(programme, learns ? &use : nullptr, nullptr);
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
