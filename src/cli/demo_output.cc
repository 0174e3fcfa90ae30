// The demo's table, JSON and trace.
#include <algorithm>

#include "base/json.h"
#include "base/trace.h"
#include "base/units.h"
#include "cli/demo_figures.h"
#include "cli/demo_report.h"
#include "device/emulated/emulated_device.h"

namespace tidepool::cli {
namespace {

nlohmann::json FiguresJson(const DemoFigures& figures) {
  nlohmann::json devices = nlohmann::json::array();
  for (const DeviceMemory& device : figures.devices) {
    devices.push_back({{"capacity_bytes", device.capacity_bytes},
                       {"peak_granted_bytes", device.peak_granted_bytes},
                       {"violations", device.violations}});
  }
  nlohmann::json parts = nlohmann::json::object();
  for (const auto& [name, value] : figures.parts_ms) parts[name] = {{"mean", value.mean}, {"p50", value.p50}, {"p99", value.p99}};
  return {{"slo_attainment", figures.slo_attainment},
          {"infer",
           {{"requests", figures.requests},
            {"errors", figures.errors},
            {"p50_ms", figures.infer_p50_ms},
            {"p99_ms", figures.infer_p99_ms},
            {"loads", figures.loads},
            {"evictions", figures.evictions}}},
          {"train",
           {{"samples_per_s", figures.samples_per_s},
            {"samples", figures.samples},
            {"loss_first", figures.loss_first},
            {"loss_last", figures.loss_last},
            {"accuracy_first", figures.accuracy_first},
            {"accuracy_last", figures.accuracy_last},
            {"evaluations", figures.evaluations},
            {"aborts", figures.aborts},
            {"boundary_waits", figures.boundary_waits},
            {"micro_batches", figures.micro_batches},
            {"compute_seconds", figures.compute_seconds},
            {"wasted_seconds", figures.wasted_seconds},
            {"paused_seconds", figures.paused_seconds},
            {"longest_operator_ms", figures.longest_operator_ms}}},
          {"handover",
           {{"count", figures.handovers},
            {"late", figures.handovers_late},
            {"p50_ms", figures.handover_ms.p50},
            {"p99_ms", figures.handover_ms.p99},
            {"limit_ms", HandoverLimitMs(figures)},
            {"parts_ms", parts}}},
          {"memory",
           {{"capacity_bytes", figures.capacity_bytes},
            {"peak_granted_bytes", figures.peak_granted_bytes},
            {"violations", figures.violations},
            {"devices", devices}}}};
}

const char* BaselineKey(serve::Mode mode) {
  return mode == serve::Mode::kStatic ? "static" : mode == serve::Mode::kTaskSwitch ? "task_switch" : "colocate";
}

std::string RunName(const DemoRun& run) {
  if (run.mode != serve::Mode::kStatic) return std::string(serve::Name(run.mode));
  return fmt::format("static ({:.0f} % training)", run.static_train_fraction * 100);
}

std::string Row(const DemoRun& run) {
  const DemoFigures& f = run.figures;
  return fmt::format(
      "  {:<22} {:>7.1f} % {:>9.1f} {:>9.1f} {:>7} {:>10.1f} {:>6.2f} > {:<5.2f} {:>4.0f} > {:<3.0f}% {:>6} {:>6}\n",
      RunName(run), f.slo_attainment * 100, f.infer_p50_ms, f.infer_p99_ms, f.errors, f.samples_per_s, f.loss_first, f.loss_last,
      f.accuracy_first * 100, f.accuracy_last * 100, f.loads, f.violations);
}

nlohmann::json EmulationJson(const cluster::EmulationStatus& emulation, const train::TrainProgress& training) {
  const auto busy = [&](device::EngineKind engine) { return absl::ToDoubleSeconds(emulation.report.busy.at(engine)); };
  return {{"profile", emulation.properties.profile},
          {"times", emulation.properties.estimated ? "estimated" : "measured"},
          {"source", emulation.properties.profile_source},
          {"elapsed_s", absl::ToDoubleSeconds(emulation.report.elapsed)},
          {"compute_busy_s", busy(device::EngineKind::kCompute)},
          {"host_to_device_busy_s", busy(device::EngineKind::kHostToDevice)},
          {"train_device_s", training.device_seconds},
          {"train_device_samples_per_s", training.device_samples_per_s},
          {"host_limited", emulation.report.host_limited},
          {"host_limited_reason", emulation.report.host_limited_reason}};
}

std::string EmulationText(const DemoResult& result) {
  const cluster::EmulationStatus& emulation = *result.main.emulation;
  const train::TrainProgress& training = result.main.training.latest;
  const auto busy = [&](device::EngineKind engine) { return tidepool::FormatDuration(emulation.report.busy.at(engine)); };
  std::string text = fmt::format(
      "  emulated    {}: {}\n              of {}: {} busy computing ({} of it in training), {} copying models to {}\n",
      result.settings.device, device::emulated::Describe(emulation.properties),
      tidepool::FormatDuration(emulation.report.elapsed), busy(device::EngineKind::kCompute),
      tidepool::FormatDuration(absl::Seconds(training.device_seconds)), busy(device::EngineKind::kHostToDevice),
      result.settings.devices > 1 ? "them, all together" : "it");
  if (training.device_samples_per_s > 0) {
    text += fmt::format("              training at the device's pace: {:.1f} samples/s\n", training.device_samples_per_s);
  }
  if (emulation.report.host_limited) {
    text += fmt::format(
        "  HOST-LIMITED  this machine computes slower than the emulated device, so latencies and samples/s above are this "
        "machine's:\n"
        "              {}\n",
        emulation.report.host_limited_reason);
  }
  return text;
}

// Lanes of the trace.
constexpr int kServing = 1, kTraining = 2, kPool = 3;

int LaneOf(std::vector<std::string>* lanes, const std::string& name) {
  const auto found = std::find(lanes->begin(), lanes->end(), name);
  if (found != lanes->end()) return static_cast<int>(found - lanes->begin()) + 1;
  lanes->push_back(name);
  return static_cast<int>(lanes->size());
}

}  // namespace

double HandoverLimitMs(const DemoFigures& figures) { return figures.longest_operator_ms + 5; }

std::string DevicesText(const DemoSettings& settings) {
  const std::string memory = FormatBytes(settings.capacity_bytes);
  return settings.devices > 1 ? fmt::format("{} devices of {}", settings.devices, memory) : "a device of " + memory;
}

std::string DemoJson(const DemoResult& result) {
  nlohmann::json json = FiguresJson(result.main.figures);
  json["mode"] = serve::Name(result.main.mode);
  json["seconds"] = absl::ToDoubleSeconds(result.settings.length);
  json["seed"] = result.settings.seed;
  json["machine"] = result.machine;
  json["device"] = result.settings.device;
  json["device_count"] = result.settings.devices;
  if (const auto& emulation = result.main.emulation; emulation.has_value())
    json["emulation"] = EmulationJson(*emulation, result.main.training.latest);
  json["models"] = result.settings.data.models.size();
  json["model_bytes"] = result.settings.data.model_bytes;
  json["training_bytes_estimated"] = result.training_bytes_estimate;
  json["baselines"] = nlohmann::json::object();
  for (const DemoRun& run : result.baselines) {
    nlohmann::json& baseline = json["baselines"][BaselineKey(run.mode)];
    baseline = FiguresJson(run.figures);
    if (run.mode == serve::Mode::kStatic) baseline["train_fraction"] = run.static_train_fraction;
  }
  if (!result.static_splits.empty()) {
    json["static_splits"] = nlohmann::json::array();
    for (const StaticSplit& split : result.static_splits) {
      json["static_splits"].push_back({{"train_fraction", split.train_fraction},
                                       {"slo_attainment", split.slo_attainment},
                                       {"samples_per_s", split.samples_per_s},
                                       {"failure", split.failure},
                                       {"chosen", split.chosen}});
    }
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string DemoText(const DemoResult& result) {
  const DemoFigures& main = result.main.figures;
  std::string text = fmt::format("\n  {:<22} {:>9} {:>9} {:>9} {:>7} {:>10} {:>14} {:>11} {:>6} {:>6}\n", "mode", "SLO met",
                                 "p50 ms", "p99 ms", "errors", "samples/s", "loss", "accuracy", "loads", "viol.");
  text += Row(result.main);
  for (const DemoRun& run : result.baselines) text += Row(run);
  text += fmt::format(
      "\n  handovers   {} (p50 {:.1f} ms, p99 {:.1f} ms); limit = longest operator {:.1f} ms + 5 ms = {:.1f} ms: {}\n",
      main.handovers, main.handover_ms.p50, main.handover_ms.p99, main.longest_operator_ms, HandoverLimitMs(main),
      main.handovers == 0                             ? "none happened"
      : main.handover_ms.p99 <= HandoverLimitMs(main) ? "kept"
                                                      : "not kept");
  text += "  parts (p50 / p99 ms)";
  for (const auto& [name, value] : main.parts_ms) text += fmt::format("  {} {:.2f}/{:.2f}", name, value.p50, value.p99);
  text += fmt::format("\n  memory      peak {} of {} granted, {} violations; {} micro-batches thrown away\n",
                      FormatBytes(main.peak_granted_bytes), FormatBytes(main.capacity_bytes), main.violations, main.aborts);
  if (main.devices.size() > 1) {
    text += fmt::format("  devices     {}, the first one trains; peaks", main.devices.size());
    for (const DeviceMemory& device : main.devices) {
      text += fmt::format("  {} of {}", FormatBytes(device.peak_granted_bytes), FormatBytes(device.capacity_bytes));
    }
    text += "\n";
  }
  if (const auto& emulation = result.main.emulation; emulation.has_value()) text += EmulationText(result);
  if (!result.main.load.kept_up) text += "  note        the load generator itself was late: latencies hold its own delay too\n";
  for (const StaticSplit& split : result.static_splits) {
    text += fmt::format(
        "  static      {:.0f} % training: {}{}\n", split.train_fraction * 100,
        split.failure.empty() ? fmt::format("SLO {:.1f} %, {:.1f} samples/s", split.slo_attainment * 100, split.samples_per_s)
                              : split.failure,
        !split.chosen                                 ? ""
        : split.slo_attainment >= main.slo_attainment ? " (compared: the fastest that keeps as many SLOs)"
                                                      : " (compared: none keeps as many SLOs, this one keeps most)");
  }
  return text;
}

Status WriteDemoTrace(const DemoResult& result, const std::string& path) {
  const DemoRun& run = result.main;
  const cluster::TimelineData& data = run.timeline;
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<TraceWriter> trace, TraceWriter::Open(path, run.start));
  trace->NameProcess(kServing, "serving");
  trace->NameProcess(kTraining, "training");
  trace->NameProcess(kPool, "memory pool");
  std::vector<std::string> lanes;
  for (const serve::ServeEvent& event : data.serve) {
    std::string name = event.model.empty() ? "node" : event.model;
    if (data.devices > 1) name += fmt::format(", device {}", event.device);
    const int lane = LaneOf(&lanes, name);
    static constexpr const char* kNames[] = {"execute", "load", "evict", "pause training", "resume training"};
    trace->Complete(kServing, lane, kNames[static_cast<int>(event.kind)], event.start, event.duration,
                    {{"batch", std::to_string(event.batch)}, {"bytes", std::to_string(event.bytes)}});
  }
  for (size_t i = 0; i < lanes.size(); ++i) trace->NameThread(kServing, static_cast<int>(i) + 1, lanes[i]);
  for (const train::TrainProgress& progress : data.train) {
    trace->Instant(kTraining, 1, progress.event, progress.time,
                   {{"step", std::to_string(progress.step)}, {"loss", fmt::format("{:.4f}", progress.loss)}});
    if (progress.event == "step") {
      trace->Counter(kTraining, "samples/s", progress.time, {{"samples/s", progress.samples_per_s}});
      trace->Counter(kTraining, "micro-batch", progress.time, {{"samples", static_cast<double>(progress.micro_batch)}});
    }
  }
  trace->NameThread(kTraining, 1, "progress");
  trace->NameThread(kPool, 1, "handovers");
  trace->NameThread(kPool, 2, "parts");
  for (const pool::HandoverRecord& record : data.handovers) {
    trace->Complete(kPool, 1, fmt::format("{} -> {}", record.giver, record.requester), record.start, record.total,
                    {{"pages", std::to_string(record.pages)},
                     {"granted", record.granted ? "yes" : "no"},
                     {"aborted", record.giver_parts.aborted ? "yes" : "no"}});
    absl::Time at = record.start;
    for (const auto& [name, ms] : HandoverParts(record)) {
      if (ms <= 0) continue;
      trace->Complete(kPool, 2, name, at, absl::Milliseconds(ms));
      at += absl::Milliseconds(ms);
    }
  }
  for (const cluster::MemorySample& sample : data.memory) {
    std::vector<std::pair<std::string, double>> held;
    for (const auto& [tenant, pages] : sample.held) {
      held.emplace_back(data.tenants[tenant], static_cast<double>(pages * data.page_bytes) / static_cast<double>(kMiB));
    }
    trace->Counter(kPool, data.devices > 1 ? fmt::format("MiB held, device {}", sample.device) : "MiB held", sample.time, held);
  }
  return trace->Finish();
}

}  // namespace tidepool::cli
