// Translation between the messages of proto/inference.proto and the requests and answers of serve/.
#pragma once

#include "base/status.h"
#include "proto/inference.pb.h"
#include "serve/server.h"

namespace tidepool::api {

// How the answer to a request carries its tensors: as it brought its own.
enum class TensorForm : uint8_t { kRaw, kTyped };

struct DecodedProto {
  serve::InferRequest request;
  TensorForm form = TensorForm::kRaw;
  absl::Duration timeout;  // parameter "timeout", microseconds; zero: none
};

// Takes the bytes out of `message` instead of copying them. INVALID_ARGUMENT says which tensor is wrong and why.
StatusOr<DecodedProto> DecodeProto(inference::ModelInferRequest* message);

// Raw contents are used whatever `form` says if an output's type (FP16, BF16) has no typed field.
Status EncodeProto(serve::InferResponse response, TensorForm form, inference::ModelInferResponse* message);

void EncodeMetadata(const serve::ModelStatus& status, inference::ModelMetadataResponse* message);
void EncodeStatistics(const serve::ModelStatus& status, absl::Time now, inference::ModelStatistics* message);

}  // namespace tidepool::api
