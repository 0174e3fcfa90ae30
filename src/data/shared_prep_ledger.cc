#include "data/shared_prep_ledger.h"

#include <algorithm>
#include <utility>

namespace tidepool::data {
namespace {

constexpr int kMostDoublings = 10;  // of a lease

}  // namespace

Status PrepLedgerOptions::Validate() const {
  if (batches < 1) return InvalidArgument("{} batches in an epoch; allowed: 1 or more", batches);
  if (epochs < -1 || epochs == 0) return InvalidArgument("{} epochs; allowed: 1 or more, or -1 for no end", epochs);
  if (epochs > 0 && batches > INT64_MAX / epochs) return InvalidArgument("{} epochs of {} batches are too many", epochs, batches);
  if (slots < 2 || slots > 65536) return InvalidArgument("staging memory for {} batches; allowed: 2 to 65536", slots);
  if (held < 1 || held > slots) return InvalidArgument("{} batches held by one job; allowed: 1 to {}, the slots", held, slots);
  if (jobs < 1 || jobs > static_cast<int>(PrepLedger::kMostJobs)) {
    return InvalidArgument("{} jobs to wait for; allowed: 1 to {}", jobs, PrepLedger::kMostJobs);
  }
  for (const absl::Duration limit : {join_limit, lease_limit, use_limit}) {
    if (limit <= absl::ZeroDuration() || limit > absl::Hours(24 * 7)) {
      return InvalidArgument("a limit of {}; allowed: above 0, at most 168h", absl::FormatDuration(limit));
    }
  }
  return {};
}

PrepLedger::PrepLedger(const PrepLedgerOptions& options) : options_(options), pins_(options.slots), attached_(options.slots) {
  for (int slot = options.slots - 1; slot >= 0; --slot) free_.push_back(slot);
}

StatusOr<PrepJob> PrepLedger::Join(std::string name, absl::Time now) {
  if (jobs_.size() >= kMostJobs) return ResourceExhausted("job '{}' is one too many; allowed: {} at once", name, kMostJobs);
  const auto id = static_cast<PrepJob>(next_job_++);
  const int64_t high = low_ + static_cast<int64_t>(entries_.size());
  const int64_t first = std::min((high + options_.batches - 1) / options_.batches * options_.batches, End());
  jobs_[id] = {.name = std::move(name), .first = first, .next = first, .progress = now};
  begin_by_ = std::min(begin_by_, now + options_.join_limit);
  return id;
}

StatusOr<PrepLedger::Job*> PrepLedger::Active(PrepJob job) {
  const auto found = jobs_.find(job);
  if (found == jobs_.end()) return InvalidArgument("no job {}", static_cast<uint32_t>(job));
  if (found->second.expelled) return FailedPrecondition("job '{}' takes part no more", found->second.name);
  return &found->second;
}

PrepLedger::Entry* PrepLedger::Find(int64_t g) {
  return g < low_ || g - low_ >= static_cast<int64_t>(entries_.size()) ? nullptr : &entries_[static_cast<size_t>(g - low_)];
}

PrepEpochAccount& PrepLedger::AccountOf(int64_t g) {
  PrepEpochAccount& account = epochs_[g / options_.batches];
  account.epoch = g / options_.batches;
  return account;
}

Status PrepLedger::Want(PrepJob id) {
  TIDEPOOL_ASSIGN_OR_RETURN(Job * job, Active(id));
  ++job->wants;
  return {};
}

Status PrepLedger::Take(PrepJob id, absl::Time now) {
  TIDEPOOL_ASSIGN_OR_RETURN(Job * job, Active(id));
  if (job->taking) return FailedPrecondition("job '{}' asks for a batch before it has got the last one", job->name);
  if (static_cast<int>(job->reading.size()) >= options_.held) {
    return FailedPrecondition("job '{}' holds {} batches; allowed: {}", job->name, job->reading.size(), options_.held);
  }
  job->taking = true;
  job->progress = now;
  return {};
}

Status PrepLedger::Done(PrepJob id, uint64_t token, PrepOutcome outcome, absl::Time now) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end()) return InvalidArgument("no job {}", static_cast<uint32_t>(id));
  const auto writing = job->second.writing.find(token);
  if (writing == job->second.writing.end()) return InvalidArgument("job '{}' has no lease {}", job->second.name, token);
  const auto [g, slot] = writing->second;
  job->second.writing.erase(writing);
  Entry* entry = Find(g);
  PrepEpochAccount& account = AccountOf(g);
  if (entry == nullptr || entry->state != State::kLeased || entry->token != token) {
    ++account.wasted;
    Unpin(slot);
    return {};
  }
  ++(entry->counted ? account.repeated : account.prepared);
  ++job->second.prepared;
  entry->counted = true;
  entry->state = State::kReady;
  entry->ready_at = now;
  entry->outcome = std::move(outcome);
  Unpin(slot);
  if (!entry->outcome.status.ok()) {
    Detach(entry);
    ++failed_;
  }
  return {};
}

Status PrepLedger::Release(PrepJob id, int64_t g, absl::Time now) {
  const auto job = jobs_.find(id);
  if (job == jobs_.end()) return InvalidArgument("no job {}", static_cast<uint32_t>(id));
  const auto reading = job->second.reading.find(g);
  if (reading == job->second.reading.end()) return InvalidArgument("job '{}' does not hold batch {}", job->second.name, g);
  const int slot = reading->second;
  job->second.reading.erase(reading);
  job->second.progress = now;
  Unpin(slot);
  if (Entry* entry = Find(g); entry != nullptr) GiveUp(id, entry);
  DropDone();
  return {};
}

void PrepLedger::Leave(PrepJob id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  Job& job = found->second;
  for (const auto& [token, writing] : job.writing) {
    Entry* entry = Find(writing.g);
    if (entry != nullptr && entry->state == State::kLeased && entry->token == token) Reopen(writing.g, entry);
    Unpin(writing.slot);
  }
  for (const auto& [g, slot] : job.reading) Unpin(slot);
  jobs_.erase(found);
  GiveUpAll(id);
  if (jobs_.empty() && !begun_) begin_by_ = absl::InfiniteFuture();
}

bool PrepLedger::Expel(PrepJob id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || found->second.expelled) return false;
  Job& job = found->second;
  job.expelled = true;
  job.taking = false;
  job.wants = 0;
  for (const auto& [token, writing] : job.writing) {
    Entry* entry = Find(writing.g);
    if (entry != nullptr && entry->state == State::kLeased && entry->token == token) Reopen(writing.g, entry);
  }
  GiveUpAll(id);
  return true;
}

void PrepLedger::Retire(PrepJob id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  Expel(id);
  for (const auto& [token, writing] : found->second.writing) Unpin(writing.slot);
  found->second.writing.clear();
}

void PrepLedger::Unpin(int slot) {
  if (--pins_[slot] == 0 && !attached_[slot]) free_.push_back(slot);
}

void PrepLedger::Detach(Entry* entry) {
  const int slot = std::exchange(entry->slot, -1);
  if (slot < 0) return;
  attached_[slot] = false;
  if (pins_[slot] == 0) free_.push_back(slot);
}

void PrepLedger::Reopen(int64_t g, Entry* entry) {
  if (entry->state == State::kLeased) {
    ++AccountOf(g).takeovers;
    ++entry->attempts;
  }
  entry->state = State::kOpen;
  entry->token = 0;
  Detach(entry);
}

void PrepLedger::GiveUp(PrepJob id, Entry* entry) {
  if (entry->state == State::kDone || entry->owing.erase(id) == 0 || !entry->owing.empty()) return;
  if (entry->state == State::kReady && entry->slot < 0) --failed_;
  entry->state = State::kDone;
  Detach(entry);
}

void PrepLedger::GiveUpAll(PrepJob id) {
  for (Entry& entry : entries_) GiveUp(id, &entry);
  DropDone();
}

void PrepLedger::DropDone() {
  while (!entries_.empty() && entries_.front().state == State::kDone) {
    entries_.pop_front();
    ++low_;
  }
  while (epochs_.size() > kKeptEpochs) epochs_.erase(epochs_.begin());
}

void PrepLedger::ExpireLeases(absl::Time now) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.state == State::kLeased && entry.expires <= now) Reopen(low_ + static_cast<int64_t>(i), &entry);
  }
}

absl::Time PrepLedger::StallDeadline() const {
  if (!Full()) return absl::InfiniteFuture();
  bool waits = false;
  for (const auto& [id, job] : jobs_) {
    const int64_t at = job.next - low_;
    if (!job.taking || job.next >= End()) continue;
    waits = waits || at >= static_cast<int64_t>(entries_.size()) || entries_[static_cast<size_t>(at)].state == State::kOpen;
  }
  absl::Time earliest = absl::InfiniteFuture();
  if (!waits) return earliest;
  for (const auto& [id, job] : jobs_) {
    if (job.expelled || job.taking) continue;
    for (const Entry& entry : entries_) {
      if (entry.state != State::kReady || !entry.owing.contains(id)) continue;
      earliest = std::min(earliest, std::max(job.progress, entry.ready_at) + options_.use_limit);
      break;
    }
  }
  return earliest;
}

void PrepLedger::ExpelStalled(absl::Time now, std::vector<PrepAction>* actions) {
  while (StallDeadline() <= now) {
    for (auto& [id, job] : jobs_) {
      if (job.expelled || job.taking) continue;
      const auto owed = std::find_if(entries_.begin(), entries_.end(), [id = id](const Entry& entry) {
        return entry.state == State::kReady && entry.owing.contains(id);
      });
      if (owed == entries_.end() || std::max(job.progress, owed->ready_at) + options_.use_limit > now) continue;
      actions->push_back({.kind = PrepAction::Kind::kExpel, .job = id});
      Expel(id);
      break;
    }
  }
}

// Batches that could not be prepared need no slot; they too must not run ahead without end.
bool PrepLedger::Full() const { return free_.empty() || failed_ >= options_.slots || entries_.size() >= kMostAhead; }

// Takes the slot of the last batch behind `g` that is ready and that nobody looks at.
bool PrepLedger::Reclaim(int64_t g) {
  for (auto i = static_cast<int64_t>(entries_.size()) - 1; i > g - low_; --i) {
    Entry& entry = entries_[static_cast<size_t>(i)];
    if (entry.state != State::kReady || entry.slot < 0 || pins_[entry.slot] > 0) continue;
    Reopen(low_ + i, &entry);
    return true;
  }
  return false;
}

// The job with a free thread that has prepared the least.
PrepLedger::Job* PrepLedger::NextPreparer(PrepJob* id) {
  Job* best = nullptr;
  for (auto& [each, job] : jobs_) {
    if (job.wants == 0 || (best != nullptr && job.leases >= best->leases)) continue;
    best = &job;
    *id = each;
  }
  return best;
}

bool PrepLedger::LeaseOne(absl::Time now, std::vector<PrepAction>* actions) {
  PrepJob id{};
  Job* job = NextPreparer(&id);
  if (job == nullptr) return false;
  int64_t at = 0;
  const auto size = static_cast<int64_t>(entries_.size());
  while (at < size && entries_[static_cast<size_t>(at)].state != State::kOpen) ++at;
  if (at == size) {
    if (low_ + at >= End() || Full()) return false;
    Entry entry;
    for (const auto& [each, other] : jobs_) {
      if (!other.expelled && other.first <= low_ + at) entry.owing.insert(each);
    }
    // Those who began this epoch have all left: nobody needs the rest of it.
    if (entry.owing.empty()) entry.state = State::kDone;
    const bool skipped = entry.owing.empty();
    entries_.push_back(std::move(entry));
    if (skipped) {
      DropDone();
      return true;
    }
  } else if (free_.empty() && !Reclaim(low_ + at)) {
    return false;
  }
  Entry& entry = entries_[static_cast<size_t>(at)];
  entry.state = State::kLeased;
  entry.slot = free_.back();
  free_.pop_back();
  attached_[entry.slot] = true;
  ++pins_[entry.slot];
  entry.token = next_token_++;
  entry.expires = now + options_.lease_limit * (int64_t{1} << std::min(entry.attempts, kMostDoublings));
  --job->wants;
  ++job->leases;
  job->writing[entry.token] = {.g = low_ + at, .slot = entry.slot};
  AccountOf(low_ + at);
  actions->push_back({.kind = PrepAction::Kind::kLease, .job = id, .g = low_ + at, .slot = entry.slot, .token = entry.token});
  return true;
}

void PrepLedger::Deliver(absl::Time now, std::vector<PrepAction>* actions) {
  for (auto& [id, job] : jobs_) {
    if (!job.taking || job.expelled) continue;
    if (job.next >= End()) {
      job.taking = false;
      actions->push_back({.kind = PrepAction::Kind::kEnd, .job = id});
      continue;
    }
    Entry* entry = Find(job.next);
    if (entry == nullptr || entry->state != State::kReady) continue;
    const int64_t g = job.next++;
    job.taking = false;
    job.progress = now;
    ++AccountOf(g).delivered;
    actions->push_back({.kind = PrepAction::Kind::kDeliver, .job = id, .g = g, .slot = entry->slot, .outcome = entry->outcome});
    if (entry->outcome.status.ok()) {
      job.reading[g] = entry->slot;
      ++pins_[entry->slot];
    } else {
      GiveUp(id, entry);  // there is nothing to hold
    }
  }
  DropDone();
}

std::vector<PrepAction> PrepLedger::Advance(absl::Time now) {
  std::vector<PrepAction> actions;
  begun_ = begun_ || (!jobs_.empty() && (jobs_.size() >= static_cast<size_t>(options_.jobs) || now >= begin_by_));
  if (!begun_) return actions;
  ExpireLeases(now);
  Deliver(now, &actions);
  while (LeaseOne(now, &actions)) {
  }
  ExpelStalled(now, &actions);
  while (LeaseOne(now, &actions)) {
  }
  return actions;
}

absl::Time PrepLedger::NextDeadline() const {
  if (!begun_) return jobs_.empty() ? absl::InfiniteFuture() : begin_by_;
  absl::Time earliest = StallDeadline();
  for (const Entry& entry : entries_) {
    if (entry.state == State::kLeased) earliest = std::min(earliest, entry.expires);
  }
  return earliest;
}

std::vector<PrepEpochAccount> PrepLedger::epochs() const {
  std::vector<PrepEpochAccount> accounts;
  for (const auto& [epoch, account] : epochs_) accounts.push_back(account);
  return accounts;
}

std::vector<PrepJobAccount> PrepLedger::jobs() const {
  std::vector<PrepJobAccount> accounts;
  for (const auto& [id, job] : jobs_) {
    accounts.push_back({.job = id,
                        .name = job.name,
                        .expelled = job.expelled,
                        .first = job.first,
                        .next = job.next,
                        .delivered = job.next - job.first,
                        .prepared = job.prepared,
                        .held = static_cast<int>(job.reading.size()),
                        .preparing = static_cast<int>(job.writing.size())});
  }
  return accounts;
}

int PrepLedger::stuck_slots() const {
  int stuck = 0;
  for (size_t slot = 0; slot < pins_.size(); ++slot) stuck += pins_[slot] > 0 && !attached_[slot] ? 1 : 0;
  return stuck;
}

}  // namespace tidepool::data
