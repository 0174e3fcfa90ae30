#include "cli/demo_run.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "api/api.h"
#include "base/units.h"
#include "cli/demo_figures.h"
#include "device/emulated/emulated_device.h"

namespace tidepool::cli {
namespace {

constexpr absl::Duration kTrainStartLimit = absl::Seconds(120);
constexpr absl::Duration kStepAfterLoadLimit = absl::Seconds(10);
constexpr double kSloFactor = 4;
// Short, so that memory goes back to training within one calm. With a fixed split nobody could use what an idle model gives up.
constexpr absl::Duration kIdleEviction = absl::Seconds(1), kNoEviction = absl::Hours(1);

// Serving and training get half of the cores each: an operator that is split over all of them waits for threads that the other
// one has pushed aside.
int HalfOfTheCores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2); }

cluster::NodeOptions NodeOptionsFor(const DemoSettings& settings, serve::Mode mode, double static_train_fraction) {
  cluster::NodeOptions options;
  options.device.name = settings.device;
  options.device.capacity_bytes = settings.capacity_bytes;
  if (mode == serve::Mode::kStatic) options.static_train_fraction = static_train_fraction;
  if (mode == serve::Mode::kColocate) {
    // Room for one model: a single request between bursts finds it at once, and no micro-batch is thrown away for it.
    for (const DemoModel& model : settings.data.models) {
      const int64_t with_workspace = model.weight_bytes + 2 * options.device.page_bytes;
      options.reserve_bytes = std::max(options.reserve_bytes, with_workspace);
    }
  }
  options.server.repository = settings.data.repository;
  options.server.worker_binary = settings.worker_binary;
  options.server.worker_threads =
      settings.worker_threads > 0 ? settings.worker_threads : std::max(1, HalfOfTheCores() / settings.devices);
  options.server.mode = mode;
  options.server.direct_io = settings.direct_io;
  options.server.slo_factor = kSloFactor;
  options.server.idle_eviction = mode == serve::Mode::kStatic ? kNoEviction : kIdleEviction;
  options.train.name = "train";
  options.train.model = TrainedModel(settings);
  options.train.data = "imagefolder:" + settings.data.train_folder;
  options.train.evaluation_data = "imagefolder:" + settings.data.evaluation_folder;
  options.train.global_batch = settings.global_batch;
  options.train.max_micro_batch = settings.max_micro_batch;
  options.train.epochs = 1'000'000;
  options.train.evaluation_steps = settings.evaluation_steps;
  options.train.learning_rate = settings.learning_rate;
  options.train.optimizer = "adamw";
  options.train.seed = settings.seed;
  options.train.threads = settings.train_threads > 0 ? settings.train_threads : HalfOfTheCores();
  return options;
}

// Rates come from solo latencies, so that a burst asks for a stated part of the device whatever machine this is.
Status MakePlan(const DemoSettings& settings, cluster::Node* node, DemoPlan* plan) {
  double shares = 0, service_s = 0;
  for (size_t i = 0; i < settings.data.models.size(); ++i) {
    const std::string& name = settings.data.models[i].name;
    TIDEPOOL_ASSIGN_OR_RETURN(const serve::ModelStatus status, node->server().Model(name));
    if (status.solo_latency <= absl::ZeroDuration()) {
      return FailedPrecondition("model '{}' was not measured: {}", name, status.reason.empty() ? "no latency" : status.reason);
    }
    plan->solo[name] = status.solo_latency;
    plan->slo[name] = status.solo_latency * kSloFactor;
    plan->load.models.push_back(name);
    const double share = 1.0 / std::pow(static_cast<double>(i + 1), settings.zipf);
    shares += share;
    service_s += share * absl::ToDoubleSeconds(status.solo_latency);
  }
  service_s /= shares;
  plan->mean_service = absl::Seconds(service_s);
  plan->load.arrivals = api::Arrivals::kBursty;
  plan->load.zipf = settings.zipf;
  plan->load.rate = settings.calm_load / service_s;
  plan->load.burst_rate = settings.burst_load / service_s;
  plan->load.calm_length = absl::Seconds(12);
  plan->load.burst_length = absl::Seconds(4);
  plan->load.length = settings.length;
  plan->load.seed = settings.seed;
  plan->load.slo_factor = kSloFactor;
  plan->made = true;
  return {};
}

// Waits until the trainer has reported a step at or after `since`.
Status AwaitStep(cluster::Node* node, absl::Time since, absl::Duration limit, const VerbContext& context) {
  Clock* clock = Clock::Real();
  const absl::Time deadline = clock->Now() + limit;
  while (true) {
    const cluster::TrainStatus status = node->training();
    if (status.latest.event == "step" && status.latest.time >= since) return {};
    if (status.state == cluster::TrainState::kFailed || status.state == cluster::TrainState::kFinished) {
      return status.last_error.ok() ? FailedPrecondition("training ended before the load began")
                                    : Annotate(status.last_error, "training failed");
    }
    if (clock->Now() >= deadline) return DeadlineExceeded("training made no step within {}", tidepool::FormatDuration(limit));
    if (context.wait_for_stop(clock->Now() + absl::Milliseconds(50))) return Cancelled("stopped while waiting for training");
  }
}

DemoProgress ProgressOf(cluster::Node* node, serve::Mode mode, const api::LoadProgress& load) {
  DemoProgress progress{.mode = mode,
                        .elapsed = load.elapsed,
                        .length = load.length,
                        .requests_per_s = load.last_rate,
                        .p99_ms = absl::ToDoubleMilliseconds(load.last_p99),
                        .errors = load.errors + load.dropped};
  const int64_t answered = load.succeeded + load.errors + load.dropped;
  progress.slo_attainment = answered > 0 ? static_cast<double>(load.within_slo) / static_cast<double>(answered) : 1;
  const train::TrainProgress train = node->training().latest;
  progress.samples_per_s = train.samples_per_s;
  progress.micro_batch = train.micro_batch;
  progress.loss = train.loss;
  for (const pool::PoolStats& pool : node->PoolStats()) {
    DemoProgress::Memory memory{.total_pages = pool.total};
    for (const pool::LeaseStats& lease : pool.leases) {
      (lease.lease_class == pool::LeaseClass::kReclaimable ? memory.train_pages : memory.model_pages) += lease.held_pages;
    }
    progress.memory.push_back(memory);
  }
  return progress;
}

}  // namespace

std::string TrainedModel(const DemoSettings& settings) {
  // Deep and narrow: its state is small, and what a micro-batch keeps for its backward pass is many times as large.
  return fmt::format("resnet152:width=8,classes={},image=64,zero_init_residual=true", settings.data.classes);
}

StatusOr<DemoRun> RunDemo(const DemoSettings& settings, serve::Mode mode, double static_train_fraction, DemoPlan* plan,
                          const VerbContext& context, const std::function<void(const std::string&)>& say,
                          const std::function<void(const DemoProgress&)>& show) {
  DemoRun run{.mode = mode, .static_train_fraction = mode == serve::Mode::kStatic ? static_train_fraction : 0};
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::Node> node,
                            cluster::Node::Start(NodeOptionsFor(settings, mode, static_train_fraction)));
  TIDEPOOL_ASSIGN_OR_RETURN(
      const std::unique_ptr<api::Api> front,
      api::Api::Start(&node->server(), node->brokers(), {.http_port = -1, .grpc_port = 0, .metrics_port = -1}));
  if (const auto emulation = node->emulation(); emulation.has_value() && !plan->made) {
    say(fmt::format("{}: {}", settings.device, device::emulated::Describe(emulation->properties)));
  }
  if (!plan->made) {
    TIDEPOOL_RETURN_IF_ERROR(MakePlan(settings, node.get(), plan));
    say(fmt::format(
        "solo latencies: {} on average by share of load; bursts of {:.0f} requests/s ask for {:.0f} % of {} device, calm is "
        "{:.0f}/s",
        tidepool::FormatDuration(plan->mean_service), plan->load.burst_rate, settings.burst_load * 100,
        settings.devices > 1 ? "one" : "the", plan->load.rate));
  }
  TIDEPOOL_RETURN_IF_ERROR(node->StartTraining());
  // The load begins when training is under way; start-up and first evaluation are no part of the comparison.
  TIDEPOOL_RETURN_IF_ERROR(AwaitStep(node.get(), absl::InfinitePast(), kTrainStartLimit, context));

  api::LoadOptions load = plan->load;
  load.target = front->grpc_target();
  // The generator reports four times a second; a line covers what came since the one before.
  absl::Duration next_line = absl::ZeroDuration(), last_line = absl::ZeroDuration(), worst_p99 = absl::ZeroDuration();
  int64_t answered = 0;
  const auto on_progress = [&](const api::LoadProgress& progress) {
    if (progress.measuring) return;
    worst_p99 = std::max(worst_p99, progress.last_p99);
    if (progress.elapsed < next_line) return;
    api::LoadProgress shown = progress;
    const double seconds = absl::ToDoubleSeconds(progress.elapsed - last_line);
    shown.last_rate = seconds > 0 ? static_cast<double>(progress.succeeded - answered) / seconds : 0;
    shown.last_p99 = worst_p99;
    show(ProgressOf(node.get(), mode, shown));
    next_line = absl::Floor(progress.elapsed, absl::Seconds(1)) + absl::Seconds(1);
    last_line = progress.elapsed;
    answered = progress.succeeded;
    worst_p99 = absl::ZeroDuration();
  };
  TIDEPOOL_ASSIGN_OR_RETURN(run.load, api::RunLoad(load, on_progress, context.stopped));
  if (context.stopped()) return Cancelled("stopped by the user");
  run.start = run.load.start;
  run.end = run.load.start + std::max(run.load.elapsed, load.length);
  // One more report of the trainer tells how many samples belong to the load's last second. In task-switch mode it may have been
  // paused.
  if (const Status status = AwaitStep(node.get(), run.end, kStepAfterLoadLimit, context); absl::IsCancelled(status))
    return status;
  const std::vector<pool::PoolStats> pools = node->PoolStats();
  run.models = node->server().Models();
  run.training = node->training();
  run.emulation = node->emulation();
  front->BeginDrain();
  const Status stopped = node->Stop();
  front->Shutdown(Clock::Real()->Now() + absl::Seconds(5));
  run.timeline = node->timeline().Snapshot();
  if (!stopped.ok()) say("training did not stop by itself: " + ToString(stopped));
  run.figures = FiguresOf(run, *plan, pools);
  return run;
}

}  // namespace tidepool::cli
