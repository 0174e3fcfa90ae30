#include "data/read_ahead.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace tidepool::data {
namespace {

// Announcements beyond this many waiting ones are ignored; those units are read when they are asked for.
constexpr size_t kMostPending = size_t{1} << 16;
// How long one thread stays in the kernel collecting completions before it looks at its own deadline.
constexpr absl::Duration kReapSlice = absl::Seconds(1);
// What the kernel reads ahead of a buffered read by itself. Of larger units it would fetch one such window after the other.
constexpr int64_t kKernelReadAhead = 128 * kKiB;

}  // namespace

StatusOr<std::unique_ptr<ReadAhead>> ReadAhead::Create(const DiskFiles* files, std::function<Extent(int64_t unit)> locate) {
  std::unique_ptr<ReadAhead> ahead(new ReadAhead(files, std::move(locate)));
  const DiskOptions& options = files->options();
  absl::MutexLock lock(&ahead->mu_);
  if (options.method == DiskOptions::Method::kPread) return ahead;
  StatusOr<std::unique_ptr<Ring>> ring = Ring::Create(options.depth);
  if (ring.ok()) {
    ahead->ring_ = *std::move(ring);
    ahead->stats_.ring = true;
  } else if (options.method == DiskOptions::Method::kUring) {
    return ring.status();
  } else {
    ahead->stats_.why_no_ring = MessageOf(ring.status());
  }
  return ahead;
}

ReadAhead::~ReadAhead() {
  absl::MutexLock lock(&mu_);
  const absl::Time deadline = Clock::Real()->Now() + files_.options().timeout;
  while (!flying_.empty() && !broken_ && Clock::Real()->Now() < deadline) Reap(kReapSlice);
  if (flying_.empty()) return;
  // The kernel may still write into these buffers and read these paths.
  new absl::flat_hash_map<uint64_t, UnitPtr>(std::move(flying_));  // NOLINT(bugprone-unhandled-exception-at-new)
  (void)ring_.release();
}

bool ReadAhead::HasRoom(int64_t bytes) const {
  return stats_.held_bytes == 0 || stats_.held_bytes + bytes <= files_.options().read_ahead_bytes;
}

void ReadAhead::Hold(Unit* unit, int64_t bytes) {
  unit->held_bytes = bytes;
  stats_.held_bytes += bytes;
  stats_.peak_held_bytes = std::max(stats_.peak_held_bytes, stats_.held_bytes);
}

void ReadAhead::Release(Unit* unit) {
  stats_.held_bytes -= std::exchange(unit->held_bytes, 0);
  unit->buffer.reset();
  unit->view = {};
  unit->opened.reset();
}

void ReadAhead::End(Unit* unit, State state) {
  unit->state = state;
  if (state == State::kDone) {
    unit->view = RecordView({unit->buffer.get() + unit->plan.skip, static_cast<size_t>(unit->plan.needed - unit->plan.skip)},
                            unit->buffer, unit->plan.size);
    files_.CountRead(unit->plan.needed);
  }
  if (state == State::kFailed) Release(unit);
  ReleaseIfUnwanted(unit);
}

void ReadAhead::ReleaseIfUnwanted(Unit* unit) {
  const bool idle = unit->ended() || unit->state == State::kPending || unit->state == State::kOpened;
  if (unit->forgotten && unit->takers == 0 && idle) Release(unit);
}

void ReadAhead::Answered(const UnitPtr& unit) {
  if (--unit->wanted > 0 || unit->forgotten) return;
  unit->forgotten = true;
  units_.erase(unit->id);
  ReleaseIfUnwanted(unit.get());
}

void ReadAhead::WillNeed(int64_t id) {
  UnitPtr unit;
  {
    absl::MutexLock lock(&mu_);
    ++stats_.announced;
    if (files_.options().read_ahead_bytes == 0) return;
    auto [found, added] = units_.try_emplace(id);
    if (!added) {
      ++found->second->wanted;
      return;
    }
    if (pending_.size() >= kMostPending) {
      units_.erase(found);
      return;
    }
    unit = std::make_shared<Unit>(Unit{.id = id, .extent = locate_(id), .wanted = 1});
    found->second = unit;
    pending_.push_back(unit);
    StartPending();
    if (ring_ != nullptr) return;
  }
  if (const auto opened = files_.Opened(unit->extent.file); opened != nullptr && !opened->direct && unit->extent.length > 0) {
    ::posix_fadvise(opened->fd.get(), unit->extent.offset, unit->extent.length, POSIX_FADV_WILLNEED);
  }
}

void ReadAhead::WontNeed(int64_t unit) {
  absl::MutexLock lock(&mu_);
  const auto found = units_.find(unit);
  if (found == units_.end()) return;
  Answered(UnitPtr(found->second));
  StartPending();
}

void ReadAhead::StartPending() {
  if (ring_ == nullptr || broken_) {
    // Without a ring nothing starts by itself; units are taken from units_.
    while (!pending_.empty() && (pending_.front()->forgotten || pending_.front()->ended())) pending_.pop_front();
    return;
  }
  if (!reaping_) Reap(absl::ZeroDuration());
  bool pushed = false;
  while (!pending_.empty() && static_cast<int>(flying_.size()) < files_.options().depth) {
    const UnitPtr unit = pending_.front();
    if (!unit->forgotten && (unit->state == State::kPending || unit->state == State::kOpened)) {
      const int64_t bytes = unit->state == State::kOpened ? unit->plan.size : std::max<int64_t>(unit->extent.length, 0);
      if (!HasRoom(bytes)) break;
      pending_.pop_front();
      if (unit->opened == nullptr) unit->opened = files_.Opened(unit->extent.file);
      if (unit->opened == nullptr) {
        StartOpening(unit);
      } else {
        StartReading(unit);
      }
      pushed = true;
    } else {
      pending_.pop_front();
    }
  }
  if (pushed && !ring_->Submit().ok()) broken_ = true;
}

void ReadAhead::Launch(const UnitPtr& unit, bool pushed, uint64_t tag) {
  if (!pushed) return End(unit.get(), State::kFailed);
  flying_[tag] = unit;
}

void ReadAhead::StartOpening(const UnitPtr& unit) {
  unit->state = State::kOpening;
  unit->path = files_.path(unit->extent.file);
  unit->direct = files_.wants_direct();
  ++stats_.started_ahead;
  const uint64_t tag = next_tag_++;
  Launch(unit, ring_->PushOpen(unit->path.c_str(), files_.OpenFlags(unit->direct), tag), tag);
}

void ReadAhead::StartReading(const UnitPtr& unit) {
  if (unit->state == State::kPending) ++stats_.started_ahead;
  const StatusOr<int64_t> length = files_.LengthOf(unit->extent, *unit->opened);
  if (!length.ok()) return End(unit.get(), State::kFailed);
  unit->plan = PlanRead(unit->extent.offset, *length, unit->opened->direct);
  if (!HasRoom(unit->plan.size)) {
    unit->state = State::kOpened;
    pending_.push_front(unit);
    return;
  }
  StatusOr<std::shared_ptr<std::byte>> buffer = files_.pool().Get(unit->plan.size);
  if (!buffer.ok()) return End(unit.get(), State::kFailed);
  unit->buffer = *std::move(buffer);
  Hold(unit.get(), unit->plan.size);
  unit->state = State::kReading;
  if (!unit->opened->direct && unit->plan.size > kKernelReadAhead) {
    ::posix_fadvise(unit->opened->fd.get(), unit->plan.start, unit->plan.size, POSIX_FADV_WILLNEED);
  }
  const uint64_t tag = next_tag_++;
  Launch(
      unit,
      ring_->PushRead(unit->opened->fd.get(), unit->buffer.get(), static_cast<uint32_t>(unit->plan.size), unit->plan.start, tag),
      tag);
}

void ReadAhead::Handle(const UnitPtr& unit, int result) {
  if (unit->state == State::kOpening) {
    if (result == -EINVAL && unit->direct) files_.RefuseDirect(nullptr);
    if (result < 0) return End(unit.get(), State::kFailed);
    unit->opened = files_.Adopt(unit->extent.file, UniqueFd(result), unit->direct);
    if (unit->forgotten) return End(unit.get(), State::kFailed);
    StartReading(unit);
    return;
  }
  if (result == -EINVAL && unit->opened->direct) files_.RefuseDirect(unit->opened.get());
  End(unit.get(), result >= unit->plan.needed ? State::kDone : State::kFailed);
}

void ReadAhead::Reap(absl::Duration timeout) {
  std::array<Ring::Completion, 64> completions;
  reaping_ = true;
  mu_.Unlock();
  const StatusOr<size_t> count = ring_->Wait(timeout, completions);
  mu_.Lock();
  reaping_ = false;
  if (!count.ok()) {
    broken_ = true;
    stats_.why_no_ring = MessageOf(count.status());
    return;
  }
  bool pushed = false;
  for (size_t i = 0; i < *count; ++i) {
    const auto found = flying_.find(completions[i].tag);
    if (found == flying_.end()) continue;
    const UnitPtr unit = std::move(found->second);
    flying_.erase(found);
    Handle(unit, completions[i].result);
    pushed = true;
  }
  if (pushed && !ring_->Submit().ok()) broken_ = true;
}

bool ReadAhead::AwaitEnd(const UnitPtr& unit) {
  const absl::Time deadline = Clock::Real()->Now() + files_.options().timeout;
  // A unit that is open but has no room is not waited for: its taker reads by itself.
  const auto decided = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return unit->ended() || unit->state == State::kOpened; };
  const std::function<bool()> changed = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return decided() || (!reaping_ && unit->state != State::kReadingHere);
  };
  while (!decided()) {
    const absl::Duration left = deadline - Clock::Real()->Now();
    if (left <= absl::ZeroDuration()) return false;
    if (reaping_ || unit->state == State::kReadingHere) {
      Clock::Real()->Await(&mu_, changed, deadline);
    } else if (broken_) {
      return true;
    } else {
      Reap(std::min(left, kReapSlice));
      StartPending();
    }
  }
  return true;
}

void ReadAhead::ReadHere(const UnitPtr& unit) {
  unit->state = State::kReadingHere;
  Hold(unit.get(), unit->extent.length);
  mu_.Unlock();
  StatusOr<RecordView> view = files_.Read(unit->extent);
  mu_.Lock();
  unit->state = view.ok() ? State::kDone : State::kFailed;
  if (view.ok()) {
    unit->view = *std::move(view);
  } else {
    Release(unit.get());
  }
}

StatusOr<std::optional<RecordView>> ReadAhead::Take(int64_t id) {
  absl::MutexLock lock(&mu_);
  if (ring_ != nullptr && !reaping_ && !broken_ && !flying_.empty()) Reap(absl::ZeroDuration());
  const auto found = units_.find(id);
  if (found == units_.end()) {
    ++stats_.declined;
    return std::optional<RecordView>();
  }
  const UnitPtr unit = found->second;
  if (!unit->ended()) ++stats_.waited;
  ++unit->takers;
  bool in_time = true;
  if (unit->state == State::kPending && unit->wanted > 1 && unit->extent.length > 0 && HasRoom(unit->extent.length)) {
    ReadHere(unit);
  } else if (unit->state != State::kPending) {
    in_time = AwaitEnd(unit);
  }
  std::optional<RecordView> view;
  if (unit->state == State::kDone) {
    view = unit->view;
  } else {
    ++stats_.declined;
  }
  --unit->takers;
  Answered(unit);
  ReleaseIfUnwanted(unit.get());
  StartPending();
  if (!in_time) {
    return DeadlineExceeded("{}: the disk read has not ended within {}", files_.Where(unit->extent),
                            tidepool::FormatDuration(files_.options().timeout));
  }
  return view;
}

ReadAheadStats ReadAhead::stats() const {
  absl::MutexLock lock(&mu_);
  return stats_;
}

}  // namespace tidepool::data
