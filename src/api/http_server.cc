#include "api/http_server.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <thread>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include "api/json_codec.h"
#include "base/log.h"

namespace tidepool::api {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using net::ip::tcp;

auto Await(error_code* error) { return net::redirect_error(net::use_awaitable, *error); }

std::chrono::nanoseconds Chrono(absl::Duration duration) { return absl::ToChronoNanoseconds(duration); }

// Once an answer that ends the connection has been sent, this much of what the client still sends is read and dropped: closing
// with unread bytes would reset the connection and could take the answer with it.
constexpr size_t kLingerBytes = size_t{16} << 20;
constexpr auto kLingerTime = std::chrono::seconds(1);

struct Connection {
  explicit Connection(tcp::socket socket) : stream(std::move(socket)), reply_timer(stream.get_executor()) {}
  beast::tcp_stream stream;
  beast::flat_buffer buffer;
  // The rest is touched on the connection's strand only.
  net::steady_timer reply_timer;  // cancelled when `reply` is set
  std::optional<HttpResponse> reply;
  std::shared_ptr<CancelSlot> cancel;
  bool waiting = false;  // for the reply
  bool gone = false;     // the client closed while we waited
};

// The way of a reply, from whatever thread, to its connection. Closed before the connection goes, after which a reply is dropped.
class ReplyPort {
 public:
  explicit ReplyPort(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  void Deliver(HttpResponse response) {
    absl::MutexLock lock(&mu_);
    if (connection_ == nullptr) return;
    // Posting under the lock makes Close() final: after it nothing reaches the event loop, which may be gone by then.
    auto executor = connection_->stream.get_executor();
    net::post(executor, [connection = std::move(connection_), response = std::move(response)]() mutable {
      connection->reply = std::move(response);
      connection->reply_timer.cancel();
    });
    connection_ = nullptr;
  }
  void Close() {
    absl::MutexLock lock(&mu_);
    connection_ = nullptr;
  }

 private:
  absl::Mutex mu_;
  std::shared_ptr<Connection> connection_ ABSL_GUARDED_BY(mu_);
};

class HttpServerImpl : public HttpServer {
 public:
  explicit HttpServerImpl(const HttpServerOptions& options)
      : options_(options), io_(options.threads), acceptor_(io_), accept_timer_(io_) {}
  ~HttpServerImpl() override { Shutdown(absl::InfinitePast()); }

  Status Listen();
  int port() const override { return port_; }
  void Serve(const Router* router) override;
  int connections() override { return open_.load(); }
  void Shutdown(absl::Time deadline) override;

 private:
  using ConnectionPtr = std::shared_ptr<Connection>;

  net::awaitable<void> AcceptLoop();
  net::awaitable<void> Session(ConnectionPtr connection);
  net::awaitable<void> Requests(ConnectionPtr connection);
  net::awaitable<bool> ReadBody(ConnectionPtr connection, http::request_parser<http::string_body>* parser);
  net::awaitable<HttpResponse> Answer(ConnectionPtr connection, HttpRequest request);
  // Sends; false if the connection is of no more use.
  net::awaitable<bool> Send(ConnectionPtr connection, HttpResponse response, bool keep_alive, unsigned version, bool head);
  net::awaitable<void> RefuseAndLinger(ConnectionPtr connection, HttpResponse response);
  void WatchForDisconnect(const ConnectionPtr& connection);
  HttpResponse ProtocolError(const error_code& error, bool* silent);
  void CloseConnections(bool busy_too);

  const HttpServerOptions options_;
  net::io_context io_;
  tcp::acceptor acceptor_;
  net::steady_timer accept_timer_;
  const Router* router_ = nullptr;
  int port_ = 0;
  std::atomic<int> open_{0};
  std::atomic<bool> draining_{false};
  absl::Mutex mu_;
  std::set<ConnectionPtr> live_ ABSL_GUARDED_BY(mu_);
  absl::Mutex shutdown_mu_;  // one Shutdown at a time
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(shutdown_mu_);
};

Status HttpServerImpl::Listen() {
  error_code error;
  const net::ip::address address = net::ip::make_address(options_.address, error);
  if (error) return InvalidArgument("{} address '{}' is not an IP address", options_.name, options_.address);
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(options_.port));
  const std::string what = fmt::format("{} port {} of {}", options_.name, options_.port, options_.address);
  acceptor_.open(endpoint.protocol(), error);
  if (error) return ErrnoError(error.value(), "opening " + what);
  acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (error) return ErrnoError(error.value(), "binding " + what);
  acceptor_.listen(net::socket_base::max_listen_connections, error);
  if (error) return ErrnoError(error.value(), "listening on " + what);
  port_ = acceptor_.local_endpoint(error).port();
  return absl::OkStatus();
}

void HttpServerImpl::Serve(const Router* router) {
  absl::MutexLock lock(&shutdown_mu_);
  router_ = router;
  net::co_spawn(io_, AcceptLoop(), net::detached);
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { io_.run(); });
}

net::awaitable<void> HttpServerImpl::AcceptLoop() {
  while (!draining_) {
    tcp::socket socket(net::make_strand(io_));
    error_code error;
    co_await acceptor_.async_accept(socket, Await(&error));
    if (error == net::error::operation_aborted || draining_) break;
    if (error) {
      // Out of descriptors, most likely: others must end first.
      Log(LogLevel::kWarning, "accept failed", {{"server", options_.name}, {"error", error.message()}});
      accept_timer_.expires_after(std::chrono::milliseconds(100));
      co_await accept_timer_.async_wait(Await(&error));
      continue;
    }
    socket.set_option(tcp::no_delay(true), error);
    const int open = open_.fetch_add(1) + 1;
    auto connection = std::make_shared<Connection>(std::move(socket));
    // A flood beyond the connections that get a polite answer is closed at once.
    if (open > options_.max_connections + 64) {
      open_.fetch_sub(1);
      continue;
    }
    auto executor = connection->stream.get_executor();
    net::co_spawn(executor, Session(std::move(connection)), net::detached);
  }
  acceptor_.close();
}

net::awaitable<void> HttpServerImpl::Session(ConnectionPtr connection) {
  {
    absl::MutexLock lock(&mu_);
    live_.insert(connection);
  }
  if (open_.load() > options_.max_connections) {
    HttpResponse full = ErrorResponse(
        Unavailable("the server has {} connections already; allowed: {}", open_.load() - 1, options_.max_connections));
    co_await RefuseAndLinger(connection, std::move(full));
  } else {
    co_await Requests(connection);
  }
  error_code ignored;
  connection->stream.socket().shutdown(tcp::socket::shutdown_both, ignored);
  connection->stream.socket().close(ignored);
  {
    absl::MutexLock lock(&mu_);
    live_.erase(connection);
  }
  open_.fetch_sub(1);
}

// Beast's timeouts close the stream, so a client that was too slow sees the end of the connection and no text.
HttpResponse HttpServerImpl::ProtocolError(const error_code& error, bool* silent) {
  *silent = false;
  if (error == http::error::body_limit) {
    return JsonResponse(ErrorBody(fmt::format("the body is larger than {} bytes", options_.max_body_bytes)), 413);
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return JsonResponse(ErrorBody(fmt::format("the header is larger than {} bytes", options_.max_header_bytes)), 431);
  }
  *silent = error == http::error::end_of_stream || error.category() != make_error_code(http::error::bad_method).category();
  return JsonResponse(ErrorBody(fmt::format("the request is not HTTP/1.1: {}", error.message())), 400);
}

net::awaitable<void> HttpServerImpl::Requests(ConnectionPtr connection) {
  beast::tcp_stream& stream = connection->stream;
  error_code error;
  while (!draining_) {
    if (connection->buffer.size() == 0) {
      stream.expires_after(Chrono(options_.idle_timeout));
      const size_t bytes = co_await stream.async_read_some(connection->buffer.prepare(4096), Await(&error));
      if (error) co_return;
      connection->buffer.commit(bytes);
    }
    http::request_parser<http::string_body> parser;
    parser.header_limit(static_cast<uint32_t>(options_.max_header_bytes));
    parser.body_limit(static_cast<uint64_t>(options_.max_body_bytes));
    stream.expires_after(Chrono(options_.header_timeout));
    co_await http::async_read_header(stream, connection->buffer, parser, Await(&error));
    if (!error) {
      const bool go_on = co_await ReadBody(connection, &parser);
      if (!go_on) co_return;
    } else {
      bool silent = false;
      HttpResponse refusal = ProtocolError(error, &silent);
      if (!silent) co_await RefuseAndLinger(connection, std::move(refusal));
      co_return;
    }

    http::request<http::string_body> message = parser.release();
    const bool head = message.method() == http::verb::head;
    const bool keep_alive = message.keep_alive();
    const unsigned version = message.version();
    HttpRequest request;
    request.method = head ? "GET" : std::string(message.method_string());
    request.target = std::string(message.target());
    request.content_encoding = std::string(message[http::field::content_encoding]);
    if (const auto it = message.find("Inference-Header-Content-Length"); it != message.end()) {
      request.inference_header_length = std::string(it->value());
    }
    request.body = std::move(message.body());
    HttpResponse response = co_await Answer(connection, std::move(request));
    if (connection->gone) co_return;
    const bool stay = co_await Send(connection, std::move(response), keep_alive && !draining_, version, head);
    if (!stay) co_return;
  }
}

// Reads what follows the header. False: answered (or not) and done with the connection.
net::awaitable<bool> HttpServerImpl::ReadBody(ConnectionPtr connection, http::request_parser<http::string_body>* parser) {
  beast::tcp_stream& stream = connection->stream;
  error_code error;
  stream.expires_after(Chrono(options_.body_timeout));
  if (beast::iequals(parser->get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go_ahead(http::status::continue_, parser->get().version());
    co_await http::async_write(stream, go_ahead, Await(&error));
    if (error) co_return false;
  }
  co_await http::async_read(stream, connection->buffer, *parser, Await(&error));
  if (!error) co_return true;
  bool silent = false;
  HttpResponse refusal = ProtocolError(error, &silent);
  if (!silent) co_await RefuseAndLinger(connection, std::move(refusal));
  co_return false;
}

net::awaitable<HttpResponse> HttpServerImpl::Answer(ConnectionPtr connection, HttpRequest request) {
  connection->reply.reset();
  connection->waiting = true;
  connection->stream.expires_never();
  auto port = std::make_shared<ReplyPort>(connection);
  connection->cancel = router_->Handle(std::move(request), [port](HttpResponse response) { port->Deliver(std::move(response)); });
  // Pipelined bytes that are here already say nothing about a client that leaves; then only sending the answer will tell.
  if (connection->cancel != nullptr && connection->buffer.size() == 0) WatchForDisconnect(connection);
  error_code error;
  while (!connection->reply.has_value()) {
    connection->reply_timer.expires_at(std::chrono::steady_clock::time_point::max());
    co_await connection->reply_timer.async_wait(Await(&error));
  }
  port->Close();
  connection->waiting = false;
  connection->cancel.reset();
  connection->stream.socket().cancel(error);
  HttpResponse response = *std::move(connection->reply);
  connection->reply.reset();
  if (response.make) response = response.make();
  co_return response;
}

void HttpServerImpl::WatchForDisconnect(const ConnectionPtr& connection) {
  connection->stream.socket().async_wait(tcp::socket::wait_read, [connection](const error_code& error) {
    if (error || !connection->waiting) return;
    char byte;
    const ssize_t got = ::recv(connection->stream.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    const bool alive = got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
    if (alive) return;
    connection->gone = true;
    if (connection->cancel != nullptr) connection->cancel->Cancel();
  });
}

net::awaitable<bool> HttpServerImpl::Send(ConnectionPtr connection, HttpResponse response, bool keep_alive, unsigned version,
                                          bool head) {
  http::response<http::string_body> message(http::status::ok, version);
  message.result(static_cast<unsigned>(response.status));
  message.set(http::field::server, "tidepool");
  message.set(http::field::content_type, response.content_type);
  for (const auto& [name, value] : response.headers) message.set(name, value);
  message.body() = std::move(response.body);
  message.prepare_payload();
  message.keep_alive(keep_alive);
  connection->stream.expires_after(Chrono(options_.body_timeout));
  error_code error;
  if (head) {
    http::response_serializer<http::string_body> serializer(message);
    co_await http::async_write_header(connection->stream, serializer, Await(&error));
  } else {
    co_await http::async_write(connection->stream, message, Await(&error));
  }
  co_return !error && keep_alive;
}

net::awaitable<void> HttpServerImpl::RefuseAndLinger(ConnectionPtr connection, HttpResponse response) {
  co_await Send(connection, std::move(response), /*keep_alive=*/false, 11, /*head=*/false);
  error_code error;
  connection->stream.socket().shutdown(tcp::socket::shutdown_send, error);
  connection->stream.expires_after(kLingerTime);
  connection->buffer.clear();
  for (size_t dropped = 0; dropped < kLingerBytes && !error;) {
    dropped += co_await connection->stream.async_read_some(connection->buffer.prepare(size_t{64} << 10), Await(&error));
  }
}

void HttpServerImpl::CloseConnections(bool busy_too) {
  std::vector<ConnectionPtr> connections;
  {
    absl::MutexLock lock(&mu_);
    connections.assign(live_.begin(), live_.end());
  }
  for (const ConnectionPtr& connection : connections) {
    net::post(connection->stream.get_executor(), [connection, busy_too] {
      if (connection->waiting) {
        if (!busy_too) return;
        connection->gone = true;
        if (connection->cancel != nullptr) connection->cancel->Cancel();
        if (!connection->reply.has_value()) connection->reply = ErrorResponse(Unavailable("the server is shutting down"));
        connection->reply_timer.cancel();
      }
      // What is being read or written when the server drains is cut off; the client sees a closed connection.
      connection->stream.close();
    });
  }
}

void HttpServerImpl::Shutdown(absl::Time deadline) {
  absl::MutexLock lock(&shutdown_mu_);
  draining_ = true;
  if (threads_.empty()) {
    error_code ignored;
    acceptor_.close(ignored);
    return;
  }
  net::post(io_, [this] {
    error_code ignored;
    acceptor_.close(ignored);
    accept_timer_.cancel();
  });
  CloseConnections(/*busy_too=*/false);
  {
    absl::MutexLock live_lock(&mu_);
    const auto quiet = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return live_.empty(); };
    options_.clock->Await(&mu_, quiet, deadline);
  }
  // A connection that was accepted meanwhile sees draining_ and ends by itself; this cuts off the rest.
  CloseConnections(/*busy_too=*/true);
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Bind(const HttpServerOptions& options) {
  auto server = std::make_unique<HttpServerImpl>(options);
  TIDEPOOL_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace tidepool::api
