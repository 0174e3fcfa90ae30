// GRPCInferenceService of proto/inference.proto on one port, with the standard health service and reflection.
#pragma once

#include <absl/time/time.h>

#include <memory>

#include "api/front_end.h"
#include "base/status.h"

namespace tidepool::api {

// Thread-safe.
class GrpcServer {
 public:
  // Binds and serves at once. ALREADY_EXISTS if the port is taken. `front_end` outlives the server.
  static StatusOr<std::unique_ptr<GrpcServer>> Start(FrontEnd* front_end);
  virtual ~GrpcServer() = default;  // Shutdown(now)
  virtual int port() const = 0;
  // Lets running calls end until `deadline`, then cancels them. Idempotent.
  virtual void Shutdown(absl::Time deadline) = 0;
};

}  // namespace tidepool::api
