#include "data/partition_peer.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/clock.h"
#include "data/augment.h"
#include "data/partition_server.h"

namespace tidepool::data {
namespace {

std::span<const std::byte> BytesOf(const std::string& text) { return std::as_bytes(std::span(text)); }

// What the other side answered, as against what became of the connection.
bool IsAnswer(const PartitionMessage& message) {
  return std::holds_alternative<RecordFrame>(message) || std::holds_alternative<AbsentFrame>(message) ||
         std::holds_alternative<ErrorFrame>(message);
}

}  // namespace

bool PeerHealth::MayAsk(absl::Time now) {
  if (failures_ == 0) return true;
  if (trying_ || now < wait_until_) return false;
  trying_ = true;
  return true;
}

void PeerHealth::Succeeded() {
  failures_ = 0;
  trying_ = false;
}

void PeerHealth::Failed(absl::Time now) {
  trying_ = false;
  // Requests that were under way together fail together; they count as one failure.
  if (failures_ > 0 && now < wait_until_) return;
  const absl::Duration wait =
      std::min(options_.longest_wait, options_.first_wait * static_cast<double>(int64_t{1} << std::min(failures_, 30)));
  failures_ = std::min(failures_ + 1, 1000);
  wait_until_ = now + wait * (1 - RandomUnit(options_.seed, waits_++, 0) / 4);
}

void PartitionPeer::CloseIdle() {
  absl::MutexLock lock(&mu_);
  DropIdle();
}

bool PartitionPeer::up() const {
  absl::MutexLock lock(&mu_);
  return health_.up();
}

PeerStats PartitionPeer::stats() const {
  absl::MutexLock lock(&mu_);
  PeerStats stats = stats_;
  stats.up = health_.up();
  return stats;
}

StatusOr<PartitionPeer::Answer> PartitionPeer::Fetch(int64_t record) {
  const absl::Time deadline = Clock::Real()->Now() + options_.request_limit;
  {
    absl::MutexLock lock(&mu_);
    if (!health_.MayAsk(Clock::Real()->Now())) {
      ++stats_.skipped;
      return Unavailable("node {} at {} does not answer; it will be tried again", options_.to, options_.address);
    }
    ++stats_.requests;
  }
  Call call;
  StatusOr<Answer> answer = AskAndRelease(record, deadline, &call);
  // A connection that was kept may have died meanwhile; whether the peer has too, a fresh one tells.
  if (!answer.ok() && call.kept && !call.answered && answer.status().code() == StatusCode::kUnavailable) {
    {
      absl::MutexLock lock(&mu_);
      ++stats_.retries;
      DropIdle();
    }
    call = Call();
    answer = AskAndRelease(record, deadline, &call);
  }
  absl::MutexLock lock(&mu_);
  // An Error answer comes from a peer that works.
  if (answer.ok() || call.answered) {
    health_.Succeeded();
  } else {
    health_.Failed(Clock::Real()->Now());
    ++stats_.failures;
    DropIdle();
  }
  if (!answer.ok()) return Annotate(answer.status(), fmt::format("node {} at {}", options_.to, options_.address));
  answer->restarted = std::exchange(restarted_, false);
  return answer;
}

void PartitionPeer::DropIdle() {
  connections_ -= static_cast<int>(idle_.size());
  idle_.clear();
}

StatusOr<PartitionPeer::Call> PartitionPeer::Acquire(absl::Time deadline) {
  {
    absl::MutexLock lock(&mu_);
    const std::function<bool()> free = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !idle_.empty() || connections_ < options_.max_connections;
    };
    if (!Clock::Real()->Await(&mu_, free, deadline)) {
      return DeadlineExceeded("all {} connections stayed busy", options_.max_connections);
    }
    if (!idle_.empty()) {
      Call call{.socket = std::move(idle_.back()), .kept = true};
      idle_.pop_back();
      return call;
    }
    ++connections_;
    ++stats_.connects;
  }
  Call call;
  StatusOr<TcpSocket> socket = TcpSocket::Connect(options_.address, deadline);
  Status status = socket.status();
  if (status.ok()) {
    call.socket = *std::move(socket);
    status = Greet(&call.socket, deadline);
  }
  if (status.ok()) return call;
  absl::MutexLock lock(&mu_);
  --connections_;
  return status;
}

Status PartitionPeer::Greet(TcpSocket* socket, absl::Time deadline) {
  HelloFrame hello{.identity = options_.identity, .from = options_.from, .to = options_.to};
  if (!options_.key.empty()) hello.nonce = RandomAuthBytes();
  TIDEPOOL_RETURN_IF_ERROR(socket->Send(BytesOf(EncodeFrame(0, hello)), {}, deadline));
  TIDEPOOL_ASSIGN_OR_RETURN(const ReceivedFrame frame, ReceiveFrame(socket, deadline, options_.request_limit, 0, deadline));
  TIDEPOOL_ASSIGN_OR_RETURN(const PartitionMessage answer, Authenticate(socket, hello, frame.message, deadline));
  if (const auto* error = std::get_if<ErrorFrame>(&answer)) return ToStatus(*error);
  const auto* welcome = std::get_if<WelcomeFrame>(&answer);
  if (welcome == nullptr) return InvalidArgument("the answer to Hello is neither Welcome nor Error");
  if (welcome->version != kPartitionVersion) {
    return FailedPrecondition("it speaks version {} of the cache protocol, this node version {}", welcome->version,
                              kPartitionVersion);
  }
  if (welcome->node != options_.to) return FailedPrecondition("it says that it is node {}, not {}", welcome->node, options_.to);
  absl::MutexLock lock(&mu_);
  if (incarnation_ != 0 && incarnation_ != welcome->incarnation) restarted_ = true;
  incarnation_ = welcome->incarnation;
  return {};
}

StatusOr<PartitionMessage> PartitionPeer::Authenticate(TcpSocket* socket, const HelloFrame& hello, const PartitionMessage& first,
                                                       absl::Time deadline) const {
  const auto* challenge = std::get_if<ChallengeFrame>(&first);
  if (challenge == nullptr) {
    if (options_.key.empty() || std::holds_alternative<ErrorFrame>(first)) return first;
    return Unauthenticated("it does not ask for a key, and this node has one; give all nodes the same --peer-key");
  }
  if (options_.key.empty())
    return Unauthenticated("it asks for a key, and this node has none; give all nodes the same --peer-key");
  const std::string covered = HelloBytes(hello);
  if (!SameAuthBytes(challenge->proof, ServerProof(options_.key, covered, challenge->nonce))) {
    return Unauthenticated("its key is not that of this node");
  }
  const ProofFrame proof{.proof = ClientProof(options_.key, covered, challenge->nonce)};
  TIDEPOOL_RETURN_IF_ERROR(socket->Send(BytesOf(EncodeFrame(0, proof)), {}, deadline));
  TIDEPOOL_ASSIGN_OR_RETURN(const ReceivedFrame frame, ReceiveFrame(socket, deadline, options_.request_limit, 0, deadline));
  return frame.message;
}

StatusOr<PartitionPeer::Answer> PartitionPeer::AskAndRelease(int64_t record, absl::Time deadline, Call* call) {
  TIDEPOOL_ASSIGN_OR_RETURN(*call, Acquire(deadline));
  StatusOr<Answer> answer = Ask(call, record, deadline);
  absl::MutexLock lock(&mu_);
  // After anything but a whole answer the connection's next bytes could belong to an old request.
  if (answer.ok() || call->answered) {
    idle_.push_back(std::move(call->socket));
  } else {
    --connections_;
    call->socket.Close();
  }
  return answer;
}

// call->answered is set when a whole answer was taken from the connection.
StatusOr<PartitionPeer::Answer> PartitionPeer::Ask(Call* call, int64_t record, absl::Time deadline) {
  uint64_t number = 0;
  {
    absl::MutexLock lock(&mu_);
    number = next_call_++;
  }
  TIDEPOOL_RETURN_IF_ERROR(call->socket.Send(BytesOf(EncodeFrame(number, GetFrame{.record = record})), {}, deadline));
  TIDEPOOL_ASSIGN_OR_RETURN(const ReceivedFrame frame,
                            ReceiveFrame(&call->socket, deadline, options_.request_limit, options_.max_record_bytes, deadline));
  if (frame.call != number || !IsAnswer(frame.message)) {
    return InvalidArgument("a frame of call {} where the answer to call {} belongs", frame.call, number);
  }
  Answer answer;
  if (const auto* head = std::get_if<RecordFrame>(&frame.message)) {
    TIDEPOOL_ASSIGN_OR_RETURN(answer.record, ReceiveRecord(&call->socket, head->checksum, frame.record_bytes));
  }
  call->answered = true;
  absl::MutexLock lock(&mu_);
  if (const auto* error = std::get_if<ErrorFrame>(&frame.message)) {
    ++stats_.refused;
    return ToStatus(*error);
  }
  if (const auto* absent = std::get_if<AbsentFrame>(&frame.message)) {
    answer.absent = true;
    answer.absent_for_good = absent->for_good;
    ++stats_.absent;
  } else {
    ++stats_.records;
    stats_.record_bytes += frame.record_bytes;
  }
  return answer;
}

StatusOr<RecordView> PartitionPeer::ReceiveRecord(TcpSocket* socket, uint64_t checksum, int64_t size) {
  const absl::Time deadline = Clock::Real()->Now() + options_.request_limit +
                              absl::Seconds(static_cast<double>(size) / static_cast<double>(options_.min_bytes_per_s));
  std::shared_ptr<std::byte[]> memory(new (std::nothrow) std::byte[static_cast<size_t>(std::max<int64_t>(size, 1))]);
  if (memory == nullptr) return ResourceExhausted("no memory for a record of {} bytes", size);
  const std::span<std::byte> bytes(memory.get(), static_cast<size_t>(size));
  TIDEPOOL_RETURN_IF_ERROR(socket->Receive(bytes, deadline));
  const uint64_t seen = RecordChecksum({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (seen != checksum) return DataLoss("a record of {} bytes with checksum {:016x}; sent: {:016x}", size, seen, checksum);
  return RecordView(bytes, std::move(memory));
}

}  // namespace tidepool::data
