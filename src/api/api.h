// The front ends of one serving node: the Open Inference Protocol over gRPC and over REST, health, and metrics.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/options.h"
#include "base/status.h"
#include "pool/broker.h"
#include "serve/server.h"

namespace tidepool::api {

struct ApiOptions {
  std::string address = "127.0.0.1";  // an IP address, or "localhost"
  // 0: any free port; negative: this front end is off.
  int http_port = 8000, grpc_port = 8001, metrics_port = 8002;
  bool allow_public = false;                      // --allow-public: needed for every address that other machines can reach
  std::string metrics_compat;                     // "triton" adds nv_inference_* metrics; empty: none
  int64_t max_message_bytes = int64_t{64} << 20;  // of one request or response
  int64_t max_json_bytes = int64_t{16} << 20;     // of the JSON part of a REST request
  int64_t max_header_bytes = int64_t{32} << 10;
  int max_connections = 1024;                          // of each HTTP port; more are answered with 503 and closed
  absl::Duration request_timeout = absl::Seconds(30);  // for requests that bring no deadline of their own
  absl::Duration header_timeout = absl::Seconds(10);   // from the first byte of a request to the end of its header
  absl::Duration body_timeout = absl::Seconds(60);     // to the end of its body, and to send a response
  absl::Duration idle_timeout = absl::Seconds(120);    // between requests of one connection
  int http_threads = 2;
  // The body of GET /v2/tidepool/status: one JSON object about the whole node. Empty: the path does not exist. Called on any
  // thread.
  std::function<std::string()> status_json;
  Clock* clock = Clock::Real();

  // Section [api].
  void Register(OptionTable* table);
  // Reports all faults at once.
  Status Validate() const;
};

// Thread-safe.
class Api {
 public:
  // Binds every port before it serves any: ALREADY_EXISTS names the port that is taken, PERMISSION_DENIED a public address
  // without allow_public. `server` and `brokers` (by device; none: no pool metrics) outlive the Api.
  static StatusOr<std::unique_ptr<Api>> Start(serve::Server* server, std::vector<pool::Broker*> brokers, ApiOptions options);
  virtual ~Api() = default;  // Shutdown(now)

  // The ports that are really bound; -1 for a front end that is off.
  virtual int http_port() const = 0;
  virtual int grpc_port() const = 0;
  virtual int metrics_port() const = 0;
  // "http://127.0.0.1:8000", "127.0.0.1:8001", "http://127.0.0.1:8002/metrics"; empty for a front end that is off.
  virtual std::string http_url() const = 0;
  virtual std::string grpc_target() const = 0;
  virtual std::string metrics_url() const = 0;

  // Readiness turns false and new requests get UNAVAILABLE; the ports stay open. Call it before serve::Server::Drain.
  virtual void BeginDrain() = 0;
  // Takes no more connections, lets accepted requests end until `deadline`, cancels the rest. Idempotent.
  virtual void Shutdown(absl::Time deadline) = 0;
};

}  // namespace tidepool::api
