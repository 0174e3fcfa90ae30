#include "data/stalls/figures.h"

#include <cmath>
#include <set>

#include "base/fd.h"
#include "data/stalls/published.h"
#include "data/stalls/real_time.h"

namespace tidepool::data::stalls {
namespace {

constexpr int64_t kPictures = 87'473;
constexpr int64_t kBatch = 256;
constexpr int64_t kMostSizesFile = int64_t{16} << 20;
constexpr double kMeanPictureBytes = 117'000;
// Of the emulator: it spins for this long to emulate pinning a batch, whatever its size.
constexpr double kPinSeconds = 0.040;
// Of Python: a thread that wants the interpreter's lock gets it after the switch interval, 5 ms. The loop takes it about six
// times a step, fitted to the runs whose accelerator is never idle.
constexpr double kPinTurnSeconds = 6 * 0.005;
// Starting the workers of an epoch: first waits of the published runs, less one worker's time for a batch.
constexpr double kRestartSeconds = 0.4;
// Where no published row says so: preparation of one worker in samples per second, and the latency of a read.
constexpr double kWorkerRate1 = 133, kWorkerRate8 = 204, kWorkerRate24 = 94;
constexpr double kReadLatency = 0.0007;
constexpr double kDiskBytesPerSecond = 530e6;

// One setting: in virtual time, and on the real clock if that is asked for. Both are of the whole experiment.
struct Runs {
  PipelineRun model, real;
};

class Experiment {
 public:
  explicit Experiment(const FigureOptions& options) : options_(options), reference_(options.quick ? "" : options.reference) {}

  bool compares() const { return !reference_.empty(); }
  std::string PathOf(const std::string& file) const { return reference_ + "/" + file; }

  Status Start() {
    const int64_t pictures = options_.quick ? kPictures / 8 : kPictures;
    spec_.sizes = LogNormalSizes(pictures, static_cast<int64_t>(kMeanPictureBytes), 0.6, 1);
    if (compares()) {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string text,
                                ReadFile(PathOf("dataset/imagenette_train_jpeg_sizes.txt"), kMostSizesFile));
      TIDEPOOL_ASSIGN_OR_RETURN(spec_.sizes, DrawSizes(text, pictures, 1));
    }
    spec_.seed = 1;
    spec_.storage = {.name = "ssd of the publication", .bytes_per_s = kDiskBytesPerSecond, .depth = 32};
    SetReadSeconds(kReadLatency);
    spec_.cache = CacheKind::kPageCache;
    spec_.read_ahead = 0;
    spec_.assignment = Assignment::kBatch;
    spec_.batch = kBatch;
    spec_.pin_seconds = kPinSeconds;
    spec_.pin_turn_seconds = kPinTurnSeconds;
    spec_.overlap_copy = false;
    spec_.restart_each_epoch = true;
    spec_.restart_seconds = kRestartSeconds;
    spec_.epochs = 2;
    SetWorkers(8);
    SetWorkerRate(kWorkerRate8);
    return {};
  }

  void SetWorkers(int workers) {
    spec_.cores = workers;
    spec_.batches_ahead = int64_t{2} * workers;
  }
  void SetWorkerRate(double samples_per_s) {
    const double mean = static_cast<double>(TotalBytes(spec_.sizes)) / static_cast<double>(spec_.samples());
    spec_.prep_seconds_per_byte = 1 / (samples_per_s * mean);
  }
  void SetReadSeconds(double seconds) { spec_.storage.random_latency = absl::Seconds(seconds); }
  void SetCached(double share) { spec_.cache_bytes = static_cast<int64_t>(share * static_cast<double>(TotalBytes(spec_.sizes))); }
  // As the emulator does it: the row of batch 64, through the origin, divided by the devices.
  Status SetStep(const std::string& card, const std::string& model, int devices) {
    TIDEPOOL_ASSIGN_OR_RETURN(const PublishedStep step, StepOf64(reference_, card, model));
    spec_.copy_seconds = step.copy_seconds * (kBatch / 64.0) / devices;
    spec_.compute_seconds = step.compute_seconds * (kBatch / 64.0) / devices;
    estimated_ |= step.estimated;
    return {};
  }

  // Whole, in virtual time; or smaller, on both clocks.
  StatusOr<Runs> Measure(const std::string& what, bool from_disk) {
    Runs runs;
    if (!options_.real_time) {
      TIDEPOOL_ASSIGN_OR_RETURN(runs.model, Run(from_disk));
      return runs;
    }
    if (options_.note != nullptr) options_.note(fmt::format("{}, {}", what, from_disk ? "from the disk" : "from memory"));
    spec_.with_fetch = from_disk;
    const PipelineSpec small = ScaledDown(spec_, scale_);
    TIDEPOOL_ASSIGN_OR_RETURN(const PipelineRun model, RunPipeline(small));
    TIDEPOOL_ASSIGN_OR_RETURN(const RealTimeRun real, RunInRealTime(small, options_.stopped));
    figure_.events += model.events;
    figure_.hash = figure_.hash * 1099511628211ULL ^ model.hash;
    runs.model = WithTurns(ScaledUp(model, scale_));
    runs.real = WithTurns(ScaledUp(real.run, scale_));
    lateness_p99_seconds_ = std::max(lateness_p99_seconds_, real.lateness_p99_seconds);
    if (real.host_limited) figure_.notes.push_back(fmt::format("host-limited: {}: {}", what, real.host_limited_reason));
    return runs;
  }
  // The row of a value that follows from these runs.
  template <typename F, typename... R>
  FigureRow RowOf(const std::string& name, double x, const F& value, const R&... runs) const {
    FigureRow row{.name = name, .x = x, .ours = value(runs.model...)};
    if (options_.real_time) {
      row.predicted = row.ours;
      row.ours = value(runs.real...);
    }
    return row;
  }
  void SetScale(const PipelineScale& scale) { scale_ = scale; }

  // All in memory, or with the page cache as it is set.
  StatusOr<PipelineRun> Run(bool from_disk) {
    if (options_.stopped != nullptr && options_.stopped()) return Cancelled("stopped after {} runs", runs_);
    spec_.with_fetch = from_disk;
    TIDEPOOL_ASSIGN_OR_RETURN(PipelineRun run, RunPipeline(spec_));
    ++runs_;
    figure_.events += run.events;
    figure_.hash = figure_.hash * 1099511628211ULL ^ run.hash;
    return WithTurns(run);
  }

  // The x > 0 for which f(x) = target, by the secant rule from `first`; f grows about linearly.
  template <typename F>
  StatusOr<double> Solve(double target, double first, const F& f) {
    double x0 = first, x1 = first * 1.1;
    TIDEPOOL_ASSIGN_OR_RETURN(double y0, f(x0));
    for (int i = 0; i < 5; ++i) {
      TIDEPOOL_ASSIGN_OR_RETURN(const double y1, f(x1));
      if (std::abs(y1 - target) < 1e-4 * std::abs(target) || y1 == y0) break;
      const double next = std::clamp(x1 + (target - y1) * (x1 - x0) / (y1 - y0), x1 / 4, x1 * 4);
      x0 = x1;
      y0 = y1;
      x1 = next;
    }
    return x1;
  }

  // Seconds that a worker takes for a picture, so that the epoch in memory lasts as long as published.
  Status CalibrateWorker(double published_seconds, double first_rate) {
    TIDEPOOL_ASSIGN_OR_RETURN(const double seconds, Solve(published_seconds, 1 / first_rate, [&](double x) -> StatusOr<double> {
                                SetWorkerRate(1 / x);
                                TIDEPOOL_ASSIGN_OR_RETURN(const PipelineRun run, Run(false));
                                return run.seconds;
                              }));
    SetWorkerRate(1 / seconds);
    figure_.notes.push_back(fmt::format("one worker prepares {:.1f} samples/s (calibrated)", 1 / seconds));
    return {};
  }
  // Latency of a read, so that the run waits so much longer with the disk than from memory.
  Status CalibrateRead(double published_stall) {
    TIDEPOOL_ASSIGN_OR_RETURN(const PipelineRun cached, Run(false));
    TIDEPOOL_ASSIGN_OR_RETURN(const double latency, Solve(published_stall, kReadLatency, [&](double x) -> StatusOr<double> {
                                SetReadSeconds(x);
                                TIDEPOOL_ASSIGN_OR_RETURN(const PipelineRun run, Run(true));
                                return run.wait_seconds - cached.wait_seconds;
                              }));
    SetReadSeconds(latency);
    figure_.notes.push_back(fmt::format("a read has {:.2f} ms of latency (calibrated)", latency * 1e3));
    return {};
  }

  Figure Finish() {
    figure_.real_time = options_.real_time;
    if (options_.real_time) {
      figure_.notes.push_back(fmt::format(
          "on the real clock, smaller: 1/{} of the samples in batches of 1/{}, {} times as fast; preparation and pinning "
          "are slept for; late wake-ups p99 {:.2f} ms",
          scale_.samples, scale_.batch, scale_.speed, lateness_p99_seconds_ * 1e3));
    }
    if (estimated_) figure_.notes.emplace_back("step times are estimated from the hardware's description");
    if (!compares()) {
      figure_.notes.emplace_back(options_.quick ? "an eighth of the samples: not compared with what was published"
                                                : "the published measurements are not here: nothing is compared or calibrated");
    }
    for (FigureSeries& series : figure_.series) {
      for (FigureRow& row : series.rows) {
        row.compared = compares();
        row.gated = row.gated && !options_.quick;
      }
    }
    return std::move(figure_);
  }

  Figure figure_;

 private:
  // Half of the turns at the lock are taken while the loop fetches its batch, and count as waiting there.
  static PipelineRun WithTurns(PipelineRun run) {
    run.wait_seconds += run.host_seconds / 2;
    return run;
  }

  const FigureOptions& options_;
  const std::string reference_;
  PipelineScale scale_;
  double lateness_p99_seconds_ = 0;
  PipelineSpec spec_;
  bool estimated_ = false;
  int64_t runs_ = 0;
};

// Run order of the published files.
const std::vector<std::string> kFigure3Models = {"shufflenet_v2_x0_5", "alexnet",      "resnet18", "squeezenet1_0",
                                                 "squeezenet1_1",      "mobilenet_v2", "resnet50", "vgg11"};
const std::vector<double> kFigure3Cached = {40, 39.4, 37.8, 39.7, 32.2, 38.7, 32.1, 38.8};
const std::vector<std::string> kFigure56Models = {"alexnet", "resnet18", "mobilenet_v2", "resnet50"};

}  // namespace

StatusOr<Figure> Figure3(const FigureOptions& options) {
  Experiment experiment(options);
  Figure& figure = experiment.figure_;
  figure.title = "Figure 3: fetch stall of eight models, 8 emulated P100, 8 workers, 32 to 40 % cached";
  figure.x_label = "model";
  figure.y_label = "fetch stall, share of the epoch";
  figure.share = figure.absolute = true;
  figure.tolerance = 0.02;
  TIDEPOOL_RETURN_IF_ERROR(experiment.Start());
  std::vector<PublishedRun> partly(8), cached(8);
  std::vector<double> percent = kFigure3Cached;
  if (experiment.compares()) {
    TIDEPOOL_ASSIGN_OR_RETURN(partly, ReadRuns(experiment.PathOf("emulator_runs/fig3_parsed_output.txt"), 8));
    TIDEPOOL_ASSIGN_OR_RETURN(cached, ReadRuns(experiment.PathOf("emulator_runs/fig3_parsed_output_100.txt"), 8));
    TIDEPOOL_ASSIGN_OR_RETURN(percent, ReadColumn(experiment.PathOf("figures/fig3_cached_percent.dat"), 8));
    TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("P100", kFigure3Models[0], 8));
    experiment.SetCached(percent[0] / 100);
    TIDEPOOL_RETURN_IF_ERROR(experiment.CalibrateWorker(cached[0].total(), kWorkerRate8));
    TIDEPOOL_RETURN_IF_ERROR(experiment.CalibrateRead(partly[0].wait - cached[0].wait));
  }
  experiment.SetScale({.samples = 32, .batch = 16, .bytes = 16});
  const auto stall = [](const PipelineRun& memory, const PipelineRun& disk) {
    return (disk.wait_seconds - memory.wait_seconds) / disk.seconds;
  };
  FigureSeries series{.name = "fetch stall"};
  for (int i = 0; i < std::ssize(kFigure3Models); ++i) {
    TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("P100", kFigure3Models[i], 8));
    experiment.SetCached(percent[i] / 100);
    TIDEPOOL_ASSIGN_OR_RETURN(const Runs memory, experiment.Measure(kFigure3Models[i], false));
    TIDEPOOL_ASSIGN_OR_RETURN(const Runs disk, experiment.Measure(kFigure3Models[i], true));
    FigureRow row = experiment.RowOf(kFigure3Models[i], i, stall, memory, disk);
    row.published = (partly[i].wait - cached[i].wait) / partly[i].total();
    row.calibrated = i == 0;
    row.gated = true;
    series.rows.push_back(std::move(row));
  }
  figure.series.push_back(std::move(series));
  return experiment.Finish();
}

StatusOr<Figure> Figure4a(const FigureOptions& options) {
  Experiment experiment(options);
  Figure& figure = experiment.figure_;
  figure.title = "Figure 4a: fetch stall over cache size, ResNet-18 on 8 emulated V100, 8 workers";
  figure.x_label = "share of the data set cached";
  figure.y_label = "fetch stall, s an epoch";
  figure.tolerance = 0.15;
  TIDEPOOL_RETURN_IF_ERROR(experiment.Start());
  TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("V100", "resnet18", 8));
  const std::vector<double> shares = {0.22, 0.4, 0.589, 0.768, 0.961, 1};
  std::vector<PublishedRun> runs(12);  // of each size a cold epoch and the one after
  if (experiment.compares()) {
    TIDEPOOL_ASSIGN_OR_RETURN(runs, ReadRuns(experiment.PathOf("emulator_runs/fig4_parsed_output.txt"), 12));
    TIDEPOOL_RETURN_IF_ERROR(experiment.CalibrateWorker(runs[11].total(), kWorkerRate8));
    double cold_wait = 0;
    for (size_t i = 0; i < runs.size(); i += 2) cold_wait += runs[i].wait / 6;
    experiment.SetCached(0);
    TIDEPOOL_RETURN_IF_ERROR(experiment.CalibrateRead(cold_wait - runs[11].wait));
    figure.notes.emplace_back("the latency comes from the cold first epochs, which are no row of the figure");
    // Each row is the difference of two epochs' waits.
    double squares = 0;
    for (size_t i = 0; i < runs.size(); i += 2) squares += (runs[i].wait - cold_wait) * (runs[i].wait - cold_wait) / 5;
    const double noise = std::sqrt(2 * squares);
    figure.notes.push_back(
        fmt::format("two published epochs that should be alike differ by {:.2f} s (standard deviation of the cold "
                    "ones): of a stall below {:.1f} s a single run does not settle {:.0f} %",
                    noise, noise / figure.tolerance, 100 * figure.tolerance));
  }
  experiment.SetScale({.samples = 16, .batch = 16, .bytes = 16});
  const auto stall = [](const PipelineRun& memory, const PipelineRun& disk) { return disk.wait_seconds - memory.wait_seconds; };
  FigureSeries series{.name = "fetch stall"};
  TIDEPOOL_ASSIGN_OR_RETURN(const Runs memory, experiment.Measure("all cached", false));
  for (size_t i = 0; i < shares.size(); ++i) {
    experiment.SetCached(shares[i]);
    const std::string name = fmt::format("{:.1f} % cached", 100 * shares[i]);
    Runs disk = memory;
    if (shares[i] < 1) {
      TIDEPOOL_ASSIGN_OR_RETURN(disk, experiment.Measure(name, true));
    }
    FigureRow row = experiment.RowOf(name, shares[i], stall, memory, disk);
    row.published = runs[2 * i + 1].wait - runs[11].wait;
    row.calibrated = shares[i] == 1;
    row.gated = shares[i] < 1;
    series.rows.push_back(std::move(row));
  }
  figure.series.push_back(std::move(series));
  return experiment.Finish();
}

StatusOr<Figure> Figure5(const FigureOptions& options) {
  Experiment experiment(options);
  Figure& figure = experiment.figure_;
  figure.title = "Figure 5: speed over workers, one emulated P100, everything cached";
  figure.x_label = "workers";
  figure.y_label = "samples/s";
  figure.tolerance = 0.02;
  TIDEPOOL_RETURN_IF_ERROR(experiment.Start());
  const std::vector<int> workers = {1, 2, 3, 6, 12, 24};
  std::vector<PublishedRun> runs(24);
  experiment.SetWorkerRate(kWorkerRate1);
  if (experiment.compares()) {
    TIDEPOOL_ASSIGN_OR_RETURN(runs, ReadRuns(experiment.PathOf("emulator_runs/fig5_parsed_output.txt"), 24));
    TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("P100", "alexnet", 1));
    experiment.SetWorkers(1);
    TIDEPOOL_RETURN_IF_ERROR(experiment.CalibrateWorker(runs[0].total(), kWorkerRate1));
    figure.notes.emplace_back("published values are recomputed from the runs: those of the shipped plot are 6.53 times too low");
  }
  experiment.SetScale({.samples = 64, .batch = 32, .speed = 4});
  const auto rate = [](const PipelineRun& run) { return run.samples_per_s; };
  for (size_t model = 0; model < kFigure56Models.size(); ++model) {
    FigureSeries series{.name = kFigure56Models[model]};
    TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("P100", series.name, 1));
    for (size_t i = 0; i < workers.size(); ++i) {
      experiment.SetWorkers(workers[i]);
      const std::string name = fmt::format("{} workers", workers[i]);
      TIDEPOOL_ASSIGN_OR_RETURN(const Runs run, experiment.Measure(fmt::format("{}, {}", series.name, name), false));
      FigureRow row = experiment.RowOf(name, workers[i], rate, run);
      row.published = kPictures / runs[model * workers.size() + i].total();
      row.calibrated = model == 0 && i == 0;
      row.gated = workers[i] >= 6;
      series.rows.push_back(std::move(row));
    }
    figure.series.push_back(std::move(series));
  }
  return experiment.Finish();
}

StatusOr<Figure> Figure6(const FigureOptions& options) {
  Experiment experiment(options);
  Figure& figure = experiment.figure_;
  figure.title = "Figure 6: preparation stall of four models, 8 emulated P100, 24 workers, everything cached";
  figure.x_label = "model";
  figure.y_label = "preparation stall, share of the epoch";
  figure.share = figure.absolute = true;
  figure.tolerance = 0.02;
  TIDEPOOL_RETURN_IF_ERROR(experiment.Start());
  experiment.SetWorkers(24);
  experiment.SetWorkerRate(kWorkerRate24);
  std::vector<PublishedRun> runs(4);
  if (experiment.compares()) {
    TIDEPOOL_ASSIGN_OR_RETURN(runs, ReadRuns(experiment.PathOf("emulator_runs/fig6_parsed_output.txt"), 4));
    TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("P100", kFigure56Models[0], 8));
    TIDEPOOL_RETURN_IF_ERROR(experiment.CalibrateWorker(runs[0].total(), kWorkerRate24));
    figure.notes.emplace_back(
        "published values are recomputed from the runs (wait / epoch); the shipped plot shows others, which its runs do not "
        "give");
  }
  experiment.SetScale({.samples = 8, .batch = 8});
  const auto stall = [](const PipelineRun& run) { return run.wait_seconds / run.seconds; };
  FigureSeries series{.name = "preparation stall"};
  for (size_t i = 0; i < kFigure56Models.size(); ++i) {
    TIDEPOOL_RETURN_IF_ERROR(experiment.SetStep("P100", kFigure56Models[i], 8));
    TIDEPOOL_ASSIGN_OR_RETURN(const Runs run, experiment.Measure(kFigure56Models[i], false));
    FigureRow row = experiment.RowOf(kFigure56Models[i], static_cast<double>(i), stall, run);
    row.published = runs[i].wait / runs[i].total();
    row.calibrated = i == 0;
    row.gated = true;
    series.rows.push_back(std::move(row));
  }
  figure.series.push_back(std::move(series));
  return experiment.Finish();
}

}  // namespace tidepool::data::stalls
