#include "api/front_end.h"

#include <utility>

namespace tidepool::api {

const char* const kServerVersion = TIDEPOOL_VERSION;

std::string_view IndexState(const serve::ModelStatus& status) {
  if (!status.servable) return "UNAVAILABLE";
  switch (status.state) {
    case serve::ModelState::kLoading: return "LOADING";
    case serve::ModelState::kDraining: return "UNLOADING";
    case serve::ModelState::kAbsent:
    case serve::ModelState::kReady: break;
  }
  return "READY";
}

bool IsReady(const serve::ModelStatus& status) { return status.servable && status.state != serve::ModelState::kDraining; }

FrontEnd::FrontEnd(serve::Server* server, std::vector<pool::Broker*> brokers, const ApiOptions& options)
    : server_(server), brokers_(std::move(brokers)), options_(options), admin_(/*threads=*/2, /*queue_limit=*/64) {}

Status FrontEnd::CheckOpen() const {
  if (draining_) return Unavailable("the server is draining and takes no new requests");
  return absl::OkStatus();
}

absl::Time FrontEnd::DeadlineAfter(absl::Duration timeout) {
  if (timeout <= absl::ZeroDuration() || timeout == absl::InfiniteDuration()) timeout = options_.request_timeout;
  return clock().Now() + timeout;
}

StatusOr<serve::ModelStatus> FrontEnd::FindModel(const std::string& name, const std::string& version) {
  TIDEPOOL_ASSIGN_OR_RETURN(serve::ModelStatus status, server_->Model(name));
  if (!version.empty()) {
    bool known = false;
    std::string versions;
    for (const std::string& have : status.versions) {
      known = known || have == version;
      versions += (versions.empty() ? "" : ", ") + have;
    }
    if (!known)
      return NotFound("model '{}' has no version '{}'; it has: {}", name, version, versions.empty() ? "none" : versions);
  }
  return status;
}

void FrontEnd::Record(std::string_view api, const std::string& model, const Status& status, absl::Time started) {
  Metrics& metrics = Metrics::Default();
  metrics
      .Counter("tidepool_api_requests_total", "Inference requests answered by a front end, by status code",
               {{"api", std::string(api)}, {"code", CodeName(status.code())}})
      .Increment();
  // Only names that were served become labels: a client cannot grow the table by asking for models that do not exist.
  if (status.ok()) {
    metrics
        .Histogram("tidepool_api_request_duration_seconds", "Time from a request's arrival at the front end to its answer",
                   {{"api", std::string(api)}, {"model", model}})
        .Observe(absl::ToDoubleSeconds(clock().Now() - started));
  }
}

std::vector<std::string> ServerExtensions() {
  return {"binary_tensor_data", "model_configuration", "model_repository", "statistics"};
}

Status LoadModel(FrontEnd* front_end, const std::string& model) {
  if (absl::IsNotFound(front_end->server().Model(model).status())) TIDEPOOL_RETURN_IF_ERROR(front_end->server().Rescan());
  return front_end->server().Load(model, front_end->AdminDeadline());
}

}  // namespace tidepool::api
