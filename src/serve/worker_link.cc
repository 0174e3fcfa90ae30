#include "serve/worker_link.h"

#include "base/clock.h"
#include "base/log.h"

namespace tidepool::serve {
namespace {

constexpr int kPoolDescriptor = 3, kChannelDescriptor = 4;
constexpr absl::Duration kSendLimit = absl::Seconds(5);
constexpr absl::Duration kQuietStep = absl::Seconds(5);

}  // namespace

StatusOr<std::unique_ptr<WorkerLink>> WorkerLink::Start(WorkerLinkOptions options) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto ends, PacketSocket::Pair());
  ProcessOptions process;
  process.command = {options.binary, "serve",
                     "--pool-fd",    std::to_string(kPoolDescriptor),
                     "--channel-fd", std::to_string(kChannelDescriptor),
                     "--threads",    std::to_string(options.threads)};
  process.environment = ArithmeticEnvironment(options.threads);
  process.descriptors = {{options.pool.get(), kPoolDescriptor}, {ends.second.fd(), kChannelDescriptor}};
  auto child = ChildProcess::Start(process);
  if (!child.ok()) return Annotate(child.status(), "starting the device worker");
  std::unique_ptr<WorkerLink> link(new WorkerLink(std::move(child).value(), std::move(ends.first)));
  link->on_message_ = std::move(options.on_message);
  link->on_end_ = std::move(options.on_end);
  // A failure here is the early death of the worker, which the receiver reports with its reason.
  const int slab = options.slab_fd;
  (void)link->socket_.Send(Encode(HelloMessage{.slab_bytes = static_cast<uint64_t>(options.slab_bytes)}), std::span(&slab, 1),
                           Clock::Real()->Now() + kSendLimit);
  link->receiver_ = std::thread([raw = link.get()] { raw->ReceiveLoop(); });
  return link;
}

void WorkerLink::ReceiveLoop() {
  while (true) {
    StatusOr<Packet> packet = socket_.Receive(Clock::Real()->Now() + kQuietStep);
    if (!packet.ok()) {
      if (packet.status().code() == StatusCode::kDeadlineExceeded) continue;
      on_end_(packet.status());
      return;
    }
    StatusOr<Message> message = Decode(packet->data);
    if (!message.ok()) {
      on_end_(Annotate(message.status(), "message of the device worker"));
      return;
    }
    on_message_(std::move(message).value());
  }
}

Status WorkerLink::Send(const Message& message) { return socket_.Send(Encode(message), Clock::Real()->Now() + kSendLimit); }

ExitStatus WorkerLink::End(absl::Duration grace) {
  if (grace > absl::ZeroDuration()) {
    (void)Send(ShutdownMessage{});
    if (auto ended = child_.Wait(Clock::Real()->Now() + grace); ended.ok()) return *ended;
  }
  return child_.Stop(absl::ZeroDuration());
}

WorkerLink::~WorkerLink() {
  End(absl::Seconds(2));
  socket_.Shutdown();
  if (receiver_.joinable()) receiver_.join();
}

}  // namespace tidepool::serve
