#include "data/loader.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

namespace tidepool::data {
namespace {

class ThreadedLoader : public Loader {
 public:
  ThreadedLoader(const Dataset* dataset, LoaderOptions options)
      : options_(std::move(options)),
        input_bytes_(dataset->input().size_bytes()),
        sample_bytes_(input_bytes_ + dataset->target().size_bytes()),
        released_(options_.first_position),
        next_(options_.first_position),
        end_(options_.epochs < 0 ? INT64_MAX : options_.epochs * dataset->size()),
        reader_(dataset,
                {.seed = options_.seed,
                 .shuffle = options_.shuffle,
                 .window_groups = options_.window_groups,
                 .augment = options_.augment,
                 .on_error = options_.on_error,
                 .max_replacements = options_.max_replacements,
                 .read_ahead = options_.read_ahead,
                 .end = end_},
                options_.first_position) {
    for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { ReadLoop(); });
  }

  ~ThreadedLoader() override {
    Cancel();
    for (std::thread& thread : threads_) thread.join();
  }

  Status Fetch(std::span<const PositionRange> ranges, std::span<std::byte> inputs, std::span<std::byte> targets,
               absl::Time deadline) override;

  void ReleaseBefore(int64_t position) override {
    const int64_t unread = ReleaseSamples(position);
    if (unread < position) reader_.Skip(unread, position);
    reader_.ReleaseBefore(position);
  }

  void Cancel() override {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
  }

  LoaderStats stats() const override {
    absl::MutexLock lock(&mu_);
    LoaderStats stats = stats_;
    stats.kept_bytes = stats.kept * sample_bytes_;
    return stats;
  }

 private:
  enum class State : uint8_t { kReading, kReady, kFailed };
  struct Sample {
    State state = State::kReading;
    bool dropped = false;
    Status error;
    std::vector<std::byte> data;  // input, then target
  };

  // Returns the first position that no thread has begun to read.
  int64_t ReleaseSamples(int64_t position) {
    absl::MutexLock lock(&mu_);
    while (!samples_.empty() && samples_.begin()->first < position) {
      auto first = samples_.begin();
      if (first->second->state == State::kReading) {
        // Its reader still writes into it; the sample stays accounted until it is done.
        first->second->dropped = true;
      } else {
        Forget(std::move(first->second));
      }
      ++stats_.released;
      samples_.erase(first);
    }
    released_ = std::max(released_, position);
    return std::exchange(next_, std::max(next_, position));
  }

  bool MayRead() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return next_ < end_ && (next_ < demanded_ || (stats_.kept + 1) * sample_bytes_ <= options_.max_bytes);
  }

  // NOLINTNEXTLINE(performance-unnecessary-value-param): by value, so that the count below is the others' and one
  void Forget(std::shared_ptr<Sample> sample) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    --stats_.kept;
    // Freed buffers serve the samples to come, unless a Fetch still copies from this one (it drops its references under the lock,
    // so the count is exact). The cap keeps a large Fetch from pinning its memory for ever.
    if (sample.use_count() == 1 && (stats_.kept + int64_t(spare_.size())) * sample_bytes_ < options_.max_bytes) {
      spare_.push_back(std::move(sample->data));
    }
  }

  void ReadLoop();
  Status ReadSample(int64_t position, Sample* sample);

  const LoaderOptions options_;
  const int64_t input_bytes_, sample_bytes_;

  mutable absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  int64_t released_ ABSL_GUARDED_BY(mu_);      // nothing before it is kept
  int64_t next_ ABSL_GUARDED_BY(mu_);          // the next position to read
  int64_t demanded_ ABSL_GUARDED_BY(mu_) = 0;  // a Fetch waits for positions below it
  const int64_t end_;
  std::map<int64_t, std::shared_ptr<Sample>> samples_ ABSL_GUARDED_BY(mu_);  // released_ <= key < next_
  std::vector<std::vector<std::byte>> spare_ ABSL_GUARDED_BY(mu_);
  LoaderStats stats_ ABSL_GUARDED_BY(mu_);
  SampleReader reader_;
  std::vector<std::thread> threads_;
};

void ThreadedLoader::ReadLoop() {
  if (options_.on_thread_start) options_.on_thread_start();
  absl::MutexLock lock(&mu_);
  while (true) {
    const std::function<bool()> wanted = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return cancelled_ || MayRead(); };
    options_.clock->Await(&mu_, wanted, absl::InfiniteFuture());
    if (cancelled_) return;
    const int64_t position = next_++;
    auto sample = std::make_shared<Sample>();
    if (!spare_.empty()) {
      sample->data = std::move(spare_.back());
      spare_.pop_back();
    }
    samples_[position] = sample;
    ++stats_.kept;
    stats_.peak_kept_bytes = std::max(stats_.peak_kept_bytes, stats_.kept * sample_bytes_);

    mu_.Unlock();
    reader_.Announce(position);
    sample->data.resize(sample_bytes_);
    Status status = ReadSample(position, sample.get());
    mu_.Lock();
    sample->state = status.ok() ? State::kReady : State::kFailed;
    sample->error = std::move(status);
    if (sample->dropped) Forget(std::move(sample));
  }
}

Status ThreadedLoader::ReadSample(int64_t position, Sample* sample) {
  const std::span<std::byte> data(sample->data);
  const auto cancelled = [this] {
    absl::MutexLock lock(&mu_);
    return cancelled_;
  };
  SampleReader::Outcome outcome;
  Status status = reader_.Read(position, data.first(input_bytes_), data.subspan(input_bytes_), cancelled, &outcome);
  absl::MutexLock lock(&mu_);
  stats_.decoded += outcome.reads;
  if (status.ok() && !outcome.replaced.ok()) ++stats_.skipped;
  if (!outcome.replaced.ok() && stats_.first_error.empty()) stats_.first_error = MessageOf(outcome.replaced);
  return status;
}

Status ThreadedLoader::Fetch(std::span<const PositionRange> ranges, std::span<std::byte> inputs, std::span<std::byte> targets,
                             absl::Time deadline) {
  int64_t count = 0, last = 0;
  for (const PositionRange& range : ranges) {
    if (range.begin < 0 || range.size() < 0) return InvalidArgument("range [{}, {}) of positions", range.begin, range.end);
    count += range.size();
    last = std::max(last, range.end);
  }
  const int64_t target_bytes = sample_bytes_ - input_bytes_;
  if (int64_t(inputs.size()) < count * input_bytes_ || int64_t(targets.size()) < count * target_bytes) {
    return InvalidArgument("buffers of {} and {} bytes for {} samples; needed: {} and {}", inputs.size(), targets.size(), count,
                           count * input_bytes_, count * target_bytes);
  }
  std::vector<std::shared_ptr<Sample>> found;
  found.reserve(count);
  {
    absl::MutexLock lock(&mu_);
    if (last > end_) return OutOfRange("position {}; the last epoch ends at {}", last - 1, end_);
    demanded_ = std::max(demanded_, last);
    const absl::Time started = options_.clock->Now();
    for (const PositionRange& range : ranges) {
      for (int64_t position = range.begin; position < range.end; ++position) {
        if (position < released_) {
          return FailedPrecondition("position {} was released; the first one that is kept is {}", position, released_);
        }
        const std::function<bool()> ready = [this, position]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
          if (cancelled_ || position < released_) return true;
          const auto sample = samples_.find(position);
          return sample != samples_.end() && sample->second->state != State::kReading;
        };
        if (!ready() && !options_.clock->Await(&mu_, ready, deadline)) {
          stats_.waited += options_.clock->Now() - started;
          return DeadlineExceeded("sample at position {} was not read in time ({} samples are kept)", position, stats_.kept);
        }
        if (cancelled_) return Cancelled("the loader was cancelled");
        if (position < released_) return FailedPrecondition("position {} was released while it was fetched", position);
        const std::shared_ptr<Sample>& sample = samples_.find(position)->second;
        if (sample->state == State::kFailed) return sample->error;
        found.push_back(sample);
      }
    }
    stats_.waited += options_.clock->Now() - started;
    stats_.delivered += count;
  }
  // Outside the lock: a sample's bytes do not change once it is ready, and `found` keeps them alive.
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(inputs.data() + i * input_bytes_, found[i]->data.data(), input_bytes_);
    std::memcpy(targets.data() + i * target_bytes, found[i]->data.data() + input_bytes_, target_bytes);
  }
  absl::MutexLock lock(&mu_);
  found.clear();
  return {};
}

}  // namespace

Status LoaderOptions::Validate(const Dataset& dataset) const {
  std::vector<std::string> faults;
  if (threads < 1 || threads > 256) faults.push_back(fmt::format("loader threads {}; allowed: 1 to 256", threads));
  const int64_t sample = dataset.input().size_bytes() + dataset.target().size_bytes();
  if (max_bytes < sample) faults.push_back(fmt::format("{} bytes to read ahead; one sample needs {}", max_bytes, sample));
  if (first_position < 0) faults.push_back(fmt::format("first position {}; allowed: 0 and above", first_position));
  if (on_error == OnError::kSkip) faults.push_back("on_error 'skip'; a loader by position allows: fail, replace");
  if (window_groups < 0) faults.push_back(fmt::format("a shuffle window of {} groups; allowed: 0 and above", window_groups));
  if (read_ahead < 0) faults.push_back(fmt::format("{} samples to announce ahead; allowed: 0 and above", read_ahead));
  if (max_replacements < 1) faults.push_back(fmt::format("max_replacements {}; allowed: 1 and above", max_replacements));
  if (dataset.size() < 1) faults.push_back("the data set is empty");
  if (!faults.empty()) return InvalidArgument("{}", fmt::join(faults, "; "));
  return {};
}

StatusOr<std::unique_ptr<Loader>> Loader::Start(const Dataset* dataset, LoaderOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate(*dataset));
  return std::make_unique<ThreadedLoader>(dataset, std::move(options));
}

}  // namespace tidepool::data
