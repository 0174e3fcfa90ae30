// tidepool demo: the main job, start to end.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/text.h"
#include "base/units.h"
#include "cli/demo_data.h"
#include "cli/demo_report.h"
#include "cli/demo_run.h"
#include "cli/verb.h"
#include "model/families.h"

namespace tidepool::cli {
namespace {

// Parts of the device that a static split gives to training. Each runs in full.
constexpr double kStaticSplits[] = {0.2, 0.3, 0.4, 0.5};

// One bar per device.
std::string MemoryBars(const DemoProgress& progress, int width) {
  std::string bars;
  const int each = std::max(6, width / std::max(1, static_cast<int>(progress.memory.size())));
  for (const DemoProgress::Memory& memory : progress.memory) {
    const auto cells = [&](int64_t pages) {
      return static_cast<int>(
          std::lround(static_cast<double>(pages * each) / static_cast<double>(std::max<int64_t>(1, memory.total_pages))));
    };
    const int train = std::min(each, cells(memory.train_pages)), models = std::min(each - train, cells(memory.model_pages));
    bars += "[" + std::string(static_cast<size_t>(train), '#') + std::string(static_cast<size_t>(models), '+') +
            std::string(static_cast<size_t>(each - train - models), '.') + "]";
  }
  return bars;
}

std::string ProgressLine(const DemoProgress& progress) {
  return fmt::format(
      "{:<11} {:>3.0f}/{:.0f} s  {:>5.0f} req/s  p99 {:>6.1f} ms  SLO {:>5.1f} %  train {:>5.1f} /s  micro-batch {:>3}  loss "
      "{:>5.2f}  {}{}",
      serve::Name(progress.mode), absl::ToDoubleSeconds(progress.elapsed), absl::ToDoubleSeconds(progress.length),
      progress.requests_per_s, progress.p99_ms, progress.slo_attainment * 100, progress.samples_per_s, progress.micro_batch,
      progress.loss, MemoryBars(progress, 32), progress.errors > 0 ? fmt::format("  {} errors", progress.errors) : "");
}

std::string DefaultFolder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache != nullptr && cache[0] == '/') return std::string(cache) + "/tidepool/demo";
  if (home != nullptr && home[0] == '/') return std::string(home) + "/.cache/tidepool/demo";
  return fmt::format("/tmp/tidepool-demo-{}", ::getuid());
}

// Half a gigabyte of weights goes away at the end, also when the demo fails, unless it is kept.
class DataFolder {
 public:
  void Use(const std::string& path, bool keep) {
    path_ = path;
    keep_ = keep;
  }
  ~DataFolder() {
    std::error_code ignored;
    if (!keep_ && !path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

 private:
  std::string path_;
  bool keep_ = true;
};

class DemoVerb : public Verb {
 public:
  std::string path() const override { return "demo"; }
  std::string summary() const override {
    return "Serve bursts of requests and train in the rest of one device, and show what it costs";
  }
  std::string details() const override {
    return "Makes eight models and a folder of JPEG pictures, starts a node with one training job, drives a bursty load over "
           "gRPC,\n"
           "and ends with a table. In the memory bar '#' is training, '+' are models and '.' is free; several devices have one "
           "each.\n"
           "  tidepool demo --seconds 30 --report out --keep\n"
           "  tidepool demo --compare --json -";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "demo.seconds", .help = "Length of the load, in seconds"}, &seconds_);
    table->Add({.key = "demo.compare", .help = "Run task-switch and four static splits on the same load beside it"}, &compare_);
    table->Add({.key = "demo.report",
                .help = "Folder for report.html, demo.json and trace.json; default: ~/.cache/tidepool/demo",
                .metavar = "DIR"},
               &report_);
    table->Add({.key = "demo.json", .help = "Write the figures here too; - is stdout", .metavar = "FILE"}, &json_);
    table->AddCustom(
        {.key = "demo.mode", .help = "colocate, static or task-switch", .metavar = "MODE"}, "string",
        [this](std::string_view text) -> Status {
          TIDEPOOL_ASSIGN_OR_RETURN(mode_, serve::ParseMode(text));
          return {};
        },
        [this] { return std::string(serve::Name(mode_)); });
    table->Add({.key = "demo.keep", .help = "Keep models and pictures in DIR/data for the next run"}, &keep_);
    table->Add({.key = "demo.seed", .help = "Seed of weights, pictures, training and load"}, &settings_.seed);
    table->Add({.key = "demo.device", .help = std::string(device::kNodeDevicesHelp), .metavar = "DEVICE"}, &settings_.device);
    table->Add({.key = "demo.capacity", .help = "Memory of each device"}, BytesField{&settings_.capacity_bytes});
    table->Add({.key = "demo.worker_threads",
                .help = "Threads of each device worker; 0: half of the cores, shared among the devices",
                .advanced = true},
               &settings_.worker_threads);
    table->Add({.key = "demo.train_threads", .help = "Threads of the trainer; 0: half of the cores", .advanced = true},
               &settings_.train_threads);
    table->Add({.key = "demo.micro_batch", .help = "Largest micro-batch of training", .advanced = true},
               &settings_.max_micro_batch);
    table->Add({.key = "demo.global_batch", .help = "Samples per optimizer step", .advanced = true}, &settings_.global_batch);
    table->Add({.key = "demo.learning_rate", .help = "Learning rate of training", .advanced = true}, &settings_.learning_rate);
    table->Add({.key = "demo.burst_load", .help = "Part of one device that a burst asks for", .advanced = true},
               &settings_.burst_load);
    table->Add({.key = "demo.calm_load", .help = "Part of one device that is asked for between bursts", .advanced = true},
               &settings_.calm_load);
    table->Add({.key = "demo.direct_io",
                .help = "Models are read from the disk at each load, not from the page cache",
                .advanced = true},
               &settings_.direct_io);
    table->Add({.key = "demo.zipf", .help = "Exponent of the models' shares of the load", .advanced = true}, &settings_.zipf);
    table->Add({.key = "demo.static_fraction",
                .help = "Mode static: training's part of the device; 0: several run, the best is kept",
                .advanced = true},
               &static_fraction_);
  }
  Status Run(const VerbContext& context) override;

 private:
  Status Validate();  // and finds how many devices there are
  Status Prepare(DemoResult* result, std::string* folder);
  StatusOr<DemoRun> RunOne(DemoResult* result, serve::Mode mode, double fraction, const VerbContext& context);
  StatusOr<DemoRun> RunStatic(DemoResult* result, double least_slo, const VerbContext& context);
  Status WriteOutputs(const DemoResult& result, const std::string& folder, const VerbContext& context);
  static void Say(const std::string& text) { fmt::print(stderr, "{}\n", text); }
  void EndLine() {
    if (line_open_) fmt::print(stderr, "\n");
    line_open_ = false;
  }

  double seconds_ = 60;
  bool compare_ = false, keep_ = false;
  std::string report_, json_;
  serve::Mode mode_ = serve::Mode::kColocate;
  double static_fraction_ = 0;
  DemoSettings settings_;
  DataFolder data_folder_;
  bool line_open_ = false;
};

Status DemoVerb::Validate() {
  std::vector<std::string> faults;
  if (!(seconds_ >= 1 && seconds_ <= 3600)) faults.push_back(fmt::format("--seconds is {}; allowed: 1 to 3600", seconds_));
  if (settings_.capacity_bytes < 64 * kMiB)
    faults.push_back(fmt::format("--capacity is {}; allowed: at least 64 MiB", FormatBytes(settings_.capacity_bytes)));
  if (!(settings_.burst_load > 0 && settings_.burst_load <= 4))
    faults.push_back(fmt::format("--burst-load is {}; allowed: above 0, up to 4", settings_.burst_load));
  if (!(settings_.calm_load > 0 && settings_.calm_load <= settings_.burst_load)) {
    faults.push_back(fmt::format("--calm-load is {}; allowed: above 0, up to --burst-load", settings_.calm_load));
  }
  if (!(settings_.zipf >= 0 && settings_.zipf <= 5))
    faults.push_back(fmt::format("--zipf is {}; allowed: 0 to 5", settings_.zipf));
  if (!(static_fraction_ >= 0 && static_fraction_ < 1))
    faults.push_back(fmt::format("--static-fraction is {}; allowed: 0 (several, the best is kept) to below 1", static_fraction_));
  const auto device = device::CheckNodeDevices({.name = settings_.device, .capacity_bytes = settings_.capacity_bytes}, 0);
  if (!device.ok()) {
    faults.push_back("--device: " + MessageOf(device.status()));
  } else if (!device->computes) {
    faults.push_back(
        fmt::format("--device is '{}', which only keeps time; the demo trains, which takes results. Allowed: mode=functional",
                    settings_.device));
  } else {
    settings_.devices = device->count;
  }
  if (faults.empty()) return {};
  return InvalidArgument("{}", JoinText(faults, "\n"));
}

Status DemoVerb::Prepare(DemoResult* result, std::string* folder) {
  *folder = report_.empty() ? DefaultFolder() : report_;
  std::error_code error;
  std::filesystem::create_directories(*folder, error);
  if (error) return ErrnoError(error.value(), "cannot make the folder " + *folder);
  *folder = std::filesystem::absolute(*folder).string();
  // What an earlier run has kept is used and stays.
  data_folder_.Use(*folder + "/data", keep_ || std::filesystem::exists(*folder + "/data/models"));
  settings_.length = absl::Seconds(seconds_);
  TIDEPOOL_ASSIGN_OR_RETURN(settings_.data, MakeDemoData({.directory = *folder + "/data", .seed = settings_.seed, .say = Say}));
  // Parameters, two moments, summed and staged gradients, and what one micro-batch keeps for its backward pass.
  TIDEPOOL_ASSIGN_OR_RETURN(const model::Graph trained, model::BuildGraph(TrainedModel(settings_)));
  result->training_bytes_estimate =
      5 * trained.parameter_bytes() + settings_.max_micro_batch * trained.activation_bytes_per_sample();
  result->machine = fmt::format("{} cores", std::thread::hardware_concurrency());
  const int64_t wanted = settings_.data.model_bytes + result->training_bytes_estimate;
  Say(fmt::format("{} models {} + training {} (estimated) = {} on {}: {:.1f} times {} memory", settings_.data.models.size(),
                  FormatBytes(settings_.data.model_bytes), FormatBytes(result->training_bytes_estimate), FormatBytes(wanted),
                  DevicesText(settings_),
                  static_cast<double>(wanted) / static_cast<double>(settings_.devices * settings_.capacity_bytes),
                  settings_.devices > 1 ? "their" : "its"));
  return {};
}

StatusOr<DemoRun> DemoVerb::RunOne(DemoResult* result, serve::Mode mode, double fraction, const VerbContext& context) {
  DemoPlan plan = result->plan;
  Say(fmt::format("\n{}: starting node, measuring models, starting training",
                  mode == serve::Mode::kStatic ? fmt::format("static with {:.0f} % for training", fraction * 100)
                                               : std::string(serve::Name(mode))));
  const auto show = [&](const DemoProgress& progress) {
    const std::string line = ProgressLine(progress);
    if (context.progress) {
      fmt::print(stderr, "\r{}\x1b[K", line);
      line_open_ = true;
    } else {
      fmt::print(stderr, "{}\n", line);
    }
    std::fflush(stderr);
  };
  auto run = RunDemo(
      settings_, mode, fraction, &plan, context,
      [this](const std::string& text) {
        EndLine();
        Say(text);
      },
      show);
  EndLine();
  if (!result->plan.made && plan.made) result->plan = plan;
  return run;
}

// Runs every split in full, or the one that was asked for, and keeps the best (BestSplit).
StatusOr<DemoRun> DemoVerb::RunStatic(DemoResult* result, double least_slo, const VerbContext& context) {
  if (static_fraction_ > 0) return RunOne(result, serve::Mode::kStatic, static_fraction_, context);
  std::vector<DemoRun> runs;
  for (const double fraction : kStaticSplits) {
    auto run = RunOne(result, serve::Mode::kStatic, fraction, context);
    if (absl::IsCancelled(run.status())) return run.status();
    StaticSplit split{.train_fraction = fraction};
    if (run.ok()) {
      split.slo_attainment = run->figures.slo_attainment;
      split.samples_per_s = run->figures.samples_per_s;
      runs.push_back(*std::move(run));
    } else {
      split.failure = ToString(run.status());
      Say("  this split cannot work: " + split.failure);
      runs.emplace_back();
    }
    result->static_splits.push_back(split);
  }
  const std::optional<size_t> best = BestSplit(result->static_splits, least_slo);
  if (!best.has_value()) return FailedPrecondition("no static split works on {}", DevicesText(settings_));
  result->static_splits[*best].chosen = true;
  return std::move(runs[*best]);
}

Status DemoVerb::WriteOutputs(const DemoResult& result, const std::string& folder, const VerbContext& context) {
  const std::string json = DemoJson(result);
  TIDEPOOL_RETURN_IF_ERROR(WriteDemoReport(result, folder + "/report.html"));
  TIDEPOOL_RETURN_IF_ERROR(WriteDemoTrace(result, folder + "/trace.json"));
  TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(folder + "/demo.json", json));
  const bool json_on_stdout = json_ == "-" || context.output == OutputFormat::kJson;
  if (!json_.empty() && json_ != "-") TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_, json));
  fmt::print("{}", json_on_stdout ? json : DemoText(result));
  if (json_on_stdout) fmt::print(stderr, "{}", DemoText(result));
  Say(fmt::format("\nreport {}/report.html, trace {}/trace.json (open it in Perfetto or speedscope), figures {}/demo.json",
                  folder, folder, folder));
  return {};
}

Status DemoVerb::Run(const VerbContext& context) {
  TIDEPOOL_RETURN_IF_ERROR(Validate());
  DemoResult result;
  std::string folder;
  TIDEPOOL_RETURN_IF_ERROR(Prepare(&result, &folder));
  result.settings = settings_;
  if (mode_ == serve::Mode::kStatic) {
    TIDEPOOL_ASSIGN_OR_RETURN(result.main, RunStatic(&result, 1, context));
  } else {
    TIDEPOOL_ASSIGN_OR_RETURN(result.main, RunOne(&result, mode_, 0, context));
  }
  if (compare_ && mode_ != serve::Mode::kTaskSwitch) {
    TIDEPOOL_ASSIGN_OR_RETURN(DemoRun run, RunOne(&result, serve::Mode::kTaskSwitch, 0, context));
    result.baselines.push_back(std::move(run));
  }
  if (compare_ && mode_ != serve::Mode::kStatic) {
    TIDEPOOL_ASSIGN_OR_RETURN(DemoRun run, RunStatic(&result, result.main.figures.slo_attainment, context));
    result.baselines.insert(result.baselines.begin(), std::move(run));
  }
  TIDEPOOL_RETURN_IF_ERROR(WriteOutputs(result, folder, context));

  int64_t violations = result.main.figures.violations;
  for (const DemoRun& run : result.baselines) violations += run.figures.violations;
  if (violations > 0) return Internal("the page ledger was violated {} times", violations);
  if (result.main.figures.errors > 0) {
    std::string codes;
    for (const auto& [code, count] : result.main.load.overall.errors_by_code) codes += fmt::format(" {} {},", count, code);
    for (const auto& [code, text] : result.main.load.overall.example_by_code) codes += " for example: " + text;
    return Unavailable("{} of {} requests failed:{}", result.main.figures.errors, result.main.figures.requests, codes);
  }
  if (result.main.training.state == cluster::TrainState::kFailed)
    return Annotate(result.main.training.last_error, "training failed");
  return {};
}

}  // namespace

void AddDemoVerbs(VerbList* verbs) { verbs->push_back(std::make_unique<DemoVerb>()); }

}  // namespace tidepool::cli
