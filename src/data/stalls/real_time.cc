#include "data/stalls/real_time.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "data/cache.h"
#include "data/order.h"
#include "data/stalls/step_device.h"
#include "data/stalls/switch_source.h"
#include "data/storage_model_source.h"

namespace tidepool::data::stalls {
namespace {

constexpr absl::Duration kPatience = absl::Milliseconds(200);  // between looks at `stopped`
constexpr absl::Duration kLimit = absl::Minutes(1);            // for a batch, beyond what it takes

// Records of given sizes that all show the same bytes.
class BlankSource final : public RecordSource {
 public:
  explicit BlankSource(SampleSizes sizes)
      : sizes_(std::move(sizes)),
        block_(std::make_shared<std::vector<std::byte>>(*std::max_element(sizes_->begin(), sizes_->end()))) {}
  int64_t size() const override { return std::ssize(*sizes_); }
  int64_t classes() const override { return 1; }
  StatusOr<int64_t> SizeBytes(int64_t record) const override { return (*sizes_)[record]; }
  std::string Describe(int64_t record) const override { return fmt::format("blank sample {}", record); }
  uint64_t fingerprint() const override { return 0; }
  StatusOr<RecordView> Read(int64_t record) const override {
    return RecordView({block_->data(), static_cast<size_t>((*sizes_)[record])}, block_, std::ssize(*block_));
  }
  StatusOr<LabelledPicture> Parse(int64_t, std::span<const std::byte> bytes) const override {
    return LabelledPicture{.picture = bytes};
  }

 private:
  const SampleSizes sizes_;
  const std::shared_ptr<std::vector<std::byte>> block_;
};

// The time of one thread, whose sleeps end at absolute moments.
class OwnTime {
 public:
  explicit OwnTime(absl::Time now) : now_(now) {}
  // What has been done since `begin` took real time.
  void Took(absl::Time begin) { now_ += Clock::Real()->Now() - begin; }
  void Sleep(double seconds) { now_ += absl::Seconds(seconds); }
  void CatchUp() const { Clock::Real()->SleepUntil(now_); }
  void NotBefore(absl::Time moment) { now_ = std::max(now_, moment); }
  absl::Time now() const { return now_; }

 private:
  absl::Time now_;
};

class RealPipeline {
 public:
  RealPipeline(const PipelineSpec& spec, const std::function<bool()>& stopped)
      : spec_(spec),
        stopped_(stopped),
        batches_(spec.batches_per_epoch()),
        ready_at_(batches_, absl::InfiniteFuture()),
        delivered_at_(batches_, absl::InfiniteFuture()),
        taken_at_(batches_, absl::InfiniteFuture()) {}
  ~RealPipeline() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  StatusOr<RealTimeRun> Run() {
    TIDEPOOL_RETURN_IF_ERROR(Open());
    const CacheStats before = cache_ != nullptr ? cache_->stats() : CacheStats();
    begin_ = device_->HostNow();
    opens_at_ = begin_ + absl::Seconds(spec_.restart_seconds);
    for (int worker = 0; worker < spec_.cores; ++worker) threads_.emplace_back([this, worker] { Work(worker); });
    threads_.emplace_back([this] { Pin(); });
    absl::Time end = begin_;
    for (int64_t step = 0; step < batches_; ++step) TIDEPOOL_RETURN_IF_ERROR(Step(step, &end));
    Conclude(before, end - begin_);
    return result_;
  }

 private:
  Status Open() {
    order_ = EpochOrder(spec_.samples(), spec_.seed, spec_.epochs - 1);
    TIDEPOOL_ASSIGN_OR_RETURN(device_, StepDevice::Open(0, spec_.compute_seconds));
    if (!spec_.with_fetch) return {};
    samples_ = std::make_unique<BlankSource>(spec_.sizes);
    TIDEPOOL_ASSIGN_OR_RETURN(paced_, PacedSource::Create(samples_.get(), {.storage = spec_.storage, .read_ahead_bytes = 0}));
    disk_ = std::make_unique<SwitchSource>(samples_.get(), paced_.get());
    if (spec_.cache_bytes > 0) {
      TIDEPOOL_ASSIGN_OR_RETURN(
          cache_, Cache::Create(disk_.get(), {.kind = spec_.cache, .budget_bytes = spec_.cache_bytes, .seed = spec_.seed}));
      for (int epoch = 0; epoch < spec_.epochs - 1; ++epoch) {
        for (const int64_t sample : EpochOrder(spec_.samples(), spec_.seed, epoch)) {
          if (stopped_ != nullptr && stopped_()) return Cancelled("stopped while the cache was filled");
          TIDEPOOL_RETURN_IF_ERROR(cache_->Read(sample).status());
        }
      }
    }
    disk_->SetPaced(true);
    return {};
  }

  const RecordSource& source() const { return cache_ != nullptr ? static_cast<const RecordSource&>(*cache_) : *disk_; }

  // Makes batches `worker`, worker + cores, ... . Ends when they are done or the run is over.
  void Work(int worker) {
    OwnTime time(opens_at_);
    time.CatchUp();
    for (int64_t step = worker; step < batches_; step += spec_.cores) {
      if (!AwaitRoom(step, &time)) return;
      const int64_t first = step * spec_.batch, last = std::min(first + spec_.batch, spec_.samples());
      for (int64_t position = first; position < last; ++position) {
        const int64_t sample = order_[position];
        if (spec_.with_fetch) {
          const absl::Time begin = Clock::Real()->Now();
          const Status read = source().Read(sample).status();
          if (!read.ok()) return Fail(read);
          time.Took(begin);
        }
        if (!spec_.with_prep) continue;
        time.Sleep(spec_.prep_seconds + spec_.prep_seconds_per_byte * static_cast<double>((*spec_.sizes)[sample]));
        // Where nothing is fetched it does not matter when within its batch a sample is done.
        if (spec_.with_fetch) time.CatchUp();
      }
      time.CatchUp();
      absl::MutexLock lock(&mu_);
      if (stopping_) return;
      ready_at_[step] = time.now();
    }
  }

  // Until the batch may be begun. False: the run is over.
  bool AwaitRoom(int64_t step, OwnTime* time) {
    absl::MutexLock lock(&mu_);
    return step < spec_.batches_ahead ? !stopping_ : Follow(taken_at_[step - spec_.batches_ahead], time);
  }

  // Waits for a moment that another thread sets, and goes on then. False: the run is over.
  bool Follow(const absl::Time& moment, OwnTime* time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto known = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_ || moment != absl::InfiniteFuture(); };
    Clock::Real()->Await(&mu_, known, absl::InfiniteFuture());
    if (stopping_) return false;
    time->NotBefore(moment);
    return true;
  }

  // In order, one batch after the other.
  void Pin() {
    OwnTime time(opens_at_);
    for (int64_t step = 0; step < batches_; ++step) {
      {
        absl::MutexLock lock(&mu_);
        if (!Follow(ready_at_[step], &time)) return;
      }
      time.Sleep(spec_.pin_seconds);
      time.CatchUp();
      absl::MutexLock lock(&mu_);
      delivered_at_[step] = time.now();
    }
  }

  void Fail(const Status& status) {
    absl::MutexLock lock(&mu_);
    failure_.Update(status);
  }

  // Waits for the batch and takes it, so that another one may be begun. Returns when the loop had it, in the loop's time: a loop
  // that woke late from its last step is not early for a batch that came meanwhile.
  StatusOr<absl::Time> TakeBatch(int64_t step) {
    const absl::Time limit =
        Clock::Real()->Now() + kLimit +
        absl::Seconds(spec_.restart_seconds + spec_.pin_seconds + static_cast<double>(spec_.batch) * spec_.prep_seconds);
    const auto there = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !failure_.ok() || delivered_at_[step] != absl::InfiniteFuture();
    };
    absl::MutexLock lock(&mu_);
    while (!Clock::Real()->Await(&mu_, there, std::min(limit, Clock::Real()->Now() + kPatience))) {
      if (stopped_ != nullptr && stopped_()) return Cancelled("stopped at step {} of {}", step, batches_);
      if (Clock::Real()->Now() >= limit) return DeadlineExceeded("batch {} of {} did not come", step, batches_);
    }
    TIDEPOOL_RETURN_IF_ERROR(failure_);
    taken_at_[step] = std::max(device_->HostNow(), delivered_at_[step]);
    return taken_at_[step];
  }

  Status Step(int64_t step, absl::Time* end) {
    if (stopped_ != nullptr && stopped_()) return Cancelled("stopped at step {} of {}", step, batches_);
    PipelineRun& run = result_.run;
    const absl::Time asked = step == 0 ? begin_ : device_->HostNow();
    TIDEPOOL_ASSIGN_OR_RETURN(const absl::Time got, TakeBatch(step));
    const double waited = absl::ToDoubleSeconds(got - asked);
    run.wait_seconds += waited;
    if (step == 0) run.first_wait_seconds = waited;
    const double period =
        std::max(spec_.copy_seconds + spec_.compute_seconds, step == 0 ? 0 : absl::ToDoubleSeconds(got - last_taken_));
    last_taken_ = got;
    const double host =
        spec_.host_seconds + (period > 0 ? spec_.pin_turn_seconds * std::min(1.0, spec_.pin_seconds / period) : 0);
    const double early = std::max(0.0, absl::ToDoubleSeconds(got - device_->HostNow()));
    TIDEPOOL_ASSIGN_OR_RETURN(*end, device_->RunAlone(early + host + spec_.copy_seconds,
                                                      kLimit + absl::Seconds(host + spec_.copy_seconds + spec_.compute_seconds)));
    run.host_seconds += host;
    run.copy_seconds += spec_.copy_seconds;
    run.compute_seconds += spec_.compute_seconds;
    return {};
  }

  void Conclude(const CacheStats& before, absl::Duration took) {
    PipelineRun& run = result_.run;
    run.seconds = absl::ToDoubleSeconds(took);
    run.samples_per_s = run.seconds > 0 ? static_cast<double>(spec_.samples()) / run.seconds : 0;
    run.utilisation =
        run.compute_seconds + run.wait_seconds > 0 ? run.compute_seconds / (run.compute_seconds + run.wait_seconds) : 1;
    if (cache_ != nullptr) {
      const CacheStats after = cache_->stats();
      run.hits = after.hits - before.hits;
      run.misses = after.misses - before.misses;
    } else if (spec_.with_fetch) {
      run.misses = spec_.samples();
    }
    const device::TimelineReport timeline = device_->timeline();
    result_.lateness_p99_seconds = absl::ToDoubleSeconds(timeline.lateness_p99);
    result_.host_limited = timeline.host_limited;
    result_.host_limited_reason = timeline.host_limited_reason;
  }

  const PipelineSpec& spec_;
  const std::function<bool()>& stopped_;
  const int64_t batches_;
  std::vector<int64_t> order_;
  std::unique_ptr<StepDevice> device_;
  std::unique_ptr<BlankSource> samples_;
  std::unique_ptr<PacedSource> paced_;
  std::unique_ptr<SwitchSource> disk_;
  std::unique_ptr<Cache> cache_;
  absl::Time begin_, opens_at_, last_taken_;  // the first two are set before the threads start

  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  // By step, in the time of the thread that did it; InfiniteFuture until then.
  std::vector<absl::Time> ready_at_ ABSL_GUARDED_BY(mu_), delivered_at_ ABSL_GUARDED_BY(mu_), taken_at_ ABSL_GUARDED_BY(mu_);
  Status failure_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
  RealTimeRun result_;  // of the calling thread
};

}  // namespace

PipelineSpec ScaledDown(const PipelineSpec& spec, const PipelineScale& scale) {
  PipelineSpec small = spec;
  const auto samples = static_cast<double>(scale.samples), batch = static_cast<double>(scale.batch),
             speed = static_cast<double>(scale.speed), bytes = static_cast<double>(scale.bytes);
  auto sizes = std::make_shared<std::vector<int64_t>>();
  for (int64_t i = 0; i < spec.samples(); i += scale.samples) {
    sizes->push_back(std::max<int64_t>(1, (*spec.sizes)[i] / scale.bytes));
  }
  const double share = static_cast<double>(spec.cache_bytes) / static_cast<double>(TotalBytes(spec.sizes));
  small.sizes = std::move(sizes);
  small.cache_bytes = static_cast<int64_t>(share * static_cast<double>(TotalBytes(small.sizes)));
  if (small.cache == CacheKind::kPageCache && scale.bytes > 1) small.cache = CacheKind::kFifo;
  small.storage.bytes_per_s *= speed / bytes;
  small.storage.sustained_bytes_per_s *= speed / bytes;
  small.storage.burst_bytes /= bytes;
  small.storage.ops_per_s *= speed;
  small.storage.random_latency /= speed;
  small.storage.sequential_latency /= speed;
  small.prep_seconds /= speed;
  small.prep_seconds_per_byte *= bytes / speed;
  small.batch = std::max<int64_t>(1, spec.batch / scale.batch);
  for (double* const seconds :
       {&small.pin_seconds, &small.pin_turn_seconds, &small.copy_seconds, &small.compute_seconds, &small.host_seconds}) {
    *seconds /= batch * speed;
  }
  small.restart_seconds /= samples * speed;
  return small;
}

PipelineRun ScaledUp(const PipelineRun& run, const PipelineScale& scale) {
  PipelineRun whole = run;
  const auto times = static_cast<double>(scale.samples * scale.speed);
  for (double* const seconds : {&whole.seconds, &whole.wait_seconds, &whole.copy_seconds, &whole.compute_seconds,
                                &whole.host_seconds, &whole.first_wait_seconds}) {
    *seconds *= times;
  }
  whole.samples_per_s /= static_cast<double>(scale.speed);
  whole.hits *= scale.samples;
  whole.misses *= scale.samples;
  return whole;
}

StatusOr<RealTimeRun> RunInRealTime(const PipelineSpec& spec, const std::function<bool()>& stopped) {
  TIDEPOOL_RETURN_IF_ERROR(spec.Validate());
  if (spec.assignment != Assignment::kBatch || spec.read_ahead != 0 || spec.overlap_copy || !spec.with_device) {
    return Unimplemented(
        "on the real clock only pipelines whose workers read and prepare whole batches, without reading ahead and with copies "
        "that "
        "do not overlap");
  }
  return RealPipeline(spec, stopped).Run();
}

}  // namespace tidepool::data::stalls
