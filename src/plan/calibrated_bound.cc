// The bound of the calibrated model. Windows are bounded by Lagrangian paths as for the parity model (bound_oracle.h).
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
#include <utility>

#include "plan/bound_oracle.h"
#include "plan/programme_search.h"
#include "plan/stage_programme.h"

namespace tidepool::plan {
namespace {

constexpr double kTolerance = 1e-4;  // the bound is made this much weaker, to save passes

// Memory is affine in a stage's totals, so two stages that hold nothing but a MiB of one kind tell how.
BoundTerms CalibratedTerms(const CostModel& model, int64_t micro_batches, double blocking) {
  BoundTerms terms;
  terms.pays_at_list_ends = false;
  terms.last_op_reserves = true;
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
    BoundOracle::Options options;
    options.terms = CalibratedTerms(model_, micro_batches_, blocking);
    options.micro_batches = kNotOnce;
    options.reserved_mib = [&](const OpSplits& splits, int32_t split, int32_t position) {
      return model_.UniformTotals(position, 1, splits.choice(split), micro_batch_).reserved_mib;
    };
    const BoundOracle oracle(programme, std::move(options));
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
