#include "base/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace tidepool {
namespace {

constexpr size_t kMaxFds = 16;
constexpr timeval kConnectLimit = {.tv_sec = 5, .tv_usec = 0};

StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return InvalidArgument("socket path '{}' has {} characters; allowed: 1 to {}", path, path.size(),
                           sizeof(address.sun_path) - 1);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

// Waits until `fd` is ready for `events`.
Status PollFor(int fd, short events, absl::Time deadline, const char* what) {
  while (true) {
    int timeout_ms = -1;
    if (deadline != absl::InfiniteFuture()) {
      const absl::Duration left = deadline - Clock::Real()->Now();
      if (left <= absl::ZeroDuration()) {
        timeout_ms = 0;
      } else {
        timeout_ms = static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 1 << 30));
      }
    }
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, timeout_ms);
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return ErrnoError(errno, fmt::format("poll for {}", what));
    if (ready == 0) return DeadlineExceeded("{}: nothing happened on the socket in time", what);
  }
}

}  // namespace

StatusOr<PacketSocket> PacketSocket::Connect(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoError(errno, "socket");
  // connect() waits while the listener's backlog is full, for as long as the send limit says.
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kConnectLimit, sizeof(kConnectLimit));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EAGAIN)
      return DeadlineExceeded("connecting to '{}': the listener accepted nobody for {} s", path, kConnectLimit.tv_sec);
    return ErrnoError(errno, fmt::format("connecting to '{}'", path));
  }
  return PacketSocket(std::move(fd));
}

StatusOr<std::pair<PacketSocket, PacketSocket>> PacketSocket::Pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) return ErrnoError(errno, "socketpair");
  return std::make_pair(PacketSocket(UniqueFd(fds[0])), PacketSocket(UniqueFd(fds[1])));
}

Status PacketSocket::Send(std::string_view data, std::span<const int> fds, absl::Time deadline) {
  if (static_cast<int64_t>(data.size()) > kMaxPacketBytes || data.empty() || fds.size() > kMaxFds) {
    return InvalidArgument("packet of {} bytes and {} descriptors; allowed: 1 to {} bytes, {} descriptors", data.size(),
                           fds.size(), kMaxPacketBytes, kMaxFds);
  }
  iovec part{const_cast<char*>(data.data()), data.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  while (true) {
    if (::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return {};
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return ErrnoError(errno, "sending a packet");
    TIDEPOOL_RETURN_IF_ERROR(PollFor(fd_.get(), POLLOUT, deadline, "sending a packet"));
  }
}

StatusOr<Packet> PacketSocket::Receive(absl::Time deadline) {
  static thread_local char buffer[kMaxPacketBytes];
  Packet packet;
  while (true) {
    iovec part{buffer, sizeof(buffer)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) {
        TIDEPOOL_RETURN_IF_ERROR(PollFor(fd_.get(), POLLIN, deadline, "waiting for a packet"));
        continue;
      }
      return ErrnoError(errno, "receiving a packet");
    }
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
        packet.fds.emplace_back(fd);
      }
    }
    if (got == 0) return Unavailable("peer closed the connection");
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
      return InvalidArgument("the peer sent a packet of more than {} bytes or {} descriptors", kMaxPacketBytes, kMaxFds);
    }
    packet.data.assign(buffer, static_cast<size_t>(got));
    return packet;
  }
}

void PacketSocket::Shutdown() {
  if (fd_.valid()) ::shutdown(fd_.get(), SHUT_RDWR);
}

StatusOr<PeerCredentials> PacketSocket::Peer() const {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return ErrnoError(errno, "reading the peer's credentials");
  }
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

StatusOr<PacketListener> PacketListener::Listen(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  // A socket left by a dead listener refuses connections; only such a path may be replaced.
  struct stat existing;
  if (::lstat(path.c_str(), &existing) == 0) {
    if (!S_ISSOCK(existing.st_mode)) return AlreadyExists("'{}' exists and is no socket", path);
    const Status live = PacketSocket::Connect(path).status();
    if (live.code() != StatusCode::kUnavailable) return AlreadyExists("'{}' already has a live listener", path);
    ::unlink(path.c_str());
  }
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoError(errno, "socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoError(errno, fmt::format("binding '{}'", path));
  }
  // Nobody can connect before listen(), so the mode is in place in time.
  if (::chmod(path.c_str(), 0600) != 0) return ErrnoError(errno, fmt::format("setting the mode of '{}'", path));
  if (::listen(fd.get(), 64) != 0) return ErrnoError(errno, fmt::format("listening on '{}'", path));
  return PacketListener(std::move(fd), path);
}

PacketListener& PacketListener::operator=(PacketListener&& other) noexcept {
  if (this == &other) return *this;
  if (fd_.valid()) ::unlink(path_.c_str());
  fd_ = std::move(other.fd_);
  path_ = std::move(other.path_);
  return *this;
}

PacketListener::~PacketListener() {
  if (fd_.valid()) ::unlink(path_.c_str());
}

StatusOr<PacketSocket> PacketListener::Accept() {
  UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Unavailable("no connection is waiting");
    return ErrnoError(errno, fmt::format("accepting on '{}'", path_));
  }
  return PacketSocket(std::move(fd));
}

}  // namespace tidepool
