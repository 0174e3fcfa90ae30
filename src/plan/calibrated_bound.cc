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
#include <memory>
#include <utility>
#include <vector>

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

constexpr int32_t kTargets = 4;                   // of refining
constexpr int32_t kMostPasses = 80;               // programmes over sums that may be solved
constexpr int64_t kMostEvaluations = 60'000'000;  // of all of them
constexpr int64_t kSlowestOnly = 1 << 30;         // as micro-batches: the objective is the slowest stage
constexpr int64_t kNotOnce = int64_t{1} << 50;    // as micro-batches: what is once per iteration does not count

struct StageCounts {  // numbers of stages
  int32_t first = 1, last = 1;
};

// The bounds of one number of micro-batches.
class CalibratedBound {
 public:
  CalibratedBound(const CostModel& model, int32_t micro_batch, int64_t micro_batches, Workers* workers,
                  const std::function<bool()>& interrupted)
      : model_(model),
        micro_batch_(micro_batch),
        micro_batches_(micro_batches),
        blocking_(1 - model.pipeline().transfer_overlap),
        workers_(workers),
        interrupted_(interrupted) {}

  // (1). No plan with that many stages is faster than the result, or than `upper_us`.
  double BySlowest(const StageCounts& stages, double upper_us) {
    // (weight - 1) T + sum is at most `times` T.
    const double times = static_cast<double>(kSlowestOnly - 1 + stages.last), all = static_cast<double>(micro_batches_);
    return Solve(stages, kSlowestOnly, blocking_, upper_us / all * times, kNever, true) / times * all;
  }

  // Means of (1) with (2), or with (3) if there are too few micro-batches for it. Weights must be whole.
  double BySum(const StageCounts& stages, double upper_us) {
    const int64_t last = stages.last, all = micro_batches_;
    const double slowest_us = upper_us / static_cast<double>(all);  // of a plan that is faster than that, by (1)
    if (all > last) {  // share (2 sum + (N - 1 - S) T) + (1 - share) N T = 2 share (sum + (weight - 1) T)
      const int64_t weight = (all + 2 - last) / 2;
      const double share = static_cast<double>(all) / static_cast<double>(2 * weight - 1 + last);
      return Solve(stages, weight, blocking_ / 2, upper_us / (2 * share), slowest_us, false) * 2 * share;
    }
    // share (sum + (N - 1) / 2 T) + (1 - share) N T = share (sum + (weight - 1) T)
    const int64_t weight = 1 + all / 2;
    const double share = all % 2 != 0 ? 1 : static_cast<double>(2 * all) / static_cast<double>(2 * all + 1);
    return Solve(stages, weight, blocking_ / 2, upper_us / share, slowest_us, false) * share;
  }

  int64_t evaluations() const { return evaluations_; }  // of all so far
  bool was_interrupted() const { return was_interrupted_; }

 private:
  // The least objective of the programme over stage times with `blocking` of their messages, up to `most_us`,
  // without stages above `slowest_us`. `learns`: all
  // prices of memory are tried; else those that were of use then.
  double Solve(const StageCounts& stages, int64_t weight, double blocking, double most_us, double slowest_us, bool learns) {
    StageProgramme programme(model_, micro_batch_, weight,
                             {.min_stages = stages.first, .max_stages = stages.last, .slowest_us = slowest_us});
    if (programme.FloorUs() > most_us) return most_us;
    if (model_.cluster().gpus() > kManyGpus) return programme.FloorUs();  // work alone, as if memory were no matter
    if (most_us < kNever) programme.Expect(programme.Cap(most_us));
    BoundOracle::Options options;
    options.terms = CalibratedTerms(model_, micro_batches_, blocking);
    options.micro_batches = kNotOnce;
    options.reserved_mib = [&](const OpSplits& splits, int32_t split, int32_t position) {
      return model_.UniformTotals(position, 1, splits.choice(split), micro_batch_).reserved_mib;
    };
    if (learns) {
      options.learned = use_.get();
    } else {
      options.use = use_.get();
    }
    const BoundOracle oracle(programme, std::move(options));
    const auto cuts = programme.Solve(oracle, most_us, workers_, interrupted_, nullptr, 0, kTolerance);
    evaluations_ += programme.evaluations();
    was_interrupted_ = was_interrupted_ || programme.was_interrupted();
    return cuts ? std::min(cuts->objective_us, most_us) : most_us;
  }

  const CostModel& model_;
  int32_t micro_batch_;
  int64_t micro_batches_;
  double blocking_;
  Workers* workers_;
  const std::function<bool()>& interrupted_;
  std::unique_ptr<BoundPriceUse> use_ = std::make_unique<BoundPriceUse>();  // of BySlowest
  int64_t evaluations_ = 0;
  bool was_interrupted_ = false;
};

struct Group {
  CalibratedBound* of = nullptr;
  StageCounts stages;
  double bound_us = 0;
  bool is_known = false;  // bound_us is its own, and not only that of more numbers
};
bool IsLess(const Group& a, const Group& b) { return a.bound_us < b.bound_us; }

// The group with the least bound is looked at: first as a whole, then it is divided; as long as that is below a target. A low one
// is cheap to reach, so there are several.
void Refine(double upper_us, std::vector<Group>* groups) {
  const auto least = [&]() -> Group& { return *std::min_element(groups->begin(), groups->end(), IsLess); };
  const double from_us = least().bound_us;
  int64_t evaluations = 0;
  int32_t passes = 0;
  for (int32_t round = upper_us < kNever ? 1 : kTargets; round <= kTargets; ++round) {
    const double target_us = round == kTargets ? upper_us : from_us + (upper_us - from_us) * round / kTargets;
    while (least().bound_us < target_us) {
      Group& group = least();
      if (!group.is_known) {
        if (passes >= kMostPasses || evaluations >= kMostEvaluations) return;
        const int64_t before = group.of->evaluations();
        const double bound_us = group.of->BySum(group.stages, target_us);
        if (group.of->was_interrupted()) return;
        group.bound_us = std::max(group.bound_us, bound_us);
        group.is_known = bound_us < target_us;
        evaluations += group.of->evaluations() - before;
        ++passes;
        continue;
      }
      if (group.stages.first == group.stages.last) return;
      const int32_t middle = (group.stages.first + group.stages.last) / 2;
      const Group more{group.of, {middle + 1, group.stages.last}, group.bound_us, false};
      group.stages.last = middle;
      group.is_known = false;
      groups->push_back(more);
    }
  }
}

}  // namespace

double CalibratedBoundBelow(const CostModel& model, const SearchRequest& request, double upper_ms, Workers* workers,
                            const std::function<bool()>& interrupted) {
  if (!model.cluster().groups.empty()) return 0;  // times of ops depend on the devices
  const double upper_us = upper_ms * 1000;
  const int32_t most = std::min(model.cluster().gpus(), model.ops().size());
  const StageCounts all{request.min_stages, request.max_stages == 0 ? most : std::min(request.max_stages, most)};
  std::vector<CalibratedBound> bounds;
  for (const int32_t micro_batch : request.micro_batches) {
    bounds.emplace_back(model, micro_batch, request.global_batch / micro_batch, workers, interrupted);
  }
  // Of each micro-batch, numbers of stages in groups.
  std::vector<Group> groups;
  for (CalibratedBound& bound : bounds) {
    const double slowest_us = bound.BySlowest(all, upper_us);
    for (int32_t first = all.first, last = 2; first <= all.last; last *= 2) {
      if (last < first) continue;
      groups.push_back({&bound, {first, std::min(last, all.last)}, slowest_us, false});
      first = last + 1;
    }
  }
  if (groups.empty()) return upper_ms < kNever ? upper_ms : 0;
  const bool has_sums = model.pipeline().schedule == PipelineSchedule::kOneForwardOneBackward;
  if (has_sums && model.cluster().gpus() <= kManyGpus) Refine(upper_us, &groups);
  for (const CalibratedBound& bound : bounds) {
    if (bound.was_interrupted()) return 0;
  }
  const double bound_us = std::min(upper_us, std::min_element(groups.begin(), groups.end(), IsLess)->bound_us);
  return bound_us < kNever ? bound_us * (1 - kTolerance) / 1000 : 0;
}

}  // namespace tidepool::plan
