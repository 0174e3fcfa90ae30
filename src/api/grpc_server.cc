#include "api/grpc_server.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "api/grpc_service.h"
#include "api/listen_address.h"
#include "base/log.h"

namespace tidepool::api {
namespace {

constexpr absl::Duration kHealthInterval = absl::Milliseconds(100);
constexpr char kServiceName[] = "inference.GRPCInferenceService";

// gRPC's plugins are process-wide and must be switched on before the first server is built.
void InitPluginsOnce() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    // Protobuf reports what is wrong with a peer's message on stderr; a peer must not be able to fill our log.
    google::protobuf::SetLogHandler([](google::protobuf::LogLevel, const char*, int, const std::string& text) {
      if (LogEnabled(LogLevel::kDebug)) Log(LogLevel::kDebug, "protobuf", {{"message", text}});
    });
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

class GrpcServerImpl : public GrpcServer {
 public:
  explicit GrpcServerImpl(FrontEnd* front_end) : front_end_(front_end), service_(front_end) {}
  ~GrpcServerImpl() override { Shutdown(absl::InfinitePast()); }

  Status Listen();
  int port() const override { return port_; }
  void Shutdown(absl::Time deadline) override;

 private:
  void FollowHealth();

  FrontEnd* const front_end_;
  InferenceService service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread health_thread_;
};

Status GrpcServerImpl::Listen() {
  InitPluginsOnce();
  const ApiOptions& options = front_end_->options();
  const std::string address = HostAndPort(options.address, options.grpc_port);
  // gRPC reports a port that is taken as "no server", without the reason; asking first gives the reason.
  TIDEPOOL_RETURN_IF_ERROR(CheckPortFree("gRPC", options.address, options.grpc_port));
  const int limit = static_cast<int>(options.max_message_bytes);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(limit);
  builder.SetMaxSendMessageSize(limit);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_connections);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(options.max_header_bytes));
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) return Unavailable("gRPC cannot listen on {}", address);
  health_thread_ = std::thread([this] { FollowHealth(); });
  return absl::OkStatus();
}

// serve::Server has no event for "ready", so the health service follows it.
void GrpcServerImpl::FollowHealth() {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  const auto stopping = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_; };
  bool known = false, last = false;
  while (true) {
    const bool ready = front_end_->Ready();
    if (!known || ready != last) {
      health->SetServingStatus("", ready);
      health->SetServingStatus(kServiceName, ready);
    }
    known = true;
    last = ready;
    absl::MutexLock lock(&mu_);
    if (front_end_->clock().Await(&mu_, stopping, front_end_->clock().Now() + kHealthInterval)) return;
  }
}

void GrpcServerImpl::Shutdown(absl::Time deadline) {
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return;
    stopping_ = true;
  }
  if (health_thread_.joinable()) health_thread_.join();
  if (server_ == nullptr) return;
  server_->GetHealthCheckService()->Shutdown();
  const absl::Duration wait = std::max(absl::ZeroDuration(), deadline - front_end_->clock().Now());
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(std::min(wait, absl::Hours(1))));
  server_->Wait();
}

}  // namespace

StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(FrontEnd* front_end) {
  auto server = std::make_unique<GrpcServerImpl>(front_end);
  TIDEPOOL_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace tidepool::api
