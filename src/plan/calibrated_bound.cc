// The bound of the calibrated model. Windows are bounded by Lagrangian paths as for the parity model (lower_bound.cc).
//
// Under the calibrated model the iteration is no sum over stages but what a schedule takes when it is played. Let t_i be the time
// of stage i for one micro-batch with at most the messages that block it, T the largest, S the number of stages, N of
// micro-batches.
//   (1) Any schedule: iteration >= N T. The slowest stage does nothing else meanwhile.
//   (2) 1F1B with N > S, and t with at most half of those messages: iteration >= 2 sum(t) + (N - 1 - S) T.
// For (2) look at the slowest stage i, with q stages behind it. Before its first pass the first micro-batch comes through the
// stages before it, after its last pass the last gradient goes back through them: the sum of their t. From its first forward to
// its first backward pass a micro-batch goes through all stages behind and back: s, the sum of their t; meanwhile stage i has q
// forward passes to do, no more. At the end likewise: s for q backward passes. So it waits at least 2 s - q T, and
//   iteration >= sum before + N T + 2 s - q T = sum(t) + (N - 1 - q) T + s.
// As s = q T - (what the stages behind are faster than T), and all stages together are faster by S T - sum(t), (2) follows. Each
// edge is passed at least once each way but for those of stage i, and half of a message for either end is no more than that; what
// is counted of stage i's own edges beyond it is less than the other half of its N - q messages.
//   (3) 1F1B with any N: iteration >= sum(t) + (N - 1) / 2 T.
// With few micro-batches the two waits may be one, which is at least their mean: s - w T / 2, where w, the passes that there are
// to do meanwhile, is at most N - 1. A mean of (1) and (2) or (3) is a bound too, and has the form that the stage programme
// minimises.
#include "plan/calibrated_bound.h"

#include <algorithm>
#include <cmath>

#include "plan/op_splits.h"
#include "plan/programme_search.h"
#include "plan/stage_programme.h"

namespace tidepool::plan {
namespace {

constexpr double kLeastLambda = 0.01, kLambdaRatio = 1.6;
constexpr int32_t kLambdas = 20;
constexpr int32_t kWaiting[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
constexpr double kTolerance = 1e-4;  // the bound is made this much weaker, to save passes

// What the cost model adds to sums over ops.
struct Terms {
  double messages = 1;     // times what a stage receives and sends over its edges
  double context_mib = 0;  // memory = context + state + scale (held live + peak run + reserved)
  double scale = 1;
  std::vector<double> held;  // by stages behind: micro-batches that a stage holds at least; ascending
};

struct Lane {
  double lambda = 0, waiting = 1;
};

// The least objective of every lane over all paths to an op, by the state at the op.
class BoundFront {
 public:
  BoundFront(const CostModel& model, const Terms& terms, const OpSplits& splits, const std::vector<double>& least_reserved_mib,
             const std::vector<Lane>& lanes)
      : model_(model),
        terms_(terms),
        splits_(splits),
        least_reserved_mib_(least_reserved_mib),
        lanes_(lanes),
        width_(static_cast<int32_t>(lanes.size())) {
    for (const Lane& lane : lanes_) {
      lambda_.push_back(lane.lambda);
      nu_.push_back(lane.lambda * lane.waiting * terms.scale);
    }
    now_.resize(static_cast<size_t>(splits.size()) * 2 * width_);
    next_ = now_;
  }

  void Start(int32_t position) {
    last_ = position;
    reserved_mib_ = 0;
    const double messages = Receives(position) ? terms_.messages : 0;
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      const OpSplitCost& cost = splits_.At(position, state / 2);
      const double us = cost.us + (state % 2 != 0 ? cost.again_us : 0) + messages * cost.in_us[0];
      const double live = cost.input_mib + cost.activation_mib;
      double* now = &now_[static_cast<size_t>(state) * width_];
      for (int32_t i = 0; i < width_; ++i) {
        now[i] = us + lambda_[i] * cost.state_mib + nu_[i] * live;
      }
    }
  }

  void Step(int32_t position) {
    reserved_mib_ = std::max(reserved_mib_, LeastReserved(last_));
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
          next[i] += us + lambda_[i] * cost.state_mib + nu[i] * cost.activation_mib;
        }
      }
    }
    std::swap(now_, next_);
    last_ = position;
  }

  // Of the window that ends here, with each link behind it: a bound on its time for every lane, for a limit of 0.
  void Ends(LinkClass out_link, std::vector<double>* bounds) const {
    bounds->assign(width_, kNever);
    const double messages = Sends(last_) ? terms_.messages : 0;
    for (int32_t state = 0; state < splits_.size() * 2; ++state) {
      double out = kNever;
      for (int32_t first = 0; first < splits_.size(); ++first)
        out = std::min(out, messages * splits_.OutUs(last_, first, state / 2, out_link));
      const double* now = &now_[static_cast<size_t>(state) * width_];
      for (int32_t i = 0; i < width_; ++i) (*bounds)[i] = std::min((*bounds)[i], now[i] + out);
    }
  }
  // Of the window so far.
  double reserved_mib() const { return std::max(reserved_mib_, LeastReserved(last_)); }
  // Whether a stage that begins (ends) with such an op surely has one before (behind) it. Equal ops are not told apart, because
  // windows that begin alike share what is computed here.
  bool Receives(int32_t position) const { return model_.ops().ops[position] != model_.ops().ops.front(); }
  bool Sends(int32_t position) const { return model_.ops().ops[position] != model_.ops().ops.back(); }
  const std::vector<Lane>& lanes() const { return lanes_; }

 private:
  double LeastReserved(int32_t position) const { return least_reserved_mib_[model_.ops().ops[position]]; }

  const CostModel& model_;
  const Terms& terms_;
  const OpSplits& splits_;
  const std::vector<double>& least_reserved_mib_;  // of a distinct op
  std::vector<Lane> lanes_;
  int32_t width_, last_ = -1;
  double reserved_mib_ = 0;
  std::vector<double> lambda_, nu_;
  std::vector<double> now_, next_;  // [state][lane]
};

std::vector<Lane> LanesFor(double waiting_lo, double waiting_hi) {
  std::vector<Lane> lanes = {{0, std::min(waiting_hi, 1.0)}};
  for (size_t i = 0; i < std::size(kWaiting) && kWaiting[i] <= waiting_hi; ++i) {
    if (i + 1 < std::size(kWaiting) && kWaiting[i + 1] <= waiting_lo) continue;
    for (int32_t k = 0; k < kLambdas; ++k) {
      lanes.push_back({kLeastLambda * std::pow(kLambdaRatio, k), static_cast<double>(kWaiting[i])});
    }
  }
  return lanes;
}

class BoundOracle : public StageOracle {
 public:
  // `micro_batches`: what is once per iteration is spread over so many.
  BoundOracle(const StageProgramme& programme, Terms terms, int64_t micro_batches) : terms_(std::move(terms)) {
    const CostModel& model = programme.model();
    const OpList& ops = model.ops();
    for (const int32_t size : programme.sizes()) {
      splits_.emplace_back(model, size, programme.micro_batch(), micro_batches);
      std::vector<double>& reserved = least_reserved_mib_.emplace_back(ops.distinct.size(), kNever);
      for (size_t op = 0; op < ops.distinct.size(); ++op) {
        const auto places = ops.PlacesOf(static_cast<uint16_t>(op));
        if (places.empty()) continue;
        for (int32_t split = 0; split < splits_.back().size(); ++split) {
          const double mib =
              model.UniformTotals(places.front(), 1, splits_.back().choice(split), programme.micro_batch()).reserved_mib;
          reserved[op] = std::min(reserved[op], mib);
        }
      }
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
    BoundFront front(programme.model(), terms_, splits, least_reserved_mib_[size],
                     LanesFor(terms_.held[q_lo], terms_.held[q_hi]));
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
  void Write(const StageProgramme& programme, const OpSplits& splits, double limit_us, const BoundFront& front,
             const std::vector<double> (&ends)[kLinkClasses], int32_t length, WindowBlock* block) const {
    const double messages = front.Receives(block->first) ? terms_.messages : 0;
    const std::vector<Lane>& lanes = front.lanes();
    for (int32_t kind = 0; kind < programme.kinds(); ++kind) {
      const StagePlace& place = programme.kind(kind);
      double in_us = kNever;  // what the link before adds to a transfer within a node, at least
      for (int32_t split = 0; split < splits.size(); ++split) {
        const OpSplitCost& first = splits.At(block->first, split);
        in_us = std::min(in_us, messages * (first.in_us[static_cast<int>(place.in_link)] - first.in_us[0]));
      }
      const std::vector<double>& bounds = ends[static_cast<int>(place.out_link)];
      double best = 0;
      size_t lane = 0;
      for (int32_t q = 0; q <= block->q_hi; ++q) {
        // Lanes ascend by waiting micro-batches; fewer of them give a bound too.
        for (; lane < lanes.size() && lanes[lane].waiting <= terms_.held[q]; ++lane) {
          const double room = programme.limit_mib(kind) - terms_.context_mib - terms_.scale * front.reserved_mib();
          best = std::max(best, bounds[lane] - lanes[lane].lambda * room);
        }
        if (q < block->q_lo || best + in_us > limit_us) continue;
        block->us[(static_cast<size_t>(q - block->q_lo) * programme.kinds() + kind) * block->lengths() + (length - block->lo)] =
            best + in_us;
      }
    }
  }

  Terms terms_;
  std::vector<OpSplits> splits_;                         // [size]
  std::vector<std::vector<double>> least_reserved_mib_;  // [size][distinct op]: of any split
};

// Memory is affine in a stage's totals, so two stages that hold nothing but a MiB of one kind tell how.
Terms CalibratedTerms(const CostModel& model, int64_t micro_batches, double blocking) {
  Terms terms;
  terms.messages = 2.0 * std::max(model.pipeline().chunks, 1) * blocking;
  StageTotals reserved, live;
  reserved.reserved_mib = live.activation_mib = 1;
  StagePlace place{.micro_batches = micro_batches};
  terms.context_mib = model.MemoryAt({}, place);
  terms.scale = model.MemoryAt(reserved, place) - terms.context_mib;
  for (int32_t q = 0; q < model.cluster().gpus(); ++q) {
    place.stages_behind = q;
    terms.held.push_back((model.MemoryAt(live, place) - terms.context_mib) / terms.scale);
  }
  return terms;
}

// --- The calibrated model ---

constexpr int32_t kMostPasses = 8;                // programmes that may be solved for one micro-batch
constexpr int64_t kMostEvaluations = 12'000'000;  // of all of them; the first one is always solved
constexpr int64_t kSlowestOnly = 1 << 30;         // as micro-batches: the objective is the slowest stage
constexpr int64_t kNotOnce = int64_t{1} << 50;    // as micro-batches: what is once per iteration does not count

class CalibratedBound {
 public:
  CalibratedBound(const CostModel& model, const SearchRequest& request, int32_t micro_batch, Workers* workers,
                  const std::function<bool()>& interrupted)
      : model_(model),
        micro_batch_(micro_batch),
        micro_batches_(request.global_batch / micro_batch),
        blocking_(1 - model.pipeline().transfer_overlap),
        workers_(workers),
        interrupted_(interrupted) {
    const int32_t most = std::min(model.cluster().gpus(), model.ops().size());
    all_ = {request.min_stages, request.max_stages == 0 ? most : std::min(request.max_stages, most)};
  }

  // No plan with this micro-batch is faster than the result, or than `upper_us`.
  double Below(double upper_us) {
    const double slowest_us = BySlowest(upper_us);
    if (slowest_us >= upper_us || model_.pipeline().schedule != PipelineSchedule::kOneForwardOneBackward) return slowest_us;
    // Numbers of stages in groups. The one with the least bound is looked at: first as a whole, then it is divided.
    std::vector<Group> groups;
    for (int32_t last = 2; groups.empty() || groups.back().last < all_.last; last *= 2) {
      const int32_t first = groups.empty() ? all_.first : groups.back().last + 1;
      if (last >= first) groups.push_back({first, std::min(last, all_.last), slowest_us, false});
    }
    const auto less = [](const Group& a, const Group& b) { return a.bound_us < b.bound_us; };
    while (!was_interrupted_) {
      Group& least = *std::min_element(groups.begin(), groups.end(), less);
      const Group group = least;
      if (group.bound_us >= upper_us || passes_ >= kMostPasses || evaluations_ >= kMostEvaluations ||
          (group.is_known && group.first == group.last))
        break;
      if (!group.is_known) {
        least.bound_us = std::max(group.bound_us, BySum(group, upper_us));
        least.is_known = true;
        continue;
      }
      const int32_t middle = (group.first + group.last) / 2;
      least = {group.first, middle, group.bound_us, false};
      groups.push_back({middle + 1, group.last, group.bound_us, false});
    }
    return std::min_element(groups.begin(), groups.end(), less)->bound_us;
  }
  bool was_interrupted() const { return was_interrupted_; }

 private:
  struct Group {  // of numbers of stages
    int32_t first = 1, last = 1;
    double bound_us = 0;
    bool is_known = false;  // bound_us is its own, and not only that of more numbers
  };

  // The least objective of the programme over stage times with `blocking` of their messages, up to `most_us`.
  double Solve(const Group& stages, int64_t weight, double blocking, double most_us) {
    ++passes_;
    StageProgramme programme(model_, micro_batch_, weight, {.min_stages = stages.first, .max_stages = stages.last});
    if (programme.FloorUs() > most_us) return most_us;
    if (model_.cluster().gpus() > kManyGpus) return programme.FloorUs();  // work alone, as if memory were no matter
    if (most_us < kNever) programme.Expect(programme.Cap(most_us));
    const BoundOracle oracle(programme, CalibratedTerms(model_, micro_batches_, blocking), kNotOnce);
    const auto cuts = programme.Solve(oracle, most_us, workers_, interrupted_, nullptr, 0, kTolerance);
    evaluations_ += programme.evaluations();
    was_interrupted_ = was_interrupted_ || programme.was_interrupted();
    return cuts ? std::min(cuts->objective_us, most_us) : most_us;
  }

  double BySlowest(double upper_us) {
    // (weight - 1) T + sum is at most `times` T.
    const double times = static_cast<double>(kSlowestOnly - 1 + all_.last), all = static_cast<double>(micro_batches_);
    return Solve(all_, kSlowestOnly, blocking_, upper_us / all * times) / times * all;
  }

  // Means of (1) with (2), or with (3) if there are too few micro-batches for it. Weights must be whole.
  double BySum(const Group& stages, double upper_us) {
    const int64_t last = stages.last, all = micro_batches_;
    if (all > last) {  // share (2 sum + (N - 1 - S) T) + (1 - share) N T = 2 share (sum + (weight - 1) T)
      const int64_t weight = (all + 2 - last) / 2;
      const double share = static_cast<double>(all) / static_cast<double>(2 * weight - 1 + last);
      return Solve(stages, weight, blocking_ / 2, upper_us / (2 * share)) * 2 * share;
    }
    // share (sum + (N - 1) / 2 T) + (1 - share) N T = share (sum + (weight - 1) T)
    const int64_t weight = 1 + all / 2;
    const double share = all % 2 != 0 ? 1 : static_cast<double>(2 * all) / static_cast<double>(2 * all + 1);
    return Solve(stages, weight, blocking_ / 2, upper_us / share) * share;
  }

  const CostModel& model_;
  int32_t micro_batch_;
  int64_t micro_batches_;
  double blocking_;
  Workers* workers_;
  const std::function<bool()>& interrupted_;
  Group all_;
  int32_t passes_ = 0;
  int64_t evaluations_ = 0;
  bool was_interrupted_ = false;
};

}  // namespace

double CalibratedBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                            const std::function<bool()>& interrupted) {
  if (!model.cluster().groups.empty()) return 0;  // times of ops depend on the devices
  double bound_us = upper_ms * 1000;
  for (const int32_t micro_batch : request.micro_batches) {
    CalibratedBound bound(model, request, micro_batch, workers, interrupted);
    bound_us = std::min(bound_us, bound.Below(bound_us));
    if (bound.was_interrupted()) return 0;
  }
  return bound_us < kNever ? bound_us * (1 - kTolerance) / 1000 : 0;
}

}  // namespace tidepool::plan
