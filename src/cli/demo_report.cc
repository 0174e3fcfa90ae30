#include "cli/demo_report.h"

#include <algorithm>
#include <map>

#include "base/units.h"
#include "cli/demo_figures.h"
#include "device/emulated/emulated_device.h"
#include "report/html.h"
#include "report/plot.h"

namespace tidepool::cli {
namespace {

using report::Cell;
using report::Series;
using report::Unit;

// More tenants than colours make a stack unreadable: the smaller ones are drawn as one.
constexpr size_t kTenantsShown = 9;

std::string Name(const DemoRun& run) {
  if (run.mode != serve::Mode::kStatic) return std::string(serve::Name(run.mode));
  return fmt::format("static, {:.0f} % training", run.static_train_fraction * 100);
}

double At(const DemoRun& run, absl::Time time) { return absl::ToDoubleSeconds(time - run.start); }

std::string MemoryPlot(const DemoRun& run, int device) {
  const cluster::TimelineData& data = run.timeline;
  std::vector<int64_t> weight(data.tenants.size(), 0);
  for (const cluster::MemorySample& sample : data.memory) {
    if (sample.device != device) continue;
    for (const auto& [tenant, pages] : sample.held) weight[tenant] += pages;
  }
  std::vector<size_t> order(data.tenants.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  // Training lies at the bottom, models by how much they held.
  const auto is_training = [&](size_t i) { return data.tenants[i].rfind("train", 0) == 0; };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return is_training(a) != is_training(b) ? is_training(a) : weight[a] > weight[b]; });
  std::vector<size_t> row_of(order.size());
  std::vector<Series> series;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    row_of[order[rank]] = std::min(rank, kTenantsShown);
    if (rank < kTenantsShown) series.push_back({.name = data.tenants[order[rank]]});
    if (rank == kTenantsShown) series.push_back({.name = "others", .color = 9});
  }
  std::vector<double> x;
  const absl::Time from = run.start - absl::Seconds(1), until = run.end + absl::Seconds(1);
  for (const cluster::MemorySample& sample : data.memory) {
    if (sample.device != device || sample.time < from || sample.time > until) continue;
    x.push_back(At(run, sample.time));
    for (Series& one : series) one.y.push_back(0);
    for (const auto& [tenant, pages] : sample.held)
      series[row_of[tenant]].y.back() += static_cast<double>(pages * data.page_bytes);
  }
  return report::StackedAreaPlot(
      x, series,
      {.title = data.devices > 1 ? fmt::format("Memory per tenant, device {}", device) : "Memory per tenant",
       .note = "what each tenant of the device held, sampled 20 times a second",
       .x = {.label = "time", .unit = Unit::kSeconds},
       .y = {.label = "held", .unit = Unit::kBytes},
       .marks = {{"capacity", static_cast<double>(data.total_pages * data.page_bytes)}},
       .width = 900,
       .height = 300});
}

// One plot per device.
void AddMemoryPlots(const DemoRun& run, report::Page* page) {
  for (int device = 0; device < run.timeline.devices; ++device) page->AddPlot(MemoryPlot(run, device), true);
}

std::string LatencyPlot(const DemoRun& run) {
  Series dots{.name = "requests", .color = 9, .dots = true}, p50{.name = "p50 per second", .color = 0},
      p99{.name = "p99 per second", .color = 1};
  for (const api::LoadSample& sample : run.load.samples) {
    if (sample.dropped || sample.code != StatusCode::kOk) continue;
    dots.x.push_back(absl::ToDoubleSeconds(sample.planned));
    dots.y.push_back(absl::ToDoubleSeconds(sample.latency));
  }
  for (const api::LoadSecond& second : run.load.seconds) {
    if (second.succeeded == 0) continue;
    p50.x.push_back(second.second + 0.5);
    p50.y.push_back(absl::ToDoubleSeconds(second.p50));
    p99.x.push_back(second.second + 0.5);
    p99.y.push_back(absl::ToDoubleSeconds(second.p99));
  }
  return report::LinePlot({dots, p50, p99}, {.title = "Request latency",
                                             .note = "from the planned send time to the answer",
                                             .x = {.label = "time", .unit = Unit::kSeconds, .min = 0},
                                             .y = {.label = "latency", .unit = Unit::kSeconds, .log = true}});
}

std::string SloPlot(const DemoRun& run, const DemoPlan& plan) {
  Series met{.name = "within its SLO", .color = 2, .dots = true}, missed{.name = "late", .color = 3, .dots = true};
  for (const api::LoadSample& sample : run.load.samples) {
    if (sample.dropped || sample.code != StatusCode::kOk) continue;
    const auto slo = plan.slo.find(run.load.models[sample.model].model);
    if (slo == plan.slo.end()) continue;
    const double ratio = absl::FDivDuration(sample.latency, slo->second);
    Series& target = ratio <= 1 ? met : missed;
    target.x.push_back(absl::ToDoubleSeconds(sample.planned));
    target.y.push_back(ratio);
  }
  return report::LinePlot({met, missed}, {.title = "Latency against the model's SLO",
                                          .note = "SLO = 4 times the model's latency alone",
                                          .x = {.label = "time", .unit = Unit::kSeconds, .min = 0},
                                          .y = {.label = "latency / SLO", .unit = Unit::kNumber, .log = true},
                                          .marks = {{"SLO", 1}}});
}

std::string RatePlot(const DemoRun& run) {
  Series planned{.name = "planned", .color = 9, .step = true}, within{.name = "within SLO", .color = 2, .step = true};
  for (const api::LoadSecond& second : run.load.seconds) {
    planned.x.push_back(second.second);
    planned.y.push_back(static_cast<double>(second.planned));
    within.x.push_back(second.second);
    within.y.push_back(static_cast<double>(second.within_slo));
  }
  return report::LinePlot({planned, within}, {.title = "Requests per second",
                                              .x = {.label = "time", .unit = Unit::kSeconds, .min = 0},
                                              .y = {.label = "requests", .min = 0}});
}

std::string HandoverPlot(const std::vector<pool::HandoverRecord>& records, const DemoFigures& figures) {
  std::vector<std::string> names;
  std::vector<report::BarPart> parts;
  for (const pool::HandoverRecord& record : records) {
    names.push_back(std::to_string(names.size() + 1));
    const auto split = HandoverParts(record);
    parts.resize(split.size());
    for (size_t i = 0; i < split.size(); ++i) {
      parts[i].name = split[i].first;
      parts[i].color = i + 1 == split.size() ? 9 : static_cast<int>(i);
      parts[i].values.push_back(split[i].second / 1000);
    }
  }
  return report::StackedBarPlot(names, parts,
                                {.title = "Handovers split into their parts",
                                 .note = "training gives memory to a model; in order of time",
                                 .x = {.label = "handover"},
                                 .y = {.label = "time", .unit = Unit::kSeconds},
                                 .marks = {{"longest operator + 5 ms", HandoverLimitMs(figures) / 1000}},
                                 .width = 900,
                                 .height = 280});
}

std::string TrainPlot(const DemoRun& run, std::string* accuracy_plot, std::string* batch_plot) {
  Series loss{.name = "training loss"}, held_out{.name = "loss on held-out pictures", .color = 1, .dashed = true},
      accuracy{.name = "accuracy", .color = 2};
  Series rate{.name = "samples/s", .color = 0}, micro{.name = "micro-batch", .color = 4, .step = true};
  for (const train::TrainProgress& progress : run.timeline.train) {
    const double t = At(run, progress.time);
    if (progress.event == "step") {
      loss.x.push_back(t);
      loss.y.push_back(progress.loss);
      rate.x.push_back(t);
      rate.y.push_back(progress.samples_per_s);
      micro.x.push_back(t);
      micro.y.push_back(static_cast<double>(progress.micro_batch));
    } else if (progress.event == "evaluation") {
      accuracy.x.push_back(t);
      accuracy.y.push_back(progress.accuracy);
      held_out.x.push_back(t);
      held_out.y.push_back(progress.loss);
    }
  }
  const report::Axis time{.label = "time", .unit = Unit::kSeconds};
  *accuracy_plot = report::LinePlot({accuracy}, {.title = "Accuracy on held-out pictures",
                                                 .x = time,
                                                 .y = {.label = "accuracy", .unit = Unit::kPercent, .min = 0, .max = 1}});
  *batch_plot = report::LinePlot({rate, micro}, {.title = "Training speed and micro-batch",
                                                 .x = time,
                                                 .y = {.label = "samples/s, samples", .min = 0},
                                                 .width = 900,
                                                 .height = 260});
  return report::LinePlot({loss, held_out}, {.title = "Loss", .x = time, .y = {.label = "loss", .min = 0}});
}

report::Table ComparisonTable(const DemoResult& result) {
  std::vector<const DemoRun*> runs = {&result.main};
  for (const DemoRun& run : result.baselines) runs.push_back(&run);
  report::Table table{.columns = {"mode", "SLO met", "p50", "p99", "errors", "samples/s", "loss", "accuracy", "loads",
                                  "handovers", "their p99", "violations"},
                      .caption = runs.size() > 1 ? "The same data, the same requests at the same times, the same trainer" : ""};
  const auto best = [&](auto value) {
    double top = value(*runs[0]);
    for (const DemoRun* run : runs) top = std::max(top, value(*run));
    return top;
  };
  const double best_slo = best([](const DemoRun& run) { return run.figures.slo_attainment; });
  const double best_rate = best([](const DemoRun& run) { return run.figures.samples_per_s; });
  for (const DemoRun* run : runs) {
    const DemoFigures& f = run->figures;
    const auto number = [](std::string text, bool strong = false, bool bad = false) {
      return Cell{.text = std::move(text), .number = true, .strong = strong, .bad = bad};
    };
    table.rows.push_back(
        {{.text = Name(*run)},
         number(fmt::format("{:.1f} %", f.slo_attainment * 100), runs.size() > 1 && f.slo_attainment == best_slo),
         number(fmt::format("{:.1f} ms", f.infer_p50_ms)),
         number(fmt::format("{:.1f} ms", f.infer_p99_ms)),
         number(std::to_string(f.errors), false, f.errors > 0),
         number(fmt::format("{:.1f}", f.samples_per_s), runs.size() > 1 && f.samples_per_s == best_rate),
         number(fmt::format("{:.2f} to {:.2f}", f.loss_first, f.loss_last)),
         number(fmt::format("{:.0f} to {:.0f} %", f.accuracy_first * 100, f.accuracy_last * 100)),
         number(std::to_string(f.loads)),
         number(std::to_string(f.handovers)),
         number(f.handovers > 0 ? fmt::format("{:.1f} ms", f.handover_ms.p99) : "-"),
         number(std::to_string(f.violations), false, f.violations > 0)});
  }
  return table;
}

report::Table PartsTable(const DemoFigures& figures) {
  static const std::map<std::string, std::string> kMeaning = {{"notify", "until the trainer had the request"},
                                                              {"cached", "returning pages that held nothing live"},
                                                              {"wait", "until the running operator had ended"},
                                                              {"unwind", "dropping the graph and the staged gradients"},
                                                              {"give_back", "returning what became free"},
                                                              {"zero", "clearing pages for their new owner"},
                                                              {"other", "bookkeeping of the broker"}};
  report::Table table{.columns = {"part", "meaning", "mean", "p50", "p99"}};
  const auto number = [](double ms) { return Cell{.text = fmt::format("{:.3f} ms", ms), .number = true}; };
  for (const auto& [name, value] : figures.parts_ms) {
    const auto meaning = kMeaning.find(name);
    table.rows.push_back({{.text = name},
                          {.text = meaning == kMeaning.end() ? "" : meaning->second},
                          number(value.mean),
                          number(value.p50),
                          number(value.p99)});
  }
  table.rows.push_back({{.text = "total", .strong = true},
                        {},
                        number(figures.handover_ms.mean),
                        number(figures.handover_ms.p50),
                        number(figures.handover_ms.p99)});
  return table;
}

report::Table ModelTable(const DemoResult& result) {
  report::Table table{
      .columns = {"model", "weights", "alone", "SLO", "requests", "SLO met", "p50", "p99", "loads", "evictions", "spec"}};
  for (const api::LoadGroup& group : result.main.load.models) {
    const auto status = std::find_if(result.main.models.begin(), result.main.models.end(),
                                     [&](const serve::ModelStatus& m) { return m.name == group.model; });
    const auto number = [](std::string text) { return Cell{.text = std::move(text), .number = true}; };
    const auto of_plan = [&](const std::map<std::string, absl::Duration>& values) {
      const auto found = values.find(group.model);
      return found == values.end() ? std::string("-") : tidepool::FormatDuration(found->second);
    };
    const bool known = status != result.main.models.end();
    table.rows.push_back({{.text = group.model},
                          number(known ? FormatBytes(status->weight_bytes) : "-"),
                          number(of_plan(result.plan.solo)),
                          number(of_plan(result.plan.slo)),
                          number(std::to_string(group.planned)),
                          number(fmt::format("{:.1f} %", group.slo_attainment * 100)),
                          number(tidepool::FormatDuration(group.latency.p50)),
                          number(tidepool::FormatDuration(group.latency.p99)),
                          number(known ? std::to_string(status->loads) : "-"),
                          number(known ? std::to_string(status->evictions) : "-"),
                          {.text = known ? status->spec : ""}});
  }
  return table;
}

}  // namespace

Status WriteDemoReport(const DemoResult& result, const std::string& path) {
  const DemoRun& run = result.main;
  const DemoFigures& f = run.figures;
  report::Page page("Tidepool demo",
                    fmt::format("{} models and one training job on {}; {}; {:.0f} s of load, seed {}; {}",
                                result.settings.data.models.size(), DevicesText(result.settings), Name(run),
                                absl::ToDoubleSeconds(result.settings.length), result.settings.seed, result.machine));
  page.AddFigures({{.value = fmt::format("{:.1f} %", f.slo_attainment * 100),
                    .label = "of requests within their SLO",
                    .note = fmt::format("{} requests, {} errors", f.requests, f.errors),
                    .bad = f.errors > 0},
                   {.value = fmt::format("{:.1f} ms", f.infer_p99_ms),
                    .label = "p99 request latency",
                    .note = fmt::format("p50 {:.1f} ms", f.infer_p50_ms)},
                   {.value = fmt::format("{:.1f} /s", f.samples_per_s),
                    .label = "samples trained",
                    .note = fmt::format("{} beside the load", f.samples)},
                   {.value = fmt::format("{:.1f} ms", f.handover_ms.p99),
                    .label = "p99 handover",
                    .note = fmt::format("{} handovers, limit {:.1f} ms", f.handovers, HandoverLimitMs(f)),
                    .bad = f.handover_ms.p99 > HandoverLimitMs(f)},
                   {.value = fmt::format("{:.0f} %", f.accuracy_last * 100),
                    .label = "accuracy",
                    .note = fmt::format("from {:.0f} %", f.accuracy_first * 100)},
                   {.value = std::to_string(f.violations),
                    .label = "violations of the page ledger",
                    .note = fmt::format("peak {} granted", FormatBytes(f.peak_granted_bytes)),
                    .bad = f.violations > 0}});
  if (run.emulation.has_value()) {
    page.AddParagraph(fmt::format(
        "Emulated device {}: {}.{}", result.settings.device, device::emulated::Describe(run.emulation->properties),
        run.emulation->report.host_limited ? " Host-limited: latencies and rates are this machine's, not the device's: " +
                                                 run.emulation->report.host_limited_reason + "."
                                           : ""));
  }
  page.AddTable(ComparisonTable(result));
  if (!run.load.kept_up) page.AddParagraph("The load generator itself was late: the latencies below hold its own delay too.");
  page.AddHeading("Memory");
  page.AddParagraph(
      fmt::format("Weights of all models: {}. Training wants about {} (estimated). Together {:.1f} times the memory.",
                  FormatBytes(result.settings.data.model_bytes), FormatBytes(result.training_bytes_estimate),
                  static_cast<double>(result.settings.data.model_bytes + result.training_bytes_estimate) /
                      static_cast<double>(std::max<int64_t>(1, f.capacity_bytes))));
  AddMemoryPlots(run, &page);
  page.AddHeading("Requests");
  page.AddPlot(SloPlot(run, result.plan));
  page.AddPlot(LatencyPlot(run));
  page.AddPlot(RatePlot(run));
  std::vector<double> latencies;
  for (const api::LoadSample& sample : run.load.samples) {
    if (!sample.dropped && sample.code == StatusCode::kOk) latencies.push_back(absl::ToDoubleSeconds(sample.latency));
  }
  page.AddPlot(report::Histogram(latencies, 48,
                                 {.title = "Latency distribution",
                                  .x = {.label = "latency", .unit = Unit::kSeconds, .log = true},
                                  .y = {.label = "requests"}}));
  page.AddTable(ModelTable(result));
  page.AddHeading("Handovers");
  page.AddParagraph(fmt::format("p99 {:.1f} ms against the longest single operator of training, {:.1f} ms, plus 5 ms.",
                                f.handover_ms.p99, f.longest_operator_ms));
  page.AddPlot(HandoverPlot(HandoversDuring(run), f), true);
  page.AddTable(PartsTable(f));
  page.AddHeading("Training");
  std::string accuracy, batch;
  const std::string loss = TrainPlot(run, &accuracy, &batch);
  page.AddPlot(loss);
  page.AddPlot(accuracy);
  page.AddPlot(batch, true);
  for (const DemoRun& baseline : result.baselines) {
    page.AddHeading("Beside it: " + Name(baseline));
    AddMemoryPlots(baseline, &page);
    page.AddPlot(SloPlot(baseline, result.plan));
    std::string unused_accuracy, speed;
    TrainPlot(baseline, &unused_accuracy, &speed);
    page.AddPlot(speed);
  }
  page.AddDetails("All figures as JSON", DemoJson(result));
  return page.Write(path);
}

}  // namespace tidepool::cli
