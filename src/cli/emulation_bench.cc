#include "cli/emulation_bench.h"

#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <memory>
#include <span>
#include <thread>

#include "base/clock.h"
#include "base/simulation.h"
#include "data/augment.h"
#include "data/jpeg.h"
#include "device/emulated/emulated_device.h"
#include "device/emulated/emulation.h"

namespace tidepool::cli {
namespace {

using device::emulated::Command;
using device::emulated::StreamId;

// A device with one operation of a given time, and round link speeds.
std::shared_ptr<const device::emulated::CostSource> StepCosts(double step_us, double p10_us = 0, double p90_us = 0) {
  auto bundle = std::make_shared<profile::Bundle>();
  bundle->manifest.name = bundle->manifest.hardware.name = "bench";
  bundle->manifest.measured = true;
  bundle->manifest.hardware.memory_bytes = 16e9;
  bundle->manifest.hardware.memory_bytes_per_s = 1e12;
  bundle->manifest.hardware.link_bytes_per_s = {
      {profile::LinkKind::kHostToDevice, 12e9}, {profile::LinkKind::kDeviceToHost, 12e9}, {profile::LinkKind::kPeer, 150e9}};
  bundle->ops.push_back({.key = {.model = "step", .phase = profile::Phase::kStep},
                         .repeats = 100,
                         .median_us = step_us,
                         .p10_us = p10_us,
                         .p90_us = p90_us});
  return device::emulated::MakeBundleCosts(std::move(bundle));
}

const device::Operation kStep{.key = {.model = "step", .phase = profile::Phase::kStep}};

// Threads that decode one picture over and over, as a loader's threads do.
class Decoders {
 public:
  static StatusOr<std::unique_ptr<Decoders>> Start(int threads) {
    constexpr int kWidth = 500, kHeight = 375;
    std::vector<uint8_t> pixels(static_cast<size_t>(kWidth) * kHeight * 3);
    for (size_t i = 0; i < pixels.size(); ++i) {
      // A gradient under noise: about as many bytes as a photograph of this size has.
      pixels[i] = static_cast<uint8_t>(i / 3 % kWidth / 4 + data::RandomBits(1, i, 0) % 64);
    }
    std::unique_ptr<Decoders> decoders(new Decoders);
    TIDEPOOL_ASSIGN_OR_RETURN(decoders->jpeg_, data::EncodeJpeg(pixels, kWidth, kHeight, 90));
    TIDEPOOL_ASSIGN_OR_RETURN(decoders->info_, data::ReadJpegInfo(decoders->bytes()));
    for (int i = 0; i < threads; ++i) decoders->threads_.emplace_back([self = decoders.get()] { self->Decode(); });
    return decoders;
  }
  ~Decoders() {
    stopping_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t images() const { return images_; }

 private:
  Decoders() = default;
  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(jpeg_)); }
  void Decode() {
    data::Image image;
    while (!stopping_) {
      if (!data::DecodeJpeg(bytes(), info_, 1, &image).ok()) return;
      ++images_;
    }
  }
  std::string jpeg_;
  data::JpegInfo info_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> images_{0};
  std::vector<std::thread> threads_;
};

// Each step is a launch and an event in the stream's queue, which holds 1,024.
constexpr int64_t kMostInFlight = 256;

// Relative, without sign: `steps` steps of `target_ms` took `took`.
double ErrorOf(absl::Duration took, double target_ms, int64_t steps) {
  return std::abs(absl::ToDoubleMilliseconds(took) / (target_ms * static_cast<double>(steps)) - 1);
}

// The median time per step over all pairs of moments that lie half of them apart.
double MillisPerStep(const std::vector<absl::Time>& moments) {
  const size_t half = moments.size() / 2;
  std::vector<double> slopes;
  for (size_t i = 0; i + half < moments.size(); ++i) {
    slopes.push_back(absl::ToDoubleMilliseconds(moments[i + half] - moments[i]) / static_cast<double>(half));
  }
  const auto middle = slopes.begin() + static_cast<std::ptrdiff_t>(slopes.size() / 2);
  std::nth_element(slopes.begin(), middle, slopes.end());
  return *middle;
}

StatusOr<std::unique_ptr<device::Device>> OpenStepDevice(double target_ms) {
  TIDEPOOL_ASSIGN_OR_RETURN(
      auto devices, device::emulated::OpenEmulatedDevices({.name = "emulated:bench,mode=timing", .capacity_bytes = 2 << 20},
                                                          StepCosts(target_ms * 1e3)));
  return std::move(devices[0]);
}

absl::Time LimitFor(Clock* clock, double target_ms, int64_t steps) {
  return clock->Now() + absl::Milliseconds(target_ms) * steps * 3 + absl::Seconds(10);
}

StatusOr<PacingStep> PaceSteps(double target_ms, int64_t steps, int64_t in_flight, const std::function<bool()>& stopped) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto opened, OpenStepDevice(target_ms));
  device::Device& device = *opened;
  TIDEPOOL_ASSIGN_OR_RETURN(const auto stream, device.CreateStream({}));
  Clock* clock = device.clock();
  std::deque<device::Event> open;
  std::vector<absl::Time> seen, reached;
  const absl::Time limit = LimitFor(clock, target_ms, steps);
  // The first step of all only sets the beginning.
  for (int64_t step = 0; step <= steps || !open.empty();) {
    if (stopped()) return Cancelled("stopped");
    if (step <= steps && std::ssize(open) < in_flight) {
      TIDEPOOL_RETURN_IF_ERROR(stream->Launch(kStep, nullptr));
      TIDEPOOL_ASSIGN_OR_RETURN(device::Event event, stream->Record());
      open.push_back(std::move(event));
      ++step;
      continue;
    }
    TIDEPOOL_RETURN_IF_ERROR(open.front().Wait(limit));
    seen.push_back(clock->Now());
    TIDEPOOL_ASSIGN_OR_RETURN(const absl::Time at, open.front().ReachedAt());
    reached.push_back(at);
    open.pop_front();
  }
  const device::TimelineReport report = *device.timeline();
  return PacingStep{.target_ms = target_ms,
                    .in_flight = in_flight,
                    .error = std::abs(MillisPerStep(seen) / target_ms - 1),
                    .total_error = ErrorOf(seen.back() - seen.front(), target_ms, steps),
                    .timeline_error = ErrorOf(reached.back() - reached.front(), target_ms, steps),
                    .lateness_p50 = report.lateness_p50,
                    .lateness_p99 = report.lateness_p99,
                    .lateness_max = report.lateness_max,
                    .host_limited = report.host_limited};
}

// Storage that is infinitely fast: a thread hands out batches that lie in memory, and is ahead by as many as fit.
class MemoryBatches {
 public:
  MemoryBatches() : thread_([this] { Fill(); }) {}
  ~MemoryBatches() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
  }
  // False if none is ready.
  bool TryTake() {
    absl::MutexLock lock(&mu_);
    if (ready_ == 0) return false;
    --ready_;
    return true;
  }
  bool Take(absl::Time deadline) {
    absl::MutexLock lock(&mu_);
    const auto some = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return ready_ > 0; };
    if (!Clock::Real()->Await(&mu_, some, deadline)) return false;
    --ready_;
    return true;
  }

 private:
  void Fill() {
    constexpr int64_t kMost = 64, kRefill = 32;
    absl::MutexLock lock(&mu_);
    const auto room = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_ || ready_ <= kRefill; };
    while (Clock::Real()->Await(&mu_, room, absl::InfiniteFuture()) && !stopping_) ready_ = kMost;
  }
  absl::Mutex mu_;
  int64_t ready_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// A loop without anything in flight while the host works: its own overhead lies between the steps, and none of it is storage.
Status FeedSteps(int64_t steps, const std::function<bool()>& stopped, PacingStep* row) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto device, OpenStepDevice(row->target_ms));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto stream, device->CreateStream({}));
  const absl::Time limit = LimitFor(device->clock(), row->target_ms, steps);
  MemoryBatches batches;
  const absl::Time began = device->HostNow();
  for (int64_t step = 0; step < steps; ++step) {
    if (stopped()) return Cancelled("stopped");
    if (!batches.TryTake()) {
      const absl::Time begin = device->HostNow();
      if (!batches.Take(limit)) return DeadlineExceeded("no batch came within the time of three runs");
      device->NoteDataWait(begin, device->HostNow());
    }
    TIDEPOOL_RETURN_IF_ERROR(stream->Launch(kStep, nullptr));
    TIDEPOOL_RETURN_IF_ERROR(stream->Synchronize(limit));
  }
  const device::TimelineReport report = *device->timeline();
  row->utilisation = report.utilisation;
  row->busy_share = absl::FDivDuration(report.busy.at(device::EngineKind::kCompute), device->HostNow() - began);
  return {};
}

double NaiveError(double target_ms, int64_t steps) {
  if (steps == 0) return 0;
  Clock* clock = Clock::Real();
  const absl::Time begin = clock->Now();
  for (int64_t step = 0; step < steps; ++step) clock->SleepFor(absl::Milliseconds(target_ms));
  return ErrorOf(clock->Now() - begin, target_ms, steps);
}

}  // namespace

int64_t StepsInFlight(double target_ms) {
  constexpr double kAheadMs = 50;
  return std::llround(std::clamp(std::ceil(kAheadMs / target_ms), 2.0, static_cast<double>(kMostInFlight)));
}

StatusOr<PacingBenchResult> RunPacingBench(const PacingBenchOptions& options,
                                           const std::function<void(const std::string&)>& progress,
                                           const std::function<bool()>& stopped) {
  if (options.steps < 1 || options.steps > 1'000'000)
    return InvalidArgument("--steps is {}; allowed: 1 to 1000000", options.steps);
  if (options.naive_steps < 0 || options.naive_steps > 1'000'000)
    return InvalidArgument("--naive-steps is {}; allowed: 0 to 1000000", options.naive_steps);
  if (options.fed_steps < 0) return InvalidArgument("--fed-steps is {}; allowed: 0 or more", options.fed_steps);
  if (options.decode_threads < -1 || options.decode_threads > 256) {
    return InvalidArgument("--threads is {}; allowed: -1 (none) to 256", options.decode_threads);
  }
  if (options.in_flight < 0 || options.in_flight > kMostInFlight) {
    return InvalidArgument("--in-flight is {}; allowed: 1 to {}, or 0 for about 50 ms of steps", options.in_flight,
                           kMostInFlight);
  }
  PacingBenchResult result;
  result.cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  result.decode_threads = options.decode_threads == 0 ? result.cores : std::max(0, options.decode_threads);
  result.steps = options.steps;
  TIDEPOOL_ASSIGN_OR_RETURN(const auto decoders, Decoders::Start(result.decode_threads));
  for (const double target_ms : options.targets_ms) {
    progress(fmt::format("steps of {} ms", target_ms));
    const int64_t in_flight = options.in_flight > 0 ? options.in_flight : StepsInFlight(target_ms);
    const int64_t images = decoders->images();
    const absl::Time begin = Clock::Real()->Now();
    TIDEPOOL_ASSIGN_OR_RETURN(PacingStep row, PaceSteps(target_ms, options.steps, in_flight, stopped));
    row.images_per_s = static_cast<double>(decoders->images() - images) / absl::ToDoubleSeconds(Clock::Real()->Now() - begin);
    row.naive_error = NaiveError(target_ms, options.naive_steps);
    const auto in_two_seconds = static_cast<int64_t>(2000 / target_ms);
    if (options.fed_steps > 0)
      TIDEPOOL_RETURN_IF_ERROR(FeedSteps(std::min(options.fed_steps, std::max<int64_t>(1, in_two_seconds)), stopped, &row));
    result.rows.push_back(row);
  }
  return result;
}

// --- virtual time --------------------------------------------------------------------------------------------------------

namespace {

// Job j on device d: copy a batch, compute, reduce the gradients with the same job on all devices. The next copy runs beside the
// arithmetic.
class Training final : public device::emulated::EmulationSink {
 public:
  Training(Simulation* simulation, device::emulated::Emulation* emulation) : simulation_(simulation), emulation_(emulation) {}

  Status Start(int32_t jobs) {
    TIDEPOOL_ASSIGN_OR_RETURN(time_, emulation_->Intern(kStep));
    for (int32_t job = 0; job < jobs; ++job) {
      TIDEPOOL_ASSIGN_OR_RETURN(const int32_t group, emulation_->GroupOf(fmt::format("job {}", job)));
      for (int32_t device = 0; device < emulation_->devices(); ++device) {
        loops_.push_back({.copy = emulation_->AddStream(device, job, fmt::format("copy {}.{}", job, device), this),
                          .compute = emulation_->AddStream(device, job, fmt::format("compute {}.{}", job, device), this),
                          .group = group});
      }
    }
    for (size_t loop = 0; loop < loops_.size(); ++loop) {
      for (int ahead = 0; ahead < 2; ++ahead) Step(loop);
    }
    return {};
  }

  void WorkBegins(StreamId, uint64_t) override {}
  void Ended(StreamId, uint64_t tag, int64_t, int64_t, const Status&) override {
    ++commands_;
    if (tag > 0) Step(tag - 1);  // a step is over: the host enqueues the one after the next
  }
  int64_t commands() const { return commands_; }

 private:
  struct Loop {
    StreamId copy, compute;
    int32_t group;
  };
  void Step(size_t index) {
    const Loop& loop = loops_[index];
    const int64_t now_ns = simulation_->now_ns();
    auto copied = std::make_shared<device::emulated::TimelinePoint>();
    emulation_->Submit(
        loop.copy,
        {.type = Command::Type::kCopy, .engine = device::EngineKind::kHostToDevice, .bytes = 38e6, .submit_ns = now_ns});
    emulation_->Submit(loop.copy, {.type = Command::Type::kRecord, .point = copied, .submit_ns = now_ns});
    emulation_->Submit(loop.compute, {.type = Command::Type::kWait, .point = std::move(copied), .submit_ns = now_ns});
    emulation_->Submit(loop.compute, {.type = Command::Type::kLaunch, .time = time_, .submit_ns = now_ns});
    emulation_->Submit(loop.compute, {.type = Command::Type::kCollective,
                                      .ranks = emulation_->devices(),
                                      .group = loop.group,
                                      .bytes = 100e6,
                                      .tag = index + 1,
                                      .submit_ns = now_ns});
  }

  Simulation* const simulation_;
  device::emulated::Emulation* const emulation_;
  const device::emulated::OpTime* time_ = nullptr;
  std::vector<Loop> loops_;
  int64_t commands_ = 0;
};

struct VirtualRun {
  double events_per_s = 0;
  int64_t events = 0, commands = 0, simulated_ns = 0;
  uint64_t hash = 0;
};

StatusOr<VirtualRun> RunTraining(const VirtualTimeBenchOptions& options, uint64_t seed) {
  const auto costs = StepCosts(10'000, 9'800, 10'400);
  Simulation simulation({.seed = seed});
  TIDEPOOL_ASSIGN_OR_RETURN(const auto emulation, device::emulated::Emulation::Create(
                                                      &simulation, costs.get(),
                                                      {.topology = {.devices_per_node = options.devices, .devices_per_switch = 2},
                                                       .sharing = device::emulated::Sharing::kRoundRobin,
                                                       .jitter = device::emulated::Jitter::kLognormal}));
  Training training(&simulation, emulation.get());
  TIDEPOOL_RETURN_IF_ERROR(training.Start(2));
  const int64_t began_ns = MonotonicNanos();
  simulation.Run(Simulation::kNever, options.events);
  const int64_t took_ns = MonotonicNanos() - began_ns;
  TIDEPOOL_RETURN_IF_ERROR(simulation.CheckDeadlock());
  return VirtualRun{.events_per_s = static_cast<double>(simulation.events_run()) * 1e9 / static_cast<double>(took_ns),
                    .events = simulation.events_run(),
                    .commands = training.commands(),
                    .simulated_ns = simulation.now_ns(),
                    .hash = simulation.hash()};
}

// As many actors as the training has streams; each event only schedules the next one of its actor.
double BareEventsPerS(int64_t events, int actors) {
  struct Actor {
    Simulation* simulation;
    Simulation::ActorId id;
    uint64_t random;
    void Step() {
      random = random * 6364136223846793005 + 1442695040888963407;
      simulation->ScheduleAfter(static_cast<int64_t>(random >> 44), id, [this] { Step(); });
    }
  };
  Simulation simulation;
  std::vector<std::unique_ptr<Actor>> all;
  for (int i = 0; i < actors; ++i) {
    const Simulation::ActorId id = simulation.AddActor("bare");
    all.push_back(std::make_unique<Actor>(Actor{&simulation, id, simulation.SeedOf(id)}));
    all.back()->Step();
  }
  const int64_t began_ns = MonotonicNanos();
  simulation.Run(Simulation::kNever, events);
  return static_cast<double>(events) * 1e9 / static_cast<double>(MonotonicNanos() - began_ns);
}

}  // namespace

StatusOr<VirtualTimeBenchResult> RunVirtualTimeBench(const VirtualTimeBenchOptions& options) {
  if (options.events < 1000 || options.events > 10'000'000'000) {
    return InvalidArgument("--events is {}; allowed: 1000 to 10000000000", options.events);
  }
  if (options.devices < 2 || options.devices > 1024)
    return InvalidArgument("--devices is {}; allowed: 2 to 1024", options.devices);
  TIDEPOOL_ASSIGN_OR_RETURN(const VirtualRun a, RunTraining(options, options.seed));
  TIDEPOOL_ASSIGN_OR_RETURN(const VirtualRun b, RunTraining(options, options.seed));
  TIDEPOOL_ASSIGN_OR_RETURN(const VirtualRun other, RunTraining(options, options.seed + 1));
  return VirtualTimeBenchResult{.events_per_s = std::min(a.events_per_s, b.events_per_s),
                                .bare_events_per_s = BareEventsPerS(options.events, 4 * options.devices),
                                .events = a.events,
                                .commands = a.commands,
                                .simulated = absl::Nanoseconds(a.simulated_ns),
                                .hash_a = a.hash,
                                .hash_b = b.hash,
                                .hash_other_seed = other.hash};
}

}  // namespace tidepool::cli
