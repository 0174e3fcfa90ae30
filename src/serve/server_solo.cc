// Latencies of models alone: measured through the server itself, or taken over from an equal one.
#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "serve/server_impl.h"

namespace tidepool::serve {
namespace {

constexpr int kSoloRuns = 21;

// Inputs that every model accepts: token 0, and a small number that is no denormal.
Tensor SampleInput(const TensorMetadata& metadata, int64_t sample_bytes) {
  Tensor tensor{.name = metadata.name, .datatype = metadata.datatype, .shape = metadata.shape};
  tensor.shape[0] = 1;
  tensor.data.assign(static_cast<size_t>(sample_bytes), '\0');
  if (metadata.datatype == DType::kF32) {
    const float value = 0.1f;
    for (size_t i = 0; i + sizeof(value) <= tensor.data.size(); i += sizeof(value))
      std::memcpy(&tensor.data[i], &value, sizeof(value));
  }
  return tensor;
}

}  // namespace

Status ServerImpl::MeasureSoloLatencies(absl::Time deadline) {
  const auto current = catalog();
  std::map<std::string, std::vector<std::shared_ptr<const CatalogModel>>> by_file;  // replicas compute alike
  for (const auto& [name, entry] : current->entries()) {
    for (const auto& [version, model] : entry.versions) {
      if (model->status.ok()) by_file[model->weights_path].push_back(model);
    }
  }
  Status first_failure;
  size_t measured = 0;
  for (const auto& [path, models] : by_file) {
    StatusOr<absl::Duration> solo = MeasureSolo(*models.front(), deadline);
    if (!solo.ok()) {
      Log(LogLevel::kWarning, "model not measured", {{"model", models.front()->lease_name}, {"error", solo.status()}});
      if (first_failure.ok()) first_failure = solo.status();
      continue;
    }
    ++measured;
    TIDEPOOL_RETURN_IF_ERROR(Ask(deadline, [this, same = models, solo](WaiterId waiter) {
                               for (const auto& each : same) core_.SetSolo(each->id, *solo);
                               Finish(waiter, int64_t{0});
                             }).status());
  }
  return measured == 0 ? first_failure : Status();  // one broken model does not keep the others from being measured
}

StatusOr<absl::Duration> ServerImpl::MeasureSolo(const CatalogModel& model, absl::Time deadline) {
  InferRequest request{.model = model.name, .version = fmt::format("{}", model.version)};
  for (size_t i = 0; i < model.inputs.size(); ++i)
    request.inputs.push_back(SampleInput(model.inputs[i], model.input_sample_bytes[i]));
  request.deadline = deadline;
  std::vector<absl::Duration> latencies;
  for (int run = 0; run <= kSoloRuns; ++run) {
    struct Answer {
      absl::Mutex mu;
      std::unique_ptr<StatusOr<InferResponse>> response ABSL_GUARDED_BY(mu);
    };
    auto answer = std::make_shared<Answer>();
    Infer(request, [answer](StatusOr<InferResponse> response) {
      absl::MutexLock lock(&answer->mu);
      answer->response = std::make_unique<StatusOr<InferResponse>>(std::move(response));
    });
    absl::MutexLock lock(&answer->mu);
    const auto answered = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return answer->response != nullptr; };
    if (!clock_->Await(&answer->mu, answered, deadline + absl::Seconds(1))) {
      return DeadlineExceeded("measuring model '{}' alone took too long", model.name);
    }
    if (!answer->response->ok())
      return Annotate(answer->response->status(), fmt::format("measuring model '{}' alone", model.name));
    const RequestTimes& times = (*answer->response)->times;
    if (run > 0) latencies.push_back(times.finished - times.received);  // the first run loads and warms
  }
  std::nth_element(latencies.begin(), latencies.begin() + kSoloRuns / 2, latencies.end());
  return latencies[kSoloRuns / 2];
}

SoloLatencies ServerImpl::solo_latencies() {
  const auto current = catalog();
  SoloLatencies latencies;
  absl::MutexLock lock(&mu_);
  for (const auto& [name, entry] : current->entries()) {
    for (const auto& [version, model] : entry.versions) {
      const auto found = numbers_.find(model->id);
      if (found != numbers_.end() && found->second.solo > absl::ZeroDuration()) latencies[model->lease_name] = found->second.solo;
    }
  }
  return latencies;
}

Status ServerImpl::SetSoloLatencies(const SoloLatencies& latencies, absl::Time deadline) {
  return Ask(deadline,
             [this, latencies](WaiterId waiter) {
               for (const auto& [id, model] : served_) {
                 if (const auto found = latencies.find(model->lease_name); found != latencies.end()) {
                   core_.SetSolo(id, found->second);
                 }
               }
               Finish(waiter, int64_t{0});
             })
      .status();
}

}  // namespace tidepool::serve
