#include "data/shared_prep_coordinator.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"

namespace tidepool::data {
namespace {

absl::Time Now() { return Clock::Real()->Now(); }

}  // namespace

Status PrepCoordinatorOptions::Validate() const {
  if (staging_bytes < 1) return InvalidArgument("staging memory of {} bytes; allowed: 1 or more", staging_bytes);
  if (max_connections < 1 || max_connections > static_cast<int>(PrepLedger::kMostJobs)) {
    return InvalidArgument("max_connections {}; allowed: 1 to {}", max_connections, PrepLedger::kMostJobs);
  }
  if (jobs > max_connections) {
    return InvalidArgument("{} jobs to wait for, but only {} connections are allowed", jobs, max_connections);
  }
  if (hello_limit <= absl::ZeroDuration()) {
    return InvalidArgument("hello_limit {}; allowed: above 0", absl::FormatDuration(hello_limit));
  }
  // The rest is the ledger's; what depends on the plan is looked at when the first job comes.
  return PrepLedgerOptions{.batches = 1,
                           .slots = std::max(2, held),
                           .held = held,
                           .jobs = jobs,
                           .join_limit = join_limit,
                           .lease_limit = lease_limit,
                           .use_limit = use_limit}
      .Validate();
}

StatusOr<std::unique_ptr<PrepCoordinator>> PrepCoordinator::Start(PrepCoordinatorOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(PacketListener listener, PacketListener::Listen(options.socket));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return ErrnoError(errno, "eventfd");
  auto coordinator =
      std::unique_ptr<PrepCoordinator>(new PrepCoordinator(std::move(options), std::move(listener), std::move(wake)));
  coordinator->thread_ = std::thread([raw = coordinator.get()] { raw->Loop(); });
  return coordinator;
}

PrepCoordinator::PrepCoordinator(PrepCoordinatorOptions options, PacketListener listener, UniqueFd wake)
    : options_(std::move(options)), listener_(std::move(listener)), wake_(std::move(wake)) {}

PrepCoordinator::~PrepCoordinator() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
  thread_.join();
}

int PrepCoordinator::WaitLimitMs() {
  absl::Time until = absl::InfiniteFuture();
  for (const Connection& connection : connections_) {
    if (!connection.job) until = std::min(until, connection.join_by);
  }
  {
    absl::MutexLock lock(&mu_);
    if (ledger_ != nullptr) until = std::min(until, ledger_->NextDeadline());
  }
  if (until == absl::InfiniteFuture()) return -1;
  const absl::Duration left = std::max(until - Now(), absl::ZeroDuration());
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 1 << 30));
}

void PrepCoordinator::Loop() {
  std::vector<pollfd> entries;
  while (true) {
    entries = {{wake_.get(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    for (const Connection& connection : connections_) {
      entries.push_back({connection.socket.fd(), POLLIN, 0});
      entries.push_back({connection.process.get(), POLLIN, 0});  // a negative one is left out
    }
    if (::poll(entries.data(), entries.size(), WaitLimitMs()) < 0 && errno != EINTR) {
      Log(LogLevel::kError, "shared preparation stops", {{"status", ErrnoError(errno, "poll")}});
      break;
    }
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) break;
    }
    size_t at = 2;
    for (Connection& connection : connections_) {
      if (entries[at].revents != 0) Hear(&connection);
      if (entries[at + 1].revents != 0) End(&connection);
      if (!connection.job && !connection.ended && connection.join_by <= Now()) End(&connection);
      at += 2;
    }
    if (entries[1].revents != 0) Accept();
    Advance();
    DropEnded();
  }
  connections_.clear();
}

void PrepCoordinator::Accept() {
  StatusOr<PacketSocket> socket = listener_.Accept();
  if (!socket.ok()) {
    // Out of descriptors: it stays in the queue, and the loop must not spin on it.
    if (socket.status().code() != StatusCode::kUnavailable) Clock::Real()->SleepFor(absl::Milliseconds(20));
    return;
  }
  if (static_cast<int>(connections_.size()) >= options_.max_connections) {
    const Status full = ResourceExhausted("{} connections, the most that are taken", options_.max_connections);
    socket->Send(EncodePrep(ToErrorPacket(full)), Now()).IgnoreError();
    absl::MutexLock lock(&mu_);
    ++stats_.refused;
    return;
  }
  Connection& connection = connections_.emplace_back();
  connection.socket = *std::move(socket);
  connection.join_by = Now() + options_.hello_limit;
  const StatusOr<PeerCredentials> peer = connection.socket.Peer();
  if (peer.ok() && peer->pid != ::getpid()) {
    // Without one (an old kernel) the end of the connection has to do.
    StatusOr<UniqueFd> process = OpenPidFd(peer->pid);
    if (process.ok()) connection.process = *std::move(process);
  }
}

void PrepCoordinator::Hear(Connection* connection) {
  // Some packets at a time, so that one job that talks without end does not keep the others from being heard.
  for (int i = 0; i < 16 && !connection->ended; ++i) {
    const StatusOr<Packet> packet = connection->socket.Receive(absl::InfinitePast());
    if (packet.ok()) {
      Handle(connection, *packet);
    } else if (packet.status().code() == StatusCode::kDeadlineExceeded) {
      return;
    } else if (packet.status().code() == StatusCode::kInvalidArgument) {
      Expel(connection, packet.status());
    } else {
      End(connection);
    }
  }
}

void PrepCoordinator::Handle(Connection* connection, const Packet& packet) {
  StatusOr<PrepMessage> message = DecodePrep(packet.data);
  const Status status = !message.ok()      ? message.status()
                        : !connection->job ? HandleJoin(connection, *message)
                                           : HandleJob(connection, *std::move(message));
  if (!status.ok()) Expel(connection, status);
}

Status PrepCoordinator::HandleJoin(Connection* connection, const PrepMessage& message) {
  const auto* join = std::get_if<JoinPacket>(&message);
  if (join == nullptr) return InvalidArgument("the first packet is no Join");
  if (join->version != kPrepVersion) {
    return FailedPrecondition(
        "the job speaks version {} of the protocol of shared preparation, the coordinator version {}; run the same release",
        join->version, kPrepVersion);
  }
  TIDEPOOL_RETURN_IF_ERROR(join->plan.Validate());
  if (plan_) {
    TIDEPOOL_RETURN_IF_ERROR(CheckPlan(join->plan, *plan_));
  } else {
    const int64_t slot_bytes = join->plan.slot_bytes(), slots = std::min<int64_t>(options_.staging_bytes / slot_bytes, 65536);
    const int64_t least = std::max(2, options_.held);
    if (slots < least) {
      return ResourceExhausted("staging memory of {} for batches of {}; needed: {}", FormatBytes(options_.staging_bytes),
                               FormatBytes(slot_bytes), FormatBytes(least * slot_bytes));
    }
    const PrepLedgerOptions ledger{.batches = join->plan.batches(),
                                   .epochs = join->plan.epochs,
                                   .slots = static_cast<int>(slots),
                                   .held = options_.held,
                                   .jobs = options_.jobs,
                                   .join_limit = options_.join_limit,
                                   .lease_limit = options_.lease_limit,
                                   .use_limit = options_.use_limit};
    TIDEPOOL_RETURN_IF_ERROR(ledger.Validate());
    TIDEPOOL_ASSIGN_OR_RETURN(staging_, CreateMemFd("tidepool-staging", slots * slot_bytes));
    plan_ = join->plan;
    absl::MutexLock lock(&mu_);
    ledger_ = std::make_unique<PrepLedger>(ledger);
    stats_.slots = ledger.slots;
    stats_.slot_bytes = slot_bytes;
  }
  JoinedPacket joined{.held = static_cast<uint32_t>(options_.held)};
  {
    absl::MutexLock lock(&mu_);
    TIDEPOOL_ASSIGN_OR_RETURN(const PrepJob job, ledger_->Join(join->name, Now()));
    connection->job = job;
    joined.job = static_cast<uint32_t>(job);
    joined.first = ledger_->jobs().back().first;
    joined.slots = static_cast<uint32_t>(stats_.slots);
    ++stats_.joined;
  }
  SendTo(connection, joined, staging_.get());
  return {};
}

Status PrepCoordinator::HandleJob(Connection* connection, PrepMessage message) {
  const PrepJob job = *connection->job;
  absl::MutexLock lock(&mu_);
  if (std::holds_alternative<WantPacket>(message)) return ledger_->Want(job);
  if (std::holds_alternative<TakePacket>(message)) return ledger_->Take(job, Now());
  if (const auto* release = std::get_if<ReleasePacket>(&message)) return ledger_->Release(job, release->number, Now());
  if (std::holds_alternative<ByePacket>(message)) {
    ledger_->Retire(job);
    return {};
  }
  if (auto* done = std::get_if<DonePacket>(&message)) {
    if (done->samples > plan_->batch) {
      return InvalidArgument("{} samples in a batch; allowed: 0 to {}", done->samples, plan_->batch);
    }
    return ledger_->Done(job, done->token,
                         {.status = ToPrepStatus(done->code, done->text), .samples = done->samples, .replaced = done->replaced},
                         Now());
  }
  return InvalidArgument("a packet that a job does not send");
}

void PrepCoordinator::Expel(Connection* connection, const Status& why) {
  if (!connection->job) {
    {
      absl::MutexLock lock(&mu_);
      ++stats_.refused;
    }
    SendTo(connection, ToErrorPacket(why));
    End(connection);
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    if (!ledger_->Expel(*connection->job)) return;  // it was already, and did not know yet
    ++stats_.expelled;
  }
  Log(LogLevel::kWarning, "job expelled from shared preparation",
      {{"job", static_cast<uint32_t>(*connection->job)}, {"reason", why}});
  SendTo(connection, ToErrorPacket(why));
}

void PrepCoordinator::End(Connection* connection) {
  if (std::exchange(connection->ended, true) || !connection->job) return;
  absl::MutexLock lock(&mu_);
  ledger_->Leave(*connection->job);
  ++stats_.left;
}

void PrepCoordinator::DropEnded() {
  connections_.remove_if([](const Connection& connection) { return connection.ended; });
  absl::MutexLock lock(&mu_);
  stats_.connections = static_cast<int>(connections_.size());
}

void PrepCoordinator::Advance() {
  while (true) {
    std::vector<PrepAction> actions;
    {
      absl::MutexLock lock(&mu_);
      if (ledger_ != nullptr) actions = ledger_->Advance(Now());
    }
    if (actions.empty()) return;
    for (const PrepAction& action : actions) Perform(action);
  }
}

void PrepCoordinator::Perform(const PrepAction& action) {
  Connection* connection = OfJob(action.job);
  if (connection == nullptr) return;
  switch (action.kind) {
    case PrepAction::Kind::kLease:
      SendTo(connection, LeasePacket{.token = action.token, .number = action.g, .slot = static_cast<uint32_t>(action.slot)});
      return;
    case PrepAction::Kind::kDeliver: {
      const ErrorPacket error = ToErrorPacket(action.outcome.status);
      SendTo(connection, BatchPacket{.number = action.g,
                                     .slot = static_cast<uint32_t>(std::max(action.slot, 0)),
                                     .samples = action.outcome.samples,
                                     .replaced = action.outcome.replaced,
                                     .code = error.code,
                                     .text = error.text});
      return;
    }
    case PrepAction::Kind::kEnd: SendTo(connection, EndPacket{}); return;
    case PrepAction::Kind::kExpel: {
      {
        absl::MutexLock lock(&mu_);
        ++stats_.expelled;
      }
      const Status why =
          FailedPrecondition("the job has held up the others for more than {}", absl::FormatDuration(options_.use_limit));
      Log(LogLevel::kWarning, "job expelled from shared preparation",
          {{"job", static_cast<uint32_t>(action.job)}, {"reason", why}});
      SendTo(connection, ToErrorPacket(why));
      return;
    }
  }
}

// A job is told little at a time (as many leases as it has threads, one batch), so its socket has room unless it does not read.
void PrepCoordinator::SendTo(Connection* connection, const PrepMessage& message, int fd) {
  if (connection->ended) return;
  const std::vector<int> fds = fd < 0 ? std::vector<int>() : std::vector<int>{fd};
  const Status sent = connection->socket.Send(EncodePrep(message), fds, absl::InfinitePast());
  // One that is gone is noticed by the end of its connection.
  if (sent.code() != StatusCode::kDeadlineExceeded || !connection->job) return;
  absl::MutexLock lock(&mu_);
  if (ledger_->Expel(*connection->job)) ++stats_.expelled;
}

PrepCoordinator::Connection* PrepCoordinator::OfJob(PrepJob job) {
  const auto found = std::find_if(connections_.begin(), connections_.end(),
                                  [job](const Connection& connection) { return connection.job == job && !connection.ended; });
  return found == connections_.end() ? nullptr : &*found;
}

PrepCoordinatorStats PrepCoordinator::stats() const {
  absl::MutexLock lock(&mu_);
  PrepCoordinatorStats stats = stats_;
  if (ledger_ == nullptr) return stats;
  stats.free_slots = ledger_->free_slots();
  stats.stuck_slots = ledger_->stuck_slots();
  stats.epochs = ledger_->epochs();
  stats.jobs = ledger_->jobs();
  return stats;
}

Status PrepCoordinator::AwaitAllLeft(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  const std::function<bool()> all_left = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return stats_.joined > 0 && stats_.left == stats_.joined;
  };
  if (Clock::Real()->Await(&mu_, all_left, deadline)) return {};
  return DeadlineExceeded("{} of {} jobs that have joined are still there", stats_.joined - stats_.left, stats_.joined);
}

}  // namespace tidepool::data
