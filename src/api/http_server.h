// HTTP/1.1 on one port: connections, limits and timeouts. What the requests mean is the Router's.
#pragma once

#include <absl/time/time.h>

#include <memory>
#include <string>

#include "api/http.h"
#include "base/clock.h"
#include "base/status.h"

namespace tidepool::api {

struct HttpServerOptions {
  std::string name = "HTTP";          // for errors and logs
  std::string address = "127.0.0.1";  // an IP address
  int port = 0;                       // 0: any free one
  int threads = 1;
  int64_t max_body_bytes = int64_t{64} << 20;    // more: 413
  int64_t max_header_bytes = int64_t{32} << 10;  // more: 431
  int max_connections = 1024;                    // more: 503 and closed
  // A client that is slower than these is disconnected. They are times of the socket layer, which keeps its own timers.
  absl::Duration header_timeout = absl::Seconds(10);  // from the first byte of a request to the end of its header
  absl::Duration body_timeout = absl::Seconds(60);    // of its body, and of its answer
  absl::Duration idle_timeout = absl::Seconds(120);   // between requests
  Clock* clock = Clock::Real();                       // for Shutdown
};

// Keep-alive and pipelined requests are answered in order, one at a time for each connection. A client that closes its connection
// (or its sending half) while its request runs cancels it. Thread-safe.
class HttpServer {
 public:
  // Listens; nothing is accepted before Serve. ALREADY_EXISTS if the port is taken.
  static StatusOr<std::unique_ptr<HttpServer>> Bind(const HttpServerOptions& options);
  virtual ~HttpServer() = default;  // Shutdown(now)

  virtual int port() const = 0;
  // `router` outlives the server, and so does everything that calls its replies late: a reply after Shutdown is dropped.
  virtual void Serve(const Router* router) = 0;
  virtual int connections() = 0;  // open now
  // Accepts no more, closes idle connections, lets running requests end until `deadline`, then cancels them. Idempotent.
  virtual void Shutdown(absl::Time deadline) = 0;
};

}  // namespace tidepool::api
