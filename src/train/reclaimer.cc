#include "train/reclaimer.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace tidepool::train {

Reclaimer::Reclaimer(pool::Client* client, ReclaimerOptions options) : client_(client), options_(std::move(options)) {
  {
    absl::MutexLock lock(&mu_);
    page_bytes_ = client_->device().memory().page_bytes();
  }
  client_->SetHandlers([this](const pool::RevokeRequest& request) { OnRevoke(request); },
                       // Taking the lock makes the gate look again.
                       [this](pool::LeaseId, int64_t, bool) { absl::MutexLock lock(&mu_); });
  client_->SetDisconnectHandler([this] {
    absl::MutexLock lock(&mu_);
    disconnected_ = true;
    options_.set_urgent(true);
    if (phase_ == Phase::kMicroBatch) options_.request_abort();
  });
  watcher_ = std::thread([this] { WatchPatience(); });
}

Reclaimer::~Reclaimer() {
  {
    absl::MutexLock lock(&mu_);
    closing_ = true;
  }
  watcher_.join();
}

void Reclaimer::SetArena(pool::Arena* arena) {
  absl::MutexLock lock(&mu_);
  options_.clock->Await(
      &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !in_handler_; }, absl::InfiniteFuture());
  arena_ = arena;
}

Reclaimer::Gate Reclaimer::AwaitGate(const std::function<bool(int64_t limit_bytes)>& may_go, absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  const std::function<bool()> open = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return stop_ || disconnected_ || (!client_->paused() && may_go(LimitPages() * page_bytes_));
  };
  const bool opened = options_.clock->Await(&mu_, open, deadline);
  if (disconnected_) return Gate::kDisconnected;
  if (stop_) return Gate::kStopped;
  return opened ? Gate::kGo : Gate::kTimedOut;
}

bool Reclaimer::Begin(Phase phase, bool protected_run, std::optional<absl::Duration> expected) {
  absl::MutexLock lock(&mu_);
  if (phase == Phase::kMicroBatch && (stop_ || disconnected_ || client_->paused())) return false;
  phase_ = phase;
  protected_ = protected_run;
  expected_ = expected;
  phase_start_ = options_.clock->Now();
  unwinding_since_ = absl::InfiniteFuture();
  abort_asked_ = false;
  options_.clear_abort();
  return true;
}

void Reclaimer::Unwinding() {
  absl::MutexLock lock(&mu_);
  unwinding_since_ = options_.clock->Now();
}

void Reclaimer::End() {
  while (true) {
    std::vector<Pending> pending;
    absl::Time unwinding_since;
    pool::Arena* arena;
    int64_t limit_pages;
    {
      absl::MutexLock lock(&mu_);
      patience_ends_ = absl::InfiniteFuture();
      unwinding_since = unwinding_since_;
      pending = std::exchange(pending_, {});
      arena = arena_;
      limit_pages = LimitPages();
      const bool above = arena != nullptr && client_->held_pages(arena->lease()) > limit_pages && arena->stats().cached_pages > 0;
      if (pending.empty() && !above) {
        // Only now: while pages are on their way back, requests that come in wait for the next round instead of miscounting them.
        phase_ = Phase::kIdle;
        options_.clear_abort();
        return;
      }
    }
    const absl::Time released = options_.clock->Now();
    const absl::Duration give_back = arena == nullptr ? absl::ZeroDuration() : GiveBack(arena, limit_pages);
    const bool aborted = unwinding_since != absl::InfiniteFuture();
    for (const Pending& one : pending) {
      const absl::Time waited_until = aborted ? unwinding_since : released;
      Answer(one, {.cached = one.cached,
                   .wait = std::max(absl::ZeroDuration(), waited_until - one.received - one.cached),
                   .unwind = aborted ? released - unwinding_since : absl::ZeroDuration(),
                   .give_back = give_back,
                   .aborted = aborted,
                   .boundary = !aborted});
    }
    absl::MutexLock lock(&mu_);
    if (!aborted) stats_.boundary_waits += static_cast<int64_t>(pending.size());
  }
}

void Reclaimer::ReturnCached() {
  pool::Arena* arena;
  {
    absl::MutexLock lock(&mu_);
    arena = arena_;
  }
  Begin(Phase::kCommit, false, std::nullopt);
  if (arena != nullptr) GiveBack(arena, 0);
  End();
}

void Reclaimer::RequestStop() {
  absl::MutexLock lock(&mu_);
  stop_ = true;
  options_.set_urgent(true);
  if (phase_ == Phase::kMicroBatch) options_.request_abort();
}

int64_t Reclaimer::limit_bytes() const {
  absl::MutexLock lock(&mu_);
  return LimitPages() * page_bytes_;
}

int64_t Reclaimer::LimitPages() const { return arena_ == nullptr ? 0 : client_->limit_pages(arena_->lease()); }

bool Reclaimer::stopped() const {
  absl::MutexLock lock(&mu_);
  return stop_;
}

ReclaimerStats Reclaimer::stats() const {
  absl::MutexLock lock(&mu_);
  ReclaimerStats stats = stats_;
  stats.waiting = static_cast<int64_t>(pending_.size());
  return stats;
}

void Reclaimer::OnRevoke(const pool::RevokeRequest& request) {
  Pending pending{.request = request, .received = options_.clock->Now()};
  // Before any lock: a thread in the idle class may hold this class's or the arena's, and on a busy machine it would keep it for
  // long.
  options_.set_urgent(true);
  pool::Arena* arena;
  {
    absl::MutexLock lock(&mu_);
    ++stats_.requests;
    arena = arena_;
    in_handler_ = true;
    ++unanswered_;
    options_.set_urgent(true);  // an earlier request may have been answered in between
  }
  if (arena != nullptr) pending.cached = GiveBack(arena, request.limit_pages);
  bool answer_now = true;
  {
    absl::MutexLock lock(&mu_);
    in_handler_ = false;
    ReclaimSituation situation{.held_pages = client_->held_pages(request.lease),
                               .limit_pages = request.limit_pages,
                               .phase = phase_,
                               .protected_run = protected_,
                               .phase_elapsed = options_.clock->Now() - phase_start_,
                               .phase_expected = expected_,
                               .slack = request.slack,
                               .longest_operator = options_.longest_operator()};
    // A pause asks for the cores too: what runs has to end even if its memory may stay.
    if (client_->paused() && phase_ != Phase::kIdle)
      situation.held_pages = std::max(situation.held_pages, request.limit_pages + 1);
    const ReclaimDecision decision = DecideReclaim(situation, options_.policy);
    if (decision.action == ReclaimAction::kDone) ++stats_.cached_enough;
    if (decision.action == ReclaimAction::kCannot) {
      Log(LogLevel::kWarning, "training holds more than it may and nothing of it can be given back",
          {{"held_pages", situation.held_pages}, {"limit_pages", situation.limit_pages}});
    }
    if (decision.action == ReclaimAction::kAbort || decision.action == ReclaimAction::kWaitBoundary) {
      answer_now = false;
      pending_.push_back(pending);
      if (decision.action == ReclaimAction::kAbort) {
        AskToAbort();
      } else {
        patience_ends_ = std::min(patience_ends_, options_.clock->Now() + decision.patience);
      }
    }
  }
  if (answer_now) Answer(pending, {.cached = pending.cached});
}

void Reclaimer::AskToAbort() {
  patience_ends_ = absl::InfiniteFuture();
  if (abort_asked_) return;
  abort_asked_ = true;
  ++stats_.aborts;
  options_.request_abort();
}

void Reclaimer::Answer(const Pending& pending, const pool::ReclaimParts& parts) {
  const Status answered = client_->FinishRevoke(pending.request, parts);
  // NOT_FOUND: an answer to a later request covered this one. FAILED_PRECONDITION: the limit has fallen again since, and the
  // request that says so is on its way.
  const bool expected = answered.code() == StatusCode::kNotFound || answered.code() == StatusCode::kFailedPrecondition;
  if (!answered.ok() && !expected && client_->connected()) {
    Log(LogLevel::kWarning, "answer to a request for memory was refused", {{"error", answered}});
  }
  absl::MutexLock lock(&mu_);
  if (--unanswered_ == 0 && !stop_ && !disconnected_) options_.set_urgent(false);
  stats_.slowest = std::max(stats_.slowest, options_.clock->Now() - pending.received);
}

absl::Duration Reclaimer::GiveBack(pool::Arena* arena, int64_t limit_pages) {
  const absl::Time start = options_.clock->Now();
  const auto returned = arena->ReturnCached(limit_pages);
  if (!returned.ok() && client_->connected()) {
    Log(LogLevel::kWarning, "cached pages could not be given back", {{"error", returned.status()}});
  }
  return options_.clock->Now() - start;
}

void Reclaimer::WatchPatience() {
  absl::MutexLock lock(&mu_);
  while (!closing_) {
    const absl::Time until = patience_ends_;
    const std::function<bool()> changed = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return closing_ || patience_ends_ != until; };
    if (options_.clock->Await(&mu_, changed, until)) continue;
    if (phase_ == Phase::kMicroBatch && !protected_ && !pending_.empty()) AskToAbort();
    patience_ends_ = absl::InfiniteFuture();
  }
}

}  // namespace tidepool::train
