// tidepool bench pacing, bench virtual-time: what emulated devices promise, measured.
#include <memory>

#include "base/fd.h"
#include "base/json.h"
#include "base/units.h"
#include "cli/emulation_bench.h"
#include "cli/print.h"
#include "cli/verb.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::ordered_json;

double Micros(absl::Duration duration) { return absl::ToDoubleMicroseconds(duration); }

// Writes `json` to `file`, if one is named, and to stdout if JSON is wanted there. True if it was.
StatusOr<bool> Put(const VerbContext& context, const std::string& file, const Json& json) {
  if (!file.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(file, json.dump(2) + "\n"));
  if (context.output != OutputFormat::kJson) return false;
  PrintJson(json);
  return true;
}

Json OrNull(bool measured, double value) { return measured ? Json(value) : Json(nullptr); }

class BenchPacingVerb : public Verb {
 public:
  std::string path() const override { return "bench pacing"; }
  std::string summary() const override { return "Measure how true an emulated device keeps time while all cores decode"; }
  std::string details() const override {
    return "Runs steps of 0.3, 1, 3.5 and 20 ms on an emulated device in real time. `error` is the relative drift of the moments "
           "at which\na waiting thread sees the steps end; `naive` is the error of a loop that sleeps for the time of each step. "
           "`utilisation` is\nthat of a loop whose batches lie in memory, beside the busy share, which counts the host's own "
           "time.\n"
           "The host launches about 50 ms of steps ahead (2 to 256 steps), as into the launch queue of a GPU. With fewer, the "
           "device\nstands still whenever the host is kept from its core for longer than they take, and that counts: try "
           "--in-flight 2.\n\n"
           "  tidepool bench pacing --json pacing.json\n";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "bench.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_file_);
    table->Add({.key = "bench.steps", .help = "Steps of each length"}, &options_.steps);
    table->Add({.key = "bench.naive_steps", .help = "Steps of the loop that sleeps; 0: leave it out"}, &options_.naive_steps);
    table->Add({.key = "bench.fed_steps", .help = "Steps at most of the loop that takes batches from memory; 0: leave it out"},
               &options_.fed_steps);
    table->Add({.key = "bench.threads", .help = "Threads that decode meanwhile; 0: one per core, -1: none"},
               &options_.decode_threads);
    table->Add({.key = "bench.in_flight", .help = "Steps launched ahead; 0: about 50 ms of them, 2 to 256"}, &options_.in_flight);
  }

  Status Run(const VerbContext& context) override {
    const auto show = [&](const std::string& text) {
      if (context.progress) fmt::print(stderr, "{}\n", text);
    };
    TIDEPOOL_ASSIGN_OR_RETURN(const PacingBenchResult result, RunPacingBench(options_, show, context.stopped));
    Json json = {{"cores", result.cores},
                 {"decode_threads", result.decode_threads},
                 {"steps_each", result.steps},
                 {"steps", Json::array()}};
    std::vector<std::vector<std::string>> table = {{"step", "ahead", "drift", "of the total", "on the timeline", "naive sleep",
                                                    "late p50", "late p99", "late max", "host-limited", "utilisation", "busy",
                                                    "images/s"}};
    for (const PacingStep& row : result.rows) {
      json["steps"].push_back(
          {{"target_ms", row.target_ms},
           {"in_flight", row.in_flight},
           {"error", row.error},
           {"total_error", row.total_error},
           {"timeline_error", row.timeline_error},
           {"naive_error", OrNull(options_.naive_steps > 0, row.naive_error)},
           {"lateness_us",
            {{"p50", Micros(row.lateness_p50)}, {"p99", Micros(row.lateness_p99)}, {"max", Micros(row.lateness_max)}}},
           {"host_limited", row.host_limited},
           {"utilisation", OrNull(options_.fed_steps > 0, row.utilisation)},
           {"busy_share", OrNull(options_.fed_steps > 0, row.busy_share)},
           {"images_per_s", row.images_per_s}});
      table.push_back({fmt::format("{} ms", row.target_ms), fmt::format("{}", row.in_flight),
                       fmt::format("{:.4f} %", row.error * 100), fmt::format("{:.4f} %", row.total_error * 100),
                       fmt::format("{:.4f} %", row.timeline_error * 100),
                       options_.naive_steps > 0 ? fmt::format("{:.2f} %", row.naive_error * 100) : "-",
                       tidepool::FormatDuration(row.lateness_p50), tidepool::FormatDuration(row.lateness_p99),
                       tidepool::FormatDuration(row.lateness_max), row.host_limited ? "yes" : "no",
                       options_.fed_steps > 0 ? fmt::format("{:.2f} %", row.utilisation * 100) : "-",
                       options_.fed_steps > 0 ? fmt::format("{:.2f} %", row.busy_share * 100) : "-",
                       fmt::format("{:.0f}", row.images_per_s)});
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const bool put, Put(context, json_file_, json));
    if (put) return {};
    fmt::print("{} steps each, {} threads decoding on {} cores\n\n", result.steps, result.decode_threads, result.cores);
    PrintTable(table, "rrrrrrrrrrrrr");
    return {};
  }

 private:
  PacingBenchOptions options_;
  std::string json_file_;
};

class BenchVirtualTimeVerb : public Verb {
 public:
  std::string path() const override { return "bench virtual-time"; }
  std::string summary() const override { return "Measure the events per second of virtual time, and that a seed repeats itself"; }
  std::string details() const override {
    return "Two training jobs on each of several emulated devices, in virtual time on one core. Two runs of one seed must give "
           "one "
           "hash.\n\n"
           "  tidepool bench virtual-time --json virtual.json\n";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "bench.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_file_);
    table->Add({.key = "bench.seed", .help = "Seed of the two equal runs; a third one takes the next"}, &options_.seed);
    table->Add({.key = "bench.events", .help = "Events of one run"}, &options_.events);
    table->Add({.key = "bench.devices", .help = "Emulated devices"}, &options_.devices);
  }

  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const VirtualTimeBenchResult result, RunVirtualTimeBench(options_));
    const auto hex = [](uint64_t hash) { return fmt::format("{:016x}", hash); };
    const Json json = {{"events_per_s", result.events_per_s},
                       {"bare_events_per_s", result.bare_events_per_s},
                       {"events", result.events},
                       {"commands", result.commands},
                       {"simulated_s", absl::ToDoubleSeconds(result.simulated)},
                       {"devices", options_.devices},
                       {"seed", options_.seed},
                       {"hash_a", hex(result.hash_a)},
                       {"hash_b", hex(result.hash_b)},
                       {"hash_other_seed", hex(result.hash_other_seed)}};
    TIDEPOOL_ASSIGN_OR_RETURN(const bool put, Put(context, json_file_, json));
    if (!put) {
      PrintTable({{"events per second", fmt::format("{:.2f} million", result.events_per_s / 1e6)},
                  {"of events that do nothing", fmt::format("{:.2f} million", result.bare_events_per_s / 1e6)},
                  {"events of one run", fmt::format("{}", result.events)},
                  {"commands of the devices", fmt::format("{}", result.commands)},
                  {"simulated", tidepool::FormatDuration(result.simulated)},
                  {"hash, first run", hex(result.hash_a)},
                  {"hash, second run", hex(result.hash_b)},
                  {"hash, other seed", hex(result.hash_other_seed)}},
                 "lr");
    }
    if (result.hash_a != result.hash_b) return Internal("two runs of seed {} differ", options_.seed);
    return {};
  }

 private:
  VirtualTimeBenchOptions options_;
  std::string json_file_;
};

}  // namespace

void AddEmulationBenchVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<BenchPacingVerb>());
  verbs->push_back(std::make_unique<BenchVirtualTimeVerb>());
}

}  // namespace tidepool::cli
