#include "data/batch_loader.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "base/units.h"
#include "data/buffer_pool.h"

namespace tidepool::data {
namespace {

constexpr size_t kMostErrors = 64;
constexpr size_t kMostAccounts = 16;
// As-ready delivery may run this many batches ahead of one that takes long.
constexpr size_t kMostAhead = 1024;

// What the batches in the caller's hands share with the loader, and may outlive it with.
struct Shared {
  absl::Mutex mu;
  int64_t memory_bytes ABSL_GUARDED_BY(mu) = 0;
};

// A batch that is being filled or is ready.
struct Work {
  PositionRange positions;
  int64_t next = 0;        // the first position that no thread has taken
  int64_t unfinished = 0;  // positions that are not read yet
  std::shared_ptr<std::byte> memory;
  std::vector<int64_t> samples;  // by position; -1: left out
  int64_t replaced = 0;
  Status error;  // kFail
  bool ready = false;
};
using WorkPtr = std::shared_ptr<Work>;

}  // namespace

class BatchLoaderImpl : public BatchLoader {
 public:
  BatchLoaderImpl(const Dataset* dataset, BatchLoaderOptions options)
      : options_(std::move(options)),
        size_(dataset->size()),
        input_bytes_(dataset->input().size_bytes()),
        target_bytes_(dataset->target().size_bytes()),
        targets_at_(RoundUp(options_.batch * input_bytes_, 64)),
        batch_bytes_(targets_at_ + options_.batch * target_bytes_),
        end_(options_.epochs < 0 ? INT64_MAX : options_.epochs * size_),
        pool_(BufferPool::Create(options_.max_bytes)),
        shared_(std::make_shared<Shared>()),
        reader_(dataset,
                {.seed = options_.start.seed,
                 .shuffle = options_.shuffle,
                 .window_groups = options_.window_groups,
                 .augment = options_.augment,
                 .on_error = options_.on_error,
                 .max_replacements = options_.max_replacements,
                 .read_ahead = options_.read_ahead,
                 .end = end_},
                options_.start.epoch * size_ + options_.start.offset),
        next_(options_.start.epoch * size_ + options_.start.offset),
        frontier_(next_),
        handed_(options_.start.delivered),
        started_(options_.clock->Now()) {
    {
      absl::MutexLock lock(&shared_->mu);
      SkipToNextBatch();
    }
    for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { ReadLoop(); });
  }

  ~BatchLoaderImpl() override {
    Cancel();
    for (std::thread& thread : threads_) thread.join();
  }

  StatusOr<std::optional<Batch>> Next(absl::Time deadline) override;
  void Cancel() override {
    absl::MutexLock lock(&shared_->mu);
    cancelled_ = true;
  }
  LoaderCursor cursor() const override;
  BatchLoaderStats stats() const override;

 private:
  bool CanTake() const ABSL_SHARED_LOCKS_REQUIRED(shared_->mu);
  bool HasReady() const ABSL_SHARED_LOCKS_REQUIRED(shared_->mu);
  void SkipToNextBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  Status OpenBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  int64_t EndOfBatch(int64_t begin) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  void HandedOut(const PositionRange& range, int64_t delivered, int64_t replaced) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  void MarkHanded(const PositionRange& range) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  WorkPtr TakeReady() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  EpochAccount& AccountOf(int64_t epoch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);
  void ReadLoop();
  Status ReadOne(int64_t position, Work* work, SampleReader::Outcome* outcome);
  void Compact(Work* work) const;
  void NoteError(const Status& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu);

  const BatchLoaderOptions options_;
  const int64_t size_, input_bytes_, target_bytes_, targets_at_, batch_bytes_;
  const int64_t end_;
  const std::shared_ptr<BufferPool> pool_;
  const std::shared_ptr<Shared> shared_;
  SampleReader reader_;

  bool cancelled_ ABSL_GUARDED_BY(shared_->mu) = false;
  int64_t next_ ABSL_GUARDED_BY(shared_->mu);                       // where the next batch begins
  WorkPtr filling_ ABSL_GUARDED_BY(shared_->mu);                    // has positions that no thread has taken
  std::map<int64_t, WorkPtr> works_ ABSL_GUARDED_BY(shared_->mu);   // by their first position
  int64_t frontier_ ABSL_GUARDED_BY(shared_->mu);                   // all positions before it were handed out or left out
  std::vector<PositionRange> handed_ ABSL_GUARDED_BY(shared_->mu);  // and these behind it; sorted, apart
  Status failure_ ABSL_GUARDED_BY(shared_->mu);                     // nothing can be read any more
  BatchLoaderStats stats_ ABSL_GUARDED_BY(shared_->mu);
  const absl::Time started_;
  std::vector<std::thread> threads_;
};

int64_t BatchLoaderImpl::EndOfBatch(int64_t begin) const {
  int64_t end = std::min(begin + options_.batch, (begin / size_ + 1) * size_);
  for (const PositionRange& range : handed_) {
    if (range.begin > begin) end = std::min(end, range.begin);
  }
  return end;
}

// Steps over what was handed out before, and over short batches that are not wanted.
void BatchLoaderImpl::SkipToNextBatch() {
  while (next_ < end_) {
    const auto inside = std::find_if(handed_.begin(), handed_.end(),
                                     [this](const PositionRange& range) { return range.begin <= next_ && next_ < range.end; });
    if (inside != handed_.end()) {
      reader_.Skip(next_, inside->end);
      next_ = inside->end;
      continue;
    }
    const int64_t end = EndOfBatch(next_);
    if (!options_.drop_last || end - next_ == options_.batch || end % size_ != 0) return;
    const PositionRange rest{next_, end};
    reader_.Skip(next_, end);
    next_ = end;
    HandedOut(rest, 0, 0);
  }
}

bool BatchLoaderImpl::CanTake() const {
  if (filling_ != nullptr) return true;
  if (!failure_.ok()) return false;
  return next_ < end_ && shared_->memory_bytes + batch_bytes_ <= options_.max_bytes && handed_.size() < kMostAhead;
}

Status BatchLoaderImpl::OpenBatch() {
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<std::byte> buffer, pool_->Get(batch_bytes_));
  auto work = std::make_shared<Work>();
  work->positions = {next_, EndOfBatch(next_)};
  work->next = work->positions.begin;
  work->unfinished = work->positions.size();
  work->samples.assign(work->positions.size(), -1);
  shared_->memory_bytes += batch_bytes_;
  stats_.peak_memory_bytes = std::max(stats_.peak_memory_bytes, shared_->memory_bytes);
  std::byte* const bytes = buffer.get();
  work->memory =
      std::shared_ptr<std::byte>(bytes, [buffer = std::move(buffer), shared = shared_, size = batch_bytes_](std::byte*) mutable {
        buffer.reset();
        absl::MutexLock lock(&shared->mu);
        shared->memory_bytes -= size;
      });
  next_ = work->positions.end;
  SkipToNextBatch();
  works_[work->positions.begin] = work;
  filling_ = std::move(work);
  return {};
}

void BatchLoaderImpl::ReadLoop() {
  if (options_.on_thread_start) options_.on_thread_start();
  const std::function<bool()> wanted = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return cancelled_ || CanTake(); };
  absl::MutexLock lock(&shared_->mu);
  while (true) {
    if (!wanted()) {
      const absl::Time before = options_.clock->Now();
      options_.clock->Await(&shared_->mu, wanted, absl::InfiniteFuture());
      stats_.blocked += options_.clock->Now() - before;
    }
    if (cancelled_) return;
    if (filling_ == nullptr) {
      failure_ = OpenBatch();
      if (!failure_.ok()) continue;
    }
    WorkPtr work = filling_;
    const int64_t position = work->next++;
    if (work->next == work->positions.end) filling_.reset();

    shared_->mu.Unlock();
    const absl::Time before = options_.clock->Now();
    SampleReader::Outcome outcome;
    Status status = ReadOne(position, work.get(), &outcome);
    const absl::Duration used = options_.clock->Now() - before;
    shared_->mu.Lock();

    stats_.reads += outcome.reads;
    stats_.reading += used;
    if (!status.ok()) NoteError(status);
    if (!outcome.replaced.ok()) NoteError(outcome.replaced);
    if (status.ok()) {
      work->samples[position - work->positions.begin] = outcome.index;
      work->replaced += outcome.replaced.ok() ? 0 : 1;
    } else if (options_.on_error != OnError::kSkip && work->error.ok()) {
      work->error = std::move(status);
    }
    if (--work->unfinished > 0) continue;
    if (work->error.ok() && std::count(work->samples.begin(), work->samples.end(), -1) > 0) {
      shared_->mu.Unlock();
      Compact(work.get());
      shared_->mu.Lock();
    }
    work->ready = true;
  }
}

Status BatchLoaderImpl::ReadOne(int64_t position, Work* work, SampleReader::Outcome* outcome) {
  reader_.Announce(position);
  const int64_t slot = position - work->positions.begin;
  const auto cancelled = [this] {
    absl::MutexLock lock(&shared_->mu);
    return cancelled_;
  };
  return reader_.Read(position, {work->memory.get() + slot * input_bytes_, static_cast<size_t>(input_bytes_)},
                      {work->memory.get() + targets_at_ + slot * target_bytes_, static_cast<size_t>(target_bytes_)}, cancelled,
                      outcome);
}

// Closes the gaps of samples that were left out. Nobody else has the batch.
void BatchLoaderImpl::Compact(Work* work) const {
  int64_t kept = 0;
  std::byte* const bytes = work->memory.get();
  for (int64_t slot = 0; slot < work->positions.size(); ++slot) {
    if (work->samples[slot] < 0) continue;
    if (kept != slot) {
      std::memcpy(bytes + kept * input_bytes_, bytes + slot * input_bytes_, static_cast<size_t>(input_bytes_));
      std::memcpy(bytes + targets_at_ + kept * target_bytes_, bytes + targets_at_ + slot * target_bytes_,
                  static_cast<size_t>(target_bytes_));
      work->samples[kept] = work->samples[slot];
    }
    ++kept;
  }
  work->samples.resize(kept);
}

void BatchLoaderImpl::NoteError(const Status& error) {
  if (options_.on_error != OnError::kFail && stats_.errors.size() < kMostErrors) stats_.errors.push_back(MessageOf(error));
}

EpochAccount& BatchLoaderImpl::AccountOf(int64_t epoch) {
  std::vector<EpochAccount>& accounts = stats_.accounts;
  auto at = std::lower_bound(accounts.begin(), accounts.end(), epoch,
                             [](const EpochAccount& account, int64_t wanted) { return account.epoch < wanted; });
  if (at == accounts.end() || at->epoch != epoch) at = accounts.insert(at, {.epoch = epoch});
  if (accounts.size() > kMostAccounts && at != accounts.begin())
    at = accounts.erase(accounts.begin()) + (at - accounts.begin() - 1);
  return *at;
}

void BatchLoaderImpl::HandedOut(const PositionRange& range, int64_t delivered, int64_t replaced) {
  EpochAccount& account = AccountOf(range.begin / size_);
  account.delivered += delivered;
  account.skipped += range.size() - delivered;
  account.replaced += replaced;
  stats_.delivered += delivered;
  stats_.skipped += range.size() - delivered;
  stats_.replaced += replaced;
  MarkHanded(range);
}

void BatchLoaderImpl::MarkHanded(const PositionRange& range) {
  const auto before = [](const PositionRange& a, const PositionRange& b) { return a.begin < b.begin; };
  auto at = handed_.insert(std::lower_bound(handed_.begin(), handed_.end(), range, before), range);
  if (at + 1 != handed_.end() && at->end == (at + 1)->begin) {
    at->end = (at + 1)->end;
    handed_.erase(at + 1);
  }
  if (at != handed_.begin() && (at - 1)->end == at->begin) {
    (at - 1)->end = at->end;
    at = handed_.erase(at) - 1;
  }
  if (handed_.front().begin <= frontier_) {
    frontier_ = handed_.front().end;
    handed_.erase(handed_.begin());
  }
}

// In order only the first one counts, else any.
bool BatchLoaderImpl::HasReady() const {
  if (works_.empty()) return false;
  if (!options_.as_ready) return works_.begin()->second->ready;
  return std::any_of(works_.begin(), works_.end(), [](const auto& entry) { return entry.second->ready; });
}

WorkPtr BatchLoaderImpl::TakeReady() {
  const auto at = std::find_if(works_.begin(), works_.end(), [](const auto& entry) { return entry.second->ready; });
  WorkPtr work = std::move(at->second);
  works_.erase(at);
  return work;
}

StatusOr<std::optional<Batch>> BatchLoaderImpl::Next(absl::Time deadline) {
  const std::function<bool()> decided = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return cancelled_ || HasReady() || (works_.empty() && (next_ >= end_ || !failure_.ok()));
  };
  WorkPtr work;
  std::vector<WorkPtr> empty;  // giving up a batch's memory takes the lock: not before it is free
  absl::MutexLock lock(&shared_->mu);
  while (true) {
    if (!decided()) {
      const absl::Time before = options_.clock->Now();
      const bool in_time = options_.clock->Await(&shared_->mu, decided, deadline);
      stats_.waited += options_.clock->Now() - before;
      if (!in_time) return DeadlineExceeded("no batch was complete in time; {} are being read", works_.size());
    }
    if (cancelled_) return Cancelled("the loader was cancelled");
    if (!HasReady()) {
      if (!failure_.ok()) return failure_;
      return std::optional<Batch>();
    }
    work = TakeReady();
    if (!work->error.ok()) {
      HandedOut(work->positions, 0, 0);
      return work->error;
    }
    HandedOut(work->positions, static_cast<int64_t>(work->samples.size()), work->replaced);
    if (!work->samples.empty()) break;
    empty.push_back(std::move(work));  // all of its samples were left out
  }
  Batch batch;
  batch.memory_ = std::move(work->memory);
  batch.samples_ = std::move(work->samples);
  batch.inputs_ = {batch.memory_.get(), static_cast<size_t>(batch.size() * input_bytes_)};
  batch.targets_ = {batch.memory_.get() + targets_at_, static_cast<size_t>(batch.size() * target_bytes_)};
  batch.epoch_ = work->positions.begin / size_;
  batch.positions_ = work->positions;
  ++stats_.batches;
  stats_.output_bytes += batch.size() * (input_bytes_ + target_bytes_);
  return std::optional<Batch>(std::move(batch));
}

LoaderCursor BatchLoaderImpl::cursor() const {
  absl::MutexLock lock(&shared_->mu);
  return {.seed = options_.start.seed,
          .fingerprint = options_.fingerprint,
          .epoch = frontier_ / size_,
          .offset = frontier_ % size_,
          .delivered = handed_};
}

BatchLoaderStats BatchLoaderImpl::stats() const {
  absl::MutexLock lock(&shared_->mu);
  BatchLoaderStats stats = stats_;
  stats.epoch = frontier_ / size_;
  stats.offset = frontier_ % size_;
  stats.epoch_size = size_;
  stats.memory_bytes = shared_->memory_bytes;
  stats.elapsed = options_.clock->Now() - started_;
  return stats;
}

double BatchLoaderStats::samples_per_second() const {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  return seconds > 0 ? static_cast<double>(delivered) / seconds : 0;
}

Status BatchLoaderOptions::Validate(const Dataset& dataset) const {
  std::vector<std::string> faults;
  if (threads < 1 || threads > 256) faults.push_back(fmt::format("loader threads {}; allowed: 1 to 256", threads));
  if (batch < 1 || batch > 65536) faults.push_back(fmt::format("batches of {} samples; allowed: 1 to 65536", batch));
  if (dataset.size() < 1) faults.push_back("the data set is empty");
  const int64_t sample = dataset.input().size_bytes() + dataset.target().size_bytes();
  const int64_t needed = 2 * (RoundUp(batch * dataset.input().size_bytes(), 64) + batch * dataset.target().size_bytes());
  if (batch >= 1 && batch <= 65536 && max_bytes < needed) {
    faults.push_back(
        fmt::format("{} bytes for batches; two of {} samples with {} bytes each need {}", max_bytes, batch, sample, needed));
  }
  if (window_groups < 0) faults.push_back(fmt::format("a shuffle window of {} groups; allowed: 0 and above", window_groups));
  if (read_ahead < 0) faults.push_back(fmt::format("{} samples to announce ahead; allowed: 0 and above", read_ahead));
  if (max_replacements < 1) faults.push_back(fmt::format("max_replacements {}; allowed: 1 and above", max_replacements));
  if (start.epoch < 0 || start.offset < 0 || start.offset >= std::max<int64_t>(dataset.size(), 1)) {
    faults.push_back(
        fmt::format("start at epoch {} offset {}; allowed: offsets 0 to {}", start.epoch, start.offset, dataset.size() - 1));
  }
  int64_t last = start.epoch * dataset.size() + start.offset;
  for (const PositionRange& range : start.delivered) {
    if (range.begin <= last || range.end <= range.begin) {
      faults.push_back(
          fmt::format("delivered range {}-{}; allowed: rising ranges behind position {}", range.begin, range.end, last));
      break;
    }
    last = range.end;
  }
  if (fingerprint != 0 && start.fingerprint != 0 && fingerprint != start.fingerprint) {
    faults.push_back(fmt::format("the cursor is of other data (fingerprint {:016x}) than this (fingerprint {:016x})",
                                 start.fingerprint, fingerprint));
  }
  if (!faults.empty()) return InvalidArgument("{}", fmt::join(faults, "; "));
  return {};
}

StatusOr<std::unique_ptr<BatchLoader>> BatchLoader::Start(const Dataset* dataset, BatchLoaderOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate(*dataset));
  return std::make_unique<BatchLoaderImpl>(dataset, std::move(options));
}

}  // namespace tidepool::data
