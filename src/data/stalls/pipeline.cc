#include "data/stalls/pipeline.h"

#include <algorithm>
#include <cmath>
#include <deque>

#include "base/simulation.h"
#include "data/order.h"
#include "device/emulated/utilisation.h"

namespace tidepool::data::stalls {
namespace {

// One event a sample: what a spec may ask for is bounded, so that no command line runs for days.
constexpr int64_t kMostSamples = int64_t{1} << 28;
constexpr int kMostCores = 4096;
constexpr int64_t kMostReadAhead = int64_t{1} << 20;
constexpr double kMostSeconds = 1e6;

int64_t Nanos(double seconds) { return std::llround(seconds * 1e9); }
double Seconds(int64_t nanos) { return static_cast<double>(nanos) * 1e-9; }

enum Kind : uint32_t { kPrepared = 1, kDelivered, kLoopReady, kEpochOpens };

// Positions count samples over all epochs, steps count batches over all epochs.
class Pipeline {
 public:
  Pipeline(const PipelineSpec& spec, std::unique_ptr<CachePolicy> cache)
      : spec_(spec),
        samples_(spec.samples()),
        batches_(spec.batches_per_epoch()),
        all_positions_(samples_ * spec.epochs),
        all_steps_(batches_ * spec.epochs),
        cache_(std::move(cache)),
        storage_(spec.storage),
        simulation_({.seed = spec.seed}),
        arrivals_(spec.read_ahead + 1),
        to_prepare_(spec.batches_ahead),
        ready_(spec.batches_ahead, false) {
    loop_ = simulation_.AddActor("training loop");
    delivery_ = simulation_.AddActor("delivery");
    cores_ = std::vector<Core>(spec.cores);
    for (Core& core : cores_) core.actor = simulation_.AddActor("core");
    // Beginning anew with each epoch, cores beyond the batches of an epoch never get one.
    for (int i = 0; i < spec.cores; ++i) cores_[i].step = spec.restart_each_epoch && i >= batches_ ? all_steps_ : i;
  }

  StatusOr<PipelineRun> Run() {
    OpenEpoch(0);
    for (int core = 0; core < spec_.cores; ++core) Take(core);
    LoopReady();
    simulation_.Run();
    if (steps_done_ != all_steps_) {
      return Internal("the pipeline stopped at step {} of {}, position {} of {}", steps_done_, all_steps_, next_take_,
                      all_positions_);
    }
    run_.seconds = Seconds(epoch_end_ns_ - epoch_begin_ns_);
    run_.samples_per_s = run_.seconds > 0 ? static_cast<double>(samples_) / run_.seconds : 0;
    run_.utilisation = meter_.score();
    run_.events = simulation_.events_run();
    run_.hash = simulation_.hash();
    return run_;
  }

 private:
  struct Core {
    Simulation::ActorId actor = 0;
    int64_t step = 0;    // kBatch: the step that it works on
    int64_t offset = 0;  // kBatch: the next sample of it
  };

  bool Measured(int64_t epoch) const { return epoch == spec_.epochs - 1; }
  int64_t EpochOfStep(int64_t step) const { return step / batches_; }
  int64_t FirstPosition(int64_t step) const { return EpochOfStep(step) * samples_ + (step % batches_) * spec_.batch; }
  int64_t SamplesOf(int64_t step) const { return std::min(spec_.batch, samples_ - (step % batches_) * spec_.batch); }
  int64_t StepOf(int64_t position) const { return position / samples_ * batches_ + position % samples_ / spec_.batch; }

  // Orders of two epochs are kept: reading ahead crosses at most one border (Validate).
  int64_t SampleAt(int64_t position) {
    const int64_t epoch = position / samples_;
    Order& order = orders_[epoch % 2];
    if (order.epoch != epoch) order = {epoch, EpochOrder(samples_, spec_.seed, epoch)};
    return order.samples[position % samples_];
  }

  void OpenEpoch(int64_t epoch) {
    open_epoch_ = epoch;
    if (Measured(epoch)) {
      epoch_begin_ns_ = simulation_.now_ns();
      meter_ = {};
    }
  }
  bool Allowed(int64_t step) const {
    return step < taken_steps_ + spec_.batches_ahead && (!spec_.restart_each_epoch || EpochOfStep(step) <= open_epoch_);
  }

  // When the sample's bytes are there, asked for now.
  int64_t Fetch(int64_t position) {
    const int64_t now = simulation_.now_ns();
    if (!spec_.with_fetch) return now;
    const int64_t sample = SampleAt(position);
    const int64_t bytes = (*spec_.sizes)[sample];
    const bool measured = Measured(position / samples_);
    if (cache_->Access(sample, bytes).hit) {
      run_.hits += measured;
      run_.hit_bytes += measured ? bytes : 0;
      return now;
    }
    run_.misses += measured;
    run_.miss_bytes += measured ? bytes : 0;
    return absl::ToUnixNanos(storage_.Submit(absl::FromUnixNanos(now), bytes, /*sequential=*/false));
  }

  int64_t PrepNanos(int64_t position) {
    if (!spec_.with_prep) return 0;
    const auto bytes = static_cast<double>((*spec_.sizes)[SampleAt(position)]);
    return Nanos(spec_.prep_seconds + spec_.prep_seconds_per_byte * bytes);
  }

  // Gives the core its next sample, or lets it wait until a step is taken.
  void Take(int core) {
    int64_t position = 0;
    if (spec_.assignment == Assignment::kSample) {
      if (next_take_ >= all_positions_) return;
      position = next_take_;
      if (!Allowed(StepOf(position))) return waiting_cores_.push_back(core);
      ++next_take_;
    } else {
      Core& self = cores_[core];
      if (self.step >= all_steps_) return;
      if (!Allowed(self.step)) return waiting_cores_.push_back(core);
      position = FirstPosition(self.step) + self.offset;
      ++next_take_;
    }
    if (position == FirstPosition(StepOf(position)))
      to_prepare_[StepOf(position) % spec_.batches_ahead] = SamplesOf(StepOf(position));
    const int64_t end = std::max(simulation_.now_ns(), Arrival(position)) + PrepNanos(position);
    const int64_t step = StepOf(position);
    simulation_.Schedule(
        end, cores_[core].actor, [this, core, step] { Prepared(core, step); }, kPrepared);
  }

  int64_t Arrival(int64_t position) {
    if (spec_.read_ahead == 0) return Fetch(position);
    const int64_t epoch_end = (position / samples_ + 1) * samples_;
    const int64_t limit = spec_.restart_each_epoch ? epoch_end : all_positions_;
    for (; next_fetch_ < std::min(limit, position + spec_.read_ahead + 1); ++next_fetch_) {
      arrivals_[next_fetch_ % std::ssize(arrivals_)] = Fetch(next_fetch_);
    }
    return arrivals_[position % std::ssize(arrivals_)];
  }

  void Prepared(int core, int64_t step) {
    if (spec_.assignment == Assignment::kBatch) {
      Core& self = cores_[core];
      if (++self.offset == SamplesOf(step)) {
        self.offset = 0;
        self.step += spec_.cores;
        // Workers begin anew with each epoch: worker 0 has its first batch.
        if (spec_.restart_each_epoch && EpochOfStep(self.step) != EpochOfStep(step)) {
          self.step = (EpochOfStep(step) + 1) * batches_ + core;
        }
      }
    }
    if (--to_prepare_[step % spec_.batches_ahead] == 0) {
      ready_[step % spec_.batches_ahead] = true;
      Deliver();
    }
    Take(core);
  }

  // In order, and one after the other through pinning.
  void Deliver() {
    while (next_deliver_ < all_steps_ && ready_[next_deliver_ % spec_.batches_ahead]) {
      ready_[next_deliver_ % spec_.batches_ahead] = false;
      ++next_deliver_;
      pinned_ns_ = std::max(pinned_ns_, simulation_.now_ns()) + Nanos(spec_.pin_seconds);
      simulation_.Schedule(
          pinned_ns_, delivery_, [this] { Delivered(); }, kDelivered);
    }
  }

  void Delivered() {
    ++delivered_;
    if (loop_waits_) Step();
  }

  void LoopReady() {
    waits_since_ns_ = simulation_.now_ns();
    if (taken_steps_ == all_steps_) return;
    loop_waits_ = true;
    if (delivered_ > taken_steps_) Step();
  }

  // The training loop takes the next batch and starts its step on the device.
  void Step() {
    loop_waits_ = false;
    const int64_t now = simulation_.now_ns();
    const int64_t step = taken_steps_++;
    const bool measured = Measured(EpochOfStep(step));
    if (measured) {
      run_.wait_seconds += Seconds(now - waits_since_ns_);
      if (step % batches_ == 0) run_.first_wait_seconds = Seconds(now - waits_since_ns_);
      meter_.AddDataWait(waits_since_ns_, now);
    }
    WakeCores();
    int64_t host = 0, copy = 0, compute = 0;
    if (spec_.with_device) {
      copy = Nanos(spec_.copy_seconds);
      compute = Nanos(spec_.compute_seconds);
      host = Nanos(spec_.host_seconds);
      const double period = std::max(spec_.copy_seconds + spec_.compute_seconds, Seconds(now - last_taken_ns_));
      if (period > 0) host += Nanos(spec_.pin_turn_seconds * std::min(1.0, spec_.pin_seconds / period));
    }
    last_taken_ns_ = now;
    const int64_t copy_start = spec_.overlap_copy ? std::max(now + host, copy_free_ns_) : now + host;
    copy_free_ns_ = copy_start + copy;
    const int64_t start = std::max(copy_free_ns_, compute_free_ns_);
    compute_free_ns_ = start + compute;
    if (measured) {
      run_.host_seconds += Seconds(host);
      if (!spec_.overlap_copy) run_.copy_seconds += Seconds(copy);
      run_.compute_seconds += Seconds(compute);
      meter_.AddBusy(start, compute_free_ns_);
    }
    ++steps_done_;
    const bool ends = (step + 1) % batches_ == 0;
    if (ends) EndEpoch(EpochOfStep(step), compute_free_ns_);
    // With two buffers on the device: the next batch may be copied as soon as this one is being computed.
    const bool overlap = spec_.overlap_copy && !(ends && spec_.restart_each_epoch);
    simulation_.Schedule(
        overlap ? start : compute_free_ns_, loop_, [this] { LoopReady(); }, kLoopReady);
  }

  void EndEpoch(int64_t epoch, int64_t at_ns) {
    if (Measured(epoch)) {
      epoch_end_ns_ = at_ns;
    } else if (spec_.restart_each_epoch) {
      simulation_.Schedule(
          at_ns, loop_,
          [this, epoch] {
            OpenEpoch(epoch + 1);
            simulation_.ScheduleAfter(
                Nanos(spec_.restart_seconds), loop_, [this] { WakeCores(); }, kEpochOpens);
          },
          kEpochOpens);
    } else {
      open_epoch_ = epoch + 1;
      if (Measured(epoch + 1)) epoch_begin_ns_ = at_ns;
    }
  }

  void WakeCores() {
    for (size_t count = waiting_cores_.size(); count > 0; --count) {
      const int core = waiting_cores_.front();
      waiting_cores_.pop_front();
      Take(core);
    }
  }

  struct Order {
    int64_t epoch = -1;
    std::vector<int64_t> samples;
  };

  const PipelineSpec& spec_;
  const int64_t samples_, batches_, all_positions_, all_steps_;
  const std::unique_ptr<CachePolicy> cache_;
  StorageModel storage_;
  Simulation simulation_;
  Simulation::ActorId loop_ = 0, delivery_ = 0;
  Order orders_[2];

  std::vector<int64_t> arrivals_;  // of read-ahead positions, a ring
  int64_t next_fetch_ = 0;
  std::vector<Core> cores_;
  std::deque<int> waiting_cores_;
  int64_t next_take_ = 0;            // kSample: position; kBatch: how many were taken
  std::vector<int64_t> to_prepare_;  // samples of each step in the window; a ring
  std::vector<bool> ready_;          // likewise
  int64_t next_deliver_ = 0, delivered_ = 0, pinned_ns_ = 0;

  int64_t taken_steps_ = 0, steps_done_ = 0;
  bool loop_waits_ = false;
  int64_t waits_since_ns_ = 0, last_taken_ns_ = 0, copy_free_ns_ = 0, compute_free_ns_ = 0;
  int64_t open_epoch_ = 0, epoch_begin_ns_ = 0, epoch_end_ns_ = 0;
  device::emulated::UtilisationMeter meter_;
  PipelineRun run_;
};

Status CheckSeconds(std::string_view what, double value) {
  if (value >= 0 && value <= kMostSeconds) return {};
  return InvalidArgument("{} {} s; allowed: 0 to {:.0f}", what, value, kMostSeconds);
}

}  // namespace

Status PipelineSpec::Validate() const {
  if (samples() < 1) return InvalidArgument("a data set of {} samples; needed: at least 1", samples());
  if (epochs < 1 || epochs > 1000) return InvalidArgument("{} epochs; allowed: 1 to 1000", epochs);
  if (samples() > kMostSamples / epochs) {
    return InvalidArgument("{} samples in {} epochs; allowed: {} in all", samples(), epochs, kMostSamples);
  }
  if (cores < 1 || cores > kMostCores) return InvalidArgument("{} cores; allowed: 1 to {}", cores, kMostCores);
  if (batch < 1 || batch > samples()) return InvalidArgument("batch {}; allowed: 1 to the {} samples", batch, samples());
  if (batches_ahead < 1 || batches_ahead > kMostReadAhead) {
    return InvalidArgument("{} batches ahead; allowed: 1 to {}", batches_ahead, kMostReadAhead);
  }
  if (read_ahead < 0 || read_ahead > kMostReadAhead) {
    return InvalidArgument("read-ahead of {} samples; allowed: 0 to {}", read_ahead, kMostReadAhead);
  }
  if (read_ahead > 0 && assignment == Assignment::kBatch) {
    return InvalidArgument("read-ahead of {} samples where each core prepares a batch alone; allowed: 0", read_ahead);
  }
  if (cache_bytes < 0) return InvalidArgument("a cache of {} bytes; allowed: 0 or more", cache_bytes);
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("preparation of a sample", prep_seconds));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("preparation of a byte", prep_seconds_per_byte));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("pinning", pin_seconds));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("host time lost to pinning", pin_turn_seconds));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("copy", copy_seconds));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("compute", compute_seconds));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("host time", host_seconds));
  TIDEPOOL_RETURN_IF_ERROR(CheckSeconds("restart", restart_seconds));
  return storage.Validate();
}

StatusOr<PipelineRun> RunPipeline(const PipelineSpec& spec) {
  TIDEPOOL_RETURN_IF_ERROR(spec.Validate());
  PipelineSpec bounded = spec;
  // Two epochs are open at once at most.
  bounded.read_ahead = std::min(spec.read_ahead, spec.samples() - 1);
  bounded.batches_ahead = std::min(spec.batches_ahead, spec.batches_per_epoch());
  TIDEPOOL_ASSIGN_OR_RETURN(auto cache, CachePolicy::Create({.kind = spec.cache_bytes == 0 ? CacheKind::kNone : spec.cache,
                                                             .budget_bytes = spec.cache_bytes,
                                                             .items = spec.samples(),
                                                             .seed = spec.seed}));
  Pipeline pipeline(bounded, std::move(cache));
  return pipeline.Run();
}

}  // namespace tidepool::data::stalls
