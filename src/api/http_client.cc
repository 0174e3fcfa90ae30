#include "api/http_client.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <memory>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"

namespace tidepool::api {
namespace {

struct Url {
  std::string host, port, path;
};

StatusOr<Url> ParseUrl(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) return InvalidArgument("the URL '{}' does not begin with http://", text);
  const size_t slash = text.find('/', kScheme.size());
  std::string authority = text.substr(kScheme.size(), slash == std::string::npos ? std::string::npos : slash - kScheme.size());
  Url url{.port = "80", .path = slash == std::string::npos ? "/" : text.substr(slash)};
  const size_t bracket = authority.rfind(']');
  const size_t colon = authority.rfind(':');
  if (colon != std::string::npos && (bracket == std::string::npos || colon > bracket)) {
    url.port = authority.substr(colon + 1);
    authority.resize(colon);
  }
  if (authority.size() > 2 && authority.front() == '[' && authority.back() == ']')
    authority = authority.substr(1, authority.size() - 2);
  url.host = authority;
  const auto bad = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == 0x7F; };
  if (url.host.empty() || url.port.empty() ||
      !std::all_of(url.port.begin(), url.port.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
      std::any_of(text.begin(), text.end(), bad)) {
    return InvalidArgument("the URL '{}' is not of the form http://HOST[:PORT]/PATH", text);
  }
  return url;
}

// Waits for `events`; DEADLINE_EXCEEDED if they do not come.
Status AwaitSocket(int fd, short events, absl::Time deadline, const std::string& what) {
  while (true) {
    const absl::Duration left = deadline - Clock::Real()->Now();
    if (left <= absl::ZeroDuration()) return DeadlineExceeded("{} did not answer in time", what);
    pollfd poll_fd{.fd = fd, .events = events};
    const int ready = ::poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 60'000)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return ErrnoError(errno, "cannot wait for " + what);
  }
}

StatusOr<UniqueFd> Connect(const Url& url, absl::Time deadline) {
  addrinfo hints{.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found); error != 0) {
    return Unavailable("cannot find '{}:{}': {}", url.host, url.port, ::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, &::freeaddrinfo);
  const std::string where = url.host + ":" + url.port;
  Status last = Unavailable("'{}' has no address", where);
  for (const addrinfo* one = list.get(); one != nullptr; one = one->ai_next) {
    UniqueFd fd(::socket(one->ai_family, one->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid()) return ErrnoError(errno, "cannot make a socket");
    int error = ::connect(fd.get(), one->ai_addr, one->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      TIDEPOOL_RETURN_IF_ERROR(AwaitSocket(fd.get(), POLLOUT, deadline, where));
      socklen_t size = sizeof(error);
      if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    }
    if (error == 0) return fd;
    last = Unavailable("cannot reach {}: {}", where, std::error_code(error, std::generic_category()).message());
  }
  return last;
}

Status SendAll(int fd, std::string_view text, absl::Time deadline, const std::string& where) {
  while (!text.empty()) {
    const ssize_t sent = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      text.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      TIDEPOOL_RETURN_IF_ERROR(AwaitSocket(fd, POLLOUT, deadline, where));
    } else if (errno != EINTR) {
      // A server that refuses a request may answer and close before it has read all of it.
      return errno == EPIPE || errno == ECONNRESET ? Status()
                                                   : Unavailable("the connection to {} broke: {}", where,
                                                                 std::error_code(errno, std::generic_category()).message());
    }
  }
  return {};
}

StatusOr<std::string> ReceiveAll(int fd, int64_t limit_bytes, absl::Time deadline, const std::string& where) {
  std::string text;
  char buffer[64 * 1024];
  while (true) {
    const ssize_t got = ::recv(fd, buffer, sizeof(buffer), 0);
    if (got == 0) return text;
    if (got > 0) {
      text.append(buffer, static_cast<size_t>(got));
      if (static_cast<int64_t>(text.size()) > limit_bytes)
        return ResourceExhausted("the answer of {} is longer than {} bytes", where, limit_bytes);
    } else if (errno == EAGAIN) {
      TIDEPOOL_RETURN_IF_ERROR(AwaitSocket(fd, POLLIN, deadline, where));
    } else if (errno == ECONNRESET && !text.empty()) {
      return text;
    } else if (errno != EINTR) {
      return Unavailable("the connection to {} broke: {}", where, std::error_code(errno, std::generic_category()).message());
    }
  }
}

StatusOr<std::string> Unchunk(std::string_view text) {
  std::string body;
  while (true) {
    const size_t end = text.find("\r\n");
    uint64_t size = 0;
    const std::string_view line = text.substr(0, end);
    const auto [stop, error] = std::from_chars(line.data(), line.data() + line.size(), size, 16);
    if (end == std::string_view::npos || error != std::errc() || stop == line.data())
      return DataLoss("the answer holds a broken chunk");
    text.remove_prefix(end + 2);
    if (size == 0) return body;
    if (size > text.size() || text.size() - size < 2) return DataLoss("the answer ends within a chunk");
    body.append(text.substr(0, size));
    text.remove_prefix(size + 2);
  }
}

}  // namespace

StatusOr<HttpAnswer> ParseHttpAnswer(std::string_view text) {
  const size_t header_end = text.find("\r\n\r\n");
  if (header_end == std::string_view::npos || !text.starts_with("HTTP/1."))
    return DataLoss("the answer is not HTTP/1: '{}'", text.substr(0, 40));
  HttpAnswer answer;
  std::string_view header = text.substr(0, header_end), body = text.substr(header_end + 4);
  const size_t first_line = std::min(header.find("\r\n"), header.size());
  const std::string_view status = header.substr(0, first_line);
  if (status.size() < 12 || std::from_chars(status.data() + 9, status.data() + 12, answer.status).ec != std::errc()) {
    return DataLoss("the answer has no status: '{}'", status.substr(0, 40));
  }
  header.remove_prefix(std::min(header.size(), first_line + 2));
  while (!header.empty()) {
    const size_t end = std::min(header.find("\r\n"), header.size());
    const std::string_view line = header.substr(0, end);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) return DataLoss("the answer has a broken header line: '{}'", line.substr(0, 40));
    std::string name(line.substr(0, colon));
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    answer.headers[name] = std::string(TrimText(line.substr(colon + 1)));
    header.remove_prefix(std::min(header.size(), end + 2));
  }
  if (const auto coding = answer.headers.find("transfer-encoding"); coding != answer.headers.end()) {
    if (coding->second != "chunked")
      return Unimplemented("the answer has the transfer coding '{}'; allowed: chunked", coding->second);
    TIDEPOOL_ASSIGN_OR_RETURN(answer.body, Unchunk(body));
    return answer;
  }
  if (const auto length = answer.headers.find("content-length"); length != answer.headers.end()) {
    uint64_t size = 0;
    const char* end = length->second.data() + length->second.size();
    if (const auto [stop, error] = std::from_chars(length->second.data(), end, size); error != std::errc() || stop != end) {
      return DataLoss("the answer has the length '{}'", length->second);
    }
    if (body.size() < size) return DataLoss("the answer ended after {} of {} bytes", body.size(), size);
    body = body.substr(0, size);
  }
  answer.body = std::string(body);
  return answer;
}

StatusOr<HttpAnswer> CallHttp(const HttpCall& call) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Url url, ParseUrl(call.url));
  const absl::Time deadline = Clock::Real()->Now() + call.timeout;
  TIDEPOOL_ASSIGN_OR_RETURN(const UniqueFd fd, Connect(url, deadline));
  const std::string where = url.host + ":" + url.port;
  std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", call.method, url.path, where);
  for (const auto& [name, value] : call.headers) text += fmt::format("{}: {}\r\n", name, value);
  if (!call.body.empty() || call.method == "POST") text += fmt::format("Content-Length: {}\r\n", call.body.size());
  text += "\r\n";
  text += call.body;
  TIDEPOOL_RETURN_IF_ERROR(SendAll(fd.get(), text, deadline, where));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string received, ReceiveAll(fd.get(), call.max_answer_bytes, deadline, where));
  if (received.empty()) return Unavailable("{} closed the connection without an answer", where);
  return ParseHttpAnswer(received);
}

}  // namespace tidepool::api
