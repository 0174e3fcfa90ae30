#include "data/storage_model_source.h"

#include <sys/prctl.h>

#include <algorithm>
#include <utility>

namespace tidepool::data {
namespace {

// A thread that sleeps until the model's moment wakes then, not up to 50 us later in company of others: that is a tenth of what a
// read takes on a fast disk.
void SharpenTimers() {
  static thread_local bool done = false;
  if (std::exchange(done, true)) return;
  ::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
}

}  // namespace

Status PacedSourceOptions::Validate() const {
  TIDEPOOL_RETURN_IF_ERROR(storage.Validate());
  if (group_records < 0) return InvalidArgument("group_records {}; allowed: 0 (the source's groups) or more", group_records);
  if (read_ahead_bytes < 0) return InvalidArgument("read_ahead_bytes {}; allowed: 0 or more", read_ahead_bytes);
  return {};
}

StatusOr<std::unique_ptr<PacedSource>> PacedSource::Create(const RecordSource* base, PacedSourceOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  return std::unique_ptr<PacedSource>(new PacedSource(base, std::move(options)));
}

RecordRange PacedSource::Group(int64_t record) const {
  if (options_.group_records == 0) return base().Group(record);
  if (record < 0 || record >= size()) return {record, record + 1};
  const int64_t begin = record - record % options_.group_records;
  return {begin, std::min(begin + options_.group_records, size())};
}

// What cannot be told (a file that vanished) counts as nothing: the operation still takes its latency, and the read tells why.
int64_t PacedSource::BytesOf(const RecordRange& records) const {
  int64_t bytes = 0;
  for (int64_t i = records.begin; i < records.end; ++i) bytes += SizeBytes(i).value_or(0);
  return bytes;
}

absl::Time PacedSource::Submit(const RecordRange& records, int64_t bytes) const {
  return model_.Submit(options_.clock->Now(), bytes, sequence_.Follows(records.begin, records.end));
}

void PacedSource::Answer(int64_t group) const {
  const auto found = ahead_.find(group);
  if (found == ahead_.end() || --found->second.wanted > 0) return;
  if (found->second.submitted) stats_.ahead_bytes -= found->second.bytes;
  ahead_.erase(found);
  SubmitPending();
}

void PacedSource::SubmitPending() const {
  while (!pending_.empty()) {
    const int64_t group = pending_.front();
    const auto found = ahead_.find(group);
    if (found != ahead_.end() && !found->second.submitted) {
      Ahead& ahead = found->second;
      // One group may always be on its way.
      if (stats_.ahead_bytes > 0 && stats_.ahead_bytes + ahead.bytes > options_.read_ahead_bytes) return;
      ahead.submitted = true;
      ahead.done = Submit(Group(group), ahead.bytes);
      stats_.ahead_bytes += ahead.bytes;
      stats_.peak_ahead_bytes = std::max(stats_.peak_ahead_bytes, stats_.ahead_bytes);
    }
    pending_.pop_front();
  }
}

void PacedSource::WillNeed(int64_t record) const {
  if (record < 0 || record >= size()) return;
  const RecordRange group = Group(record);
  if (options_.read_ahead_bytes > 0) {
    const int64_t bytes = BytesOf(group);
    absl::MutexLock lock(&mu_);
    Ahead& ahead = ahead_[group.begin];
    if (++ahead.wanted == 1) {
      ahead.bytes = bytes;
      pending_.push_back(group.begin);
      SubmitPending();
    }
  }
  base().WillNeed(record);
}

void PacedSource::WontNeed(int64_t record) const {
  if (record < 0 || record >= size()) return;
  {
    absl::MutexLock lock(&mu_);
    Answer(Group(record).begin);
  }
  base().WontNeed(record);
}

absl::Time PacedSource::Arrival(int64_t record, const RecordRange& unannounced) const {
  const int64_t bytes = BytesOf(unannounced);
  const int64_t group = Group(record).begin;
  absl::MutexLock lock(&mu_);
  const auto found = ahead_.find(group);
  if (found == ahead_.end()) return Submit(unannounced, bytes);
  if (!found->second.submitted) {
    // There was no room for it ahead; it is read now, alone, and what else is wanted of its group stays announced.
    const absl::Time done = Submit(unannounced, bytes);
    Answer(group);
    return done;
  }
  const absl::Time done = found->second.done;
  Answer(group);
  return done;
}

void PacedSource::WaitFor(absl::Time begin, absl::Time arrival) const {
  const absl::Time now = options_.clock->Now();
  // Bytes that were announced may have arrived before anybody asked for them; only what comes after the question is waiting.
  const absl::Time due = std::max(begin, arrival);
  {
    absl::MutexLock lock(&mu_);
    stats_.waited += due - begin;
    if (now > due) stats_.beyond += now - due;
  }
  SharpenTimers();
  options_.clock->SleepUntil(arrival);
}

StatusOr<RecordView> PacedSource::Read(int64_t record) const {
  if (record < 0 || record >= size()) return base().Read(record);
  const absl::Time begin = options_.clock->Now();
  const absl::Time arrival = Arrival(record, {record, record + 1});
  StatusOr<RecordView> view = base().Read(record);
  WaitFor(begin, arrival);
  return view;
}

Status PacedSource::ReadGroup(int64_t record, std::vector<RecordView>* views) const {
  if (record < 0 || record >= size()) return base().ReadGroup(record, views);
  const RecordRange group = Group(record);
  const absl::Time begin = options_.clock->Now();
  const absl::Time arrival = Arrival(record, group);
  Status status;
  if (options_.group_records == 0) {
    status = base().ReadGroup(record, views);
  } else {
    views->clear();
    for (int64_t i = group.begin; i < group.end; ++i) {
      StatusOr<RecordView> view = base().Read(i);
      if (!view.ok() && group.size() == 1) status = view.status();
      views->push_back(view.ok() ? *std::move(view) : RecordView());
    }
  }
  WaitFor(begin, arrival);
  return status;
}

PacedSourceStats PacedSource::stats() const {
  absl::MutexLock lock(&mu_);
  PacedSourceStats stats = stats_;
  stats.model = model_.counts();
  return stats;
}

}  // namespace tidepool::data
