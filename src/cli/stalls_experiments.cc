// Experiments on data stalls: the published figures of the GPU emulator in virtual time.
#include <cmath>

#include "base/text.h"
#include "cli/experiment.h"
#include "data/stalls/figures.h"
#include "report/plot.h"

namespace tidepool::cli {
namespace {

using data::stalls::Figure;
using data::stalls::FigureOptions;
using data::stalls::FigureRow;
using data::stalls::FigureSeries;
using Json = nlohmann::ordered_json;
using FigureFunction = StatusOr<Figure> (*)(const FigureOptions&);

std::string ValueText(const Figure& figure, double value) {
  return figure.share ? fmt::format("{:.1f} %", 100 * value) : fmt::format("{:.4g}", value);
}

std::string DifferenceText(const Figure& figure, double difference) {
  return fmt::format("{:+.1f} {}", 100 * difference, figure.absolute ? "points" : "%");
}

// Whether the row is a prediction that is held beside something: on the real clock the prediction of virtual time, calibrated
// parameters or not; in virtual time what was published.
bool IsJudged(const Figure& figure, const FigureRow& row) {
  return figure.real_time ? row.gated : row.compared && row.gated && !row.calibrated;
}

// Nothing is relative to zero.
bool HasDifference(const Figure& figure, const FigureRow& row) {
  if (figure.real_time) return figure.absolute || row.predicted != 0;
  return row.compared && (figure.absolute || row.published != 0);
}

std::string VerdictOf(const Figure& figure, const FigureRow& row) {
  if (!figure.real_time && row.compared && row.calibrated) return "calibrated";
  if (!IsJudged(figure, row)) return "";
  return figure.Within(row) ? "within" : "OUTSIDE";
}

Json RowJson(const Figure& figure, const FigureRow& row) {
  Json json = {{"name", row.name}, {"x", row.x}, {"ours", row.ours}};
  if (figure.real_time) json["predicted"] = row.predicted;
  if (row.compared) json["published"] = row.published;
  if (!row.compared && !figure.real_time) return json;
  json["difference"] = HasDifference(figure, row) ? Json(figure.DifferenceOf(row)) : Json();
  if (row.compared) json["calibrated"] = row.calibrated;
  json["gated"] = row.gated;
  if (row.gated) json["within_tolerance"] = figure.Within(row);
  return json;
}

report::Table TableOf(const Figure& figure) {
  report::Table table{.columns = {"SERIES", "", "OURS", "PUBLISHED", "DIFFERENCE", "TOLERANCE"}, .caption = figure.title};
  if (figure.real_time) table.columns = {"SERIES", "", "MEASURED", "PREDICTED", "DIFFERENCE", "TOLERANCE", "PUBLISHED"};
  for (const FigureSeries& series : figure.series) {
    for (const FigureRow& row : series.rows) {
      const report::Cell published{.text = row.compared ? ValueText(figure, row.published) : "-", .number = true};
      const report::Cell predicted{.text = ValueText(figure, row.predicted), .number = true};
      const std::string difference = HasDifference(figure, row) ? DifferenceText(figure, figure.DifferenceOf(row)) : "-";
      table.rows.push_back({{.text = series.name},
                            {.text = row.name},
                            {.text = ValueText(figure, row.ours), .number = true},
                            figure.real_time ? predicted : published,
                            {.text = difference, .number = true},
                            {.text = VerdictOf(figure, row), .bad = IsJudged(figure, row) && !figure.Within(row)}});
      if (figure.real_time) table.rows.back().push_back(published);
    }
  }
  return table;
}

// Models stand side by side; settings are an axis.
std::string PlotOf(const Figure& figure) {
  const report::Axis y{.label = figure.y_label, .unit = figure.share ? report::Unit::kPercent : report::Unit::kNumber, .min = 0};
  std::vector<report::Series> lines;
  for (const FigureSeries& series : figure.series) {
    const int color = static_cast<int>(lines.size() / 2);
    report::Series ours{.name = figure.series.size() > 1 ? series.name : "ours", .color = color};
    const std::string other = figure.real_time ? "predicted" : "published";
    report::Series published{.name = figure.series.size() > 1 ? fmt::format("{}, {}", series.name, other) : other,
                             .color = figure.series.size() > 1 ? color : color + 1,
                             .dots = true};
    for (const FigureRow& row : series.rows) {
      ours.x.push_back(row.x);
      ours.y.push_back(row.ours);
      published.x.push_back(row.x);
      published.y.push_back(figure.real_time ? row.predicted : row.compared ? row.published : std::nan(""));
    }
    lines.push_back(std::move(ours));
    lines.push_back(std::move(published));
  }
  std::string note;
  if (figure.x_label == "model") {
    std::vector<std::string> names;
    for (const FigureRow& row : figure.series[0].rows) names.push_back(fmt::format("{:.0f} {}", row.x, row.name));
    note = JoinText(names, ", ");
    for (report::Series& line : lines) line.dots = true;
  }
  const bool shares = figure.x_label.starts_with("share");
  return report::LinePlot(lines, {.title = figure.title,
                                  .note = note,
                                  .x = {.label = figure.x_label, .unit = shares ? report::Unit::kPercent : report::Unit::kNumber},
                                  .y = y});
}

ExperimentReport ReportOf(const Figure& figure) {
  ExperimentReport report;
  report.json["mode"] = figure.real_time ? "real-time" : "virtual";
  report.json["title"] = figure.title;
  report.json["unit"] = figure.y_label;
  report.json["tolerance"] = figure.tolerance;
  report.json["tolerance_kind"] = figure.absolute ? "difference" : "ratio";
  Json all = Json::array();
  int64_t gated = 0, within = 0;
  for (const FigureSeries& series : figure.series) {
    Json rows = Json::array();
    for (const FigureRow& row : series.rows) {
      rows.push_back(RowJson(figure, row));
      if (!IsJudged(figure, row)) continue;
      ++gated;
      within += figure.Within(row) ? 1 : 0;
    }
    all.push_back({{"name", series.name}, {"rows", rows}});
  }
  report.json["series"] = all;
  report.json["predictions"] = gated;
  report.json["predictions_within"] = within;
  report.json["events"] = figure.events;
  report.json["event_hash"] = fmt::format("{:016x}", figure.hash);
  report.tables.push_back(TableOf(figure));
  report.plots.push_back(PlotOf(figure));
  report.notes = figure.notes;
  if (gated > 0) {
    report.notes.push_back(fmt::format("{} of {} predictions lie within the tolerance{}", within, gated,
                                       figure.real_time ? " of what was measured on the real clock" : ""));
  }
  return report;
}

void Add(std::string name, std::string summary, FigureFunction figure, std::vector<Experiment>* experiments) {
  experiments->push_back({.name = std::move(name),
                          .summary = std::move(summary),
                          .run =
                              [figure](const ExperimentContext& context) {
                                FigureOptions options{.quick = context.quick,
                                                      .real_time = context.real_time,
                                                      .stopped = context.stopped,
                                                      .note = context.show_progress};
                                const auto folder = ReferenceFolder(context, "emulator");
                                if (folder.ok()) options.reference = *folder;
                                const StatusOr<Figure> made = figure(options);
                                return made.ok() ? StatusOr<ExperimentReport>(ReportOf(*made))
                                                 : StatusOr<ExperimentReport>(made.status());
                              },
                          .on_real_clock = true});
}

}  // namespace

void AddStallExperiments(std::vector<Experiment>* experiments) {
  Add("stalls/figure-3", "Fetch stall of eight models with a third of the data cached", data::stalls::Figure3, experiments);
  Add("stalls/figure-4a", "Fetch stall over cache size", data::stalls::Figure4a, experiments);
  Add("stalls/figure-5", "Speed over the number of workers", data::stalls::Figure5, experiments);
  Add("stalls/figure-6", "Preparation stall of four models", data::stalls::Figure6, experiments);
}

}  // namespace tidepool::cli
