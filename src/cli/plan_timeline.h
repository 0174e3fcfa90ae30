// The pipeline of a plan over one iteration, pass by pass: its phases and bubbles as numbers, a drawing in text, an SVG file, and
// a Chrome trace. What is shown is what the simulator of plan/pipeline_schedule.h plays.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/options.h"
#include "cli/plan_output.h"
#include "plan/pipeline_schedule.h"

namespace tidepool::cli {

// Flags of verbs that draw one plan.
struct TimelineFiles {
  std::string svg, trace;  // files; empty: none

  void Register(OptionTable* table);
  bool any() const { return !svg.empty() || !trace.empty(); }
};

struct StagePhases {
  double warm_up_us = 0;    // from its first pass to its first backward pass
  double steady_us = 0;     // then, until its last forward pass is over
  double cool_down_us = 0;  // then, until its last pass and message are over
  double bubble = 0;        // share of the iteration in which its devices wait for other stages
};

struct PlanTimeline {
  plan::PipelineSpec spec;          // of the whole iteration
  plan::PipelineRun run;            // of the whole iteration; without events
  plan::PipelineRun drawn;          // with events; of the first `drawn_micro_batches` only if there are too many
  int64_t drawn_micro_batches = 0;  // as many as spec has, or fewer
  std::vector<StagePhases> phases;  // by stage; warm-up and cool-down as drawn
  double bubble = 0;                // of all devices together
  bool shortened() const { return drawn_micro_batches < spec.micro_batches; }
};

// Runs with more passes than this are drawn with fewer micro-batches.
inline constexpr int64_t kDrawnPasses = int64_t{1} << 16;

// INVALID_ARGUMENT: a stage is not profiled, or the schedule cannot run so many micro-batches. RESOURCE_EXHAUSTED: so many stages
// that even a short run has more than some million passes.
StatusOr<PlanTimeline> TimelineOf(const PricedPlan& priced, int64_t most_passes = kDrawnPasses);

nlohmann::ordered_json TimelineJson(const PlanTimeline& timeline);
// "1f1b, 16 micro-batches: bubbles take 12.3 % of the devices' time".
std::string ScheduleText(const PlanTimeline& timeline);
// One line per stage, at most `columns` wide, with a ruler of the phases above and a legend below. The middle of long runs is
// left out (~), and so are stages in the middle of deep pipelines.
std::string TimelineText(const PricedPlan& priced, const PlanTimeline& timeline, int columns = 100);
// A table of the phases of each stage.
void PrintPhases(const PlanTimeline& timeline);

// A stretch of the drawn run. One, or two if the middle is left out: because a micro-batch would take less than
// `least_per_micro_batch` of `units` otherwise.
struct TimelineWindow {
  double from_us = 0, to_us = 0;
  double length_us() const { return to_us - from_us; }
};
std::vector<TimelineWindow> TimelineWindows(const PlanTimeline& timeline, double units, double least_per_micro_batch);

// One row per stage with a memory bar.
std::string TimelineSvg(const PricedPlan& priced, const PlanTimeline& timeline);
// One process per stage: a lane of passes, one per direction of messages, and a counter of its devices' memory. UNAVAILABLE and
// others: the file cannot be written.
Status WriteTimelineTrace(const PricedPlan& priced, const PlanTimeline& timeline, const std::string& path);
// What `files` asks for.
Status WriteTimelineFiles(const PricedPlan& priced, const TimelineFiles& files);

}  // namespace tidepool::cli
