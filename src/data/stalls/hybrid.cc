#include "data/stalls/hybrid.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>

#include "base/units.h"
#include "data/batch_loader.h"
#include "data/cache.h"
#include "data/containers.h"
#include "data/order.h"
#include "data/stalls/step_device.h"
#include "data/stalls/switch_source.h"
#include "data/storage_model_source.h"

namespace tidepool::data::stalls {
namespace {

constexpr int kMostThreads = 1024;

// The first records of a source.
class FirstRecords final : public RecordSourceWrapper {
 public:
  FirstRecords(const RecordSource* base, int64_t count) : RecordSourceWrapper(base), count_(count) {}
  int64_t size() const override { return count_; }
  // A group may reach beyond the end; records are read alone.
  RecordRange Group(int64_t record) const override { return {record, record + 1}; }
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override {
    return RecordSource::ReadGroup(record, views);  // NOLINT(bugprone-parent-virtual-call): not the wrapper's
  }

 private:
  const int64_t count_;
};

// Records that are read and not decoded.
class Undecoded final : public Dataset {
 public:
  explicit Undecoded(const RecordSource* source) : source_(*source) {}
  int64_t size() const override { return source_.size(); }
  const TensorSpec& input() const override { return spec_; }
  const TensorSpec& target() const override { return spec_; }
  int64_t classes() const override { return source_.classes(); }
  Status Read(int64_t index, const ReadOptions&, std::span<std::byte> input, std::span<std::byte> target) const override {
    TIDEPOOL_ASSIGN_OR_RETURN(const RecordView view, source_.Read(index));
    if (view.size_bytes() == 0) return DataLoss("{}: the record is empty", source_.Describe(index));
    std::fill(input.begin(), input.end(), view.bytes()[0]);
    std::fill(target.begin(), target.end(), std::byte{0});
    return {};
  }
  std::string Describe(int64_t index) const override { return source_.Describe(index); }
  void WillNeed(int64_t index) const override { source_.WillNeed(index); }
  void WontNeed(int64_t index) const override { source_.WontNeed(index); }

 private:
  const RecordSource& source_;
  const TensorSpec spec_{.dtype = DType::kU8, .shape = {1}};
};

class HybridRun {
 public:
  explicit HybridRun(const HybridOptions& options) : options_(options) {}

  StatusOr<HybridAnalysis> Run() {
    TIDEPOOL_RETURN_IF_ERROR(Open());
    TIDEPOOL_RETURN_IF_ERROR(MeasureIngestion());
    TIDEPOOL_RETURN_IF_ERROR(MeasureInMemory());
    TIDEPOOL_RETURN_IF_ERROR(MeasureCold());
    TIDEPOOL_RETURN_IF_ERROR(MeasureCached());
    Conclude();
    return result_;
  }

 private:
  void Note(const std::string& text) const {
    if (options_.note != nullptr) options_.note(text);
  }

  Status Open() {
    result_.threads =
        options_.threads > 0 ? options_.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    TIDEPOOL_ASSIGN_OR_RETURN(files_, OpenRecordSource(options_.data));
    for (int64_t i = 0; i < std::min(files_->size(), options_.most_samples); ++i) {
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t bytes, files_->SizeBytes(i));
      if (result_.bytes + bytes > options_.most_bytes) break;
      result_.bytes += bytes;
      ++result_.samples;
    }
    if (result_.samples < options_.batch) {
      return InvalidArgument("{}: {} samples within {}; needed: a batch of {}", options_.data, result_.samples,
                             FormatBytes(options_.most_bytes), options_.batch);
    }
    records_ = std::make_unique<FirstRecords>(files_.get(), result_.samples);
    TIDEPOOL_ASSIGN_OR_RETURN(memory_, Cache::Create(records_.get(), {.budget_bytes = std::max<int64_t>(1, result_.bytes)}));
    Note("reading the data set into memory");
    for (int64_t i = 0; i < result_.samples; ++i) {
      if (options_.stopped != nullptr && options_.stopped()) return Cancelled("stopped while reading the data set");
      TIDEPOOL_RETURN_IF_ERROR(memory_->Read(i).status());
    }
    // What is measured on the disk as it is reads the files; under a model the bytes may come from anywhere.
    if (options_.storage.has_value()) {
      TIDEPOOL_ASSIGN_OR_RETURN(paced_, PacedSource::Create(records_.get(), {.storage = *options_.storage}));
    }
    const RecordSource* disk = records_.get();
    if (paced_ != nullptr) disk = paced_.get();
    switch_ = std::make_unique<SwitchSource>(memory_.get(), disk);
    TIDEPOOL_ASSIGN_OR_RETURN(
        cache_, Cache::Create(switch_.get(),
                              {.kind = options_.cache,
                               .budget_bytes = static_cast<int64_t>(options_.cached_share * static_cast<double>(result_.bytes)),
                               .seed = options_.seed}));
    return {};
  }

  StatusOr<std::unique_ptr<Dataset>> Pictures(const RecordSource* source) const {
    // Not owned: the sources live as long as this run.
    const std::shared_ptr<const RecordSource> borrowed(source, [](const RecordSource*) {});
    return OpenImages(borrowed, {.image_size = options_.image_size, .min_area = options_.min_area});
  }

  // Epochs go on from phase to phase, so that no cache sees an order twice.
  StatusOr<std::unique_ptr<BatchLoader>> StartLoader(const Dataset* dataset) {
    // A step takes its time for a short batch too, so there are none. A record that is announced twice before it is read is read
    // once: reading ahead stays well within an epoch.
    BatchLoaderOptions options{.threads = result_.threads,
                               .batch = options_.batch,
                               .drop_last = true,
                               .read_ahead = std::min(options_.read_ahead, std::max<int64_t>(1, result_.samples / 4))};
    const int64_t batch_bytes = options_.batch * (dataset->input().size_bytes() + dataset->target().size_bytes());
    options.max_bytes = std::max(options.max_bytes, (2 + result_.threads) * batch_bytes);
    options.start = {.seed = options_.seed, .epoch = epoch_};
    epoch_ += 1000;
    return BatchLoader::Start(dataset, options);
  }

  StatusOr<int64_t> NextSize(BatchLoader* loader) const {
    if (options_.stopped != nullptr && options_.stopped()) return Cancelled("stopped between batches");
    TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<Batch> batch, loader->Next(Clock::Real()->Now() + options_.limit));
    return batch.has_value() ? batch->size() : 0;
  }

  // What was begun ahead before the measurement is not measured.
  Status WarmUp(BatchLoader* loader) const {
    for (int i = 0; i < 2 + result_.threads; ++i) TIDEPOOL_RETURN_IF_ERROR(NextSize(loader).status());
    return {};
  }

  Status MeasureLoader(const Dataset* dataset, HybridPhase* phase) {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto loader, StartLoader(dataset));
    TIDEPOOL_RETURN_IF_ERROR(WarmUp(loader.get()));
    const absl::Time begin = Clock::Real()->Now();
    do {
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t samples, NextSize(loader.get()));
      phase->samples += samples;
      phase->seconds = absl::ToDoubleSeconds(Clock::Real()->Now() - begin);
    } while (phase->seconds < absl::ToDoubleSeconds(options_.phase));
    return {};
  }

  // With the accelerator. Time runs from the end of the first step to that of the last.
  Status MeasureSteps(BatchLoader* loader, HybridPhase* phase, device::TimelineReport* timeline) {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto device, StepDevice::Open(options_.copy_seconds, options_.compute_seconds));
    if (loader != nullptr) TIDEPOOL_RETURN_IF_ERROR(WarmUp(loader));
    const absl::Time end = Clock::Real()->Now() + options_.phase;
    int64_t batches = 0, first = 0;
    const auto next = [&]() -> StatusOr<bool> {
      // At least two steps, or nothing lies between them.
      if (batches >= 2 && Clock::Real()->Now() > end) return false;
      if (options_.stopped != nullptr && options_.stopped()) return Cancelled("stopped between steps");
      int64_t samples = options_.batch;
      if (loader != nullptr) {
        TIDEPOOL_ASSIGN_OR_RETURN(samples, NextSize(loader));
      }
      if (batches++ == 0) first = samples;
      phase->samples += samples;
      return true;
    };
    TIDEPOOL_RETURN_IF_ERROR(device->Run(next, options_.limit));
    phase->samples -= first;
    phase->seconds = absl::ToDoubleSeconds(device->between_first_and_last());
    if (timeline != nullptr) *timeline = device->timeline();
    return {};
  }

  Status MeasureIngestion() {
    Note("ingestion: synthetic batches");
    return MeasureSteps(nullptr, &result_.ingestion, nullptr);
  }

  Status MeasureInMemory() {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto pictures, Pictures(memory_.get()));
    Note("preparation: every sample in memory");
    TIDEPOOL_RETURN_IF_ERROR(MeasureLoader(pictures.get(), &result_.preparation));
    Note("everything in memory, with the accelerator");
    TIDEPOOL_ASSIGN_OR_RETURN(const auto loader, StartLoader(pictures.get()));
    return MeasureSteps(loader.get(), &result_.cached, nullptr);
  }

  Status MeasureCold() {
    Note("fetch without a cache");
    switch_->SetPaced(true);
    const Undecoded undecoded(switch_.get());
    const Status status = MeasureLoader(&undecoded, &result_.fetch_cold);
    switch_->SetPaced(false);
    return status;
  }

  Status MeasureCached() {
    Note("filling the cache");
    for (const int64_t record : FillOrder()) TIDEPOOL_RETURN_IF_ERROR(cache_->Read(record).status());
    switch_->SetPaced(true);
    Note("fetch with the cache");
    const Undecoded undecoded(cache_.get());
    TIDEPOOL_RETURN_IF_ERROR(MeasureLoader(&undecoded, &result_.fetch));
    Note("everything");
    TIDEPOOL_ASSIGN_OR_RETURN(const auto pictures, Pictures(cache_.get()));
    TIDEPOOL_ASSIGN_OR_RETURN(const auto loader, StartLoader(pictures.get()));
    const CacheStats before = cache_->stats();
    device::TimelineReport timeline;
    TIDEPOOL_RETURN_IF_ERROR(MeasureSteps(loader.get(), &result_.full, &timeline));
    const CacheStats after = cache_->stats();
    const auto reads = static_cast<double>(after.reads() - before.reads());
    result_.miss_share = reads > 0 ? 1 - static_cast<double>(after.hits - before.hits) / reads : 0;
    result_.utilisation = timeline.utilisation;
    if (timeline.elapsed > absl::ZeroDuration()) {
      result_.host_idle_share = absl::FDivDuration(timeline.host_idle, timeline.elapsed);
    }
    result_.lateness_p99_seconds = absl::ToDoubleSeconds(timeline.lateness_p99);
    result_.host_limited = timeline.host_limited;
    result_.host_limited_reason = timeline.host_limited_reason;
    return {};
  }

  // As an epoch before would have filled it.
  std::vector<int64_t> FillOrder() const { return EpochOrder(result_.samples, options_.seed, epoch_ + 999); }

  void Conclude() {
    const double none = std::numeric_limits<double>::infinity();
    Rates& rates = result_.rates;
    rates.ingestion = result_.ingestion.seconds > 0 ? result_.ingestion.samples_per_s() : none;
    rates.preparation = result_.preparation.samples_per_s();
    rates.fetch_cold = result_.fetch_cold.samples_per_s();
    rates.fetch = result_.fetch.samples_per_s();
    const double fetch = result_.miss_share > 0 ? rates.fetch_cold / result_.miss_share : none;
    result_.predicted_samples_per_s = std::min({fetch, rates.preparation, rates.ingestion});
    const double slowest = std::min({rates.fetch, rates.preparation, rates.ingestion});
    result_.bottleneck = slowest == rates.ingestion     ? Bottleneck::kIngestion
                         : slowest == rates.preparation ? Bottleneck::kPreparation
                                                        : Bottleneck::kFetch;
    const double full = result_.full.samples_per_s(), cached = result_.cached.samples_per_s();
    if (full <= 0 || cached <= 0) return;
    result_.prep_stall = full / cached - full / rates.ingestion;
    result_.fetch_stall = 1 - full / cached;
  }

  const HybridOptions& options_;
  std::unique_ptr<ExtentSource> files_;
  std::unique_ptr<FirstRecords> records_;
  std::unique_ptr<Cache> memory_;
  std::unique_ptr<PacedSource> paced_;
  std::unique_ptr<SwitchSource> switch_;
  std::unique_ptr<Cache> cache_;
  int64_t epoch_ = 0;
  HybridAnalysis result_;
};

}  // namespace

Status HybridOptions::Validate() const {
  if (data.empty()) return InvalidArgument("no data; needed: for example imagefolder:PATH");
  if (!(cached_share >= 0 && cached_share <= 1)) return InvalidArgument("a cached share of {}; allowed: 0 to 1", cached_share);
  if (threads < 0 || threads > kMostThreads)
    return InvalidArgument("{} threads; allowed: 0 (one per core) to {}", threads, kMostThreads);
  if (batch < 1 || most_samples < 1 || most_bytes < 1 || read_ahead < 0) {
    return InvalidArgument("batch {}, at most {} samples of {} bytes, read-ahead {}; allowed: above 0, and 0 for read-ahead",
                           batch, most_samples, most_bytes, read_ahead);
  }
  if (!(copy_seconds >= 0 && copy_seconds <= 3600) || !(compute_seconds > 0 && compute_seconds <= 3600)) {
    return InvalidArgument("a step of {} s with a copy of {} s; allowed: up to 3600, the step above 0", compute_seconds,
                           copy_seconds);
  }
  if (phase <= absl::ZeroDuration() || phase > absl::Hours(1)) {
    return InvalidArgument("phases of {}; allowed: above 0, up to 1 h", tidepool::FormatDuration(phase));
  }
  return storage.has_value() ? storage->Validate() : Status();
}

StatusOr<HybridAnalysis> AnalyzeHybrid(const HybridOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  return HybridRun(options).Run();
}

}  // namespace tidepool::data::stalls
