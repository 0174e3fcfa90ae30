// Translation between the REST bodies of the Open Inference Protocol, JSON with or without the binary tensor extension, and the
// requests and answers of serve/. Pure; docs/api.md has the layout.
#pragma once

#include <absl/time/time.h>

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "serve/server.h"

namespace tidepool::api {

// Which outputs the client wants as raw bytes behind the JSON.
struct OutputForms {
  bool binary_by_default = false;      // parameter binary_data_output of the request
  std::map<std::string, bool> binary;  // parameter binary_data of single outputs
  bool IsBinary(const std::string& output) const;
};

struct DecodedJson {
  serve::InferRequest request;  // without the model: that is in the path
  OutputForms forms;
  absl::Duration timeout;  // parameter "timeout", microseconds; zero: none
};

// `json_length` is the value of Inference-Header-Content-Length: what follows that many bytes of `body` are raw tensors in the
// order of the inputs that have binary_data_size. Without it the whole body is JSON. INVALID_ARGUMENT names the tensor and what
// is wrong.
StatusOr<DecodedJson> DecodeInferBody(std::string_view body, std::optional<int64_t> json_length, int64_t max_json_bytes);

struct EncodedJson {
  std::string body;
  std::optional<int64_t> json_length;  // set if raw tensors follow
};
// NaN and infinite values have no JSON form and become null. INVALID_ARGUMENT for an FP16 or BF16 output that was not asked for
// as binary.
StatusOr<EncodedJson> EncodeInferBody(const serve::InferResponse& response, const OutputForms& forms);

// {"error": "..."}
std::string ErrorBody(std::string_view message);

}  // namespace tidepool::api
