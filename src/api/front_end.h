// What both front ends share: the server they speak for, whether it drains, how deadlines are made, and counts of their requests.
#pragma once

#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/admin_executor.h"
#include "api/api.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/status.h"
#include "pool/broker.h"
#include "serve/server.h"

namespace tidepool::api {

inline constexpr std::string_view kServerName = "tidepool";
extern const char* const kServerVersion;

// "READY", "LOADING", "UNLOADING" or "UNAVAILABLE", as repository clients read it. A model that is not resident but can be loaded
// on its first request is READY.
std::string_view IndexState(const serve::ModelStatus& status);
bool IsReady(const serve::ModelStatus& status);

// Thread-safe.
class FrontEnd {
 public:
  FrontEnd(serve::Server* server, std::vector<pool::Broker*> brokers, const ApiOptions& options);

  serve::Server& server() { return *server_; }
  const std::vector<pool::Broker*>& brokers() const { return brokers_; }  // by device; may be empty
  const ApiOptions& options() const { return options_; }
  Clock& clock() { return *options_.clock; }
  AdminExecutor& admin() { return admin_; }

  void BeginDrain() { draining_ = true; }
  bool draining() const { return draining_; }
  // Whether requests are taken now.
  bool Ready() { return !draining_ && server_->Ready(); }
  // UNAVAILABLE while draining.
  Status CheckOpen() const;

  // On clock(): `timeout` from now, or the default where the client gave none (zero or infinite).
  absl::Time DeadlineAfter(absl::Duration timeout);

  // The model, if it exists and has that version (empty: any).
  StatusOr<serve::ModelStatus> FindModel(const std::string& name, const std::string& version);

  // Counts one answered inference request. `api` is "grpc" or "rest".
  void Record(std::string_view api, const std::string& model, const Status& status, absl::Time started);

  // How long administrative calls may take.
  absl::Time AdminDeadline() { return clock().Now() + absl::Seconds(120); }

 private:
  serve::Server* const server_;
  const std::vector<pool::Broker*> brokers_;
  const ApiOptions options_;
  std::atomic<bool> draining_{false};
  AdminExecutor admin_;
};

// The protocol's extensions that both front ends speak.
std::vector<std::string> ServerExtensions();

// Reads the repository again if the model is unknown, then makes it resident. Blocks.
Status LoadModel(FrontEnd* front_end, const std::string& model);

}  // namespace tidepool::api
