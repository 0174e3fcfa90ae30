#include "cli/plan_timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/fd.h"
#include "base/testing.h"
#include "base/text.h"
#include "cli/testing.h"

namespace tidepool::cli {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

// gpt-layers:4 (55 ops) in `stages` stages of one device each.
plan::PlanFile FileOf(int stages, int64_t micro_batches) {
  plan::PlanFile file;
  file.schema = 1;
  file.model = "gpt-layers:4";
  file.plan.micro_batch = 4;
  file.plan.global_batch = 4 * micro_batches;
  for (int i = 0; i < stages; ++i) {
    const int first = 55 * i / stages, end = 55 * (i + 1) / stages;
    file.plan.stages.push_back(plan::Stage::MakeUniform(first, end - first, {.recompute = i == 1}));
  }
  return file;
}

// Priced with estimates.
struct Priced {
  Priced(int stages, int64_t micro_batches, const PlanSettingOptions& options = {}) {
    const plan::PlanFile file = FileOf(stages, micro_batches);
    auto made = SettingOfPlan(options, file, "plan.json");
    TIDEPOOL_CHECK(made.ok(), "{}", ToString(made.status()));
    setting = *std::move(made);
    auto priced = PriceOf("plan.json", file.plan, *setting);
    TIDEPOOL_CHECK(priced.ok(), "{}", ToString(priced.status()));
    plan = *std::move(priced);
  }
  std::unique_ptr<PlanSetting> setting;
  PricedPlan plan;
};

// The lines of stages, without what stands around the drawing.
std::vector<std::string> Drawings(const std::string& text) {
  std::vector<std::string> drawings;
  for (const std::string& line : SplitText(text, '\n')) {
    EXPECT_LE(line.size(), 100u) << line;
    if (!line.starts_with("stage ")) continue;
    const size_t from = line.find_first_not_of(" 0123456789", 6), to = line.find(' ', from);
    drawings.push_back(line.substr(from, to - from));
  }
  return drawings;
}

TEST(PlanTimelines, PlayWhatTheModelPriced) {
  const Priced priced(4, 8);
  const auto timeline = TimelineOf(priced.plan);
  ASSERT_TRUE(timeline.ok()) << ToString(timeline.status());
  EXPECT_FALSE(timeline->shortened());
  EXPECT_DOUBLE_EQ(timeline->run.makespan_us, priced.plan.cost.iteration_ms * 1000);
  EXPECT_EQ(timeline->drawn.makespan_us, timeline->run.makespan_us);
  for (size_t i = 0; i < 4; ++i) {
    const StagePhases& phases = timeline->phases[i];
    const plan::StageRun& run = timeline->run.stages[i];
    EXPECT_NEAR(run.first_us + phases.warm_up_us + phases.steady_us + phases.cool_down_us, run.last_us, 1e-3);
    EXPECT_GT(phases.bubble, 0);
    EXPECT_LT(phases.bubble, 1);
  }
  EXPECT_GT(timeline->phases[0].warm_up_us, timeline->phases[3].warm_up_us);
}

TEST(PlanTimelines, AreDrawnWithOneLinePerStage) {
  const Priced priced(4, 8);
  const auto timeline = TimelineOf(priced.plan);
  ASSERT_TRUE(timeline.ok());
  const std::string text = TimelineText(priced.plan, *timeline);
  EXPECT_THAT(text, AllOf(HasSubstr("|steady"), HasSubstr("|cool-down"), HasSubstr("BUBBLE"), HasSubstr("F forward"),
                          HasSubstr("R recompute"), HasSubstr("a column is "), Not(HasSubstr("~"))));
  const std::vector<std::string> drawings = Drawings(text);
  ASSERT_EQ(drawings.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(drawings[i].size(), drawings[0].size());
    // Nothing else begins with a forward pass at once, and later stages begin later.
    EXPECT_EQ(drawings[i][0] == 'F', i == 0) << drawings[i];
    if (i > 0) {
      EXPECT_GT(drawings[i].find('F'), drawings[i - 1].find('F'));
    }
    EXPECT_EQ(drawings[i].find('R') != std::string::npos, i == 1) << drawings[i];
  }
}

TEST(PlanTimelines, LeaveOutTheMiddleOfLongRuns) {
  const Priced priced(4, 1000);
  const auto whole = TimelineOf(priced.plan);
  ASSERT_TRUE(whole.ok());
  EXPECT_FALSE(whole->shortened());
  const std::vector<std::string> drawings = Drawings(TimelineText(priced.plan, *whole));
  ASSERT_EQ(drawings.size(), 4u);
  for (const std::string& drawing : drawings) {
    EXPECT_EQ(std::count(drawing.begin(), drawing.end(), '~'), 1) << drawing;
    EXPECT_EQ(drawing.size(), drawings[0].size());
  }
  EXPECT_EQ(TimelineWindows(*whole, 80, 4).size(), 2u);
  EXPECT_EQ(TimelineWindows(*whole, 1e6, 4).size(), 1u);
  // Fewer micro-batches are drawn; what is said is of all.
  const auto shortened = TimelineOf(priced.plan, 400);
  ASSERT_TRUE(shortened.ok());
  EXPECT_EQ(shortened->drawn_micro_batches, 100);
  EXPECT_EQ(shortened->run.makespan_us, whole->run.makespan_us);
  EXPECT_EQ(shortened->bubble, whole->bubble);
  EXPECT_THAT(TimelineText(priced.plan, *shortened), HasSubstr("drawn with 100 of 1000 micro-batches"));
}

TEST(PlanTimelines, LeaveOutStagesInTheMiddleOfDeepPipelines) {
  const Priced priced(55, 60);
  const auto timeline = TimelineOf(priced.plan);
  ASSERT_TRUE(timeline.ok());
  const std::string text = TimelineText(priced.plan, *timeline);
  EXPECT_THAT(text, AllOf(HasSubstr("... stages 24 to 30 are left out"), HasSubstr("stage 54 ")));
  EXPECT_EQ(Drawings(text).size(), 48u);
}

TEST(PlanTimelines, SayThatTheParityModelIsAFormula) {
  PlanSettingOptions options;
  options.cost.name = "parity";
  const Priced priced(2, 4, options);
  const auto timeline = TimelineOf(priced.plan);
  ASSERT_TRUE(timeline.ok());
  EXPECT_THAT(TimelineText(priced.plan, *timeline), HasSubstr("the parity model's iteration is a formula"));
}

TEST(PlanTimelines, BecomeSvgWithARowAndAMemoryBarPerStage) {
  Priced priced(4, 8);
  priced.plan.name = "a<b>.json";
  const auto timeline = TimelineOf(priced.plan);
  ASSERT_TRUE(timeline.ok());
  const std::string svg = TimelineSvg(priced.plan, *timeline);
  EXPECT_THAT(svg,
              AllOf(HasSubstr("<svg xmlns="), HasSubstr("a&lt;b&gt;.json"), HasSubstr(">stage 3<"), HasSubstr("bubbles take"),
                    HasSubstr(">recompute<"), Not(HasSubstr("nan")), Not(HasSubstr("inf")), Not(HasSubstr(">...<"))));
  // Long runs do not make large files.
  const Priced longer(4, 20000);
  const auto large = TimelineOf(longer.plan);
  ASSERT_TRUE(large.ok());
  const std::string cut = TimelineSvg(longer.plan, *large);
  EXPECT_THAT(cut, HasSubstr(">...<"));
  EXPECT_LT(cut.size(), 200'000u);
}

TEST(PlanTimelines, BecomeATraceWithEveryPass) {
  testing::TempDir root;
  const Priced priced(4, 8);
  const auto timeline = TimelineOf(priced.plan);
  ASSERT_TRUE(timeline.ok());
  ASSERT_TRUE(WriteTimelineTrace(priced.plan, *timeline, root.File("t.json")).ok());
  const auto json = nlohmann::json::parse(testing::ReadAll(root.File("t.json")), nullptr, false);
  ASSERT_TRUE(json.is_array());
  std::map<std::string, int> slices;
  std::map<std::pair<int, int>, double> lane_us;  // where the lane's last slice ends
  std::map<int, double> memory_mib, held_at_the_end;
  double end_us = 0;
  for (const auto& event : json) {
    const std::string phase = event["ph"];
    if (phase == "X") {
      const std::string name = event["name"];
      ++slices[name.substr(0, name.find_last_not_of(" 0123456789") + 1)];
      const double start = event["ts"], duration = event["dur"];
      double& last = lane_us[{event["pid"], event["tid"]}];
      EXPECT_GE(start, last - 0.002) << event;
      last = start + duration;
      end_us = std::max(end_us, last);
    } else if (phase == "C") {
      double sum = 0;
      for (const auto& [key, value] : event["args"].items()) sum += value.get<double>();
      double& most = memory_mib[event["pid"]];
      most = std::max(most, sum);
      held_at_the_end[event["pid"]] = event["args"]["activations"];
    }
  }
  EXPECT_EQ(slices["forward"], 32);
  EXPECT_EQ(slices["backward"], 32);
  EXPECT_EQ(slices["recompute"], 8);
  EXPECT_EQ(slices["optimizer"], 4);
  EXPECT_EQ(slices["send activations"], 24);
  EXPECT_EQ(slices["send gradients"], 24);
  EXPECT_NEAR(end_us, priced.plan.cost.iteration_ms * 1000, 0.01);
  ASSERT_EQ(memory_mib.size(), 4u);
  for (const auto& [stage, mib] : memory_mib) {
    EXPECT_NEAR(mib, priced.plan.cost.stages[static_cast<size_t>(stage)].memory_mib, 1e-6);
    EXPECT_EQ(held_at_the_end[stage], 0);
  }
}

TEST(PlanTimelines, AreWrittenByVerbsForOnePlan) {
  testing::TempDir root;
  const auto ops = plan::PublishedOpList("gpt-layers:4");
  const std::string plan = root.File("plan.json"), svg = root.File("t.svg"), trace = root.File("t.json");
  ASSERT_TRUE(plan::WritePlan(FileOf(2, 8), *ops, plan).ok());
  const Outcome shown = RunWords({"plan", "show", plan, "--timeline-svg", svg, "--trace", trace});
  ASSERT_EQ(shown.code, kExitDone) << shown.err;
  EXPECT_THAT(shown.out, AllOf(HasSubstr("schedule     1f1b, 8 micro-batches: bubbles take "), HasSubstr("|steady"),
                               HasSubstr("COOL-DOWN"), HasSubstr("s weights, gradients, optimizer"), HasSubstr("[aap")));
  EXPECT_THAT(testing::ReadAll(svg), HasSubstr("</svg>"));
  EXPECT_TRUE(nlohmann::json::accept(testing::ReadAll(trace)));
  const auto json = RunWords({"plan", "predict", plan, "-o", "json"}).json()[0];
  EXPECT_EQ(json["timeline"]["schedule"], "1f1b");
  EXPECT_NEAR(json["timeline"]["makespan_seconds"].get<double>(), json["iteration_seconds"].get<double>(), 1e-9);
  EXPECT_EQ(json["timeline"]["stages"].size(), 2u);
  EXPECT_THAT(RunWords({"plan", "predict", plan, plan, "--trace", trace}).err, HasSubstr("--trace with 2 plans; allowed: one"));
  EXPECT_EQ(RunWords({"plan", "show", plan, "--trace", root.File("no/t.json")}).code, kExitFailed);
  EXPECT_EQ(RunWords({"plan", "show", plan, "--timeline-svg", root.File("no/t.svg")}).code, kExitFailed);
}

TEST(PlanTimelines, AreLeftOutWhereAStageIsNotProfiled) {
  Priced priced(2, 8);
  plan::Plan plan = priced.plan.plan;
  plan.stages[1] = plan::Stage::MakeUniform(plan.stages[1]->first(), plan.stages[1]->count(), {.data_parallel = 3});
  const auto unpriced = PriceOf("plan.json", plan, *priced.setting);
  ASSERT_TRUE(unpriced.ok());
  EXPECT_THAT(ToString(TimelineOf(*unpriced).status()), HasSubstr("stage 1 is not profiled"));
  testing::TempDir root;
  EXPECT_THAT(ToString(WriteTimelineFiles(*unpriced, {.trace = root.File("t.json")})),
              HasSubstr("the timeline of plan.json: stage 1 is not profiled"));
}

}  // namespace
}  // namespace tidepool::cli
