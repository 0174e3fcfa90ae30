#include "data/cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/metrics.h"

namespace tidepool::data {
namespace {

// The bytes of one cached record.
struct Block {
  Block(std::unique_ptr<std::byte[]> memory, int64_t size, std::shared_ptr<std::atomic<int64_t>> counter)
      : bytes(std::move(memory)), size_bytes(size), total(std::move(counter)) {
    total->fetch_add(size_bytes, std::memory_order_relaxed);
  }
  ~Block() { total->fetch_sub(size_bytes, std::memory_order_relaxed); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const std::unique_ptr<std::byte[]> bytes;
  const int64_t size_bytes;
  const std::shared_ptr<std::atomic<int64_t>> total;
};

}  // namespace

Status CacheOptions::Validate() const {
  if (wait_limit <= absl::ZeroDuration()) {
    return InvalidArgument("cache wait_limit {}; allowed: above 0", absl::FormatDuration(wait_limit));
  }
  return {};
}

StatusOr<std::unique_ptr<Cache>> Cache::Create(const RecordSource* base, CacheOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(auto policy, CachePolicy::Create({.kind = options.kind,
                                                              .budget_bytes = options.budget_bytes,
                                                              .items = base->size(),
                                                              .page_cache_list = options.page_cache_list,
                                                              .admission = options.admission,
                                                              .seed = options.seed,
                                                              .total_bytes = options.total_bytes}));
  auto cache = std::unique_ptr<Cache>(new Cache(base, std::move(options), std::move(policy)));
  if (!cache->options_.metrics_label.empty()) cache->ExportMetrics();
  return cache;
}

Cache::Cache(const RecordSource* base, CacheOptions options, std::unique_ptr<CachePolicy> policy)
    : RecordSourceWrapper(base),
      options_(std::move(options)),
      hits_matter_(policy->hits_matter()),
      block_bytes_(std::make_shared<std::atomic<int64_t>>(0)),
      policy_(std::move(policy)) {
  absl::MutexLock lock(&uses_mu_);
  uses_.reserve(kMostPendingUses);
}

Cache::~Cache() { collector_.reset(); }

Status Cache::CheckIndex(int64_t record) const {
  if (record >= 0 && record < size()) return {};
  return OutOfRange("record {}; the data has {}", record, size());
}

Cache::Plan Cache::Begin(int64_t record) const {
  Shard& shard = ShardOf(record);
  absl::MutexLock lock(&shard.mu);
  if (const auto found = shard.cached.find(record); found != shard.cached.end()) {
    ++shard.counts.hits;
    shard.counts.hit_bytes += found->second.size_bytes();
    return {.view = found->second};
  }
  FlightPtr& flight = shard.flights[record];
  if (flight != nullptr) return {.flight = flight, .step = Plan::Step::kJoin};
  flight = std::make_shared<Flight>();
  return {.flight = flight, .step = Plan::Step::kRead};
}

StatusOr<RecordView> Cache::ReadAndTell(int64_t record, CacheOutcome* outcome) const {
  *outcome = CacheOutcome::kFailed;
  TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
  Plan plan = Begin(record);
  if (plan.step == Plan::Step::kRead) {
    hints_.Take(record);  // this read is the one that the source was told of
    StatusOr<RecordView> read = Finish(record, plan.flight.get(), base().Read(record));
    if (read.ok()) *outcome = CacheOutcome::kMiss;
    return read;
  }
  if (hints_.Take(record)) base().WontNeed(record);
  if (plan.step == Plan::Step::kJoin) {
    StatusOr<RecordView> joined = Join(record, plan.flight);
    if (joined.ok()) *outcome = CacheOutcome::kJoined;
    return joined;
  }
  NoteUse(record);
  *outcome = CacheOutcome::kHit;
  return std::move(plan.view);
}

StatusOr<RecordView> Cache::Finish(int64_t record, Flight* flight, StatusOr<RecordView> outcome) const {
  if (outcome.ok()) outcome = Keep(record, *outcome);
  Shard& shard = ShardOf(record);
  absl::MutexLock lock(&shard.mu);
  flight->done = true;
  if (outcome.ok()) {
    flight->view = *outcome;
    ++shard.counts.misses;
    shard.counts.miss_bytes += outcome->size_bytes();
  } else {
    flight->status = outcome.status();
    ++shard.counts.failed;
    ++shard.counts.failed_reads;
  }
  shard.flights.erase(record);
  return outcome;
}

StatusOr<RecordView> Cache::Join(int64_t record, const FlightPtr& flight) const {
  const absl::Time deadline = options_.clock->Now() + options_.wait_limit;
  Shard& shard = ShardOf(record);
  const std::function<bool()> done = [&flight] { return flight->done; };
  absl::MutexLock lock(&shard.mu);
  ++shard.counts.waiting;
  const bool ended = options_.clock->Await(&shard.mu, done, deadline);
  --shard.counts.waiting;
  if (!ended) {
    ++shard.counts.failed;
    return DeadlineExceeded("{}: another thread has been reading it for more than {}", Describe(record),
                            absl::FormatDuration(options_.wait_limit));
  }
  if (!flight->status.ok()) {
    ++shard.counts.failed;
    return flight->status;
  }
  ++shard.counts.joined;
  return flight->view;
}

RecordView Cache::Keep(int64_t record, const RecordView& view) const {
  {
    absl::MutexLock lock(&policy_mu_);
    ApplyUses();
    if (!policy_->WouldAdmit(record, view.size_bytes())) {
      policy_->Insert(record, view.size_bytes());  // counts the refusal
      return view;
    }
  }
  // The source's buffer may be larger than the record, and is needed for the next read.
  std::unique_ptr<std::byte[]> memory(new (std::nothrow) std::byte[std::max<size_t>(view.bytes().size(), 1)]);
  if (memory == nullptr) return view;
  if (!view.bytes().empty()) std::memcpy(memory.get(), view.bytes().data(), view.bytes().size());
  auto block = std::make_shared<const Block>(std::move(memory), view.size_bytes(), block_bytes_);
  const RecordView kept({block->bytes.get(), view.bytes().size()}, block);

  std::vector<RecordView> gone;  // freed after the locks
  absl::MutexLock lock(&policy_mu_);
  const CacheAccess access = policy_->Insert(record, kept.size_bytes());
  gone.reserve(access.evicted.size());
  for (const int64_t evicted : access.evicted) {
    Shard& shard = ShardOf(evicted);
    absl::MutexLock shard_lock(&shard.mu);
    const auto found = shard.cached.find(evicted);
    kept_bytes_ -= found->second.size_bytes();
    gone.push_back(std::move(found->second));
    shard.cached.erase(found);
  }
  if (!access.admitted) return view;
  kept_bytes_ += kept.size_bytes();
  peak_bytes_ = std::max(peak_bytes_, policy_->used_bytes());
  Shard& shard = ShardOf(record);
  absl::MutexLock shard_lock(&shard.mu);
  shard.cached[record] = kept;
  return kept;
}

void Cache::NoteUse(int64_t record) const {
  if (!hits_matter_) return;
  if (policy_mu_.TryLock()) {
    ApplyUses();
    policy_->Touch(record);
    policy_mu_.Unlock();
  } else if (uses_mu_.TryLock()) {
    // A full list forgets uses: the policy is then a little less exact, and a hit never waits.
    if (uses_.size() < kMostPendingUses) uses_.push_back(record);
    uses_mu_.Unlock();
  }
}

void Cache::ApplyUses() const {
  if (!hits_matter_) return;
  absl::MutexLock lock(&uses_mu_);
  for (const int64_t record : uses_) policy_->Touch(record);
  uses_.clear();
}

Status Cache::ReadGroup(int64_t record, std::vector<RecordView>* views) const {
  TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
  const RecordRange group = Group(record);
  std::vector<Plan> plans;
  bool read = false;
  for (int64_t i = group.begin; i < group.end; ++i) {
    plans.push_back(Begin(i));
    read = read || plans.back().step == Plan::Step::kRead;
  }
  const bool hinted = hints_.Take(record);
  std::vector<RecordView> fresh;
  Status status;
  if (read) {
    status = base().ReadGroup(record, &fresh);
    if (status.ok() && static_cast<int64_t>(fresh.size()) != group.size()) {
      status = Internal("{}: a group of {} records came with {}", Describe(record), group.size(), fresh.size());
    }
  } else if (hinted) {
    base().WontNeed(record);
  }
  // All flights of this call end before it waits for those of others, so two calls never wait for each other.
  views->assign(plans.size(), RecordView());
  for (size_t i = 0; i < plans.size(); ++i) {
    const int64_t each = group.begin + static_cast<int64_t>(i);
    if (plans[i].step != Plan::Step::kRead) continue;
    const auto outcome_of = [&]() -> StatusOr<RecordView> {
      if (!status.ok()) return status;
      // An empty view stands for a damaged record; whoever waits for it gets the error.
      if (fresh[i].owner() == nullptr && fresh[i].bytes().empty()) return base().Read(each);
      return fresh[i];
    };
    StatusOr<RecordView> outcome = Finish(each, plans[i].flight.get(), outcome_of());
    if (outcome.ok()) (*views)[i] = *std::move(outcome);
  }
  for (size_t i = 0; i < plans.size(); ++i) {
    const int64_t each = group.begin + static_cast<int64_t>(i);
    if (plans[i].step == Plan::Step::kHit) {
      NoteUse(each);
      (*views)[i] = std::move(plans[i].view);
    } else if (plans[i].step == Plan::Step::kJoin) {
      StatusOr<RecordView> joined = Join(each, plans[i].flight);
      if (joined.ok()) (*views)[i] = *std::move(joined);
    }
  }
  if (!status.ok()) views->clear();
  return status;
}

std::optional<RecordView> Cache::TryGet(int64_t record) const {
  if (!CheckIndex(record).ok()) return std::nullopt;
  RecordView view;
  {
    Shard& shard = ShardOf(record);
    absl::MutexLock lock(&shard.mu);
    const auto found = shard.cached.find(record);
    if (found == shard.cached.end()) return std::nullopt;
    ++shard.counts.hits;
    shard.counts.hit_bytes += found->second.size_bytes();
    view = found->second;
  }
  NoteUse(record);
  return view;
}

bool Cache::Contains(int64_t record) const {
  if (!CheckIndex(record).ok()) return false;
  Shard& shard = ShardOf(record);
  absl::MutexLock lock(&shard.mu);
  return shard.cached.contains(record);
}

bool Cache::WouldAdmit(int64_t record, int64_t bytes) const {
  if (!CheckIndex(record).ok()) return false;
  absl::MutexLock lock(&policy_mu_);
  return policy_->WouldAdmit(record, bytes);
}

void Cache::WillNeed(int64_t record) const {
  if (!CheckIndex(record).ok() || Contains(record)) return;
  // In this order: a Read by another thread in between must not leave a hint in the source that nobody knows of.
  base().WillNeed(record);
  hints_.Add(record);
}

void Cache::WontNeed(int64_t record) const {
  if (hints_.Take(record)) base().WontNeed(record);
}

CacheStats Cache::stats() const {
  CacheStats total;
  absl::MutexLock lock(&policy_mu_);
  for (const Shard& shard : shards_) {
    absl::MutexLock shard_lock(&shard.mu);
    const CacheStats& counts = shard.counts;
    total.hits += counts.hits;
    total.misses += counts.misses;
    total.joined += counts.joined;
    total.waiting += counts.waiting;
    total.failed += counts.failed;
    total.hit_bytes += counts.hit_bytes;
    total.miss_bytes += counts.miss_bytes;
    total.failed_reads += counts.failed_reads;
  }
  total.admitted = policy_->counts().admitted;
  total.refused = policy_->counts().refused;
  total.evicted = policy_->counts().evicted;
  total.items = policy_->used_items();
  total.used_bytes = policy_->used_bytes();
  total.budget_bytes = policy_->budget_bytes();
  total.peak_bytes = peak_bytes_;
  total.lingering_bytes = std::max<int64_t>(0, block_bytes_->load(std::memory_order_relaxed) - kept_bytes_);
  return total;
}

void Cache::ExportMetrics() {
  Metrics& metrics = Metrics::Default();
  struct Counted {
    int64_t CacheStats::*field;
    prometheus::Counter* counter;
  };
  const auto reads = [&](const char* outcome) {
    return &metrics.Counter("tidepool_cache_reads_total", "Reads of records by outcome",
                            {{"cache", options_.metrics_label}, {"outcome", outcome}});
  };
  const MetricLabels label = {{"cache", options_.metrics_label}};
  const std::vector<Counted> counters = {
      {&CacheStats::hits, reads("hit")},
      {&CacheStats::misses, reads("miss")},
      {&CacheStats::joined, reads("joined")},
      {&CacheStats::failed, reads("failed")},
      {&CacheStats::hit_bytes, &metrics.Counter("tidepool_cache_hit_bytes_total", "Bytes that hits gave", label)},
      {&CacheStats::evicted, &metrics.Counter("tidepool_cache_evictions_total", "Records that made room for others", label)}};
  prometheus::Gauge* used = &metrics.Gauge("tidepool_cache_used_bytes", "Bytes of records that are kept", label);
  prometheus::Gauge* budget = &metrics.Gauge("tidepool_cache_budget_bytes", "Bytes of records that may be kept", label);
  collector_ = metrics.AddCollector([this, counters, used, budget, before = CacheStats()]() mutable {
    const CacheStats now = stats();
    for (const Counted& each : counters) each.counter->Increment(static_cast<double>(now.*each.field - before.*each.field));
    before = now;
    used->Set(static_cast<double>(now.used_bytes));
    budget->Set(static_cast<double>(now.budget_bytes));
  });
}

}  // namespace tidepool::data
