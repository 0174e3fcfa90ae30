#include "data/partition.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "data/augment.h"
#include "data/cache_hints.h"
#include "data/extent_source.h"

namespace tidepool::data {
namespace {

constexpr uint32_t kMostNodes = 4096;
constexpr uint64_t kOwnerStream = 0x6f776e6572;  // keeps the hash apart from other uses of the seed

uint64_t LayoutOf(const RecordSource& source) {
  Fingerprint fingerprint;
  for (int64_t at = 0; at < source.size(); at = source.Group(at).end) fingerprint.Add(at);
  return fingerprint.value();
}

}  // namespace

uint32_t PartitionOwner(uint64_t seed, int64_t unit, uint32_t nodes) {
  return static_cast<uint32_t>((RandomBits(seed, static_cast<uint64_t>(unit), kOwnerStream) >> 32) * nodes >> 32);
}

Status PartitionOptions::Validate() const {
  if (nodes < 1 || nodes > kMostNodes) return InvalidArgument("a cache over {} nodes; allowed: 1 to {}", nodes, kMostNodes);
  if (node >= nodes) return InvalidArgument("node {} of a cache over {} nodes; allowed: 0 to {}", node, nodes, nodes - 1);
  if (budget_bytes < 0) return InvalidArgument("cache budget of {} bytes; allowed: 0 or more", budget_bytes);
  if (own_bytes < -1) return InvalidArgument("own_bytes {}; allowed: 0 or more, or -1 to add them up", own_bytes);
  if (connections_per_peer < 1 || connections_per_peer > 256) {
    return InvalidArgument("connections_per_peer {}; allowed: 1 to 256", connections_per_peer);
  }
  if (request_limit <= absl::ZeroDuration() || request_limit > absl::Hours(1)) {
    return InvalidArgument("request_limit {}; allowed: above 0, at most 1h", absl::FormatDuration(request_limit));
  }
  if (health.first_wait <= absl::ZeroDuration() || health.longest_wait < health.first_wait) {
    return InvalidArgument("waits of {} to {} after a failure; allowed: above 0, rising", absl::FormatDuration(health.first_wait),
                           absl::FormatDuration(health.longest_wait));
  }
  return {};
}

// The records of other nodes: from their owners, else from storage.
class PartitionedCache::RemoteSource : public RecordSourceWrapper {
 public:
  RemoteSource(const RecordSource* base, const PartitionedCache* cache)
      : RecordSourceWrapper(base),
        cache_(*cache),
        absent_(static_cast<size_t>(base->size() + 63) / 64),
        peers_(cache->options_.nodes) {}

  void SetPeer(uint32_t node, PeerOptions options) { peers_[node] = std::make_unique<PartitionPeer>(std::move(options)); }

  StatusOr<RecordView> Read(int64_t record) const override {
    const bool hinted = hints_.Take(record);
    if (IsAbsent(record)) {
      not_kept_.fetch_add(1, std::memory_order_relaxed);
      return FromStorage(record);
    }
    StatusOr<PartitionPeer::Answer> answer = Ask(record);
    if (answer.ok() && !answer->absent) {
      if (hinted) base().WontNeed(record);
      hits_.fetch_add(1, std::memory_order_relaxed);
      bytes_.fetch_add(answer->record.size_bytes(), std::memory_order_relaxed);
      return std::move(answer->record);
    }
    (answer.ok() ? not_kept_ : failed_).fetch_add(1, std::memory_order_relaxed);
    return FromStorage(record);
  }

  // Only what will come from storage can be read ahead.
  void WillNeed(int64_t record) const override {
    const PartitionPeer* peer = peers_[cache_.OwnerOf(record)].get();
    if (!IsAbsent(record) && peer != nullptr && peer->up()) return;
    base().WillNeed(record);
    hints_.Add(record);
  }
  void WontNeed(int64_t record) const override {
    if (hints_.Take(record)) base().WontNeed(record);
  }

  void CloseIdle() const {
    for (const auto& peer : peers_) {
      if (peer != nullptr) peer->CloseIdle();
    }
  }

  void AddTo(PartitionStats* stats) const {
    stats->remote_hits = hits_.load(std::memory_order_relaxed);
    stats->remote_bytes = bytes_.load(std::memory_order_relaxed);
    stats->storage += storage_.load(std::memory_order_relaxed);
    stats->not_kept = not_kept_.load(std::memory_order_relaxed);
    stats->peer_failed = failed_.load(std::memory_order_relaxed);
    for (const auto& peer : peers_) stats->peers.push_back(peer == nullptr ? PeerStats() : peer->stats());
  }

 private:
  StatusOr<PartitionPeer::Answer> Ask(int64_t record) const {
    const uint32_t owner = cache_.OwnerOf(record);
    PartitionPeer* peer = peers_[owner].get();
    if (peer == nullptr) return Unavailable("node {} has no address", owner);
    const bool was_up = peer->up();
    StatusOr<PartitionPeer::Answer> answer = peer->Fetch(record);
    if (was_up != peer->up()) {
      Log(was_up ? LogLevel::kWarning : LogLevel::kInfo, was_up ? "cache peer lost" : "cache peer back",
          {{"node", owner}, {"status", answer.status()}});
    }
    if (!answer.ok()) return answer;
    if (answer->restarted) ForgetAbsent(owner);
    if (answer->absent && answer->absent_for_good) {
      absent_[static_cast<size_t>(record) / 64].fetch_or(uint64_t{1} << (record % 64), std::memory_order_relaxed);
    }
    return answer;
  }

  StatusOr<RecordView> FromStorage(int64_t record) const {
    StatusOr<RecordView> view = base().Read(record);
    if (view.ok()) storage_.fetch_add(1, std::memory_order_relaxed);
    return view;
  }

  bool IsAbsent(int64_t record) const {
    return (absent_[static_cast<size_t>(record) / 64].load(std::memory_order_relaxed) >> (record % 64) & 1) != 0;
  }
  void ForgetAbsent(uint32_t owner) const {
    for (int64_t record = 0; record < size(); ++record) {
      if (!IsAbsent(record) || cache_.OwnerOf(record) != owner) continue;
      absent_[static_cast<size_t>(record) / 64].fetch_and(~(uint64_t{1} << (record % 64)), std::memory_order_relaxed);
    }
  }

  const PartitionedCache& cache_;
  mutable HintLedger hints_;
  mutable std::vector<std::atomic<uint64_t>> absent_;  // a bit per record: its owner will not have it
  std::vector<std::unique_ptr<PartitionPeer>> peers_;
  mutable std::atomic<int64_t> hits_{0}, bytes_{0}, storage_{0}, not_kept_{0}, failed_{0};
};

PartitionedCache::PartitionedCache(const RecordSource* base, PartitionOptions options)
    : RecordSourceWrapper(base), options_(std::move(options)) {}

PartitionedCache::~PartitionedCache() {
  if (server_ == nullptr) return;
  const PartitionStats totals = stats();
  if (totals.reads() == 0) return;
  Log(LogLevel::kInfo, "this node's part of the cache ends",
      {{"node", options_.node},
       {"local_hits", totals.local_hits},
       {"remote_hits", totals.remote_hits},
       {"storage", totals.storage},
       {"given_to_others", totals.server.records}});
}

StatusOr<std::unique_ptr<PartitionedCache>> PartitionedCache::Create(const RecordSource* base, PartitionOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  auto cache = std::unique_ptr<PartitionedCache>(new PartitionedCache(base, std::move(options)));
  TIDEPOOL_RETURN_IF_ERROR(cache->Init());
  return cache;
}

Status PartitionedCache::Init() {
  identity_ = {.seed = options_.seed,
               .fingerprint = fingerprint(),
               .layout = LayoutOf(base()),
               .records = size(),
               .nodes = options_.nodes};
  int64_t own_bytes = options_.own_bytes;
  if (own_bytes < 0) {
    own_bytes = 0;
    for (int64_t record = 0; record < size(); ++record) {
      if (!IsOwn(record)) continue;
      // A file that has gone has no bytes to keep; its Read tells.
      own_bytes += base().SizeBytes(record).value_or(0);
    }
  }
  const int64_t own_budget = std::min(own_bytes, options_.budget_bytes);
  TIDEPOOL_ASSIGN_OR_RETURN(
      own_, Cache::Create(&base(), {.kind = options_.kind, .budget_bytes = own_budget, .wait_limit = options_.wait_limit}));
  remote_ = std::make_unique<RemoteSource>(&base(), this);
  TIDEPOOL_ASSIGN_OR_RETURN(others_, Cache::Create(remote_.get(), {.kind = options_.spare_kind,
                                                                   .budget_bytes = options_.budget_bytes - own_budget,
                                                                   .wait_limit = options_.wait_limit}));
  TIDEPOOL_ASSIGN_OR_RETURN(server_, PartitionServer::Start({.identity = identity_,
                                                             .node = options_.node,
                                                             .listen = options_.listen,
                                                             .key = options_.key,
                                                             .open = options_.open,
                                                             .max_connections = options_.max_connections,
                                                             .max_record_bytes = options_.max_record_bytes},
                                                            [this](int64_t record) { return AnswerPeer(record); }));
  return {};
}

Status PartitionedCache::SetPeers(const std::vector<std::string>& addresses) {
  if (addresses.size() != options_.nodes) {
    return InvalidArgument("{} addresses for a cache over {} nodes; needed: one for each", addresses.size(), options_.nodes);
  }
  for (uint32_t node = 0; node < options_.nodes; ++node) {
    if (node == options_.node || addresses[node].empty()) continue;
    if (const Status valid = CheckAddress(addresses[node]); !valid.ok()) return Annotate(valid, fmt::format("node {}", node));
    PeerHealth::Options health = options_.health;
    health.seed ^= uint64_t{options_.node} << 32 | node;
    remote_->SetPeer(node, {.identity = identity_,
                            .from = options_.node,
                            .to = node,
                            .address = addresses[node],
                            .key = options_.key,
                            .max_connections = options_.connections_per_peer,
                            .request_limit = options_.request_limit,
                            .max_record_bytes = options_.max_record_bytes,
                            .health = health});
  }
  return {};
}

PartitionServer::Answer PartitionedCache::AnswerPeer(int64_t record) const {
  if (!IsOwn(record))
    return InvalidArgument("record {} belongs to node {}, not to node {}", record, OwnerOf(record), options_.node);
  if (std::optional<RecordView> view = own_->TryGet(record)) return *std::move(view);
  const StatusOr<int64_t> bytes = base().SizeBytes(record);
  if (!bytes.ok()) return bytes.status();
  if (!own_->WouldAdmit(record, *bytes)) {
    // It may have come in between the two questions.
    if (std::optional<RecordView> view = own_->TryGet(record)) return *std::move(view);
    return AbsentFrame{.for_good = options_.kind == CacheKind::kMinio || options_.kind == CacheKind::kNone};
  }
  StatusOr<RecordView> view = own_->Read(record);
  if (!view.ok()) return view.status();
  return *std::move(view);
}

StatusOr<RecordView> PartitionedCache::Read(int64_t record) const {
  if (!InRange(record)) return OutOfRange("record {}; the data has {}", record, size());
  if (!IsOwn(record)) return others_->Read(record);
  CacheOutcome outcome;
  StatusOr<RecordView> view = own_->ReadAndTell(record, &outcome);
  std::atomic<int64_t>& count = outcome == CacheOutcome::kHit      ? own_hits_
                                : outcome == CacheOutcome::kMiss   ? own_storage_
                                : outcome == CacheOutcome::kJoined ? own_joined_
                                                                   : own_failed_;
  count.fetch_add(1, std::memory_order_relaxed);
  return view;
}

Status PartitionedCache::ReadGroup(int64_t record, std::vector<RecordView>* views) const {
  if (!InRange(record)) return OutOfRange("record {}; the data has {}", record, size());
  const RecordRange group = Group(record);
  if (!IsOwn(record)) {
    // The owner gives records one by one.
    views->clear();
    for (int64_t i = group.begin; i < group.end; ++i) {
      StatusOr<RecordView> view = others_->Read(i);
      if (!view.ok() && group.size() == 1) return view.status();
      views->push_back(view.ok() ? *std::move(view) : RecordView());
    }
    return {};
  }
  std::vector<bool> had;
  for (int64_t i = group.begin; i < group.end; ++i) had.push_back(own_->Contains(i));
  const Status status = own_->ReadGroup(record, views);
  for (size_t i = 0; i < had.size(); ++i) {
    const bool failed = !status.ok() || ((*views)[i].bytes().empty() && (*views)[i].owner() == nullptr);
    (failed ? own_failed_ : had[i] ? own_hits_ : own_storage_).fetch_add(1, std::memory_order_relaxed);
  }
  return status;
}

void PartitionedCache::WillNeed(int64_t record) const {
  if (InRange(record)) (IsOwn(record) ? own_ : others_)->WillNeed(record);
}

void PartitionedCache::WontNeed(int64_t record) const {
  if (InRange(record)) (IsOwn(record) ? own_ : others_)->WontNeed(record);
}

Status PartitionedCache::Fill(absl::Time deadline, const std::function<bool()>& cancelled) const {
  for (const bool own : {true, false}) {
    const Cache& cache = own ? *own_ : *others_;
    for (int64_t record = 0; record < size(); ++record) {
      if (IsOwn(record) != own || cache.Contains(record)) continue;
      if (Clock::Real()->Now() > deadline) return DeadlineExceeded("filling the cache: {} of {} records seen", record, size());
      if (cancelled && cancelled()) return Cancelled("filling the cache was cancelled");
      const StatusOr<int64_t> bytes = base().SizeBytes(record);
      // Replacing caches are full when the next record would push out another.
      const CacheStats stats = cache.stats();
      if (!bytes.ok() || stats.used_bytes + *bytes > stats.budget_bytes) continue;
      Read(record).status().IgnoreError();
    }
  }
  return {};
}

void PartitionedCache::CloseIdleConnections() const { remote_->CloseIdle(); }

PartitionStats PartitionedCache::stats() const {
  PartitionStats stats;
  stats.own = own_->stats();
  stats.others = others_->stats();
  stats.server = server_->stats();
  stats.local_hits = own_hits_.load(std::memory_order_relaxed) + stats.others.hits;
  stats.storage = own_storage_.load(std::memory_order_relaxed);
  stats.joined = own_joined_.load(std::memory_order_relaxed) + stats.others.joined;
  stats.failed = own_failed_.load(std::memory_order_relaxed) + stats.others.failed;
  remote_->AddTo(&stats);
  return stats;
}

}  // namespace tidepool::data
