#include "pool/client.h"

#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <map>
#include <optional>
#include <thread>

#include "base/log.h"
#include "pool/protocol.h"
#include "pool/wire.h"

namespace tidepool::pool {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(10);  // of calls that the broker answers at once
constexpr absl::Duration kAnswerGrace = absl::Seconds(1);   // for the answer to a call whose deadline the broker keeps
constexpr absl::Duration kDetachTimeout = absl::Seconds(1);
constexpr size_t kEventLimit = 65536;  // events that wait for the handlers

int64_t TimeoutNanos(absl::Time deadline, Clock* clock) { return absl::ToInt64Nanoseconds(deadline - clock->Now()); }

int64_t PagesIn(std::span<const Extent> extents) {
  int64_t pages = 0;
  for (const Extent& extent : extents) pages += extent.count;
  return pages;
}

// A tenant that computes in the idle scheduling class must still hear at once that memory is wanted.
void UseNormalPriority() {
  const sched_param parameters{};
  (void)::sched_setscheduler(0, SCHED_OTHER, &parameters);
}

struct LeaseState {
  std::string name;
  bool reclaimable = false;
  std::atomic<int64_t> limit{0};
  std::atomic<int64_t> held{0};
};

struct PendingCall {
  std::optional<StatusOr<Message>> answer;
};

// What the handlers are to be told.
struct Notice {
  std::optional<RevokeRequest> revoke;
  LeaseId lease;
  int64_t limit_pages = 0;
  bool paused = false;
};

class ClientImpl final : public Client {
 public:
  ClientImpl(std::string name, Clock* clock, PacketSocket socket)
      : name_(std::move(name)), clock_(clock), socket_(std::move(socket)) {}

  Status Start(absl::Time deadline) {
    TIDEPOOL_RETURN_IF_ERROR(socket_.Send(Encode(1, HelloMessage{.name = name_}), deadline));
    TIDEPOOL_ASSIGN_OR_RETURN(Packet packet, socket_.Receive(deadline));
    TIDEPOOL_ASSIGN_OR_RETURN(const Envelope envelope, Decode(packet.data));
    if (const auto* status = std::get_if<StatusMessage>(&envelope.message)) {
      const Status refusal = ToStatus(*status);
      return refusal.ok() ? Internal("the page broker answered Hello with OK") : refusal;
    }
    const auto* welcome = std::get_if<WelcomeMessage>(&envelope.message);
    if (welcome == nullptr || packet.fds.size() != 1) {
      return Internal("the page broker answered Hello with {} and {} descriptors", NameOf(envelope.message), packet.fds.size());
    }
    if (welcome->version != kProtocolVersion) {
      return FailedPrecondition("the page broker speaks version {} of the pool protocol and this client speaks {}",
                                welcome->version, kProtocolVersion);
    }
    const device::DeviceInfo info{.name = welcome->device_name,
                                  .kind = welcome->device_kind,
                                  .capacity_bytes = welcome->capacity_bytes,
                                  .page_bytes = welcome->page_bytes,
                                  .mapping = welcome->mapping};
    TIDEPOOL_ASSIGN_OR_RETURN(device_, device::AttachDevice(info, welcome->mapping, std::move(packet.fds[0])));
    paused_.store(welcome->paused);
    connected_.store(true);
    reader_ = std::thread([this] { ReadLoop(); });
    handler_ = std::thread([this] { HandlerLoop(); });
    return {};
  }

  ~ClientImpl() override {
    if (reader_.joinable()) {
      {
        absl::MutexLock lock(&mu_);
        stopping_ = true;
      }
      handler_.join();
      // First the mapping, then the word that it is gone: only so may the broker give the pages away at once.
      device_.reset();
      Call(DetachMessage(), clock_->Now() + kDetachTimeout).status().IgnoreError();
      socket_.Shutdown();
      reader_.join();
    }
  }

  device::Device& device() override { return *device_; }

  StatusOr<LeaseId> OpenLease(const LeaseOptions& options, absl::Time deadline) override {
    if (options.name.size() > kMaxNameBytes || options.trust_label.size() > kMaxNameBytes) {
      return InvalidArgument("lease '{}': name of {} and trust label of {} bytes; allowed: {} each", options.name.substr(0, 40),
                             options.name.size(), options.trust_label.size(), kMaxNameBytes);
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const Message answer, Call(OpenLeaseMessage{.options = options}, deadline, &options));
    const auto* opened = std::get_if<LeaseOpenedMessage>(&answer);
    if (opened == nullptr) return Unexpected("OpenLease", answer);
    return opened->lease;
  }

  Status CloseLease(LeaseId lease) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto state, Find(lease));
    const Status status = StatusOf(Call(CloseLeaseMessage{.lease = lease}, clock_->Now() + kCallTimeout));
    if (!status.ok()) return status;
    absl::MutexLock lock(&mu_);
    leases_.erase(lease);
    return {};
  }

  StatusOr<std::vector<Extent>> Grow(LeaseId lease, const GrowOptions& options, absl::Time deadline) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto state, Find(lease));
    const GrowMessage request{.lease = lease,
                              .pages = options.pages,
                              .min_run_pages = options.min_run_pages,
                              .timeout_ns = TimeoutNanos(deadline, clock_)};
    // The broker keeps the deadline; its answer is late only if it is in trouble itself.
    auto answer = Call(request, deadline + kAnswerGrace);
    if (!answer.ok()) return answer.status();
    auto* granted = std::get_if<GrantedMessage>(&*answer);
    if (granted == nullptr) return Unexpected("Grow", *answer);
    for (const Extent& extent : granted->extents) {
      if (const Status mapped = device_->memory().Map(extent); !mapped.ok()) {
        (void)Call(ReturnMessage{.lease = lease, .extents = granted->extents}, clock_->Now() + kCallTimeout);
        state->held.fetch_sub(PagesIn(granted->extents));
        return mapped;
      }
    }
    return std::move(granted->extents);
  }

  Status Return(LeaseId lease, std::span<const Extent> extents) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto state, Find(lease));
    for (size_t begin = 0; begin < extents.size(); begin += kMaxMessageExtents) {
      const auto part = extents.subspan(begin, std::min(kMaxMessageExtents, extents.size() - begin));
      ReturnMessage message{.lease = lease, .extents = {part.begin(), part.end()}};
      int64_t pages = 0;
      for (const Extent& extent : part) {
        TIDEPOOL_RETURN_IF_ERROR(device_->memory().Unmap(extent));
        pages += extent.count;
      }
      const Status returned = StatusOf(Call(std::move(message), clock_->Now() + kCallTimeout));
      if (!returned.ok()) {
        // Refused pages stay ours. (If the broker is gone nobody takes them either.)
        for (const Extent& extent : part) device_->memory().Map(extent).IgnoreError();
        return returned;
      }
      state->held.fetch_sub(pages);
    }
    return {};
  }

  Status SetPreferred(LeaseId lease, int64_t pages, absl::Time deadline) override {
    TIDEPOOL_RETURN_IF_ERROR(Find(lease).status());
    return StatusOf(Call(SetPreferredMessage{.lease = lease, .pages = pages}, deadline));
  }

  Status SetGuaranteed(LeaseId lease, int64_t pages, absl::Time deadline) override {
    TIDEPOOL_RETURN_IF_ERROR(Find(lease).status());
    return StatusOf(Call(SetGuaranteedMessage{.lease = lease, .pages = pages}, deadline));
  }

  int64_t limit_pages(LeaseId lease) const override {
    absl::ReaderMutexLock lock(&mu_);
    const auto found = leases_.find(lease);
    return found == leases_.end() ? 0 : found->second->limit.load();
  }

  int64_t held_pages(LeaseId lease) const override {
    absl::ReaderMutexLock lock(&mu_);
    const auto found = leases_.find(lease);
    return found == leases_.end() ? 0 : found->second->held.load();
  }

  std::string lease_name(LeaseId lease) const override {
    absl::ReaderMutexLock lock(&mu_);
    const auto found = leases_.find(lease);
    return found == leases_.end() ? "" : found->second->name;
  }

  bool paused() const override { return paused_.load(); }

  void SetHandlers(RevokeHandler revoke, LimitHandler limit) override {
    absl::MutexLock lock(&mu_);
    on_revoke_ = std::move(revoke);
    on_limit_ = std::move(limit);
  }

  Status FinishRevoke(const RevokeRequest& request, const ReclaimParts& parts) override {
    int64_t received_ns = MonotonicNanos();
    {
      absl::MutexLock lock(&mu_);
      const auto received = received_.find({request.lease, request.demand});
      if (received != received_.end()) received_ns = received->second;
      // The answer covers every earlier request of the lease too.
      received_.erase(received_.lower_bound({request.lease, DemandId()}), received_.upper_bound({request.lease, request.demand}));
    }
    return StatusOf(Call(FinishRevokeMessage{.lease = request.lease,
                                             .demand = request.demand,
                                             .received_ns = received_ns,
                                             .cached_ns = absl::ToInt64Nanoseconds(parts.cached),
                                             .wait_ns = absl::ToInt64Nanoseconds(parts.wait),
                                             .unwind_ns = absl::ToInt64Nanoseconds(parts.unwind),
                                             .give_back_ns = absl::ToInt64Nanoseconds(parts.give_back),
                                             .aborted = parts.aborted,
                                             .boundary = parts.boundary},
                         clock_->Now() + kCallTimeout));
  }

  bool connected() const override { return connected_.load(); }

  void SetDisconnectHandler(std::function<void()> handler) override {
    absl::MutexLock lock(&mu_);
    on_disconnect_ = std::move(handler);
  }

 private:
  static Status Gone() { return Unavailable("the page broker of this node is gone"); }

  static Status Unexpected(std::string_view call, const Message& answer) {
    if (const auto* status = std::get_if<StatusMessage>(&answer); status != nullptr && status->code != 0)
      return ToStatus(*status);
    return Internal("the page broker answered {} with {}", call, NameOf(answer));
  }

  static Status StatusOf(const StatusOr<Message>& answer) {
    if (!answer.ok()) return answer.status();
    if (const auto* status = std::get_if<StatusMessage>(&*answer)) return ToStatus(*status);
    return Internal("the page broker answered with {} where a status was due", NameOf(*answer));
  }

  StatusOr<std::shared_ptr<LeaseState>> Find(LeaseId lease) const {
    absl::ReaderMutexLock lock(&mu_);
    const auto found = leases_.find(lease);
    if (found == leases_.end()) return NotFound("lease {} is not open in client '{}'", lease, name_);
    return found->second;
  }

  // Sends one request and waits for its answer. `opening` is what an OpenLease asks for.
  StatusOr<Message> Call(const Message& request, absl::Time deadline, const LeaseOptions* opening = nullptr) {
    PendingCall pending;
    uint32_t call;
    {
      absl::MutexLock lock(&mu_);
      if (!connected_.load()) return Gone();
      do {
        call = ++last_call_;
      } while (call == 0 || call == kIgnoredCall || pending_.contains(call));
      pending_[call] = &pending;
      if (opening != nullptr) opening_[call] = *opening;
    }
    Status sent;
    {
      absl::MutexLock lock(&send_mu_);
      sent = socket_.Send(Encode(call, request), std::max(deadline, clock_->Now() + kAnswerGrace));
    }
    absl::MutexLock lock(&mu_);
    bool answered = false;
    if (sent.ok()) {
      auto ended = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return pending.answer.has_value() || !connected_.load(); };
      clock_->Await(&mu_, ended, deadline);
      answered = pending.answer.has_value();
    }
    pending_.erase(call);
    if (answered) return std::move(*pending.answer);
    if (!sent.ok()) opening_.erase(call);
    if (sent.code() == StatusCode::kDeadlineExceeded) {
      return DeadlineExceeded("the page broker took no request of client '{}' in time", name_);
    }
    if (!sent.ok() || !connected_.load()) return Gone();
    // What the answer brings is given back when it comes.
    return DeadlineExceeded("the page broker did not answer client '{}' in time", name_);
  }

  // --- reader thread ---

  void ReadLoop() {
    UseNormalPriority();
    std::vector<char> buffer(kMaxPacketBytes);
    while (true) {
      pollfd readable{socket_.fd(), POLLIN, 0};
      if (::poll(&readable, 1, -1) < 0 && errno != EINTR) break;
      auto packet = ReceivePacket(socket_.fd(), buffer);
      if (!packet.ok()) {
        if (packet.status().code() == StatusCode::kUnavailable) continue;
        if (packet.status().code() == StatusCode::kInvalidArgument) continue;  // one packet that is too large
        break;
      }
      if (packet->data.empty()) break;
      const int64_t now_ns = MonotonicNanos();
      auto envelope = Decode(packet->data);
      if (!envelope.ok()) {
        Log(LogLevel::kWarning, "pool message refused", {{"client", name_}, {"error", envelope.status()}});
        continue;
      }
      Dispatch(std::move(*envelope), now_ns);
    }
    absl::MutexLock lock(&mu_);
    connected_.store(false);
  }

  void Dispatch(Envelope envelope, int64_t now_ns) {
    std::optional<Message> undo;
    {
      absl::MutexLock lock(&mu_);
      if (envelope.call == 0) return Notify(envelope.message, now_ns);
      RecordLease(envelope);
      const auto found = pending_.find(envelope.call);
      if (found != pending_.end()) {
        // Counted here, in the order of the broker's messages: a request to give back that comes next sees these pages.
        if (const auto* granted = std::get_if<GrantedMessage>(&envelope.message)) {
          if (const auto lease = leases_.find(granted->lease); lease != leases_.end())
            lease->second->held.fetch_add(PagesIn(granted->extents));
        }
        found->second->answer = std::move(envelope.message);
        return;
      }
      if (auto* granted = std::get_if<GrantedMessage>(&envelope.message)) {
        undo = ReturnMessage{.lease = granted->lease, .extents = std::move(granted->extents)};
      } else if (auto* opened = std::get_if<LeaseOpenedMessage>(&envelope.message)) {
        leases_.erase(opened->lease);
        undo = CloseLeaseMessage{.lease = opened->lease};
      }
    }
    if (!undo) return;
    // The caller has given up, so what it asked for goes back. This thread must not wait for the answer, and nobody asks for it.
    absl::MutexLock lock(&send_mu_);
    socket_.Send(Encode(kIgnoredCall, *undo), clock_->Now() + kAnswerGrace).IgnoreError();
  }

  // A lease exists on this side before any later message about it is read.
  void RecordLease(const Envelope& envelope) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto opening = opening_.find(envelope.call);
    if (opening == opening_.end()) return;
    if (const auto* opened = std::get_if<LeaseOpenedMessage>(&envelope.message)) {
      auto state = std::make_shared<LeaseState>();
      state->name = opening->second.name;
      state->reclaimable = opening->second.lease_class == LeaseClass::kReclaimable;
      state->limit.store(opened->limit_pages);
      leases_[opened->lease] = std::move(state);
    }
    opening_.erase(opening);
  }

  void Notify(const Message& message, int64_t now_ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (const auto* revoke = std::get_if<RevokeMessage>(&message)) {
      if (const auto lease = leases_.find(revoke->lease); lease != leases_.end()) lease->second->limit.store(revoke->limit_pages);
      received_[{revoke->lease, revoke->demand}] = now_ns;
      Push({.revoke = RevokeRequest{.lease = revoke->lease,
                                    .demand = revoke->demand,
                                    .limit_pages = revoke->limit_pages,
                                    .slack = absl::Nanoseconds(revoke->slack_ns)}});
    } else if (const auto* limit = std::get_if<LimitMessage>(&message)) {
      if (const auto lease = leases_.find(limit->lease); lease != leases_.end()) lease->second->limit.store(limit->limit_pages);
      Push({.lease = limit->lease, .limit_pages = limit->limit_pages, .paused = paused_.load()});
    } else if (const auto* paused = std::get_if<PausedMessage>(&message)) {
      paused_.store(paused->paused);
      for (const auto& [id, state] : leases_) {
        if (state->reclaimable) Push({.lease = id, .limit_pages = state->limit.load(), .paused = paused->paused});
      }
    } else if (const auto* status = std::get_if<StatusMessage>(&message)) {
      Log(LogLevel::kWarning, "pool broker complains", {{"client", name_}, {"error", ToStatus(*status)}});
    }
  }

  void Push(Notice notice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    // Handlers that do not keep up miss the oldest news; the limits themselves are always current.
    if (notices_.size() >= kEventLimit) notices_.pop_front();
    notices_.push_back(notice);
  }

  // --- the client's own thread ---

  void HandlerLoop() {
    UseNormalPriority();
    bool told_of_end = false;
    while (true) {
      Notice notice;
      std::function<void()> on_disconnect;
      RevokeHandler on_revoke;
      LimitHandler on_limit;
      {
        absl::MutexLock lock(&mu_);
        auto wake = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
          return stopping_ || !notices_.empty() || (!connected_.load() && !told_of_end && on_disconnect_);
        };
        clock_->Await(&mu_, wake, absl::InfiniteFuture());
        if (stopping_) return;
        if (!connected_.load()) {
          notices_.clear();
          if (told_of_end || !on_disconnect_) continue;
          on_disconnect = on_disconnect_;
          told_of_end = true;
        } else {
          notice = notices_.front();
          notices_.pop_front();
          on_revoke = on_revoke_;
          on_limit = on_limit_;
        }
      }
      if (on_disconnect) {
        on_disconnect();
      } else if (!notice.revoke) {
        if (on_limit) on_limit(notice.lease, notice.limit_pages, notice.paused);
      } else if (on_revoke) {
        on_revoke(*notice.revoke);
      } else {
        Log(LogLevel::kError, "nobody handles a request to give memory back",
            {{"client", name_}, {"lease", notice.revoke->lease.value()}});
      }
    }
  }

  static constexpr uint32_t kIgnoredCall = 0xffffffff;

  const std::string name_;
  Clock* const clock_;
  PacketSocket socket_;
  absl::Mutex send_mu_;  // one packet at a time
  std::unique_ptr<device::Device> device_;
  std::atomic<bool> connected_{false};
  std::atomic<bool> paused_{false};

  mutable absl::Mutex mu_;
  std::map<LeaseId, std::shared_ptr<LeaseState>> leases_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint32_t, PendingCall*> pending_ ABSL_GUARDED_BY(mu_);
  std::map<uint32_t, LeaseOptions> opening_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<LeaseId, DemandId>, int64_t> received_ ABSL_GUARDED_BY(mu_);
  std::deque<Notice> notices_ ABSL_GUARDED_BY(mu_);
  RevokeHandler on_revoke_ ABSL_GUARDED_BY(mu_);
  LimitHandler on_limit_ ABSL_GUARDED_BY(mu_);
  std::function<void()> on_disconnect_ ABSL_GUARDED_BY(mu_);
  uint32_t last_call_ ABSL_GUARDED_BY(mu_) = 1;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread reader_, handler_;
};

}  // namespace

StatusOr<std::unique_ptr<Client>> Client::Attach(ClientOptions options) {
  if (options.name.empty() || options.name.size() > kMaxNameBytes) {
    return InvalidArgument("pool client name '{}' has {} bytes; allowed: 1 to {}", options.name.substr(0, 40),
                           options.name.size(), kMaxNameBytes);
  }
  if (options.connected_socket.valid() == !options.socket_path.empty()) {
    return InvalidArgument("pool client '{}' needs either a socket path or an inherited connection", options.name);
  }
  PacketSocket socket(std::move(options.connected_socket));
  if (!socket.valid()) {
    auto connected = PacketSocket::Connect(options.socket_path);
    if (!connected.ok())
      return Annotate(connected.status(), fmt::format("attaching client '{}' to the page broker", options.name));
    socket = std::move(*connected);
  }
  const absl::Time deadline = Clock::Real()->Now() + options.attach_timeout;
  auto client = std::make_unique<ClientImpl>(options.name, options.clock, std::move(socket));
  if (const Status started = client->Start(deadline); !started.ok()) {
    return Annotate(started, fmt::format("attaching client '{}' to the page broker", options.name));
  }
  return client;
}

}  // namespace tidepool::pool
