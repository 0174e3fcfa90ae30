#include "plan/pipeline_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;
using Kind = PipelineEvent::Kind;

// --- A slow player, made another way: all constraints between passes and messages, relaxed until nothing moves ---

struct SlowPass {
  char kind;  // F, B, W
  int chunk;
  int64_t micro_batch;
};

std::vector<SlowPass> OrderOf(const PipelineSpec& spec, int stage) {
  const int stages = static_cast<int>(spec.stages.size()), behind = stages - 1 - stage;
  const int64_t n = spec.micro_batches;
  std::vector<SlowPass> forwards, backwards, order;
  // Micro-batches go through a stage's chunks in groups as large as the pipeline is long.
  for (int64_t group = 0; group<n; group += spec.chunks> 1 ? stages : n) {
    const int64_t end = spec.chunks > 1 ? group + stages : n;
    for (int chunk = 0; chunk < spec.chunks; ++chunk) {
      for (int64_t m = group; m < end; ++m) {
        forwards.push_back({'F', chunk, m});
        backwards.push_back({'B', spec.chunks - 1 - chunk, m});
      }
    }
  }
  size_t warm = behind;
  if (spec.schedule == PipelineSchedule::kInterleaved) warm = 2 * behind + (spec.chunks - 1) * stages;
  warm = std::min(warm, forwards.size());
  order.assign(forwards.begin(), forwards.begin() + static_cast<long>(warm));
  size_t next = warm;
  int64_t weights = 0;
  const bool zero_bubble = spec.schedule == PipelineSchedule::kZeroBubble;
  for (size_t done = 0; done < backwards.size(); ++done) {
    if (next < forwards.size()) order.push_back(forwards[next++]);
    order.push_back(backwards[done]);
    if (zero_bubble && done >= static_cast<size_t>(stage)) order.push_back({'W', 0, weights++});
  }
  while (zero_bubble && weights < n) order.push_back({'W', 0, weights++});
  return order;
}

double SlowMakespan(const PipelineSpec& spec) {
  const int stages = static_cast<int>(spec.stages.size()), parts = stages * spec.chunks;
  const bool zero_bubble = spec.schedule == PipelineSchedule::kZeroBubble;
  std::vector<std::vector<SlowPass>> orders;
  for (int i = 0; i < stages; ++i) orders.push_back(OrderOf(spec, i));
  using PassKey = std::tuple<char, int, int64_t>;  // kind, part of the network, micro-batch
  std::map<PassKey, double> end, arrival;
  const auto edge_before = [&](int part) { return spec.edges[part % stages > 0 ? part % stages - 1 : stages - 1]; };
  for (bool moved = true; moved;) {
    moved = false;
    std::map<std::pair<char, int>, double> link;  // direction, edge -> when it is free
    const auto set = [&](double& value, double to) {
      if (value != to) {
        value = to;
        moved = true;
      }
    };
    for (int i = 0; i < stages; ++i) {
      double free = 0;
      for (const SlowPass& pass : orders[i]) {
        const PipelineStage& stage = spec.stages[i];
        const int part = pass.chunk * stages + i;
        const double blocking = 1 - spec.transfer_overlap;
        if (pass.kind == 'W') {
          free += stage.weight_gradient_us;
          set(end[{'W', part, pass.micro_batch}], free);
          continue;
        }
        const bool forward = pass.kind == 'F';
        double start = free;
        const int from = forward ? part - 1 : part + 1, to = forward ? part + 1 : part - 1;
        if (from >= 0 && from < parts && stages > 1) {
          const PipelineEdge edge = edge_before(std::max(part, from));
          start += (forward ? edge.forward_us : edge.backward_us) * blocking;
        }
        if (from >= 0 && from < parts) start = std::max(start, arrival[{pass.kind, part, pass.micro_batch}]);
        if (!forward && from == parts) start = std::max(start, end[{'F', part, pass.micro_batch}]);
        const double work =
            forward ? stage.forward_us : stage.recompute_us + stage.backward_us - (zero_bubble ? stage.weight_gradient_us : 0);
        free = start + work / spec.chunks;
        set(end[{pass.kind, part, pass.micro_batch}], free);
        if (to < 0 || to >= parts) continue;
        double there = free;
        if (stages > 1) {
          const PipelineEdge edge = edge_before(std::max(part, to));
          const double us = forward ? edge.forward_us : edge.backward_us;
          double& idle_from = link[{pass.kind, forward ? i : (i + stages - 1) % stages}];
          there = std::max(free, idle_from) + us;
          idle_from = there;
          free += us * blocking;
        }
        set(arrival[{pass.kind, to, pass.micro_batch}], there);
      }
      set(end[{'E', i, 0}], free + spec.stages[i].sync_us + spec.stages[i].optimizer_us);
    }
  }
  double makespan = 0;
  for (int i = 0; i < stages; ++i) makespan = std::max(makespan, end[{'E', i, 0}]);
  return makespan;
}

// Multiples of 1/8, so that halves and quarters of them are exact.
double Eighths(std::mt19937& random, int limit) { return static_cast<double>(random() % (limit * 8)) / 8; }

PipelineSpec RandomSpec(std::mt19937& random, PipelineSchedule schedule) {
  PipelineSpec spec;
  spec.schedule = schedule;
  const int stages = 1 + static_cast<int>(random() % 6);
  spec.micro_batches = 1 + static_cast<int64_t>(random() % 20);
  if (schedule == PipelineSchedule::kInterleaved) {
    spec.chunks = 1 << (random() % 3);
    spec.micro_batches = stages * (1 + static_cast<int64_t>(random() % 4));
  }
  spec.transfer_overlap = static_cast<double>(random() % 5) / 4;
  const bool with_transfers = random() % 2 == 0, alike = random() % 3 == 0;
  for (int i = 0; i < stages; ++i) {
    PipelineStage stage{
        .forward_us = Eighths(random, 20), .recompute_us = Eighths(random, 8), .backward_us = Eighths(random, 30)};
    stage.weight_gradient_us = std::min(stage.backward_us, Eighths(random, 20));
    stage.sync_us = Eighths(random, 10);
    stage.optimizer_us = Eighths(random, 10);
    spec.stages.push_back(alike && i > 0 ? spec.stages[0] : stage);
    spec.edges.push_back(with_transfers ? PipelineEdge{Eighths(random, 12), Eighths(random, 12)} : PipelineEdge{});
  }
  return spec;
}

constexpr PipelineSchedule kAll[] = {PipelineSchedule::kOneForwardOneBackward, PipelineSchedule::kInterleaved,
                                     PipelineSchedule::kZeroBubble};

TEST(PipelineSchedule, MakespanEqualsThatOfASlowPlayerInEveryBit) {
  std::mt19937 random(1);
  for (int round = 0; round < 900; ++round) {
    const PipelineSpec spec = RandomSpec(random, kAll[round % 3]);
    ASSERT_TRUE(Validate(spec).ok()) << ToString(Validate(spec));
    const PipelineRun run = SimulatePipeline(spec);
    ASSERT_EQ(run.makespan_us, SlowMakespan(spec)) << "round " << round;
    const auto trace = TracePipeline(spec);
    ASSERT_TRUE(trace.ok());
    ASSERT_EQ(trace->makespan_us, run.makespan_us);
    for (size_t i = 0; i < run.stages.size(); ++i) {
      ASSERT_EQ(trace->stages[i].first_us, run.stages[i].first_us) << "round " << round;
      ASSERT_EQ(trace->stages[i].last_us, run.stages[i].last_us);
      ASSERT_EQ(trace->stages[i].idle_us, run.stages[i].idle_us);
    }
  }
}

TEST(PipelineSchedule, SkippingPeriodsChangesNoBit) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    PipelineSpec spec = RandomSpec(random, round % 2 == 0 ? kAll[0] : kAll[2]);
    spec.micro_batches = 200 + static_cast<int64_t>(random() % 800);
    const auto trace = TracePipeline(spec);
    ASSERT_TRUE(trace.ok());
    ASSERT_EQ(SimulatePipeline(spec).makespan_us, trace->makespan_us) << "round " << round;
  }
}

TEST(PipelineSchedule, AMillionMicroBatchesGrowAsAThousandDo) {
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    PipelineSpec spec = RandomSpec(random, kAll[round % 3]);
    const auto at = [&](int64_t micro_batches) {
      spec.micro_batches = micro_batches * 60;  // a multiple of any number of stages
      return SimulatePipeline(spec).makespan_us;
    };
    const double a = at(100), b = at(200), c = at(20000);
    // The last 100 x 60 micro-batches are whole periods.
    EXPECT_NEAR(c, b + (b - a) * 198, 1e-9 * c) << "round " << round;
  }
}

TEST(PipelineSchedule, EqualStagesTakeTheClosedForm) {
  for (const int stages : {1, 2, 3, 8}) {
    for (const int64_t micro_batches : {1, 2, 7, 64}) {
      PipelineSpec spec{.micro_batches = micro_batches,
                        .stages = std::vector<PipelineStage>(stages, {.forward_us = 3, .recompute_us = 1, .backward_us = 6}),
                        .edges = std::vector<PipelineEdge>(stages)};
      const double expected = 10.0 * static_cast<double>(micro_batches - 1 + stages);
      EXPECT_EQ(SimulatePipeline(spec).makespan_us, expected);
      EXPECT_EQ(ClosedFormUs(spec), expected);
      EXPECT_EQ(LowerBoundUs(spec), expected);
    }
  }
}

TEST(PipelineSchedule, TheClosedFormIsNeverBelowIfAllStagesHaveOneRatioOfForwardToBackward) {
  std::mt19937 random(4);
  int below = 0;
  for (int round = 0; round < 3000; ++round) {
    PipelineSpec spec = RandomSpec(random, PipelineSchedule::kOneForwardOneBackward);
    spec.transfer_overlap = 0;
    for (PipelineEdge& edge : spec.edges) edge.backward_us = edge.forward_us;
    const auto part = static_cast<double>(random() % 5) / 4;
    for (PipelineStage& stage : spec.stages) {
      const double sum = 8 * Eighths(random, 20);
      stage = {.forward_us = sum * part, .backward_us = sum * (1 - part), .sync_us = stage.sync_us};
    }
    const double makespan = SimulatePipeline(spec).makespan_us;
    EXPECT_LE(makespan, ClosedFormUs(spec)) << "round " << round << " part " << part << " N " << spec.micro_batches << " S "
                                            << spec.stages.size();
    below += makespan < ClosedFormUs(spec);
  }
  EXPECT_GT(below, 1000) << "or the test compares nothing";
}

// Stage 1 has only forward work: it runs its three warm-up forwards although the first gradient is there after one.
TEST(PipelineSchedule, OneForwardOneBackwardCanTakeLongerThanTheClosedFormIfRatiosDiffer) {
  const PipelineSpec spec{
      .micro_batches = 8, .stages = {{.backward_us = 10}, {.forward_us = 10}, {}, {}}, .edges = std::vector<PipelineEdge>(3)};
  EXPECT_EQ(ClosedFormUs(spec), 7 * 10 + 20);
  EXPECT_EQ(SimulatePipeline(spec).makespan_us, 3 * 10 + 8 * 10);
}

TEST(PipelineSchedule, BoundsAreNeverAboveTheMakespan) {
  std::mt19937 random(5);
  double ratios = 0;
  for (int round = 0; round < 6000; ++round) {
    const PipelineSpec spec = RandomSpec(random, kAll[round % 3]);
    const double makespan = SimulatePipeline(spec).makespan_us;
    for (const double bound : StageBoundsUs(spec)) ASSERT_LE(bound, makespan) << "round " << round;
    if (makespan > 0) ratios += LowerBoundUs(spec) / makespan;
  }
  EXPECT_GT(ratios / 6000, 0.85) << "a bound that prunes";
}

TEST(PipelineSchedule, ByHandTwoStagesWithTransfers) {
  // Forward 2 and 3, backward 4 and 5, a message takes 1 each way, two micro-batches, all blocking.
  PipelineSpec spec{.micro_batches = 2,
                    .stages = {{.forward_us = 2, .backward_us = 4}, {.forward_us = 3, .backward_us = 5, .sync_us = 2}},
                    .edges = {{1, 1}}};
  // Stage 0: F0 0-2, sends 2-3, F1 3-5, sends 5-6. Stage 1: F0 3-6, B0 6-11, sends 11-12, receives 12-13, F1 13-16, B1 16-21,
  // sends 21-22. Stage 0: B0 12-16, B1 22-26. Stage 1 synchronises 22-24.
  PipelineRun run = SimulatePipeline(spec);
  EXPECT_EQ(run.makespan_us, 26);
  EXPECT_EQ(run.stages[0].first_us, 0);
  EXPECT_EQ(run.stages[1].first_us, 3);
  EXPECT_EQ(run.stages[1].last_us, 22);
  EXPECT_EQ(run.stages[0].compute_us, 12);
  EXPECT_EQ(run.stages[1].blocked_us, 4);
  EXPECT_EQ(run.stages[0].idle_us, 26 - 12 - 4);
  EXPECT_EQ(run.stages[1].idle_us, 26 - 16 - 4 - 2);
  // All beside the passes: stage 1 is busy from 3 to 19; its last gradient arrives at 20.
  spec.transfer_overlap = 1;
  run = SimulatePipeline(spec);
  EXPECT_EQ(run.stages[1].last_us, 19);
  EXPECT_EQ(run.makespan_us, 24);
}

TEST(PipelineSchedule, InterleavingDividesWhatIsIdleByTheChunks) {
  for (const int stages : {2, 4, 8}) {
    for (const int chunks : {1, 2, 4}) {
      PipelineSpec spec{.schedule = PipelineSchedule::kInterleaved,
                        .chunks = chunks,
                        .micro_batches = 4 * stages,
                        .stages = std::vector<PipelineStage>(stages, {.forward_us = 8, .backward_us = 16}),
                        .edges = std::vector<PipelineEdge>(stages)};
      const double busy = 24.0 * 4 * stages;
      EXPECT_EQ(SimulatePipeline(spec).makespan_us, busy + 24.0 * (stages - 1) / chunks) << stages << " stages, " << chunks;
    }
  }
}

TEST(PipelineSchedule, ZeroBubbleLeavesForwardPlusBackwardMinusWeightsPerStageIdle) {
  for (const int stages : {2, 4, 8}) {
    const PipelineSpec spec{
        .schedule = PipelineSchedule::kZeroBubble,
        .micro_batches = 4 * stages,
        .stages = std::vector<PipelineStage>(stages, {.forward_us = 10, .backward_us = 19, .weight_gradient_us = 9}),
        .edges = std::vector<PipelineEdge>(stages)};
    EXPECT_EQ(SimulatePipeline(spec).makespan_us, 29.0 * 4 * stages + (stages - 1) * (10 + 10 - 9));
  }
}

// Walks through the order of passes and counts what is held.
TEST(PipelineSchedule, InFlightIsTheMostThatAStageHolds) {
  std::mt19937 random(6);
  for (int round = 0; round < 600; ++round) {
    const PipelineSpec spec = RandomSpec(random, kAll[round % 3]);
    const auto stages = static_cast<int32_t>(spec.stages.size());
    const char frees = spec.schedule == PipelineSchedule::kZeroBubble ? 'W' : 'B';
    for (int32_t i = 0; i < stages; ++i) {
      int held = 0, most = 0;
      for (const SlowPass& pass : OrderOf(spec, i)) {
        held += pass.kind == 'F' ? 1 : pass.kind == frees ? -1 : 0;
        most = std::max(most, held);
      }
      EXPECT_EQ(InFlight(spec.schedule, spec.chunks, stages - 1 - i, stages, spec.micro_batches),
                static_cast<double>(most) / spec.chunks)
          << NameOf(spec.schedule) << ", stage " << i << " of " << stages << ", " << spec.micro_batches;
    }
  }
}

TEST(PipelineSchedule, EventsDoNotOverlapAndAddUp) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const PipelineSpec spec = RandomSpec(random, kAll[round % 3]);
    const auto run = TracePipeline(spec);
    ASSERT_TRUE(run.ok());
    const size_t stages = spec.stages.size();
    std::vector<double> free(stages, 0), passes(stages, 0);
    std::map<std::pair<Kind, int32_t>, double> links;
    double last = 0;
    for (const PipelineEvent& event : run->events) {
      const bool message = event.kind == Kind::kSendForward || event.kind == Kind::kSendBackward;
      double& from = message ? links[{event.kind, event.stage}] : free[event.stage];
      ASSERT_LE(from, event.start_us);
      ASSERT_LT(event.start_us, event.end_us);
      from = event.end_us;
      if (!message) last = std::max(last, event.end_us);
      if (!message && event.kind != Kind::kSync && event.kind != Kind::kOptimizer)
        passes[event.stage] += event.end_us - event.start_us;
    }
    for (size_t i = 0; i < stages; ++i) EXPECT_EQ(passes[i], run->stages[i].compute_us);
    EXPECT_LE(last, run->makespan_us);
  }
}

TEST(PipelineSchedule, FasterPartsNeverMakeItSlower) {
  std::mt19937 random(8);
  for (int round = 0; round < 1000; ++round) {
    PipelineSpec spec = RandomSpec(random, kAll[round % 3]);
    const double before = SimulatePipeline(spec).makespan_us;
    PipelineStage& stage = spec.stages[random() % spec.stages.size()];
    PipelineEdge& edge = spec.edges[random() % spec.edges.size()];
    switch (random() % 4) {
      case 0: stage.forward_us /= 2; break;
      case 1: stage.recompute_us = 0; break;
      case 2: edge.forward_us /= 2; break;
      default: edge.backward_us /= 4; break;
    }
    EXPECT_LE(SimulatePipeline(spec).makespan_us, before) << "round " << round;
  }
}

TEST(PipelineSchedule, ImpossibleSpecsAreRefusedWithEveryReason) {
  const auto text = [](const PipelineSpec& spec) { return MessageOf(Validate(spec)); };
  EXPECT_THAT(text({}), HasSubstr("0 stages; allowed: 1"));
  PipelineSpec spec{.micro_batches = 0, .transfer_overlap = 2, .stages = {{.forward_us = -1}, {}}};
  EXPECT_THAT(text(spec), HasSubstr("0 micro-batches"));
  EXPECT_THAT(text(spec), HasSubstr("transfer_overlap is 2"));
  EXPECT_THAT(text(spec), HasSubstr("stage 0 has a time of -1 us"));
  EXPECT_THAT(text(spec), HasSubstr("0 edges; allowed: 1"));
  spec = {.schedule = PipelineSchedule::kInterleaved, .chunks = 2, .micro_batches = 3, .stages = {{}, {}}, .edges = {{}, {}}};
  EXPECT_THAT(text(spec), HasSubstr("3 micro-batches in an interleaved pipeline; allowed: a multiple of the 2 stages"));
  spec = {.chunks = 2, .stages = {{.backward_us = 1, .weight_gradient_us = 2}}};
  EXPECT_THAT(text(spec), HasSubstr("2 chunks per stage; allowed: 1, if not interleaved"));
  EXPECT_THAT(text(spec), HasSubstr("2 us for weight gradients; allowed: at most 1"));
  EXPECT_THAT(MessageOf(TracePipeline({.micro_batches = 1000, .stages = {{}}}, 100).status()),
              HasSubstr("2000 passes; allowed: 100"));
  EXPECT_THAT(MessageOf(PipelineScheduleFrom("gpipe").status()), HasSubstr("allowed: 1f1b, interleaved, zero-bubble"));
  for (const PipelineSchedule schedule : kAll) EXPECT_EQ(*PipelineScheduleFrom(NameOf(schedule)), schedule);
}

}  // namespace
}  // namespace tidepool::plan
