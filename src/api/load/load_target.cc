#include "api/load/load_target.h"

#include <algorithm>
#include <charconv>
#include <chrono>

#include "api/load/load_plan.h"
#include "base/dtype.h"
#include "base/units.h"

namespace tidepool::api {
namespace {

constexpr int kWarmUps = 2;
constexpr int kMaxSoloRuns = 15;
constexpr absl::Duration kSoloTime = absl::Seconds(2);
constexpr absl::Duration kFirstAnswerLimit = absl::Seconds(60);

template <typename Element>
void AppendElement(Element element, std::string* data) {
  data->append(reinterpret_cast<const char*>(&element), sizeof(element));
}

// One value that any network takes for an input of this type and name.
Status AppendValue(DType dtype, bool small, UniformSource* source, std::string* data) {
  const auto id = static_cast<int64_t>(source->NextBits() % (small ? 2 : 256));
  switch (dtype) {
    case DType::kF32: AppendElement(static_cast<float>(source->NextNormal()), data); break;
    case DType::kF64: AppendElement(source->NextNormal(), data); break;
    case DType::kBool: AppendElement(static_cast<uint8_t>(id & 1), data); break;
    case DType::kU8: AppendElement(static_cast<uint8_t>(id), data); break;
    case DType::kI8: AppendElement(static_cast<int8_t>(id % 128), data); break;
    case DType::kU16:
    case DType::kI16: AppendElement(static_cast<uint16_t>(id), data); break;
    case DType::kU32:
    case DType::kI32: AppendElement(static_cast<uint32_t>(id), data); break;
    case DType::kU64:
    case DType::kI64: AppendElement(id, data); break;
    case DType::kF16: AppendElement(uint16_t{0x3c00}, data); break;   // 1.0
    case DType::kBF16: AppendElement(uint16_t{0x3f80}, data); break;  // 1.0
    case DType::kBytes: data->append(std::string("\5\0\0\0hello", 9)); break;
  }
  return absl::OkStatus();
}

StatusOr<inference::ModelInferRequest> MakeRequest(const inference::ModelMetadataResponse& metadata, int batch, uint64_t seed) {
  inference::ModelInferRequest request;
  request.set_model_name(metadata.name());
  UniformSource source(seed);
  for (const auto& input : metadata.inputs()) {
    const StatusOr<DType> dtype = DTypeFromInference(input.datatype());
    if (!dtype.ok()) return Annotate(dtype.status(), fmt::format("input '{}' of model '{}'", input.name(), metadata.name()));
    auto* tensor = request.add_inputs();
    tensor->set_name(input.name());
    tensor->set_datatype(input.datatype());
    int64_t count = 1;
    for (int i = 0; i < input.shape_size(); ++i) {
      const int64_t dim = input.shape(i) >= 0 ? input.shape(i) : i == 0 ? batch : 16;
      tensor->add_shape(dim);
      count *= dim;
    }
    // A mask or a segment id has two values; an id of the vocabulary is kept below the smallest one there is.
    const bool small = input.name().find("mask") != std::string::npos || input.name().find("type") != std::string::npos;
    std::string* data = request.add_raw_input_contents();
    for (int64_t i = 0; i < count; ++i) TIDEPOOL_RETURN_IF_ERROR(AppendValue(*dtype, small, &source, data));
  }
  return request;
}

absl::Duration PropertyMicros(const inference::ModelMetadataResponse& metadata, const std::string& key) {
  const auto it = metadata.properties().find(key);
  if (it == metadata.properties().end()) return absl::ZeroDuration();
  int64_t value = 0;
  std::from_chars(it->second.data(), it->second.data() + it->second.size(), value);
  return absl::Microseconds(std::max<int64_t>(0, value));
}

}  // namespace

Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return Status(static_cast<StatusCode>(status.error_code()), status.error_message());
}

std::chrono::system_clock::time_point GrpcDeadline(absl::Duration from_now) {
  return std::chrono::system_clock::now() +
         absl::ToChronoMicroseconds(std::clamp(from_now, absl::ZeroDuration(), absl::Hours(24)));
}

StatusOr<std::unique_ptr<LoadTarget>> LoadTarget::Connect(const LoadOptions& options) {
  std::unique_ptr<LoadTarget> target(new LoadTarget(options));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // each run has a connection of its own
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  target->channel_ = grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments);
  if (!target->channel_->WaitForConnected(GrpcDeadline(options.connect_limit))) {
    return Unavailable("cannot reach the gRPC API at '{}' within {}; is the server running there?", options.target,
                       tidepool::FormatDuration(options.connect_limit));
  }
  target->stub_ = inference::GRPCInferenceService::NewStub(target->channel_);
  return target;
}

StatusOr<std::vector<std::string>> LoadTarget::ModelNames() {
  const std::vector<std::string>& asked = options_.models;
  if (!asked.empty() && !(asked.size() == 1 && asked[0] == "all")) return asked;
  grpc::ClientContext context;
  context.set_deadline(GrpcDeadline(options_.connect_limit));
  inference::RepositoryIndexRequest request;
  request.set_ready(true);
  inference::RepositoryIndexResponse response;
  TIDEPOOL_RETURN_IF_ERROR(
      Annotate(FromGrpc(stub_->RepositoryIndex(&context, request, &response)), "listing the server's models"));
  std::vector<std::string> names;
  for (const auto& model : response.models()) names.push_back(model.name());
  if (names.empty()) return NotFound("the server at '{}' has no model that it can serve", options_.target);
  return names;
}

StatusOr<std::vector<TargetModel>> LoadTarget::Models() {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ModelNames());
  std::vector<TargetModel> models;
  for (const std::string& name : names) {
    grpc::ClientContext context;
    context.set_deadline(GrpcDeadline(options_.connect_limit));
    inference::ModelMetadataRequest request;
    request.set_name(name);
    inference::ModelMetadataResponse metadata;
    TIDEPOOL_RETURN_IF_ERROR(
        Annotate(FromGrpc(stub_->ModelMetadata(&context, request, &metadata)), fmt::format("metadata of model '{}'", name)));
    TargetModel model{.name = name};
    TIDEPOOL_ASSIGN_OR_RETURN(model.request, MakeRequest(metadata, options_.batch, options_.seed + models.size()));
    model.solo = PropertyMicros(metadata, "solo_latency_us");
    model.slo = PropertyMicros(metadata, "slo_us");
    models.push_back(std::move(model));
  }
  return models;
}

StatusOr<absl::Duration> LoadTarget::MeasureSolo(const TargetModel& model, const std::function<bool()>& stop) {
  std::vector<absl::Duration> latencies;
  const absl::Time end = options_.clock->Now() + kSoloTime;
  for (int run = 0; run < kWarmUps + kMaxSoloRuns; ++run) {
    if (stop && stop()) return Cancelled("stopped while the latency of model '{}' was measured", model.name);
    const absl::Time start = options_.clock->Now();
    if (latencies.size() >= 3 && start > end) break;
    grpc::ClientContext context;
    context.set_deadline(GrpcDeadline(kFirstAnswerLimit));
    inference::ModelInferResponse response;
    TIDEPOOL_RETURN_IF_ERROR(
        Annotate(FromGrpc(stub_->ModelInfer(&context, model.request, &response)), fmt::format("model '{}' alone", model.name)));
    if (run >= kWarmUps) latencies.push_back(options_.clock->Now() - start);
  }
  std::nth_element(latencies.begin(), latencies.begin() + static_cast<ptrdiff_t>(latencies.size() / 2), latencies.end());
  return latencies[latencies.size() / 2];
}

}  // namespace tidepool::api
