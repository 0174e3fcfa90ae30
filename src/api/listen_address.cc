#include "api/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/fd.h"

namespace tidepool::api {
namespace {

bool ParseV4(const std::string& ip, in_addr* out) { return inet_pton(AF_INET, ip.c_str(), out) == 1; }
bool ParseV6(const std::string& ip, in6_addr* out) { return inet_pton(AF_INET6, ip.c_str(), out) == 1; }

}  // namespace

StatusOr<std::string> ResolveListenAddress(const std::string& address) {
  if (address == "localhost") return std::string("127.0.0.1");
  in_addr v4;
  in6_addr v6;
  if (ParseV4(address, &v4) || ParseV6(address, &v6)) return address;
  return InvalidArgument("'{}' is not an IP address; allowed: for example 127.0.0.1, ::1, localhost", address);
}

bool IsLoopback(const std::string& ip) {
  in_addr v4;
  if (ParseV4(ip, &v4)) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  return ParseV6(ip, &v6) && IN6_IS_ADDR_LOOPBACK(&v6);
}

std::string HostAndPort(const std::string& ip, int port) {
  return ip.find(':') == std::string::npos ? fmt::format("{}:{}", ip, port) : fmt::format("[{}]:{}", ip, port);
}

std::string ClientAddress(const std::string& ip) {
  if (ip == "0.0.0.0") return "127.0.0.1";
  return ip == "::" ? "::1" : ip;
}

Status CheckPortFree(const std::string& what, const std::string& ip, int port) {
  if (port == 0) return absl::OkStatus();
  sockaddr_storage storage{};
  socklen_t length = sizeof(sockaddr_in);
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (ParseV4(ip, &v4->sin_addr)) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
  } else if (ParseV6(ip, &v6->sin6_addr)) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    length = sizeof(sockaddr_in6);
  } else {
    return InvalidArgument("{} address '{}' is not an IP address", what, ip);
  }
  const UniqueFd fd(::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  if (!fd.valid() || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      ::bind(fd.get(), reinterpret_cast<sockaddr*>(&storage), length) != 0 || ::listen(fd.get(), 1) != 0) {
    return ErrnoError(errno, fmt::format("{} cannot listen on {}", what, HostAndPort(ip, port)));
  }
  return absl::OkStatus();
}

}  // namespace tidepool::api
