// A small HTTP/1.1 client for the verbs of the command line: one request per connection.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace tidepool::api {

struct HttpCall {
  std::string url;  // "http://127.0.0.1:8000/v2/health/ready"; only http
  std::string method = "GET";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  absl::Duration timeout = absl::Seconds(30);  // of the whole call
  int64_t max_answer_bytes = int64_t{256} << 20;
};

struct HttpAnswer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

// An answer with any HTTP status is a success. UNAVAILABLE if nobody listens or the connection broke, DEADLINE_EXCEEDED if it
// took too long, INVALID_ARGUMENT for a bad URL, DATA_LOSS for an answer that is no HTTP. Thread-safe.
StatusOr<HttpAnswer> CallHttp(const HttpCall& call);

// The part of the parser that reads an answer, which ended with the connection.
StatusOr<HttpAnswer> ParseHttpAnswer(std::string_view text);

}  // namespace tidepool::api
