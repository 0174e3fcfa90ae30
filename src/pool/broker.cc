#include "pool/broker.h"

#include <absl/synchronization/mutex.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <thread>

#include "base/log.h"
#include "pool/core.h"
#include "pool/protocol.h"
#include "pool/wire.h"

namespace tidepool::pool {
namespace {

constexpr size_t kMaxConnections = 256;
constexpr size_t kOutboxLimit = 4096;  // messages to one client that does not read
constexpr int kPacketsPerTurn = 32;    // of one client, before others get their turn
constexpr absl::Duration kHelloTimeout = absl::Seconds(5);
constexpr absl::Duration kIdleBeforeZero = absl::Milliseconds(2);

// What an epoll event is about: the kind in the upper half, the client in the lower.
enum class Source : uint32_t { kListener, kWake, kSocket, kProcess };
uint64_t Tag(Source source, ClientId client = ClientId()) {
  return uint64_t{static_cast<uint32_t>(source)} << 32 | client.value();
}

struct Connection {
  ClientId id;
  UniqueFd socket;
  UniqueFd process;  // readable once the client's process has ended
  int pid = 0;
  std::string name;
  bool inherited = false;  // made by us for a child, not through the path
  bool attached = false;   // has said Hello
  bool broken = false;     // to be ended after the present event
  absl::Time hello_by = absl::InfiniteFuture();
  std::deque<std::string> outbox;
};

// A grant whose pages are being cleared.
struct ZeroJob {
  CallId call;
  LeaseId lease;
  DemandId demand;
  Grant grant;
  size_t extent = 0;
  PageIndex page = -1;  // next one, inside grant.zero[extent]; -1: its first
  absl::Duration spent;
};

class BrokerImpl final : public Broker, private CoreSink {
 public:
  BrokerImpl(device::Device* device, BrokerOptions options)
      : device_(device),
        options_(std::move(options)),
        clock_(options_.clock),
        core_({.pages = device->memory().page_count(),
               .fit = options_.fit,
               .reserve_pages = options_.reserve_pages,
               .static_reclaimable_pages = options_.static_reclaimable_pages,
               .revoke_slack = options_.revoke_slack,
               .fence_after = options_.fence_after},
              this) {}

  ~BrokerImpl() override {
    if (!thread_.joinable()) return;
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    Wake();
    thread_.join();
  }

  Status Init() {
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_.valid() || !wake_.valid()) return ErrnoError(errno, "making the broker's event loop");
    TIDEPOOL_RETURN_IF_ERROR(Watch(wake_.get(), EPOLLIN, Tag(Source::kWake)));
    if (!options_.socket_path.empty()) {
      TIDEPOOL_ASSIGN_OR_RETURN(auto listener, PacketListener::Listen(options_.socket_path));
      listener_.emplace(std::move(listener));
      TIDEPOOL_RETURN_IF_ERROR(AskForCredentials(listener_->fd()));
      TIDEPOOL_RETURN_IF_ERROR(Watch(listener_->fd(), EPOLLIN, Tag(Source::kListener)));
    }
    thread_ = std::thread([this] { Run(); });
    return {};
  }

  StatusOr<UniqueFd> Connect() override {
    TIDEPOOL_ASSIGN_OR_RETURN(auto pair, PacketSocket::Pair());
    // Before the other end is handed out, so that no packet of it can lack its sender.
    TIDEPOOL_RETURN_IF_ERROR(AskForCredentials(pair.first.fd()));
    Status added;
    TIDEPOOL_RETURN_IF_ERROR(Call([&] { added = AddConnection(pair.first.TakeFd(), /*inherited=*/true); }));
    TIDEPOOL_RETURN_IF_ERROR(added);
    return pair.second.TakeFd();
  }

  PoolStats Stats() override {
    PoolStats stats;
    Call([&] {
      stats = core_.Stats();
      stats.page_bytes = device_->memory().page_bytes();
    }).IgnoreError();
    return stats;
  }

  PinnedRoom RoomForPinned() override {
    PinnedRoom room;
    Call([&] { room = {.pages = core_.AvailableToPinned(), .spare_pages = core_.SpareForPinned()}; }).IgnoreError();
    return room;
  }

  Status SetPaused(bool paused, absl::Time deadline) override {
    int64_t epoch = 0;
    TIDEPOOL_RETURN_IF_ERROR(Call([&] {
      core_.SetPaused(paused, clock_->Now());
      absl::MutexLock lock(&mu_);
      epoch = ++pause_epoch_;
      pause_complete_ = core_.PauseComplete();
    }));
    if (!paused) return {};
    absl::MutexLock lock(&mu_);
    auto ended = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return pause_complete_ || pause_epoch_ != epoch || stopping_; };
    if (!clock_->Await(&mu_, ended, deadline)) {
      return DeadlineExceeded("training was told to pause, but not every tenant has stopped and come down to its guarantee yet");
    }
    if (pause_epoch_ != epoch) return Aborted("the pause was ended before every tenant had stopped");
    if (!pause_complete_) return Unavailable("the page broker is shutting down");
    return {};
  }

  const std::string& socket_path() const override { return options_.socket_path; }

 private:
  // --- other threads ---

  void Wake() {
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
  }

  // Runs `work` on the broker's thread and waits for its end.
  Status Call(const std::function<void()>& work) {
    if (std::this_thread::get_id() == loop_id_.load()) {
      work();
      return {};
    }
    bool done = false;
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return Unavailable("the page broker is shutting down");
      posted_.push_back({&work, &done});
    }
    Wake();
    absl::MutexLock lock(&mu_);
    // The loop does what was posted before it ends, so this wait is as short as one turn of it.
    auto finished = [&done] { return done; };
    Clock::Real()->Await(&mu_, finished, absl::InfiniteFuture());
    return {};
  }

  void RunPosted() {
    while (true) {
      Posted work;
      {
        absl::MutexLock lock(&mu_);
        if (posted_.empty()) return;
        work = posted_.front();
        posted_.pop_front();
      }
      (*work.work)();
      absl::MutexLock lock(&mu_);
      *work.done = true;
    }
  }

  // --- the loop ---

  Status Watch(int fd, uint32_t events, uint64_t tag) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = tag;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) return {};
    return ErrnoError(errno, "watching a descriptor");
  }

  void Run() {
    loop_id_.store(std::this_thread::get_id());
    std::array<epoll_event, 64> events;
    bool idle = false;
    while (true) {
      const int ready = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), TimeoutMs(idle));
      idle = ready == 0;
      for (int i = 0; i < ready; ++i) Handle(events[static_cast<size_t>(i)]);
      if (ready > 0) nothing_to_zero_ = false;
      RunPosted();
      const absl::Time now = clock_->Now();
      core_.Tick(now);
      CloseLateConnections(now);
      ZeroOnePage();
      if (idle && zero_jobs_.empty()) ZeroInBackground();
      FinishEvent();
      absl::MutexLock lock(&mu_);
      pause_complete_ = core_.PauseComplete();
      if (stopping_ && posted_.empty()) return;
    }
  }

  // Zero while there are pages to clear; else until the next deadline.
  int TimeoutMs(bool idle) {
    if (!zero_jobs_.empty()) return 0;
    absl::Time wake = core_.NextDeadline();
    for (const auto& [id, connection] : connections_) wake = std::min(wake, connection.hello_by);
    absl::Duration wait = wake - clock_->Now();
    if (options_.zero_when_idle && !nothing_to_zero_) wait = std::min(wait, idle ? absl::ZeroDuration() : kIdleBeforeZero);
    if (wait <= absl::ZeroDuration()) return 0;
    // Rounded up: waking early would spin until the deadline.
    return static_cast<int>(
        std::min<int64_t>(absl::ToInt64Milliseconds(std::min(wait, absl::Hours(1)) + absl::Microseconds(999)), 3'600'000));
  }

  void Handle(const epoll_event& event) {
    const ClientId client(static_cast<uint32_t>(event.data.u64));
    switch (static_cast<Source>(event.data.u64 >> 32)) {
      case Source::kWake: {
        uint64_t count;
        (void)!::read(wake_.get(), &count, sizeof(count));
        break;
      }
      case Source::kListener: AcceptAll(); break;
      case Source::kProcess: EndProcess(client); break;
      case Source::kSocket: {
        const auto found = connections_.find(client);
        if (found == connections_.end() || !found->second.socket.valid()) break;
        if ((event.events & EPOLLOUT) != 0) Flush(found->second);
        if ((event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) ReadFrom(found->second);
        break;
      }
    }
    FinishEvent();
  }

  void AcceptAll() {
    while (true) {
      auto socket = listener_->Accept();
      if (!socket.ok()) {
        if (socket.status().code() != StatusCode::kUnavailable) {
          Log(LogLevel::kWarning, "pool connection refused", {{"error", socket.status()}});
        }
        return;
      }
      if (const Status added = AddConnection(socket->TakeFd(), /*inherited=*/false); !added.ok()) {
        Log(LogLevel::kWarning, "pool connection refused", {{"error", added}});
      }
    }
  }

  // An inherited connection may wait long for its process to start; one from outside must say Hello soon.
  Status AddConnection(UniqueFd socket, bool inherited) {
    if (connections_.size() >= kMaxConnections) {
      const Status refusal =
          ResourceExhausted("the page broker has {} connections; allowed: {}", connections_.size(), kMaxConnections);
      SendPacket(socket.get(), Encode(0, ToMessage(refusal))).IgnoreError();
      return refusal;
    }
    TIDEPOOL_RETURN_IF_ERROR(AskForCredentials(socket.get()));
    const ClientId id(next_client_++);
    TIDEPOOL_RETURN_IF_ERROR(Watch(socket.get(), EPOLLIN, Tag(Source::kSocket, id)));
    Connection& connection = connections_[id];
    connection.id = id;
    connection.socket = std::move(socket);
    connection.inherited = inherited;
    connection.hello_by = inherited ? absl::InfiniteFuture() : clock_->Now() + kHelloTimeout;
    return {};
  }

  void CloseLateConnections(absl::Time now) {
    for (auto& [id, connection] : connections_) {
      if (connection.hello_by <= now) connection.broken = true;
    }
  }

  void ReadFrom(Connection& connection) {
    for (int i = 0; i < kPacketsPerTurn && !connection.broken; ++i) {
      auto packet = ReceivePacket(connection.socket.get(), buffer_);
      if (!packet.ok()) {
        if (packet.status().code() == StatusCode::kUnavailable) return;
        if (packet.status().code() == StatusCode::kInvalidArgument && connection.attached) {
          Send(connection, 0, ToMessage(packet.status()));
          continue;
        }
        connection.broken = true;
        return;
      }
      if (packet->data.empty()) {
        connection.broken = true;
        return;
      }
      HandlePacket(connection, *packet);
    }
  }

  void HandlePacket(Connection& connection, const ReceivedPacket& packet) {
    auto envelope = Decode(packet.data);
    if (!connection.attached) {
      Status accepted = envelope.ok() ? Attach(connection, *envelope, SenderOf(connection, packet)) : envelope.status();
      if (accepted.ok()) return;
      Log(LogLevel::kWarning, "pool client refused", {{"error", accepted}});
      Send(connection, CallOf(packet.data), ToMessage(accepted));
      connection.broken = true;
      return;
    }
    if (!envelope.ok()) {
      Send(connection, CallOf(packet.data), ToMessage(envelope.status()));
      return;
    }
    Serve(connection, *envelope);
  }

  // Some kernels do not stamp what is sent before the connection is accepted. Whoever made the connection then counts, but never
  // for one that we made ourselves and handed out.
  static std::optional<PeerCredentials> SenderOf(const Connection& connection, const ReceivedPacket& packet) {
    if (packet.sender || connection.inherited) return packet.sender;
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (::getsockopt(connection.socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) return std::nullopt;
    return PeerCredentials{peer.pid, peer.uid, peer.gid};
  }

  Status Attach(Connection& connection, const Envelope& envelope, const std::optional<PeerCredentials>& sender) {
    const auto* hello = std::get_if<HelloMessage>(&envelope.message);
    if (hello == nullptr) return FailedPrecondition("a connection starts with Hello, not with {}", NameOf(envelope.message));
    if (hello->version != kProtocolVersion) {
      return FailedPrecondition(
          "the client speaks version {} of the pool protocol and this node speaks {}; use one release for both", hello->version,
          kProtocolVersion);
    }
    if (!sender) return PermissionDenied("client '{}' does not say which process it is", hello->name);
    if (sender->uid != ::geteuid() && sender->uid != 0) {
      return PermissionDenied("client '{}' runs as user {}; this node serves user {}", hello->name, sender->uid, ::geteuid());
    }
    TIDEPOOL_ASSIGN_OR_RETURN(connection.process, OpenPidFd(sender->pid));
    TIDEPOOL_RETURN_IF_ERROR(Watch(connection.process.get(), EPOLLIN, Tag(Source::kProcess, connection.id)));
    const device::DeviceInfo& info = device_->info();
    const WelcomeMessage welcome{.paused = core_.paused(),
                                 .mapping = info.mapping,
                                 .capacity_bytes = info.capacity_bytes,
                                 .page_bytes = info.page_bytes,
                                 .device_name = info.name,
                                 .device_kind = info.kind};
    TIDEPOOL_RETURN_IF_ERROR(SendPacket(connection.socket.get(), Encode(envelope.call, welcome), device_->memory().shared_fd()));
    connection.attached = true;
    connection.hello_by = absl::InfiniteFuture();
    connection.pid = sender->pid;
    connection.name = hello->name;
    core_.Attach(connection.id, hello->name, sender->pid);
    return {};
  }

  void Serve(Connection& connection, const Envelope& envelope) {
    const ClientId id = connection.id;
    const absl::Time now = clock_->Now();
    auto answer = [&](const Status& status) { Send(connection, envelope.call, ToMessage(status)); };
    if (const auto* grow = std::get_if<GrowMessage>(&envelope.message)) {
      core_.Grow({id, envelope.call}, grow->lease, {.pages = grow->pages, .min_run_pages = grow->min_run_pages},
                 now + absl::Nanoseconds(grow->timeout_ns), now);
    } else if (const auto* back = std::get_if<ReturnMessage>(&envelope.message)) {
      answer(core_.Return(id, back->lease, back->extents, now));
    } else if (const auto* finish = std::get_if<FinishRevokeMessage>(&envelope.message)) {
      answer(core_.FinishRevoke(id, ReportOf(*finish, now), now));
    } else if (const auto* open = std::get_if<OpenLeaseMessage>(&envelope.message)) {
      auto lease = core_.OpenLease(id, open->options, now);
      if (!lease.ok()) return answer(lease.status());
      Send(connection, envelope.call, LeaseOpenedMessage{.lease = *lease, .limit_pages = core_.limit_pages(*lease)});
    } else if (const auto* close = std::get_if<CloseLeaseMessage>(&envelope.message)) {
      answer(core_.CloseLease(id, close->lease, now));
    } else if (const auto* preferred = std::get_if<SetPreferredMessage>(&envelope.message)) {
      answer(core_.SetPreferred(id, preferred->lease, preferred->pages));
    } else if (const auto* guarantee = std::get_if<SetGuaranteedMessage>(&envelope.message)) {
      answer(core_.SetGuaranteed(id, guarantee->lease, guarantee->pages, now));
    } else if (std::holds_alternative<DetachMessage>(envelope.message)) {
      connection.attached = false;
      connection.process.reset();
      core_.Disconnect(id, /*clean=*/true, now);
      answer(Status());
      connection.broken = true;
    } else {
      answer(InvalidArgument("a client does not send {}", NameOf(envelope.message)));
    }
  }

  static RevokeReport ReportOf(const FinishRevokeMessage& message, absl::Time now) {
    return {.lease = message.lease,
            .demand = message.demand,
            .received = now - absl::Nanoseconds(MonotonicNanos() - message.received_ns),
            .parts = {.cached = absl::Nanoseconds(message.cached_ns),
                      .wait = absl::Nanoseconds(message.wait_ns),
                      .unwind = absl::Nanoseconds(message.unwind_ns),
                      .give_back = absl::Nanoseconds(message.give_back_ns),
                      .aborted = message.aborted,
                      .boundary = message.boundary}};
  }

  // --- sending ---

  void Send(Connection& connection, uint32_t call, const Message& message) {
    if (!connection.socket.valid() || connection.broken) return;
    std::string packet = Encode(call, message);
    if (connection.outbox.empty()) {
      const Status sent = SendPacket(connection.socket.get(), packet);
      if (sent.ok()) return;
      if (sent.code() != StatusCode::kUnavailable) {
        connection.broken = true;
        return;
      }
      SetWriteInterest(connection, true);
    }
    if (connection.outbox.size() >= kOutboxLimit) {
      Log(LogLevel::kError, "pool client does not read", {{"client", connection.name}, {"messages", connection.outbox.size()}});
      connection.broken = true;
      return;
    }
    connection.outbox.push_back(std::move(packet));
  }

  void Flush(Connection& connection) {
    while (!connection.outbox.empty()) {
      const Status sent = SendPacket(connection.socket.get(), connection.outbox.front());
      if (sent.code() == StatusCode::kUnavailable) return;
      if (!sent.ok()) {
        connection.broken = true;
        return;
      }
      connection.outbox.pop_front();
    }
    SetWriteInterest(connection, false);
  }

  void SetWriteInterest(Connection& connection, bool wanted) {
    epoll_event event{};
    event.events = wanted ? EPOLLIN | EPOLLOUT : EPOLLIN;
    event.data.u64 = Tag(Source::kSocket, connection.id);
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.socket.get(), &event);
  }

  void SendTo(ClientId client, uint32_t call, const Message& message) {
    if (const auto found = connections_.find(client); found != connections_.end()) Send(found->second, call, message);
  }

  // --- CoreSink ---

  void Answer(const CallId& call, const Status& status) override { SendTo(call.client, call.call, ToMessage(status)); }

  void Granted(const CallId& call, LeaseId lease, DemandId demand, const Grant& grant) override {
    if (grant.zero.empty()) {
      SendTo(call.client, call.call, GrantedMessage{.lease = lease, .extents = grant.extents});
      delivered_.push_back({demand, absl::ZeroDuration()});
    } else {
      zero_jobs_.push_back({.call = call, .lease = lease, .demand = demand, .grant = grant});
    }
  }

  void Revoke(ClientId client, const RevokeRequest& request) override {
    SendTo(client, 0,
           RevokeMessage{.lease = request.lease,
                         .demand = request.demand,
                         .limit_pages = request.limit_pages,
                         .slack_ns = absl::ToInt64Nanoseconds(request.slack)});
  }

  void LimitChanged(ClientId client, LeaseId lease, int64_t limit_pages) override {
    SendTo(client, 0, LimitMessage{.lease = lease, .limit_pages = limit_pages});
  }

  void PauseChanged(ClientId client, bool paused) override { SendTo(client, 0, PausedMessage{.paused = paused}); }

  void Fence(ClientId client, const std::string& reason) override {
    const auto found = connections_.find(client);
    if (found == connections_.end()) return;
    Connection& connection = found->second;
    Log(LogLevel::kError, "tenant fenced", {{"client", connection.name}, {"pid", connection.pid}, {"reason", reason}});
    if (connection.pid == ::getpid()) {
      // A client inside this process cannot be killed alone; its misbehaviour is our own bug.
      gone_.push_back(client);
      return;
    }
    if (::syscall(SYS_pidfd_send_signal, connection.process.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
      Log(LogLevel::kError, "tenant cannot be killed", {{"pid", connection.pid}, {"error", std::strerror(errno)}});
    }
  }

  void Handover(const HandoverRecord& record) override {
    if (options_.on_handover) options_.on_handover(record);
  }

  // --- what follows an event, once the core is not on the stack any more ---

  void FinishEvent() {
    const absl::Time now = clock_->Now();
    while (true) {
      if (!delivered_.empty()) {
        const auto [demand, zero_time] = delivered_.front();
        delivered_.pop_front();
        core_.GrantReady(demand, zero_time, now);
        continue;
      }
      if (!gone_.empty()) {
        const ClientId client = gone_.front();
        gone_.pop_front();
        EndProcess(client);
        continue;
      }
      if (!EndOneBrokenConnection(now)) return;
    }
  }

  bool EndOneBrokenConnection(absl::Time now) {
    for (auto entry = connections_.begin(); entry != connections_.end(); ++entry) {
      Connection& connection = entry->second;
      if (!connection.broken) continue;
      connection.broken = false;
      connection.outbox.clear();
      connection.hello_by = absl::InfiniteFuture();
      connection.socket.reset();
      const ClientId id = connection.id;
      if (connection.attached) {
        core_.Disconnect(id, /*clean=*/false, now);  // the process is still watched
      } else {
        connections_.erase(entry);
      }
      return true;
    }
    return false;
  }

  void EndProcess(ClientId client) {
    const auto found = connections_.find(client);
    if (found == connections_.end()) return;
    Log(LogLevel::kInfo, "pool client ended", {{"client", found->second.name}, {"pid", found->second.pid}});
    connections_.erase(found);
    core_.ClientGone(client, clock_->Now());
  }

  // --- clearing ---

  void ZeroOnePage() {
    if (zero_jobs_.empty()) return;
    ZeroJob& job = zero_jobs_.front();
    const Extent extent = job.grant.zero[job.extent];
    if (job.page < 0) job.page = extent.first;
    // The lease may have been closed, or its process may have died, since the grant.
    if (core_.ledger().page(job.page).owner != job.lease) {
      SendTo(job.call.client, job.call.call, ToMessage(Cancelled("lease {} was closed while its pages were cleared", job.lease)));
      zero_jobs_.pop_front();
      return;
    }
    const absl::Time start = clock_->Now();
    const Status zeroed = device_->memory().Zero({job.page, 1});
    TIDEPOOL_CHECK(zeroed.ok(), "clearing page {}: {}", job.page, ToString(zeroed));
    job.spent += clock_->Now() - start;
    core_.CountZeroed(1);
    if (++job.page < extent.end()) return;
    job.page = -1;
    if (++job.extent < job.grant.zero.size()) return;
    SendTo(job.call.client, job.call.call, GrantedMessage{.lease = job.lease, .extents = std::move(job.grant.extents)});
    delivered_.push_back({job.demand, job.spent});
    zero_jobs_.pop_front();
  }

  void ZeroInBackground() {
    if (!options_.zero_when_idle || nothing_to_zero_) return;
    const PageIndex page = core_.ledger().NextToZero();
    if (page < 0) {
      nothing_to_zero_ = true;
      return;
    }
    if (const Status zeroed = device_->memory().Zero({page, 1}); !zeroed.ok()) {
      Log(LogLevel::kError, "page cannot be cleared", {{"page", page}, {"error", zeroed}});
      nothing_to_zero_ = true;
      return;
    }
    core_.ledger().MarkZeroed({page, 1}).IgnoreError();
    core_.CountZeroed(1);
  }

  struct Posted {
    const std::function<void()>* work = nullptr;
    bool* done = nullptr;
  };

  device::Device* const device_;
  const BrokerOptions options_;
  Clock* const clock_;
  UniqueFd epoll_, wake_;
  std::optional<PacketListener> listener_;

  // Owned by the broker's thread.
  PoolCore core_;
  std::map<ClientId, Connection> connections_;
  uint32_t next_client_ = 1;
  std::deque<ZeroJob> zero_jobs_;
  std::deque<std::pair<DemandId, absl::Duration>> delivered_;
  std::deque<ClientId> gone_;
  bool nothing_to_zero_ = false;
  std::vector<char> buffer_ = std::vector<char>(kMaxPacketBytes);

  absl::Mutex mu_;
  std::deque<Posted> posted_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool pause_complete_ ABSL_GUARDED_BY(mu_) = true;
  int64_t pause_epoch_ ABSL_GUARDED_BY(mu_) = 0;

  std::atomic<std::thread::id> loop_id_{};
  std::thread thread_;
};

}  // namespace

Status BrokerOptions::Validate(const device::DeviceInfo& info) const {
  const int64_t pages = info.capacity_bytes / info.page_bytes;
  std::string faults;
  auto fault = [&faults](std::string text) { faults += (faults.empty() ? "" : "; ") + std::move(text); };
  if (reserve_pages < 0 || reserve_pages > pages) {
    fault(fmt::format("the reserve is {} pages; allowed: 0 to {}", reserve_pages, pages));
  }
  if (static_reclaimable_pages > pages) {
    fault(fmt::format("the static split gives {} pages to reclaimable leases; allowed: at most {}", static_reclaimable_pages,
                      pages));
  }
  if (revoke_slack < absl::ZeroDuration()) fault("revoke_slack is negative; allowed: 0 or more");
  if (fence_after <= absl::ZeroDuration()) fault("fence_after is not positive; allowed: more than 0");
  if (clock == nullptr) fault("there is no clock");
  return faults.empty() ? Status() : InvalidArgument("page broker: {}", faults);
}

StatusOr<std::unique_ptr<Broker>> Broker::Start(device::Device* device, BrokerOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate(device->info()));
  if (device->memory().shared_fd() < 0) {
    return FailedPrecondition("device '{}' cannot share its memory with other processes", device->info().name);
  }
  auto broker = std::make_unique<BrokerImpl>(device, std::move(options));
  TIDEPOOL_RETURN_IF_ERROR(broker->Init());
  return broker;
}

}  // namespace tidepool::pool
