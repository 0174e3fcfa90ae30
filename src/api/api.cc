#include "api/api.h"

#include <utility>

#include "api/front_end.h"
#include "api/grpc_server.h"
#include "api/http_server.h"
#include "api/listen_address.h"
#include "api/rest_routes.h"
#include "base/text.h"
#include "base/units.h"

namespace tidepool::api {
namespace {

class ApiImpl : public Api {
 public:
  ApiImpl(serve::Server* server, std::vector<pool::Broker*> brokers, const ApiOptions& options)
      : front_end_(server, std::move(brokers), options),
        rest_router_(MakeRestRouter(&front_end_)),
        metrics_router_(MakeMetricsRouter(&front_end_)) {}
  ~ApiImpl() override { Shutdown(absl::InfinitePast()); }

  Status Listen();

  int http_port() const override { return rest_ == nullptr ? -1 : rest_->port(); }
  int grpc_port() const override { return grpc_ == nullptr ? -1 : grpc_->port(); }
  int metrics_port() const override { return metrics_ == nullptr ? -1 : metrics_->port(); }
  std::string http_url() const override { return rest_ == nullptr ? "" : "http://" + Target(rest_->port()); }
  std::string grpc_target() const override { return grpc_ == nullptr ? "" : Target(grpc_->port()); }
  std::string metrics_url() const override {
    return metrics_ == nullptr ? "" : "http://" + Target(metrics_->port()) + "/metrics";
  }

  void BeginDrain() override { front_end_.BeginDrain(); }
  void Shutdown(absl::Time deadline) override {
    BeginDrain();
    if (rest_ != nullptr) rest_->Shutdown(deadline);
    if (grpc_ != nullptr) grpc_->Shutdown(deadline);
    if (metrics_ != nullptr) metrics_->Shutdown(deadline);
  }

 private:
  std::string Target(int port) const { return HostAndPort(ClientAddress(options().address), port); }
  const ApiOptions& options() const { return front_end_.options(); }
  HttpServerOptions HttpOptions(const char* name, int port, int threads) const;

  FrontEnd front_end_;
  const Router rest_router_, metrics_router_;
  std::unique_ptr<HttpServer> rest_, metrics_;
  std::unique_ptr<GrpcServer> grpc_;
};

HttpServerOptions ApiImpl::HttpOptions(const char* name, int port, int threads) const {
  const ApiOptions& from = options();
  return {.name = name,
          .address = from.address,
          .port = port,
          .threads = threads,
          .max_body_bytes = from.max_message_bytes,
          .max_header_bytes = from.max_header_bytes,
          .max_connections = from.max_connections,
          .header_timeout = from.header_timeout,
          .body_timeout = from.body_timeout,
          .idle_timeout = from.idle_timeout,
          .clock = from.clock};
}

Status ApiImpl::Listen() {
  if (options().http_port >= 0) {
    TIDEPOOL_ASSIGN_OR_RETURN(rest_, HttpServer::Bind(HttpOptions("REST", options().http_port, options().http_threads)));
  }
  if (options().metrics_port >= 0) {
    TIDEPOOL_ASSIGN_OR_RETURN(metrics_, HttpServer::Bind(HttpOptions("metrics", options().metrics_port, 1)));
  }
  if (options().grpc_port >= 0) {
    TIDEPOOL_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(&front_end_));
  }
  if (rest_ != nullptr) rest_->Serve(&rest_router_);
  if (metrics_ != nullptr) metrics_->Serve(&metrics_router_);
  return absl::OkStatus();
}

}  // namespace

void ApiOptions::Register(OptionTable* table) {
  table->Add({.key = "api.address", .help = "IP address that the APIs listen on", .metavar = "IP"}, &address);
  table->Add({.key = "api.http_port", .help = "Port of the REST API; 0: any free one, -1: off"}, &http_port);
  table->Add({.key = "api.grpc_port", .help = "Port of the gRPC API; 0: any free one, -1: off"}, &grpc_port);
  table->Add({.key = "api.metrics_port", .help = "Port of the metrics; 0: any free one, -1: off"}, &metrics_port);
  table->Add({.key = "api.allow_public", .help = "Allow an address that other machines can reach"}, &allow_public);
  table->Add({.key = "api.metrics_compat",
              .help = "'triton' adds metrics under the names of that server",
              .metavar = "NAME",
              .advanced = true},
             &metrics_compat);
  table->Add({.key = "api.max_message", .help = "Largest request or answer", .advanced = true}, BytesField{&max_message_bytes});
  table->Add({.key = "api.max_json", .help = "Largest JSON part of a REST request", .advanced = true},
             BytesField{&max_json_bytes});
  table->Add({.key = "api.max_header", .help = "Largest header of a request", .advanced = true}, BytesField{&max_header_bytes});
  table->Add({.key = "api.max_connections", .help = "Open connections of each port", .advanced = true}, &max_connections);
  table->Add({.key = "api.request_timeout", .help = "Deadline of requests that bring none", .advanced = true}, &request_timeout);
  table->Add({.key = "api.header_timeout", .help = "Limit for sending a request's header", .advanced = true}, &header_timeout);
  table->Add({.key = "api.body_timeout", .help = "Limit for sending a request's body", .advanced = true}, &body_timeout);
  table->Add({.key = "api.idle_timeout", .help = "Idle connections are closed after this", .advanced = true}, &idle_timeout);
  table->Add({.key = "api.http_threads", .help = "Threads of the REST API", .advanced = true}, &http_threads);
}

Status ApiOptions::Validate() const {
  std::vector<std::string> faults;
  const auto check_port = [&](const char* name, int port) {
    if (port < -1 || port > 65535)
      faults.push_back(fmt::format("{} is {}; allowed: 1 to 65535, 0 (any free), -1 (off)", name, port));
  };
  check_port("http_port", http_port);
  check_port("grpc_port", grpc_port);
  check_port("metrics_port", metrics_port);
  const auto check_range = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) faults.push_back(fmt::format("{} is {}; allowed: {} to {}", name, value, low, high));
  };
  check_range("max_message", max_message_bytes, 1024, int64_t{1} << 30);
  check_range("max_json", max_json_bytes, 1024, int64_t{1} << 30);
  check_range("max_header", max_header_bytes, 1024, int64_t{1} << 20);
  check_range("max_connections", max_connections, 1, 1 << 20);
  check_range("http_threads", http_threads, 1, 256);
  const auto check_duration = [&](const char* name, absl::Duration value) {
    if (value <= absl::ZeroDuration() || value > absl::Hours(24)) {
      faults.push_back(fmt::format("{} is {}; allowed: above 0, at most 24h", name, tidepool::FormatDuration(value)));
    }
  };
  check_duration("request_timeout", request_timeout);
  check_duration("header_timeout", header_timeout);
  check_duration("body_timeout", body_timeout);
  check_duration("idle_timeout", idle_timeout);
  if (!metrics_compat.empty() && metrics_compat != "triton") {
    faults.push_back(fmt::format("metrics_compat is '{}'; allowed: triton, or nothing", metrics_compat));
  }
  const StatusOr<std::string> ip = ResolveListenAddress(address);
  if (!ip.ok()) faults.push_back("address: " + MessageOf(ip.status()));
  if (!faults.empty()) return InvalidArgument("api: {}", JoinText(faults, "; "));
  if (!IsLoopback(*ip) && !allow_public) {
    return PermissionDenied(
        "api: address {} can be reached by other machines, and the APIs have no access control; allowed: loopback addresses, or "
        "this "
        "one with --allow-public",
        address);
  }
  return absl::OkStatus();
}

StatusOr<std::unique_ptr<Api>> Api::Start(serve::Server* server, std::vector<pool::Broker*> brokers, ApiOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(options.address, ResolveListenAddress(options.address));
  auto api = std::make_unique<ApiImpl>(server, std::move(brokers), options);
  TIDEPOOL_RETURN_IF_ERROR(api->Listen());
  return api;
}

}  // namespace tidepool::api
