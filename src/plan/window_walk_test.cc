// Walks that skip repeats against walks of every op, and the stage programme's passes against a plain one.
#include "plan/window_walk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "plan/bound_front.h"
#include "plan/op_paths.h"
#include "plan/testing.h"

namespace tidepool::plan {
namespace {

struct PathReader {
  using Ends = PathEnds;
  void Read(const PathFront& front, PathEnds* ends) const { front.Ends(ends); }
  void Shift(const PathShift& shift, double count, PathEnds* ends) const { shift.AddTo(ends, count); }
};
struct BoundReader {
  using Ends = std::vector<double>;
  void Read(const BoundFront& front, Ends* ends) const { front.Ends(LinkClass::kWithinNode, ends); }
  void Shift(const std::vector<double>& shift, double count, Ends* ends) const {
    for (size_t i = 0; i < ends->size(); ++i) (*ends)[i] += shift[i] * count;
  }
};

constexpr double kLambdas[] = {0, 0.05, 0.5, 2, 20};

// Calls see(model, programme, splits, start) for lists of two segments and several starts in and before them.
template <typename See>
void ForEachStart(const See& see) {
  std::mt19937 random(21);
  for (int i = 0; i < 8; ++i) {
    SCOPED_TRACE(i);
    testing::RandomProblemOptions options;
    options.list = {.layers = 60, .period = 4, .extra = 2, .reshards = i % 2 == 0};
    options.cluster = {.nodes = 1, .gpus_per_node = 4, .memory_limit_mib = 4096};
    const auto problem = testing::MakeRandomProblem(random, options);
    OpList ops = problem->ops;
    ops.segments = {{2, 4, 25}, {110, 4, 30}};
    ASSERT_TRUE(ops.Finish().ok());
    constexpr int32_t kMicroBatches[] = {2};
    const auto model = MakeParityModel(ops, *problem->table, problem->cluster, kMicroBatches);
    ASSERT_TRUE(model.ok()) << ToString(model.status());
    const StageProgramme programme(**model, 2, 32, {});
    const OpSplits splits(**model, 2, 2, 32);
    for (const int32_t start : {0, 2, 5, 40, 103, 120}) {
      SCOPED_TRACE(start);
      see(**model, programme, splits, start);
    }
  }
}

TEST(PointWalk, FindsThePathsThatAWalkOfEveryOpFinds) {
  int steady = 0;
  ForEachStart([&](const CostModel& model, const StageProgramme& programme, const OpSplits& splits, int32_t start) {
    std::vector<PathLane> lanes;
    for (const double lambda : kLambdas) lanes.push_back({lambda, 3});
    PathFront plain(model, splits, lanes);
    const PathReader reader;
    PointWalk<PathFront, PathReader> walk(programme, reader, plain, start, PointWalk<PathFront, PathReader>::From::kStage);
    for (int32_t op = start; op < model.ops().size(); ++op) {
      op == start ? plain.Start(op) : plain.Step(op);
      walk.Next();
      steady += walk.steady();
      PathEnds want, got;
      plain.Ends(&want);
      walk.Read(&got);
      for (size_t lane = 0; lane < lanes.size(); ++lane) {
        SCOPED_TRACE(lane);
        // Of paths with the same objective, any will do.
        const auto objective = [&](const PathEnds& ends) {
          return ends.us[lane] + lanes[lane].lambda * (ends.state_mib[lane] + lanes[lane].waiting * ends.live_mib[lane]);
        };
        ASSERT_NEAR(objective(got), objective(want), 1e-9 * objective(want)) << op;
        ASSERT_NEAR(got.us[lane], want.us[lane], 1e-9 * want.us[lane]) << op;
        ASSERT_NEAR(got.live_mib[lane], want.live_mib[lane], 1e-6 + 1e-9 * want.live_mib[lane]) << op;
        ASSERT_EQ(got.peak_mib[lane], want.peak_mib[lane]) << op;
        ASSERT_EQ(got.forward_mib[lane], want.forward_mib[lane]) << op;
        ASSERT_EQ(got.first_split[lane], want.first_split[lane]) << op;
        ASSERT_EQ(got.last_split[lane], want.last_split[lane]) << op;
      }
    }
  });
  EXPECT_GT(steady, 3000);
}

TEST(PointWalk, GivesBoundsThatAreNotAboveThoseOfEveryOp) {
  int steady = 0;
  ForEachStart([&](const CostModel& model, const StageProgramme& programme, const OpSplits& splits, int32_t start) {
    std::vector<BoundLane> lanes;
    for (const double lambda : kLambdas) lanes.push_back({lambda, 3, lambda > 1});
    const BoundTerms terms;
    const std::vector<double> reserved(model.ops().distinct.size(), 1);
    BoundFront plain(model, terms, splits, reserved, lanes);
    const BoundReader reader;
    PointWalk<BoundFront, BoundReader> walk(programme, reader, plain, start, PointWalk<BoundFront, BoundReader>::From::kStage);
    for (int32_t op = start; op < model.ops().size(); ++op) {
      op == start ? plain.Start(op) : plain.Step(op);
      walk.Next();
      steady += walk.steady();
      std::vector<double> want, got;
      reader.Read(plain, &want);
      walk.Read(&got);
      for (size_t lane = 0; lane < lanes.size(); ++lane) {
        ASSERT_LE(got[lane], want[lane] * (1 + 1e-12)) << op;
        ASSERT_GE(got[lane], want[lane] * (1 - 1e-6)) << op;
      }
    }
  });
  EXPECT_GT(steady, 3000);
}

// Times that jump up and down with the window's length, as estimates may, and are never below what the programme takes for sure.
class JumpingOracle : public StageOracle {
 public:
  explicit JumpingOracle(const StageProgramme& programme) {
    const CostModel& model = programme.model();
    for (const int32_t size : programme.sizes()) {
      std::vector<double>& sums = least_us_.emplace_back(1, 0);
      for (int32_t op = 0; op < model.ops().size(); ++op) {
        double least = kNever;
        for (const OpChoice& split : model.SplitsOf(size, programme.micro_batch())) {
          const StageTotals totals = model.UniformTotals(op, 1, split, programme.micro_batch());
          if (totals.priced()) least = std::min(least, totals.forward_us + totals.backward_us);
        }
        sums.push_back(sums.back() + least);
      }
    }
  }
  // Whole hundreds, so that there are few limits to try.
  double Us(int32_t size, int32_t first, int32_t length, int32_t q) const {
    const uint32_t jump = (static_cast<uint32_t>(first * 7919 + length * 104729 + q * 1299709 + size) * 2654435761U) >> 16;
    const double least = least_us_[size][first + length] - least_us_[size][first];
    return std::ceil(least * (1 + static_cast<double>(jump % 1000) / 1250) / 100) * 100;
  }
  void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const override {
    ASSERT_EQ(blocks->inside.empty(), true);  // no segments: each start is a class of its own
    for (WindowBlock& block : blocks->beyond) {
      size_t at = 0;
      for (int32_t q = block.q_lo; q <= block.q_hi; ++q) {
        for (int32_t kind = 0; kind < programme.kinds(); ++kind) {
          for (int32_t length = block.lo; length <= block.hi; ++length, ++at) {
            if (const double us = Us(size, block.first, length, q); us <= limit_us) block.us[at] = us;
          }
        }
      }
    }
  }

 private:
  std::vector<std::vector<double>> least_us_;  // [size]: sums up to an op
};

// All limits, one by one.
double PlainOptimum(const StageProgramme& programme, const JumpingOracle& oracle) {
  const int32_t n = programme.model().ops().size(), gpus = programme.model().cluster().gpus();
  const auto sizes = static_cast<int32_t>(programme.sizes().size());
  std::vector<double> limits;
  for (int32_t size = 0; size < sizes; ++size) {
    for (int32_t i = 0; i < n; ++i) {
      for (int32_t length = 1; i + length <= n; ++length) {
        for (int32_t q = 0; q < gpus; ++q) limits.push_back(oracle.Us(size, i, length, q));
      }
    }
  }
  std::sort(limits.begin(), limits.end());
  limits.erase(std::unique(limits.begin(), limits.end()), limits.end());
  double best = kNever;
  for (const double limit : limits) {
    if (static_cast<double>(programme.micro_batches()) * limit > best) break;
    std::map<std::pair<int32_t, int32_t>, double> next = {{{0, n}, 0.0}};  // by devices and first op
    for (int32_t q = 0; q < gpus && !next.empty(); ++q) {
      std::map<std::pair<int32_t, int32_t>, double> now;
      for (const auto& [state, sum] : next) {
        for (int32_t size = 0; size < sizes; ++size) {
          const int32_t devices = state.first + programme.sizes()[size];
          if (devices > gpus || !programme.model().cluster().IsStageRange(gpus - devices, programme.sizes()[size])) continue;
          for (int32_t i = devices == gpus ? 0 : 1; i < (devices == gpus ? 1 : state.second); ++i) {
            const double us = oracle.Us(size, i, state.second - i, q);
            if (us > limit) continue;
            const auto [entry, fresh] = now.try_emplace({devices, i}, us + sum);
            entry->second = std::min(entry->second, us + sum);
          }
        }
      }
      if (const auto whole = now.find({gpus, 0}); whole != now.end()) {
        best = std::min(best, static_cast<double>(programme.micro_batches() - 1) * limit + whole->second);
      }
      next = std::move(now);
    }
  }
  return best;
}

TEST(StageProgramme, FindsTheOptimumOfTimesThatJump) {
  std::mt19937 random(22);
  for (int i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    testing::RandomProblemOptions options;
    options.list = {.layers = 10, .period = 4, .extra = 3};
    options.cluster = {.nodes = 1, .gpus_per_node = 4, .memory_limit_mib = 1e6};
    const auto problem = testing::MakeRandomProblem(random, options);
    OpList ops = problem->ops;
    ops.segments.clear();
    ops.skips.clear();
    ASSERT_TRUE(ops.Finish().ok());
    constexpr int32_t kMicroBatches[] = {4};
    const auto model = MakeParityModel(ops, *problem->table, problem->cluster, kMicroBatches);
    ASSERT_TRUE(model.ok()) << ToString(model.status());
    StageProgramme programme(**model, 4, i % 2 == 0 ? 3 : 40, {});
    const JumpingOracle oracle(programme);
    Workers workers(1);
    const auto found = programme.Solve(oracle, kNever, &workers, [] { return false; });
    ASSERT_TRUE(found);
    EXPECT_NEAR(found->objective_us, PlainOptimum(programme, oracle), 1e-6);
  }
}

}  // namespace
}  // namespace tidepool::plan
