// The timeline as files: SVG and Chrome trace.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <span>

#include "base/fd.h"
#include "base/trace.h"
#include "cli/plan_timeline.h"
#include "report/html.h"
#include "report/plot.h"
#include "report/standalone.h"

namespace tidepool::cli {
namespace {

using plan::PipelineEvent;
using plan::StageCost;
using Kind = PipelineEvent::Kind;

// --- SVG ---

constexpr double kLeft = 76, kPlot = 940, kGap = 22, kBubble = 62, kMemory = 150, kMargin = 12;
constexpr double kTop = 84, kRow = 30, kPass = 18, kMessage = 3;
constexpr double kLeastPerMicroBatch = 24;  // so that passes can be told apart
constexpr double kMostMarks = 60000;        // of all rows; passes that are too short for it are joined

int ColorOf(Kind kind) {
  switch (kind) {
    case Kind::kForward: return 0;
    case Kind::kRecompute: return 1;
    case Kind::kBackward: return 2;
    case Kind::kWeightGradient: return 6;
    case Kind::kSendForward:
    case Kind::kSendBackward: return 9;
    case Kind::kSync: return 4;
    case Kind::kOptimizer: return 3;
  }
  return 9;
}

class SvgTimeline {
 public:
  SvgTimeline(const PricedPlan& priced, const PlanTimeline& timeline)
      : priced_(priced), timeline_(timeline), windows_(TimelineWindows(timeline, kPlot, kLeastPerMicroBatch)) {
    double total = 0;
    for (const TimelineWindow& window : windows_) total += window.length_us();
    scale_ = total > 0 ? (kPlot - kGap * static_cast<double>(windows_.size() - 1)) / total : 0;
    least_width_ = std::max(0.4, static_cast<double>(timeline.phases.size()) * kPlot / kMostMarks);
  }

  std::string Draw() {
    const auto rows = static_cast<double>(timeline_.phases.size());
    const double bottom = kTop + rows * kRow, width = kLeft + kPlot + kBubble + kMemory + kMargin, height = bottom + 34;
    DrawHead(width);
    DrawAxis(bottom);
    for (size_t i = 0; i < timeline_.phases.size(); ++i) DrawStage(i);
    DrawPasses();
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\">{2}"
        "<rect class=\"bg\" width=\"{0:g}\" height=\"{1:g}\"/>{3}</svg>\n",
        width, height, report::StandaloneStyle(), svg_);
  }

 private:
  void Text(double x, double y, std::string_view attributes, std::string_view text) {
    svg_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>", x, y, attributes, report::EscapeHtml(text));
  }
  void Rect(int color, double x, double y, double width, double height) {
    svg_ += fmt::format("<rect class=\"f{}\" x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\"/>", color, x, y, width,
                        height);
  }
  double Begin(size_t window) const {
    double x = kLeft;
    for (size_t i = 0; i < window; ++i) x += windows_[i].length_us() * scale_ + kGap;
    return x;
  }

  void DrawHead(double width) {
    Text(kMargin, 20, " class=\"t\"", fmt::format("{}: {} per iteration", priced_.name, PlanTimeText(timeline_.run.makespan_us)));
    std::string note = fmt::format("{}; {}, {} devices; {} times", ScheduleText(timeline_), priced_.setting->ops.name,
                                   priced_.plan.gpus(), OriginOf(*priced_.setting));
    if (windows_.size() > 1) note += "; the middle is left out";
    if (timeline_.shortened()) note += fmt::format("; drawn with {} micro-batches", timeline_.drawn_micro_batches);
    Text(kMargin, 37, "", note);
    bool used[16] = {};
    for (const PipelineEvent& event : timeline_.drawn.events) used[static_cast<size_t>(event.kind)] = true;
    used[static_cast<size_t>(Kind::kSendForward)] |= used[static_cast<size_t>(Kind::kSendBackward)];
    double x = kMargin;
    for (const Kind kind : {Kind::kForward, Kind::kRecompute, Kind::kBackward, Kind::kWeightGradient, Kind::kSendForward,
                            Kind::kSync, Kind::kOptimizer}) {
      if (!used[static_cast<size_t>(kind)]) continue;
      const std::string name =
          kind == Kind::kSendForward ? "message (above: forward, below: backward)" : std::string(NameOf(kind));
      Rect(ColorOf(kind), x, 47, 11, 11);
      Text(x + 16, 57, "", name);
      x += 32 + 6.4 * static_cast<double>(name.size());
    }
    Text(kLeft + kPlot + kBubble - 8, kTop - 6, " text-anchor=\"end\"", "bubble");
    Text(width - kMargin - kMemory, kTop - 6, "", "memory of the limit");
  }

  void DrawAxis(double bottom) {
    for (size_t k = 0; k < windows_.size(); ++k) {
      const TimelineWindow& window = windows_[k];
      const double begin = Begin(k), end = begin + window.length_us() * scale_;
      const int most = std::max(2, static_cast<int>((end - begin) / 90));
      for (const double tick : report::LinearTicks(window.from_us / 1e6, window.to_us / 1e6, most, report::Unit::kSeconds)) {
        const double x = begin + (tick * 1e6 - window.from_us) * scale_;
        if (x < begin - 0.5 || x > end + 0.5) continue;
        svg_ += fmt::format("<line class=\"g\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\"/>", x, kTop, bottom);
        Text(x, bottom + 16, " text-anchor=\"middle\"", report::FormatValue(tick, report::Unit::kSeconds));
      }
      if (k > 0) Text(begin - kGap / 2, kTop - 6, " text-anchor=\"middle\"", "...");
    }
  }

  void DrawStage(size_t stage) {
    const double y = kTop + static_cast<double>(stage) * kRow, middle = y + kRow / 2 + 4;
    Text(kMargin, middle, "", fmt::format("stage {}", stage));
    Text(kLeft + kPlot + kBubble - 8, middle, " text-anchor=\"end\"",
         fmt::format("{:.1f} %", 100 * timeline_.phases[stage].bubble));
    const plan::StagePlace place = priced_.setting->model->PlacesOf(priced_.plan)[stage];
    const double fill = priced_.cost.stages[stage].memory_mib /
                        priced_.setting->cluster.MemoryLimitOf(place.first_gpu, priced_.plan.stages[stage]->gpus());
    const double x = kLeft + kPlot + kBubble, bar = kMemory - 56;
    svg_ += fmt::format("<rect fill=\"#e9ebec\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"10\"/>", x, middle - 9, bar);
    Rect(fill > 1 ? 3 : 6, x, middle - 9, bar * std::clamp(fill, 0.0, 1.0), 10);
    Text(x + bar + 6, middle, fill > 1 ? " class=\"mt\"" : "", fmt::format("{:.1f} %", 100 * fill));
  }

  void DrawPasses() {
    for (size_t k = 0; k < windows_.size(); ++k) {
      const TimelineWindow& window = windows_[k];
      double last_x[3] = {-1, -1, -1};  // where the lane was drawn up to: passes, messages forward, messages backward
      int32_t stage = -1;
      for (const PipelineEvent& event : timeline_.drawn.events) {
        if (event.stage != stage) std::fill(last_x, last_x + 3, -1.0);
        stage = event.stage;
        if (event.end_us <= window.from_us || event.start_us >= window.to_us) continue;
        const int lane = event.kind == Kind::kSendForward ? 1 : event.kind == Kind::kSendBackward ? 2 : 0;
        const double x = Begin(k) + (std::max(event.start_us, window.from_us) - window.from_us) * scale_;
        const double end = Begin(k) + (std::min(event.end_us, window.to_us) - window.from_us) * scale_;
        const double from = std::max(x, last_x[lane]), width = std::max(end - from, least_width_);
        if (end - from < least_width_ / 2) continue;  // lies below what is there
        last_x[lane] = from + width;
        const double top = kTop + stage * kRow + (kRow - kPass) / 2;
        const double y = lane == 0 ? top : lane == 1 ? top - kMessage - 1 : top + kPass + 1;
        Rect(ColorOf(event.kind), from, y, lane == 0 && width > 3 ? width - 0.6 : width, lane == 0 ? kPass : kMessage);
        const std::string number = fmt::format("{}", event.micro_batch);
        const bool of_micro_batch = lane == 0 && event.kind != Kind::kSync && event.kind != Kind::kOptimizer;
        if (of_micro_batch && width > 7.0 * static_cast<double>(number.size()) + 2) {
          Text(from + width / 2, top + 13, " class=\"i\" text-anchor=\"middle\"", number);
        }
      }
    }
  }

  const PricedPlan& priced_;
  const PlanTimeline& timeline_;
  std::vector<TimelineWindow> windows_;
  double scale_ = 0, least_width_ = 0;
  std::string svg_;
};

// --- Trace ---

enum Lane { kPasses = 0, kForwardMessages, kBackwardMessages };

// Memory of one of the stage's devices as its micro-batches come and go. What is not held by waiting micro-batches is there all
// the time, so the largest value is what the cost model says if the run holds as many as the model reckons with.
class MemoryCounter {
 public:
  MemoryCounter(const PricedPlan& priced, const PlanTimeline& timeline, size_t stage) : chunks_(timeline.spec.chunks) {
    const StageCost& cost = priced.cost.stages[stage];
    const plan::StageTotals totals = priced.setting->model->TotalsOf(*priced.plan.stages[stage], priced.plan.micro_batch);
    live_mib_ = cost.peak_mib - totals.peak_run_mib;
    state_mib_ = cost.state_mib;
    rest_mib_ = cost.memory_mib - state_mib_ - cost.activation_mib - live_mib_;
    // Events are in the order of stages. Zero-bubble pipelines keep a micro-batch until its weight gradients are there.
    const auto before = [](const PipelineEvent& event, int32_t value) { return event.stage < value; };
    const std::vector<PipelineEvent>& events = timeline.drawn.events;
    const auto index = static_cast<int32_t>(stage);
    const auto begin = std::lower_bound(events.begin(), events.end(), index, before);
    const auto end = std::lower_bound(begin, events.end(), index + 1, before);
    const bool late = std::any_of(begin, end, [](const PipelineEvent& event) { return event.kind == Kind::kWeightGradient; });
    for (const PipelineEvent& event : std::span(begin, end)) {
      if (event.kind == Kind::kForward) ++changes_[event.start_us];
      if (event.kind == (late ? Kind::kWeightGradient : Kind::kBackward)) --changes_[event.end_us];
    }
  }

  void Write(int pid, absl::Time start, TraceWriter* trace) const {
    int64_t held = 0;
    Show(pid, start, 0, trace);
    for (const auto& [us, change] : changes_) {
      held += change;
      Show(pid, start + absl::Microseconds(us), held, trace);
    }
  }

 private:
  void Show(int pid, absl::Time at, int64_t held, TraceWriter* trace) const {
    trace->Counter(pid, "memory MiB", at,
                   {{"state", state_mib_},
                    {"activations", live_mib_ * static_cast<double>(std::max<int64_t>(held, 0)) / chunks_},
                    {"workspace and margin", rest_mib_}});
  }

  double chunks_, live_mib_ = 0, state_mib_ = 0, rest_mib_ = 0;
  std::map<double, int64_t> changes_;  // chunks that come (above 0) and go, by time
};

}  // namespace

std::string TimelineSvg(const PricedPlan& priced, const PlanTimeline& timeline) { return SvgTimeline(priced, timeline).Draw(); }

Status WriteTimelineTrace(const PricedPlan& priced, const PlanTimeline& timeline, const std::string& path) {
  const absl::Time start = absl::UnixEpoch();
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<TraceWriter> trace, TraceWriter::Open(path, start));
  const std::vector<plan::StagePlace> places = priced.setting->model->PlacesOf(priced.plan);
  for (size_t i = 0; i < places.size(); ++i) {
    const auto pid = static_cast<int>(i);
    const plan::Stage& stage = *priced.plan.stages[i];
    trace->NameProcess(pid, fmt::format("stage {}: ops {}, devices {}, {}", i, OpsText(stage),
                                        DevicesText(places[i].first_gpu, stage.gpus()), SplitsText(stage)));
    trace->NameThread(pid, kPasses, "passes");
    if (timeline.drawn.stages.size() > 1) {
      trace->NameThread(pid, kForwardMessages, "activations sent");
      trace->NameThread(pid, kBackwardMessages, "gradients sent");
    }
    MemoryCounter(priced, timeline, i).Write(pid, start, trace.get());
  }
  for (const PipelineEvent& event : timeline.drawn.events) {
    const bool once = event.kind == Kind::kSync || event.kind == Kind::kOptimizer;
    const int lane = event.kind == Kind::kSendForward    ? kForwardMessages
                     : event.kind == Kind::kSendBackward ? kBackwardMessages
                                                         : kPasses;
    TraceArgs args;
    if (!once) args = {{"micro_batch", fmt::format("{}", event.micro_batch)}, {"chunk", fmt::format("{}", event.chunk)}};
    trace->Complete(event.stage, lane,
                    once ? std::string(NameOf(event.kind)) : fmt::format("{} {}", NameOf(event.kind), event.micro_batch),
                    start + absl::Microseconds(event.start_us), absl::Microseconds(event.end_us - event.start_us), args);
  }
  return trace->Finish();
}

Status WriteTimelineFiles(const PricedPlan& priced, const TimelineFiles& files) {
  if (!files.any()) return {};
  const auto timeline = TimelineOf(priced);
  if (!timeline.ok()) return Annotate(timeline.status(), fmt::format("the timeline of {}", priced.name));
  if (!files.svg.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(files.svg, TimelineSvg(priced, *timeline)));
  if (!files.trace.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteTimelineTrace(priced, *timeline, files.trace));
  return {};
}

}  // namespace tidepool::cli
