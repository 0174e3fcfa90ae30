#include "data/partition_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>
#include <utility>

#include "base/clock.h"

namespace tidepool::data {
namespace {

absl::Time In(absl::Duration duration) { return Clock::Real()->Now() + duration; }

std::string_view TextOf(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

std::span<const std::byte> BytesOf(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

Status PartitionServerOptions::Validate() const {
  if (identity.nodes < 1 || node >= identity.nodes) {
    return InvalidArgument("node {} of {}; allowed: 0 to the number of nodes less one", node, identity.nodes);
  }
  if (max_connections < 1 || max_connections > 4096) {
    return InvalidArgument("max_connections {}; allowed: 1 to 4096", max_connections);
  }
  constexpr int64_t kMostRecordBytes = int64_t{UINT32_MAX} - static_cast<int64_t>(kRecordPrefixBytes);
  if (max_record_bytes < 1 || max_record_bytes > kMostRecordBytes) {
    return InvalidArgument("max_record_bytes {}; allowed: 1 to {}", max_record_bytes, kMostRecordBytes);
  }
  TIDEPOOL_RETURN_IF_ERROR(CheckAddress(listen));
  if (key.empty() && !open && !IsLoopback(listen)) {
    return InvalidArgument(
        "the cache would answer anybody who reaches {}; allowed without a key: loopback addresses. Give all nodes the same "
        "--peer-key, or "
        "--open-peers if the machines of that network may read the data",
        listen);
  }
  for (const absl::Duration limit : {hello_limit, frame_limit, send_limit, idle_limit}) {
    if (limit <= absl::ZeroDuration() || limit > absl::Hours(24)) {
      return InvalidArgument("a time limit of {}; allowed: above 0, at most 24h", absl::FormatDuration(limit));
    }
  }
  return {};
}

StatusOr<ReceivedFrame> ReceiveFrame(TcpSocket* socket, absl::Time first_by, absl::Duration frame_limit, int64_t max_record_bytes,
                                     absl::Time whole_by) {
  std::array<std::byte, kFrameHeaderBytes> head;
  TIDEPOOL_RETURN_IF_ERROR(socket->Receive(std::span(head).first(1), first_by));
  const absl::Time deadline = std::min(In(frame_limit), whole_by);
  TIDEPOOL_RETURN_IF_ERROR(socket->Receive(std::span(head).subspan(1), deadline));
  TIDEPOOL_ASSIGN_OR_RETURN(const FrameHeader header, DecodeFrameHeader(TextOf(head), max_record_bytes));
  const bool record = header.type == RecordFrame::kType;
  std::array<std::byte, kMaxControlBytes> body;
  const auto part = std::span(body).first(record ? kRecordPrefixBytes : header.length);
  TIDEPOOL_RETURN_IF_ERROR(socket->Receive(part, deadline));
  TIDEPOOL_ASSIGN_OR_RETURN(PartitionMessage message, DecodeFrameBody(header.type, TextOf(part)));
  return ReceivedFrame{.call = header.call,
                       .message = std::move(message),
                       .record_bytes = record ? int64_t{header.length} - static_cast<int64_t>(kRecordPrefixBytes) : 0};
}

StatusOr<std::unique_ptr<PartitionServer>> PartitionServer::Start(PartitionServerOptions options, Handler handler) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(TcpListener listener, TcpListener::Listen(options.listen));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return ErrnoError(errno, "eventfd");
  auto server = std::unique_ptr<PartitionServer>(
      new PartitionServer(std::move(options), std::move(handler), std::move(listener), std::move(wake)));
  server->acceptor_ = std::thread([raw = server.get()] { raw->AcceptLoop(); });
  return server;
}

PartitionServer::PartitionServer(PartitionServerOptions options, Handler handler, TcpListener listener, UniqueFd wake)
    : options_(std::move(options)),
      handler_(std::move(handler)),
      listener_(std::move(listener)),
      wake_(std::move(wake)),
      incarnation_(std::random_device()() | uint64_t{std::random_device()()} << 32) {}

PartitionServer::~PartitionServer() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    for (const Connection& connection : connections_) connection.socket.Shutdown();
  }
  Wake();
  acceptor_.join();
  // No connection is added any more, and each ends soon: its socket is shut down.
  while (true) {
    std::thread thread;
    {
      absl::MutexLock lock(&mu_);
      if (connections_.empty()) break;
      thread = std::move(connections_.front().thread);
    }
    thread.join();
    absl::MutexLock lock(&mu_);
    connections_.pop_front();
  }
}

void PartitionServer::Wake() const {
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void PartitionServer::AcceptLoop() {
  while (true) {
    pollfd entries[] = {{wake_.get(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) return;
    uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof(count));
    JoinEnded();
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return;
    }
    StatusOr<TcpSocket> socket = listener_.Accept();
    if (socket.ok()) {
      Add(*std::move(socket));
    } else if (socket.status().code() != StatusCode::kUnavailable) {
      // Out of descriptors: the connection stays in the queue, and the loop must not spin on it.
      Clock::Real()->SleepFor(absl::Milliseconds(20));
    }
  }
}

void PartitionServer::Add(TcpSocket socket) {
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return;
    ++stats_.accepted;
    if (static_cast<int>(connections_.size()) < options_.max_connections) {
      Connection& connection = connections_.emplace_back();
      connection.socket = std::move(socket);
      ++stats_.connections;
      connection.thread = std::thread([this, &connection] { Serve(&connection); });
      return;
    }
    ++stats_.refused;
  }
  const Status full =
      ResourceExhausted("node {} has {} connections, the most that it takes", options_.node, options_.max_connections);
  // A new connection takes a small frame without waiting.
  SendFrame(&socket, 0, ToErrorFrame(full)).IgnoreError();
}

void PartitionServer::JoinEnded() {
  std::list<Connection> ended;
  {
    absl::MutexLock lock(&mu_);
    for (auto each = connections_.begin(); each != connections_.end();) {
      const auto next = std::next(each);
      if (each->ended) ended.splice(ended.end(), connections_, each);
      each = next;
    }
  }
  for (Connection& connection : ended) connection.thread.join();
}

Status PartitionServer::SendFrame(TcpSocket* socket, uint64_t call, const PartitionMessage& message,
                                  std::span<const std::byte> record) {
  const std::string frame = EncodeFrame(call, message, static_cast<int64_t>(record.size()));
  return socket->Send(BytesOf(frame), record, In(options_.send_limit));
}

Status PartitionServer::Greet(TcpSocket* socket) {
  TIDEPOOL_ASSIGN_OR_RETURN(const ReceivedFrame frame,
                            ReceiveFrame(socket, In(options_.hello_limit), options_.hello_limit, /*max_record_bytes=*/0));
  const auto* hello = std::get_if<HelloFrame>(&frame.message);
  Status matches = hello == nullptr ? InvalidArgument("the first frame is no Hello") : CheckHelloVersion(*hello);
  // A stranger does not learn what the data is.
  if (matches.ok() && !options_.key.empty()) {
    matches = Authenticate(socket, *hello, frame.call);
    if (!matches.ok() && matches.code() != StatusCode::kUnauthenticated) return matches;
  }
  if (matches.ok()) matches = CheckHello(*hello, options_.identity, options_.node);
  if (!matches.ok()) {
    {
      absl::MutexLock lock(&mu_);
      ++stats_.refused;
    }
    SendFrame(socket, frame.call, ToErrorFrame(matches)).IgnoreError();
    return matches;
  }
  return SendFrame(socket, frame.call, WelcomeFrame{.node = options_.node, .incarnation = incarnation_});
}

Status PartitionServer::Authenticate(TcpSocket* socket, const HelloFrame& hello, uint64_t call) {
  const std::string covered = HelloBytes(hello);
  ChallengeFrame challenge{.nonce = RandomAuthBytes()};
  challenge.proof = ServerProof(options_.key, covered, challenge.nonce);
  TIDEPOOL_RETURN_IF_ERROR(SendFrame(socket, call, challenge));
  TIDEPOOL_ASSIGN_OR_RETURN(const ReceivedFrame frame,
                            ReceiveFrame(socket, In(options_.hello_limit), options_.hello_limit, /*max_record_bytes=*/0));
  const auto* proof = std::get_if<ProofFrame>(&frame.message);
  if (proof == nullptr) return Unauthenticated("node {} wants a proof of the key, and something else came", options_.node);
  if (!SameAuthBytes(proof->proof, ClientProof(options_.key, covered, challenge.nonce))) {
    return Unauthenticated("the peer's key is not that of node {}", options_.node);
  }
  return {};
}

Status PartitionServer::AnswerNext(TcpSocket* socket) {
  TIDEPOOL_ASSIGN_OR_RETURN(const ReceivedFrame frame,
                            ReceiveFrame(socket, In(options_.idle_limit), options_.frame_limit, /*max_record_bytes=*/0));
  const auto* get = std::get_if<GetFrame>(&frame.message);
  if (get == nullptr) {
    const Status wrong = InvalidArgument("a frame of this type is not for a server that has said Welcome");
    SendFrame(socket, frame.call, ToErrorFrame(wrong)).IgnoreError();
    return wrong;
  }
  Answer answer = get->record < options_.identity.records
                      ? handler_(get->record)
                      : OutOfRange("record {}; the data has {}", get->record, options_.identity.records);
  if (const auto* view = std::get_if<RecordView>(&answer); view != nullptr && view->size_bytes() > options_.max_record_bytes) {
    answer = ResourceExhausted("record {} has {} bytes; allowed on the wire: {}", get->record, view->size_bytes(),
                               options_.max_record_bytes);
  }
  {
    absl::MutexLock lock(&mu_);
    if (const auto* view = std::get_if<RecordView>(&answer)) {
      ++stats_.records;
      stats_.record_bytes += view->size_bytes();
    } else {
      ++(std::holds_alternative<AbsentFrame>(answer) ? stats_.absent : stats_.failed);
    }
  }
  if (const auto* view = std::get_if<RecordView>(&answer)) {
    return SendFrame(socket, frame.call, RecordFrame{.checksum = RecordChecksum(TextOf(view->bytes()))}, view->bytes());
  }
  if (const auto* absent = std::get_if<AbsentFrame>(&answer)) return SendFrame(socket, frame.call, *absent);
  return SendFrame(socket, frame.call, ToErrorFrame(std::get<Status>(answer)));
}

void PartitionServer::Serve(Connection* connection) {
  Status status = Greet(&connection->socket);
  while (status.ok()) status = AnswerNext(&connection->socket);
  connection->socket.Shutdown();
  {
    absl::MutexLock lock(&mu_);
    if (status.code() != StatusCode::kUnavailable && !stopping_) ++stats_.broken;
    --stats_.connections;
    connection->ended = true;
  }
  Wake();
}

PartitionServerStats PartitionServer::stats() const {
  absl::MutexLock lock(&mu_);
  return stats_;
}

}  // namespace tidepool::data
