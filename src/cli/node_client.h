// The calls that verbs make to a running node over REST, and how their answers are shown.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool::cli {

// Errors of the node come back with the code that belongs to their HTTP status and with the node's own text. Thread-compatible.
struct NodeClient {
  std::string url = "http://127.0.0.1:8000";
  absl::Duration timeout = absl::Seconds(30);

  StatusOr<std::string> Status() const;
  StatusOr<std::string> Metadata(const std::string& model) const;
  absl::Status Load(const std::string& model) const;
  absl::Status Unload(const std::string& model) const;
  // `body` is a request of the Open Inference Protocol as JSON; so is the answer.
  StatusOr<std::string> Infer(const std::string& model, const std::string& body) const;

 private:
  StatusOr<std::string> Call(const std::string& method, const std::string& path, const std::string& body) const;
};

// From the JSON of GET /v2/tidepool/status. DATA_LOSS if it is not what a node sends.
StatusOr<std::string> StatusText(const std::string& json);
StatusOr<std::string> TenantsText(const std::string& json);
StatusOr<std::string> TenantsJson(const std::string& json);

// A request with random values for every input that the model's metadata names. UNIMPLEMENTED for text inputs.
StatusOr<std::string> RandomRequest(const std::string& metadata_json, int batch, uint64_t seed);
// Name, type, shape and first values of every output.
StatusOr<std::string> AnswerText(const std::string& answer_json);

// One path segment: everything but letters, digits and -._~ is percent-encoded.
std::string EncodePathSegment(const std::string& text);

}  // namespace tidepool::cli
