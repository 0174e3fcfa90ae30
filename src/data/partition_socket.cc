#include "data/partition_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/clock.h"

namespace tidepool::data {
namespace {

Status PollFor(int fd, short events, absl::Time deadline, const char* what) {
  while (true) {
    const absl::Duration left = deadline - Clock::Real()->Now();
    if (left <= absl::ZeroDuration()) return DeadlineExceeded("{}: the peer took too long", what);
    const int timeout_ms = static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left), 1 << 30) + 1);
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, timeout_ms);
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return ErrnoError(errno, fmt::format("poll for {}", what));
  }
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using AddressPtr = std::unique_ptr<addrinfo, FreeAddresses>;

StatusOr<AddressPtr> ParseAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (host.empty() || port.empty() || ::getaddrinfo(host.c_str(), port.c_str(), &hints, &list) != 0) {
    return InvalidArgument("address '{}'; allowed: a numeric address and a port, for example 127.0.0.1:7000 or [::1]:7000",
                           address);
  }
  return AddressPtr(list);
}

StatusOr<UniqueFd> MakeSocket(const addrinfo& address) {
  UniqueFd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoError(errno, "socket");
  return fd;
}

void SetNoDelay(int fd) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

std::string ToText(const sockaddr_storage& address) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), sizeof(address), host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "?";
  }
  return address.ss_family == AF_INET6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

}  // namespace

Status CheckAddress(const std::string& address) { return ParseAddress(address).status(); }

bool IsLoopback(const std::string& address) {
  const auto parsed = ParseAddress(address);
  if (!parsed.ok()) return false;
  if ((*parsed)->ai_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>((*parsed)->ai_addr)->sin_addr.s_addr) >> 24 == 127;
  }
  return (*parsed)->ai_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>((*parsed)->ai_addr)->sin6_addr);
}

StatusOr<TcpSocket> TcpSocket::Connect(const std::string& address, absl::Time deadline) {
  TIDEPOOL_ASSIGN_OR_RETURN(const AddressPtr parsed, ParseAddress(address));
  TIDEPOOL_ASSIGN_OR_RETURN(UniqueFd fd, MakeSocket(*parsed));
  const std::string what = fmt::format("connecting to {}", address);
  if (::connect(fd.get(), parsed->ai_addr, parsed->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return ErrnoError(errno, what);
    TIDEPOOL_RETURN_IF_ERROR(PollFor(fd.get(), POLLOUT, deadline, what.c_str()));
    int error = 0;
    socklen_t size = sizeof(error);
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return ErrnoError(error, what);
  }
  SetNoDelay(fd.get());
  return TcpSocket(std::move(fd));
}

Status TcpSocket::Send(std::span<const std::byte> first, std::span<const std::byte> second, absl::Time deadline) {
  while (!first.empty() || !second.empty()) {
    iovec parts[2] = {{const_cast<std::byte*>(first.data()), first.size()},
                      {const_cast<std::byte*>(second.data()), second.size()}};
    msghdr message{};
    message.msg_iov = first.empty() ? parts + 1 : parts;
    message.msg_iovlen = first.empty() || second.empty() ? 1 : 2;
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return ErrnoError(errno, "sending to the peer");
      TIDEPOOL_RETURN_IF_ERROR(PollFor(fd_.get(), POLLOUT, deadline, "sending"));
      continue;
    }
    const size_t of_first = std::min(first.size(), static_cast<size_t>(sent));
    first = first.subspan(of_first);
    second = second.subspan(static_cast<size_t>(sent) - of_first);
  }
  return {};
}

Status TcpSocket::Receive(std::span<std::byte> bytes, absl::Time deadline, size_t* got) {
  size_t ignored = 0;
  size_t& done = got == nullptr ? ignored : *got;
  done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::recv(fd_.get(), bytes.data() + done, bytes.size() - done, 0);
    if (count == 0) return Unavailable("the peer closed the connection");
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return ErrnoError(errno, "receiving from the peer");
      TIDEPOOL_RETURN_IF_ERROR(PollFor(fd_.get(), POLLIN, deadline, "receiving"));
      continue;
    }
    done += static_cast<size_t>(count);
    // A peer that sends a byte at a time must not outrun the deadline.
    if (done < bytes.size() && Clock::Real()->Now() > deadline) return DeadlineExceeded("receiving: the peer took too long");
  }
  return {};
}

void TcpSocket::Shutdown() const {
  if (fd_.valid()) ::shutdown(fd_.get(), SHUT_RDWR);
}

StatusOr<TcpListener> TcpListener::Listen(const std::string& address) {
  TIDEPOOL_ASSIGN_OR_RETURN(const AddressPtr parsed, ParseAddress(address));
  TcpListener listener;
  TIDEPOOL_ASSIGN_OR_RETURN(listener.fd_, MakeSocket(*parsed));
  const int one = 1;
  ::setsockopt(listener.fd_.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (::bind(listener.fd_.get(), parsed->ai_addr, parsed->ai_addrlen) != 0) {
    if (errno == EADDRINUSE) return AlreadyExists("listening on {}: the port is taken", address);
    return ErrnoError(errno, fmt::format("binding {}", address));
  }
  if (::listen(listener.fd_.get(), 64) != 0) return ErrnoError(errno, fmt::format("listening on {}", address));
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  ::getsockname(listener.fd_.get(), reinterpret_cast<sockaddr*>(&bound), &size);
  listener.address_ = ToText(bound);
  return listener;
}

StatusOr<TcpSocket> TcpListener::Accept() {
  UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNABORTED || errno == EINTR) {
      return Unavailable("no connection is waiting");
    }
    return ErrnoError(errno, fmt::format("accepting on {}", address_));
  }
  SetNoDelay(fd.get());
  return TcpSocket(std::move(fd));
}

}  // namespace tidepool::data
