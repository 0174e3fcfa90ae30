#include "cli/plan_timeline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "cli/print.h"

namespace tidepool::cli {
namespace {

using plan::PipelineEvent;
using plan::PipelineRun;
using plan::PipelineSpec;
using Kind = PipelineEvent::Kind;
using Json = nlohmann::ordered_json;

constexpr size_t kKinds = 8;
constexpr char kLetters[kKinds + 1] = "FRBW--so";  // by Kind
constexpr char kIdle = '.', kCut = '~';
constexpr size_t kMostLines = 48;          // of stages
constexpr int64_t kLargestPlay = 4 << 20;  // passes of a drawing, whatever the depth

bool IsPass(Kind kind) { return kind != Kind::kSendForward && kind != Kind::kSendBackward; }

// Micro-batches of a drawing: few enough, but enough that every stage gets to its steady state.
int64_t DrawnMicroBatches(const PipelineSpec& spec, int64_t most_passes) {
  const auto stages = static_cast<int64_t>(spec.stages.size());
  const int64_t fitting = most_passes / (stages * spec.chunks) / stages * stages;
  return std::min(spec.micro_batches, std::max(fitting, 4 * stages));
}

// When a stage went backward first, and when it had gone forward for the last time.
struct Turn {
  double first_us = 0, first_backward_us = INFINITY, last_forward_us = 0;
};
std::vector<Turn> TurnsOf(const PipelineRun& run) {
  std::vector<Turn> turns(run.stages.size());
  for (size_t i = 0; i < turns.size(); ++i) turns[i].first_us = run.stages[i].first_us;
  for (const PipelineEvent& event : run.events) {
    Turn& turn = turns[static_cast<size_t>(event.stage)];
    if (event.kind == Kind::kForward) turn.last_forward_us = std::max(turn.last_forward_us, event.end_us);
    if (event.kind == Kind::kBackward || event.kind == Kind::kRecompute) {
      turn.first_backward_us = std::min(turn.first_backward_us, event.start_us);
    }
  }
  for (size_t i = 0; i < turns.size(); ++i) {
    turns[i].first_backward_us = std::min(turns[i].first_backward_us, run.stages[i].last_us);
  }
  return turns;
}

// The columns of a drawing in text; one with to == from is where the middle is left out.
struct Column {
  double from_us = 0, to_us = 0;
};
std::vector<Column> ColumnsOf(const std::vector<TimelineWindow>& windows, int count) {
  double total = 0;
  for (const TimelineWindow& window : windows) total += window.length_us();
  const int drawn = count - static_cast<int>(windows.size()) + 1;
  std::vector<Column> columns;
  for (const TimelineWindow& window : windows) {
    if (!columns.empty()) columns.push_back({columns.back().to_us, columns.back().to_us});
    const bool last = &window == &windows.back();
    const int share = total > 0 ? static_cast<int>(std::lround(window.length_us() / total * drawn)) : drawn;
    const int own = last ? count - static_cast<int>(columns.size()) : std::clamp(share, 1, drawn - 1);
    for (int i = 0; i < own; ++i) {
      columns.push_back({window.from_us + window.length_us() * i / own, window.from_us + window.length_us() * (i + 1) / own});
    }
  }
  return columns;
}

// What each stage does in each column, and the letters that were used.
class TextCanvas {
 public:
  TextCanvas(const PlanTimeline& timeline, std::vector<Column> columns)
      : stages_(timeline.drawn.stages.size()), columns_(std::move(columns)), spent_(stages_ * columns_.size()) {
    const bool blocks = timeline.spec.transfer_overlap < 1;
    for (const PipelineEvent& event : timeline.drawn.events) {
      const auto stage = static_cast<size_t>(event.stage);
      if (IsPass(event.kind)) {
        Spend(stage, event);
      } else if (blocks) {  // both ends wait for a message
        Spend(stage, event);
        Spend((stage + (event.kind == Kind::kSendForward ? 1 : stages_ - 1)) % stages_, event);
      }
    }
  }

  std::string Line(size_t stage) {
    std::string line;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const double length = columns_[i].to_us - columns_[i].from_us;
      const char letter = length > 0 ? Letter(spent_[stage * columns_.size() + i], length) : kCut;
      used_ += used_.find(letter) == std::string::npos ? std::string(1, letter) : "";
      line += letter;
    }
    return line;
  }
  const std::string& used() const { return used_; }

 private:
  using Spent = std::array<double, kKinds>;  // by kind

  void Spend(size_t stage, const PipelineEvent& event) {
    auto column =
        std::partition_point(columns_.begin(), columns_.end(), [&](const Column& one) { return one.to_us <= event.start_us; });
    for (; column != columns_.end() && column->from_us < event.end_us; ++column) {
      const double us = std::min(column->to_us, event.end_us) - std::max(column->from_us, event.start_us);
      const auto index = static_cast<size_t>(column - columns_.begin());
      spent_[stage * columns_.size() + index][static_cast<size_t>(event.kind)] += std::max(us, 0.0);
    }
  }

  // Most of the column; messages count where no pass runs.
  static char Letter(const Spent& spent, double length) {
    double passes = 0, messages = 0, most = 0;
    char letter = kIdle;
    for (size_t kind = 0; kind < kKinds; ++kind) {
      if (!IsPass(static_cast<Kind>(kind))) {
        messages += spent[kind];
        continue;
      }
      passes += spent[kind];
      if (spent[kind] > most) {
        most = spent[kind];
        letter = kLetters[kind];
      }
    }
    const double waits = std::clamp(messages, 0.0, std::max(length - passes, 0.0)), idle = length - passes - waits;
    if (std::max(waits, idle) <= most) return letter;
    return waits > idle ? '-' : kIdle;
  }

  size_t stages_;
  std::vector<Column> columns_;
  std::vector<Spent> spent_;  // [stage][column]
  std::string used_;
};

// "|warm-up   |steady   |cool-down": each name where its phase begins, if there is room.
std::string RulerText(const PlanTimeline& timeline, const std::vector<Column>& columns) {
  double steady_us = INFINITY, cool_us = INFINITY;
  for (const Turn& turn : TurnsOf(timeline.drawn)) {
    steady_us = std::min(steady_us, turn.first_backward_us);
    cool_us = std::min(cool_us, turn.last_forward_us);
  }
  cool_us = std::max(cool_us, steady_us);
  const auto at = [&](double us) {
    const auto column = std::partition_point(columns.begin(), columns.end(), [&](const Column& one) { return one.to_us <= us; });
    return static_cast<size_t>(column - columns.begin());
  };
  const size_t begins[] = {0, at(steady_us), at(cool_us), columns.size()};
  constexpr const char* kNames[] = {"warm-up", "steady", "cool-down"};
  std::string ruler(columns.size(), ' ');
  for (size_t i = 0; i < 3; ++i) {
    if (begins[i] >= begins[i + 1]) continue;
    ruler[begins[i]] = '|';
    const std::string_view name = kNames[i];
    if (name.size() < begins[i + 1] - begins[i]) ruler.replace(begins[i] + 1, name.size(), name);
  }
  ruler.resize(ruler.find_last_not_of(' ') + 1);
  return ruler;
}

std::string LegendText(const std::string& used) {
  constexpr std::pair<char, const char*> kNames[] = {{'F', "forward"},          {'R', "recompute"}, {'B', "backward"},
                                                     {'W', "weight gradients"}, {'-', "message"},   {'s', "gradient sync"},
                                                     {'o', "optimizer"},        {kIdle, "bubble"},  {kCut, "left out"}};
  std::string text;
  for (const auto& [letter, name] : kNames) {
    if (used.find(letter) != std::string::npos) text += fmt::format("{}{} {}", text.empty() ? "" : "  ", letter, name);
  }
  return text;
}

std::string PercentText(double share) { return fmt::format("{:.1f} %", 100 * share); }

}  // namespace

void TimelineFiles::Register(OptionTable* table) {
  table->Add({.key = "plan.timeline_svg", .help = "Draw the pipeline's timeline and memory to this file", .metavar = "FILE"},
             &svg);
  table->Add({.key = "plan.trace", .help = "Write the pipeline as a Chrome trace, for Perfetto", .metavar = "FILE"}, &trace);
}

StatusOr<PlanTimeline> TimelineOf(const PricedPlan& priced, int64_t most_passes) {
  for (size_t i = 0; i < priced.cost.stages.size(); ++i) {
    if (!std::isfinite(priced.cost.stages[i].time_us)) return InvalidArgument("stage {} is not profiled", i);
  }
  PlanTimeline timeline;
  timeline.spec = priced.setting->model->PipelineOf(priced.plan, priced.cost.stages);
  TIDEPOOL_RETURN_IF_ERROR(plan::Validate(timeline.spec));
  timeline.run = plan::SimulatePipeline(timeline.spec);
  timeline.drawn_micro_batches = DrawnMicroBatches(timeline.spec, most_passes);
  PipelineSpec drawn = timeline.spec;
  drawn.micro_batches = timeline.drawn_micro_batches;
  TIDEPOOL_ASSIGN_OR_RETURN(timeline.drawn, plan::TracePipeline(drawn, kLargestPlay));
  const std::vector<Turn> turns = TurnsOf(timeline.drawn);
  double idle = 0;
  for (size_t i = 0; i < turns.size(); ++i) {
    const plan::StageRun& run = timeline.run.stages[i];
    StagePhases phases;
    phases.warm_up_us = turns[i].first_backward_us - turns[i].first_us;
    phases.cool_down_us = timeline.drawn.stages[i].last_us - turns[i].last_forward_us;
    phases.steady_us = std::max(0.0, run.last_us - run.first_us - phases.warm_up_us - phases.cool_down_us);
    phases.bubble = timeline.run.makespan_us > 0 ? run.idle_us / timeline.run.makespan_us : 0;
    idle += phases.bubble * priced.plan.stages[i]->gpus();
    timeline.phases.push_back(phases);
  }
  timeline.bubble = idle / priced.plan.gpus();
  return timeline;
}

Json TimelineJson(const PlanTimeline& timeline) {
  Json stages = Json::array();
  for (size_t i = 0; i < timeline.phases.size(); ++i) {
    const plan::StageRun& run = timeline.run.stages[i];
    const StagePhases& phases = timeline.phases[i];
    stages.push_back({{"first_us", run.first_us},
                      {"last_us", run.last_us},
                      {"warm_up_us", phases.warm_up_us},
                      {"steady_us", phases.steady_us},
                      {"cool_down_us", phases.cool_down_us},
                      {"compute_us", run.compute_us},
                      {"messages_us", run.blocked_us},
                      {"idle_us", run.idle_us},
                      {"bubble", phases.bubble}});
  }
  return {{"schedule", plan::NameOf(timeline.spec.schedule)},
          {"chunks", timeline.spec.chunks},
          {"micro_batches", timeline.spec.micro_batches},
          {"makespan_seconds", timeline.run.makespan_us / 1e6},
          {"bubble", timeline.bubble},
          {"stages", std::move(stages)}};
}

std::string ScheduleText(const PlanTimeline& timeline) {
  const std::string chunks = timeline.spec.chunks > 1 ? fmt::format(" with {} chunks", timeline.spec.chunks) : "";
  return fmt::format("{}{}, {} micro-batches: bubbles take {} of the devices' time", plan::NameOf(timeline.spec.schedule), chunks,
                     timeline.spec.micro_batches, PercentText(timeline.bubble));
}

std::vector<TimelineWindow> TimelineWindows(const PlanTimeline& timeline, double units, double least_per_micro_batch) {
  const PipelineRun& run = timeline.drawn;
  const TimelineWindow all{0, run.makespan_us};
  const auto micro_batches = static_cast<double>(timeline.drawn_micro_batches);
  double period_us = 0;
  for (const plan::StageRun& stage : run.stages) {
    period_us = std::max(period_us, (stage.compute_us + stage.blocked_us) / micro_batches);
  }
  if (period_us * units >= least_per_micro_batch * all.length_us()) return {all};
  // The pipeline is full once the first stage has gone backward, and empties when it has gone forward for the last time.
  double full_us = 0, empties_us = INFINITY;
  for (const Turn& turn : TurnsOf(run)) {
    full_us = std::max(full_us, turn.first_backward_us);
    empties_us = std::min(empties_us, turn.last_forward_us);
  }
  const TimelineWindow head{0, full_us + 2 * period_us}, tail{empties_us - period_us, run.makespan_us};
  if (head.to_us + period_us >= tail.from_us) return {all};
  return {head, tail};
}

std::string TimelineText(const PricedPlan& priced, const PlanTimeline& timeline, int columns) {
  const size_t stages = timeline.phases.size();
  const int digits = static_cast<int>(fmt::format("{}", stages - 1).size());
  const std::string indent(static_cast<size_t>(7 + digits), ' ');  // "stage 0 "
  const int width = std::max(16, columns - static_cast<int>(indent.size()) - 10);
  const std::vector<TimelineWindow> windows = TimelineWindows(timeline, width, 4);
  const std::vector<Column> drawn = ColumnsOf(windows, width);
  TextCanvas canvas(timeline, drawn);
  std::string text = fmt::format("{}{:<{}}  BUBBLE\n", indent, RulerText(timeline, drawn), width);
  for (size_t i = 0; i < stages; ++i) {
    if (stages > kMostLines && i == kMostLines / 2) {
      const size_t next = stages - kMostLines / 2;
      text += fmt::format("{}... stages {} to {} are left out\n", indent, i, next - 1);
      i = next;
    }
    text += fmt::format("stage {:>{}} {}  {:>7}\n", i, digits, canvas.Line(i), PercentText(timeline.phases[i].bubble));
  }
  text += fmt::format("{}{}\n", indent, LegendText(canvas.used()));
  const double column_us = drawn.front().to_us - drawn.front().from_us;
  text += fmt::format("{}a column is {}, the whole {}", indent, PlanTimeText(column_us), PlanTimeText(timeline.run.makespan_us));
  if (timeline.shortened()) {
    text += fmt::format("; drawn with {} of {} micro-batches", timeline.drawn_micro_batches, timeline.spec.micro_batches);
  }
  text += "\n";
  if (priced.setting->model->iteration_is_closed_form()) {
    text += fmt::format("{}the {} model's iteration is a formula, {}; this is what the schedule takes when it is played\n",
                        indent, priced.setting->model->name(), PlanTimeText(priced.cost.iteration_ms * 1000));
  }
  return text;
}

void PrintPhases(const PlanTimeline& timeline) {
  std::vector<std::vector<std::string>> rows = {
      {"STAGE", "STARTS", "WARM-UP", "STEADY", "COOL-DOWN", "PASSES", "MESSAGES", "IDLE"}};
  for (size_t i = 0; i < timeline.phases.size(); ++i) {
    const plan::StageRun& run = timeline.run.stages[i];
    const StagePhases& phases = timeline.phases[i];
    rows.push_back({fmt::format("{}", i), PlanTimeText(run.first_us), PlanTimeText(phases.warm_up_us),
                    PlanTimeText(phases.steady_us), PlanTimeText(phases.cool_down_us), PlanTimeText(run.compute_us),
                    PlanTimeText(run.blocked_us), PlanTimeText(run.idle_us)});
  }
  PrintTable(rows, "rrrrrrrr");
}

}  // namespace tidepool::cli
