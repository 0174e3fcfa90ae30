#include "cli/stalls_output.h"

#include <cmath>

#include "base/text.h"
#include "base/units.h"
#include "cli/print.h"
#include "report/plot.h"

namespace tidepool::cli {
namespace {

using data::stalls::Analysis;
using data::stalls::Change;
using data::stalls::Point;
using Json = nlohmann::ordered_json;

// No limit is null in JSON and "no limit" for people.
Json Rate(double value) { return std::isfinite(value) ? Json(value) : Json(); }
std::string RateText(double value) { return std::isfinite(value) ? fmt::format("{:.0f}", value) : "no limit"; }
std::string PercentText(double share) { return fmt::format("{:.1f} %", 100 * share); }

Json PointJson(const Point& point) {
  return {{"name", point.name},
          {"x", point.x},
          {"miss_share", point.predicted.miss_share},
          {"fetch_samples_per_s", Rate(point.predicted.fetch)},
          {"predicted_samples_per_s", point.predicted.samples_per_s},
          {"simulated_samples_per_s", point.simulated_samples_per_s},
          {"error", point.error()},
          {"bottleneck", NameOf(point.predicted.bottleneck)}};
}

Json PointsJson(const std::vector<Point>& points) {
  Json json = Json::array();
  for (const Point& point : points) json.push_back(PointJson(point));
  return json;
}

std::vector<std::string> PointRow(const Point& point) {
  return {point.name,
          PercentText(point.predicted.miss_share),
          fmt::format("{:.0f}", point.predicted.samples_per_s),
          fmt::format("{:.0f}", point.simulated_samples_per_s),
          fmt::format("{:+.1f} %", 100 * point.error()),
          std::string(NameOf(point.predicted.bottleneck))};
}

const std::vector<std::string> kPointColumns = {"MISSES", "PREDICTED/s", "SIMULATED/s", "DIFFERENCE", "BOTTLENECK"};

std::vector<std::vector<std::string>> PointTable(const std::string& what, const std::vector<Point>& points) {
  std::vector<std::vector<std::string>> rows = {{what}};
  rows[0].insert(rows[0].end(), kPointColumns.begin(), kPointColumns.end());
  for (const Point& point : points) rows.push_back(PointRow(point));
  return rows;
}

std::vector<std::vector<std::string>> ChangeTable(const Analysis& analysis) {
  std::vector<std::vector<std::string>> rows = {{"CHANGE", "KIND", "PREDICTED/s", "SIMULATED/s", "GAIN", "THEN LIMITED BY"}};
  for (const Change& change : analysis.changes) {
    rows.push_back({change.point.name, change.purchase ? "purchase" : "setting",
                    fmt::format("{:.0f}", change.point.predicted.samples_per_s),
                    fmt::format("{:.0f}", change.point.simulated_samples_per_s), fmt::format("{:+.1f} %", 100 * change.gain),
                    std::string(NameOf(change.point.predicted.bottleneck))});
  }
  return rows;
}

std::string Verdict(const Analysis& analysis) {
  if (analysis.best_purchase < 0) return "no single purchase makes it faster";
  const Change& best = analysis.changes[analysis.best_purchase];
  return fmt::format("{} ({:+.0f} %)", best.point.name, 100 * best.gain);
}

std::string NeedsText(const Analysis& analysis) {
  std::string text = analysis.needed_cores > 0
                         ? fmt::format("{} cores prepare as fast as the accelerator takes", analysis.needed_cores)
                         : std::string("preparation costs nothing");
  return text + (analysis.needed_cache_share < 0 ? "; no cache makes fetching fast enough"
                 : analysis.needed_cache_share == 0
                     ? std::string("; the storage needs no cache")
                     : fmt::format("; a cache of {:.0f} % of the data set makes fetching fast enough",
                                   100 * analysis.needed_cache_share));
}

report::Table PageTable(const std::string& caption, const std::vector<std::vector<std::string>>& rows) {
  report::Table table{.columns = rows[0], .caption = caption};
  for (size_t i = 1; i < rows.size(); ++i) {
    std::vector<report::Cell> cells;
    for (size_t c = 0; c < rows[i].size(); ++c) {
      cells.push_back({.text = rows[i][c], .number = c > 0 && rows[i][c].find_first_of("0123456789") != std::string::npos});
    }
    table.rows.push_back(std::move(cells));
  }
  return table;
}

std::string SweepPlot(const std::string& title, report::Axis x, const std::vector<Point>& points, const Analysis& analysis) {
  report::Series predicted{.name = "predicted"}, simulated{.name = "simulated", .dots = true};
  for (const Point& point : points) {
    predicted.x.push_back(point.x);
    predicted.y.push_back(point.predicted.samples_per_s);
    simulated.x.push_back(point.x);
    simulated.y.push_back(point.simulated_samples_per_s);
  }
  return report::LinePlot({predicted, simulated}, {.title = title,
                                                   .x = std::move(x),
                                                   .y = {.label = "samples/s", .min = 0},
                                                   .marks = {{.name = "accelerator", .value = analysis.rates.ingestion}}});
}

}  // namespace

Json StallsJson(const StallsSetting& setting, const Analysis& analysis) {
  Json changes = Json::array();
  for (const Change& change : analysis.changes) {
    Json json = PointJson(change.point);
    json["kind"] = change.purchase ? "purchase" : "setting";
    json["gain"] = change.gain;
    changes.push_back(std::move(json));
  }
  const data::stalls::PipelineRun& full = analysis.full;
  return {{"mode", "virtual"},
          {"facts", setting.facts},
          {"estimated", setting.estimated},
          {"samples", setting.samples},
          {"simulated_samples", setting.spec.samples()},
          {"devices", setting.devices},
          {"step",
           {{"compute_s", setting.spec.compute_seconds}, {"copy_s", setting.spec.copy_seconds}, {"batch", setting.spec.batch}}},
          {"storage", setting.spec.storage.name},
          {"cache", {{"kind", CacheKindName(setting.spec.cache)}, {"share", setting.cached_share}}},
          {"cores", setting.spec.cores},
          {"rates",
           {{"ingestion", Rate(analysis.rates.ingestion)},
            {"preparation", Rate(analysis.rates.preparation)},
            {"fetch_cold", Rate(analysis.rates.fetch_cold)},
            {"fetch", Rate(analysis.rates.fetch)}}},
          {"samples_per_s",
           {{"simulated", full.samples_per_s},
            {"predicted", analysis.predicted.samples_per_s},
            {"synthetic", analysis.synthetic_samples_per_s},
            {"cached", analysis.cached_samples_per_s},
            {"cold", analysis.cold_samples_per_s}}},
          {"stalls", {{"preparation", analysis.prep_stall}, {"fetch", analysis.fetch_stall}}},
          {"utilisation", full.utilisation},
          {"least_utilisation", setting.least_utilisation},
          {"miss_share", full.miss_share()},
          {"bottleneck", NameOf(analysis.bottleneck)},
          {"needed_cores", analysis.needed_cores},
          {"needed_cache_share", analysis.needed_cache_share < 0 ? Json() : Json(analysis.needed_cache_share)},
          {"by_cache", PointsJson(analysis.by_cache)},
          {"by_cores", PointsJson(analysis.by_cores)},
          {"by_disk", PointsJson(analysis.by_disk)},
          {"changes", changes},
          {"best_purchase", analysis.best_purchase < 0 ? Json() : changes[analysis.best_purchase]},
          {"event_hash", fmt::format("{:016x}", full.hash)}};
}

void PrintStalls(const StallsSetting& setting, const Analysis& analysis) {
  for (const std::string& fact : setting.facts) fmt::print("{}\n", fact);
  const data::stalls::Rates& rates = analysis.rates;
  fmt::print("\n");
  PrintTable({{"RATE", "samples/s", "MEASURED BY"},
              {"ingestion G", RateText(rates.ingestion), "synthetic batches in memory"},
              {"preparation P", RateText(rates.preparation), fmt::format("{} cores, every sample in memory", setting.spec.cores)},
              {"fetch F", RateText(rates.fetch),
               fmt::format("{} with {:.0f} % in '{}'", setting.spec.storage.name, 100 * setting.cached_share,
                           CacheKindName(setting.spec.cache))},
              {"fetch F, cold", RateText(rates.fetch_cold), "the same without a cache"}},
             "lr");
  fmt::print("\n{:.0f} samples/s (virtual time), predicted {:.0f}. Limited by {}.\n", analysis.full.samples_per_s,
             analysis.predicted.samples_per_s, NameOf(analysis.bottleneck));
  fmt::print("Of the time: fetch stall {}, preparation stall {}. Accelerator used {}.{}\n", PercentText(analysis.fetch_stall),
             PercentText(analysis.prep_stall), PercentText(analysis.full.utilisation),
             setting.least_utilisation == 0
                 ? std::string()
                 : fmt::format(" The workload asks for {}: {}.", PercentText(setting.least_utilisation),
                               analysis.full.utilisation >= setting.least_utilisation ? "passed" : "failed"));
  fmt::print("Needed: {}.\n", NeedsText(analysis));
  if (setting.estimated) fmt::print("The step time is estimated from the hardware's description, so all speeds are.\n");
  for (const auto& [what, points] :
       {std::pair{"CACHE", &analysis.by_cache}, std::pair{"CORES", &analysis.by_cores}, std::pair{"DISK", &analysis.by_disk}}) {
    if (points->empty()) continue;
    fmt::print("\n");
    PrintTable(PointTable(what, *points), "lrrrr");
  }
  if (analysis.changes.empty()) return;
  fmt::print("\n");
  PrintTable(ChangeTable(analysis), "llrrr");
  fmt::print("\nBest next purchase: {}.\n", Verdict(analysis));
}

std::vector<std::string> StallsPlots(const Analysis& analysis) {
  std::vector<std::string> plots;
  if (!analysis.by_cache.empty()) {
    plots.push_back(SweepPlot("Speed over cache size", {.label = "share of the data set cached", .unit = report::Unit::kPercent},
                              analysis.by_cache, analysis));
  }
  if (!analysis.by_cores.empty()) plots.push_back(SweepPlot("Speed over cores", {.label = "cores"}, analysis.by_cores, analysis));
  std::vector<std::string> names;
  report::BarPart speeds{.name = "simulated"};
  for (const Point& point : analysis.by_disk) {
    names.push_back(point.name);
    speeds.values.push_back(point.simulated_samples_per_s);
  }
  if (!names.empty()) {
    plots.push_back(report::StackedBarPlot(names, {speeds}, {.title = "Speed over storage", .y = {.label = "samples/s"}}));
  }
  return plots;
}

report::Page StallsPage(const StallsSetting& setting, const Analysis& analysis) {
  report::Page page("Data stalls", JoinText(setting.facts, "; "));
  page.AddFigures({{.value = fmt::format("{:.0f}/s", analysis.full.samples_per_s), .label = "samples"},
                   {.value = std::string(NameOf(analysis.bottleneck)), .label = "limits"},
                   {.value = PercentText(analysis.fetch_stall), .label = "fetch stall"},
                   {.value = PercentText(analysis.prep_stall), .label = "preparation stall"},
                   {.value = PercentText(analysis.full.utilisation), .label = "accelerator used"}});
  page.AddParagraph(
      fmt::format("Rates in samples per second: ingestion {}, preparation {}, fetch {} (cold {}). All in virtual time.{}",
                  RateText(analysis.rates.ingestion), RateText(analysis.rates.preparation), RateText(analysis.rates.fetch),
                  RateText(analysis.rates.fetch_cold), setting.estimated ? " The step time is estimated." : ""));
  page.AddParagraph(fmt::format("Best next purchase: {}. Needed: {}.", Verdict(analysis), NeedsText(analysis)));
  for (const std::string& plot : StallsPlots(analysis)) page.AddPlot(plot);
  if (!analysis.changes.empty()) page.AddTable(PageTable("What one change would do", ChangeTable(analysis)));
  if (!analysis.by_cache.empty()) page.AddTable(PageTable("Cache sizes", PointTable("CACHE", analysis.by_cache)));
  if (!analysis.by_cores.empty()) page.AddTable(PageTable("Cores", PointTable("CORES", analysis.by_cores)));
  if (!analysis.by_disk.empty()) page.AddTable(PageTable("Storage", PointTable("DISK", analysis.by_disk)));
  return page;
}

}  // namespace tidepool::cli
