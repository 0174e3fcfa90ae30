#include "api/proto_codec.h"

#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "api/front_end.h"
#include "api/tensor_codec.h"

namespace tidepool::api {
namespace {

using inference::InferTensorContents;

// Raw contents are little-endian, and so is this host: typed values are copied as they are.
static_assert(std::endian::native == std::endian::little);

template <typename Element, typename Values>
Status AppendNarrowed(std::string_view tensor, DType dtype, const Values& values, std::string* data) {
  data->reserve(data->size() + values.size() * sizeof(Element));
  for (const auto value : values) {
    if constexpr (!std::is_same_v<Element, std::remove_cv_t<decltype(value)>> && std::is_integral_v<Element>) {
      if (value < std::numeric_limits<Element>::min() || value > std::numeric_limits<Element>::max()) {
        return InvalidArgument("tensor '{}' holds {}, which does not fit {}", tensor, value, InferenceName(dtype));
      }
    }
    const Element element = static_cast<Element>(value);
    data->append(reinterpret_cast<const char*>(&element), sizeof(element));
  }
  return absl::OkStatus();
}

// Only the field of the tensor's type may hold values.
int64_t ValueCount(const InferTensorContents& contents) {
  return int64_t{contents.bool_contents_size()} + contents.int_contents_size() + contents.int64_contents_size() +
         contents.uint_contents_size() + contents.uint64_contents_size() + contents.fp32_contents_size() +
         contents.fp64_contents_size() + contents.bytes_contents_size();
}

Status ReadContents(const InferTensorContents& contents, serve::Tensor* tensor, int64_t* used) {
  const auto read = [&](const auto& values, auto element) -> Status {
    *used = values.size();
    return AppendNarrowed<decltype(element)>(tensor->name, tensor->datatype, values, &tensor->data);
  };
  switch (tensor->datatype) {
    case DType::kBool: return read(contents.bool_contents(), bool{});
    case DType::kU8: return read(contents.uint_contents(), uint8_t{});
    case DType::kU16: return read(contents.uint_contents(), uint16_t{});
    case DType::kU32: return read(contents.uint_contents(), uint32_t{});
    case DType::kU64: return read(contents.uint64_contents(), uint64_t{});
    case DType::kI8: return read(contents.int_contents(), int8_t{});
    case DType::kI16: return read(contents.int_contents(), int16_t{});
    case DType::kI32: return read(contents.int_contents(), int32_t{});
    case DType::kI64: return read(contents.int64_contents(), int64_t{});
    case DType::kF32: return read(contents.fp32_contents(), float{});
    case DType::kF64: return read(contents.fp64_contents(), double{});
    case DType::kBytes:
      *used = contents.bytes_contents_size();
      for (const std::string& element : contents.bytes_contents()) AppendBytesElement(element, &tensor->data);
      return absl::OkStatus();
    case DType::kF16:
    case DType::kBF16: break;
  }
  return InvalidArgument("tensor '{}' of type {} has no typed contents; send it in raw_input_contents", tensor->name,
                         InferenceName(tensor->datatype));
}

template <typename Element, typename Field>
void WriteValues(const std::string& data, Field* field) {
  const size_t count = data.size() / sizeof(Element);
  field->Reserve(static_cast<int>(count));
  for (size_t i = 0; i < count; ++i) {
    Element element;
    std::memcpy(&element, data.data() + i * sizeof(Element), sizeof(Element));
    field->Add(element);
  }
}

Status WriteContents(const serve::Tensor& tensor, InferTensorContents* contents) {
  const std::string& data = tensor.data;
  switch (tensor.datatype) {
    case DType::kBool: WriteValues<bool>(data, contents->mutable_bool_contents()); break;
    case DType::kU8: WriteValues<uint8_t>(data, contents->mutable_uint_contents()); break;
    case DType::kU16: WriteValues<uint16_t>(data, contents->mutable_uint_contents()); break;
    case DType::kU32: WriteValues<uint32_t>(data, contents->mutable_uint_contents()); break;
    case DType::kU64: WriteValues<uint64_t>(data, contents->mutable_uint64_contents()); break;
    case DType::kI8: WriteValues<int8_t>(data, contents->mutable_int_contents()); break;
    case DType::kI16: WriteValues<int16_t>(data, contents->mutable_int_contents()); break;
    case DType::kI32: WriteValues<int32_t>(data, contents->mutable_int_contents()); break;
    case DType::kI64: WriteValues<int64_t>(data, contents->mutable_int64_contents()); break;
    case DType::kF32: WriteValues<float>(data, contents->mutable_fp32_contents()); break;
    case DType::kF64: WriteValues<double>(data, contents->mutable_fp64_contents()); break;
    case DType::kBytes: {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string_view> elements, BytesElements(tensor.name, data));
      for (const std::string_view element : elements) contents->add_bytes_contents(element.data(), element.size());
      break;
    }
    case DType::kF16:
    case DType::kBF16:
      return Internal("output '{}' of type {} has no typed contents", tensor.name, InferenceName(tensor.datatype));
  }
  return absl::OkStatus();
}

StatusOr<absl::Duration> ReadTimeout(const inference::ModelInferRequest& message) {
  const auto it = message.parameters().find("timeout");
  if (it == message.parameters().end()) return absl::ZeroDuration();
  const inference::InferParameter& parameter = it->second;
  if (parameter.has_int64_param() && parameter.int64_param() > 0) return absl::Microseconds(parameter.int64_param());
  if (parameter.has_uint64_param() && parameter.uint64_param() > 0 &&
      parameter.uint64_param() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::Microseconds(static_cast<int64_t>(parameter.uint64_param()));
  }
  return InvalidArgument("parameter 'timeout' of the request is '{}'; allowed: a whole number of microseconds above 0",
                         parameter.ShortDebugString());
}

Status CheckCounts(const inference::ModelInferRequest& message) {
  if (message.model_name().empty()) return InvalidArgument("model_name is empty; allowed: the name of a served model");
  if (static_cast<size_t>(message.inputs_size()) > kMaxTensors || static_cast<size_t>(message.outputs_size()) > kMaxTensors) {
    return InvalidArgument("the request has {} inputs and asks for {} outputs; allowed: at most {} of each",
                           message.inputs_size(), message.outputs_size(), kMaxTensors);
  }
  if (message.raw_input_contents_size() > 0 && message.raw_input_contents_size() != message.inputs_size()) {
    return InvalidArgument("raw_input_contents has {} entries for {} inputs; allowed: one for each input, or none",
                           message.raw_input_contents_size(), message.inputs_size());
  }
  return absl::OkStatus();
}

}  // namespace

StatusOr<DecodedProto> DecodeProto(inference::ModelInferRequest* message) {
  TIDEPOOL_RETURN_IF_ERROR(CheckCounts(*message));
  DecodedProto decoded;
  TIDEPOOL_ASSIGN_OR_RETURN(decoded.timeout, ReadTimeout(*message));
  serve::InferRequest& request = decoded.request;
  request.model = message->model_name();
  request.version = message->model_version();
  request.id = message->id();
  const bool raw = message->raw_input_contents_size() > 0;
  decoded.form = raw || message->inputs_size() == 0 ? TensorForm::kRaw : TensorForm::kTyped;
  request.inputs.reserve(message->inputs_size());
  for (int i = 0; i < message->inputs_size(); ++i) {
    const auto& input = message->inputs(i);
    serve::Tensor tensor;
    tensor.name = input.name();
    StatusOr<DType> dtype = DTypeFromInference(input.datatype());
    if (!dtype.ok()) return Annotate(dtype.status(), fmt::format("input '{}'", input.name()));
    tensor.datatype = *dtype;
    tensor.shape.assign(input.shape().begin(), input.shape().end());
    if (raw) {
      if (ValueCount(input.contents()) > 0) {
        return InvalidArgument("input '{}' has both contents and raw_input_contents; allowed: one of them", input.name());
      }
      tensor.data = std::move(*message->mutable_raw_input_contents(i));
    } else {
      int64_t used = 0;
      TIDEPOOL_RETURN_IF_ERROR(ReadContents(input.contents(), &tensor, &used));
      if (used != ValueCount(input.contents())) {
        return InvalidArgument("input '{}' has contents in a field that is not the one of its type {}", input.name(),
                               input.datatype());
      }
    }
    TIDEPOOL_RETURN_IF_ERROR(CheckTensor(tensor));
    request.inputs.push_back(std::move(tensor));
  }
  for (const auto& output : message->outputs()) request.outputs.push_back(output.name());
  return decoded;
}

Status EncodeProto(serve::InferResponse response, TensorForm form, inference::ModelInferResponse* message) {
  message->set_model_name(std::move(response.model));
  message->set_model_version(std::move(response.version));
  message->set_id(std::move(response.id));
  for (const serve::Tensor& tensor : response.outputs) {
    if (tensor.datatype == DType::kF16 || tensor.datatype == DType::kBF16) form = TensorForm::kRaw;
  }
  for (serve::Tensor& tensor : response.outputs) {
    auto* output = message->add_outputs();
    if (form == TensorForm::kRaw) {
      message->add_raw_output_contents(std::move(tensor.data));
    } else {
      TIDEPOOL_RETURN_IF_ERROR(WriteContents(tensor, output->mutable_contents()));
    }
    const std::string_view datatype = InferenceName(tensor.datatype);
    output->set_name(std::move(tensor.name));
    output->set_datatype(datatype.data(), datatype.size());
    output->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  }
  return absl::OkStatus();
}

void EncodeMetadata(const serve::ModelStatus& status, inference::ModelMetadataResponse* message) {
  message->set_name(status.name);
  for (const std::string& version : status.versions) message->add_versions(version);
  message->set_platform(status.platform);
  const auto fill = [](const std::vector<serve::TensorMetadata>& tensors, auto* fields) {
    for (const serve::TensorMetadata& tensor : tensors) {
      auto* field = fields->Add();
      const std::string_view datatype = InferenceName(tensor.datatype);
      field->set_name(tensor.name);
      field->set_datatype(datatype.data(), datatype.size());
      field->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    }
  };
  fill(status.inputs, message->mutable_inputs());
  fill(status.outputs, message->mutable_outputs());
  auto& properties = *message->mutable_properties();
  const std::string_view state = IndexState(status);
  properties["state"] = std::string(state);
  properties["max_batch_size"] = fmt::format("{}", status.max_batch_size);
  if (!status.family.empty()) properties["family"] = status.family;
  if (!status.spec.empty()) properties["spec"] = status.spec;
  if (status.slo > absl::ZeroDuration()) properties["slo_us"] = fmt::format("{}", absl::ToInt64Microseconds(status.slo));
  if (status.solo_latency > absl::ZeroDuration()) {
    properties["solo_latency_us"] = fmt::format("{}", absl::ToInt64Microseconds(status.solo_latency));
  }
}

void EncodeStatistics(const serve::ModelStatus& status, absl::Time now, inference::ModelStatistics* message) {
  const auto set = [](inference::StatisticDuration* field, int64_t count, absl::Duration total) {
    field->set_count(static_cast<uint64_t>(count));
    field->set_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(total)));
  };
  message->set_name(status.name);
  if (!status.versions.empty()) message->set_version(status.versions.back());
  if (status.requests > 0) {
    message->set_last_inference(static_cast<uint64_t>(absl::ToUnixMillis(now - status.last_used_ago)));
  }
  message->set_inference_count(static_cast<uint64_t>(status.batched_requests));
  message->set_execution_count(static_cast<uint64_t>(status.executions));
  inference::InferStatistics* stats = message->mutable_inference_stats();
  set(stats->mutable_success(), status.requests - status.failures, status.queue_time + status.compute_time);
  set(stats->mutable_fail(), status.failures, absl::ZeroDuration());
  set(stats->mutable_queue(), status.requests, status.queue_time);
  set(stats->mutable_compute_infer(), status.executions, status.compute_time);
}

}  // namespace tidepool::api
