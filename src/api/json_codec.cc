#include "api/json_codec.h"

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>

#include "api/tensor_codec.h"
#include "base/json.h"
#include "base/text.h"

namespace tidepool::api {
namespace {

using Json = nlohmann::json;

StatusOr<Json> ParseJson(std::string_view text) {
  // The library reports a fault's position only by an exception.
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    return InvalidArgument("the request is not JSON: {}", error.what());
  }
}

// A value in an error text. Arrays and objects are only named: a client may nest them deeper than a recursive printer can go.
std::string Shown(const Json& value) {
  if (value.is_structured()) return fmt::format("an {}", value.type_name());
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 40) text = text.substr(0, 40) + "...";
  return text;
}

StatusOr<std::string> StringField(const Json& object, const char* key, const std::string& where, bool required) {
  const auto it = object.find(key);
  if (it == object.end()) {
    if (required) return InvalidArgument("{} has no \"{}\"", where, key);
    return std::string();
  }
  if (!it->is_string()) return InvalidArgument("\"{}\" of {} is of type {}; allowed: a string", key, where, it->type_name());
  return it->get<std::string>();
}

StatusOr<const Json*> ParametersOf(const Json& object, const std::string& where) {
  static const Json empty = Json::object();
  const auto it = object.find("parameters");
  if (it == object.end()) return &empty;
  if (!it->is_object()) return InvalidArgument("\"parameters\" of {} is of type {}; allowed: an object", where, it->type_name());
  for (const char* unsupported : {"shared_memory_region", "classification"}) {
    if (it->contains(unsupported)) return InvalidArgument("parameter '{}' of {} is not supported", unsupported, where);
  }
  return &*it;
}

StatusOr<std::optional<bool>> BoolParameter(const Json& parameters, const char* key, const std::string& where) {
  const auto it = parameters.find(key);
  if (it == parameters.end()) return std::optional<bool>();
  if (!it->is_boolean())
    return InvalidArgument("parameter '{}' of {} is of type {}; allowed: true, false", key, where, it->type_name());
  return std::optional<bool>(it->get<bool>());
}

StatusOr<std::optional<int64_t>> CountParameter(const Json& parameters, const char* key, const std::string& where) {
  const auto it = parameters.find(key);
  if (it == parameters.end()) return std::optional<int64_t>();
  if (!it->is_number_integer() || (it->is_number_unsigned() && it->get<uint64_t>() > uint64_t{1} << 62) ||
      it->get<int64_t>() < 0) {
    return InvalidArgument("parameter '{}' of {} is {}; allowed: a whole number from 0 to 2^62", key, where, Shown(*it));
  }
  return std::optional<int64_t>(it->get<int64_t>());
}

StatusOr<std::vector<int64_t>> ReadShape(const Json& input, const std::string& where) {
  const auto it = input.find("shape");
  if (it == input.end()) return InvalidArgument("{} has no \"shape\"", where);
  if (!it->is_array())
    return InvalidArgument("\"shape\" of {} is of type {}; allowed: an array of whole numbers", where, it->type_name());
  std::vector<int64_t> shape;
  for (const Json& dim : *it) {
    if (!dim.is_number_integer() || (dim.is_number_unsigned() && dim.get<uint64_t>() > uint64_t{1} << 62)) {
      return InvalidArgument("\"shape\" of {} holds {}; allowed: whole numbers from 0 to 2^62", where, Shown(dim));
    }
    shape.push_back(dim.get<int64_t>());
    if (shape.size() > kMaxRank) return InvalidArgument("\"shape\" of {} has more than {} dimensions", where, kMaxRank);
  }
  return shape;
}

// Appends one JSON value as an element of the tensor.
class ElementWriter {
 public:
  explicit ElementWriter(serve::Tensor* tensor) : tensor_(tensor) {}

  Status Append(const Json& value) {
    switch (tensor_->datatype) {
      case DType::kBool: return AppendBool(value);
      case DType::kU8: return AppendInteger<uint8_t>(value);
      case DType::kU16: return AppendInteger<uint16_t>(value);
      case DType::kU32: return AppendInteger<uint32_t>(value);
      case DType::kU64: return AppendInteger<uint64_t>(value);
      case DType::kI8: return AppendInteger<int8_t>(value);
      case DType::kI16: return AppendInteger<int16_t>(value);
      case DType::kI32: return AppendInteger<int32_t>(value);
      case DType::kI64: return AppendInteger<int64_t>(value);
      case DType::kF32: return AppendFloat<float>(value);
      case DType::kF64: return AppendFloat<double>(value);
      case DType::kBytes:
        if (!value.is_string()) return Wrong(value, "strings");
        AppendBytesElement(value.get_ref<const std::string&>(), &tensor_->data);
        return absl::OkStatus();
      case DType::kF16:
      case DType::kBF16: break;
    }
    return InvalidArgument("input '{}' of type {} has no JSON form; send it with binary_data_size", tensor_->name,
                           InferenceName(tensor_->datatype));
  }

 private:
  Status Wrong(const Json& value, std::string_view allowed) {
    return InvalidArgument("input '{}' of type {} holds {}; allowed: {}", tensor_->name, InferenceName(tensor_->datatype),
                           Shown(value), allowed);
  }
  template <typename Element>
  void AppendRaw(Element element) {
    tensor_->data.append(reinterpret_cast<const char*>(&element), sizeof(element));
  }
  Status AppendBool(const Json& value) {
    if (value.is_boolean()) {
      AppendRaw<uint8_t>(value.get<bool>());
      return absl::OkStatus();
    }
    if (value.is_number_integer() && (value == 0 || value == 1)) {
      AppendRaw<uint8_t>(value == 1);
      return absl::OkStatus();
    }
    return Wrong(value, "true, false, 1, 0");
  }
  template <typename Element>
  Status AppendInteger(const Json& value) {
    if (value.is_number_unsigned()) {
      const uint64_t number = value.get<uint64_t>();
      if (number <= static_cast<uint64_t>(std::numeric_limits<Element>::max())) {
        AppendRaw(static_cast<Element>(number));
        return absl::OkStatus();
      }
    } else if (value.is_number_integer() && std::is_signed_v<Element>) {
      const int64_t number = value.get<int64_t>();
      if (number >= static_cast<int64_t>(std::numeric_limits<Element>::min())) {
        AppendRaw(static_cast<Element>(number));
        return absl::OkStatus();
      }
    }
    return Wrong(value, fmt::format("whole numbers from {} to {}", +std::numeric_limits<Element>::min(),
                                    +std::numeric_limits<Element>::max()));
  }
  template <typename Element>
  Status AppendFloat(const Json& value) {
    if (!value.is_number()) return Wrong(value, "numbers");
    const double number = value.get<double>();
    if (std::abs(number) > static_cast<double>(std::numeric_limits<Element>::max())) return Wrong(value, "numbers of its range");
    AppendRaw(static_cast<Element>(number));
    return absl::OkStatus();
  }

  serve::Tensor* tensor_;
};

// `value` is the nested array at dimension `depth`; recursion ends at the tensor's rank, whatever the client nests.
Status AppendNested(const Json& value, size_t depth, const serve::Tensor& tensor, ElementWriter* writer) {
  if (depth == tensor.shape.size()) return writer->Append(value);
  if (!value.is_array()) {
    return InvalidArgument("\"data\" of input '{}' is nested unevenly: a value where dimension {} of shape {} begins",
                           tensor.name, depth, ShapeText(tensor.shape));
  }
  if (static_cast<int64_t>(value.size()) != tensor.shape[depth]) {
    return InvalidArgument("\"data\" of input '{}' has {} entries in dimension {}; its shape {} needs {}", tensor.name,
                           value.size(), depth, ShapeText(tensor.shape), tensor.shape[depth]);
  }
  for (const Json& entry : value) TIDEPOOL_RETURN_IF_ERROR(AppendNested(entry, depth + 1, tensor, writer));
  return absl::OkStatus();
}

Status ReadJsonData(const Json& data, int64_t count, serve::Tensor* tensor) {
  ElementWriter writer(tensor);
  if (!data.is_array()) {
    if (tensor->shape.empty()) return writer.Append(data);
    return InvalidArgument("\"data\" of input '{}' is of type {}; allowed: an array", tensor->name, data.type_name());
  }
  const bool nested = !data.empty() && data.front().is_array();
  if (nested) return AppendNested(data, 0, *tensor, &writer);
  if (static_cast<int64_t>(data.size()) != count) {
    return InvalidArgument("\"data\" of input '{}' has {} elements; its shape {} needs {}", tensor->name, data.size(),
                           ShapeText(tensor->shape), count);
  }
  // Not more than the elements that are really there, whatever the shape claims.
  tensor->data.reserve(data.size() * static_cast<size_t>(SizeOf(tensor->datatype)));
  for (const Json& value : data) TIDEPOOL_RETURN_IF_ERROR(writer.Append(value));
  return absl::OkStatus();
}

StatusOr<serve::Tensor> ReadInput(const Json& input, size_t index, std::string_view* binary, bool has_binary) {
  std::string where = fmt::format("input {}", index);
  if (!input.is_object()) return InvalidArgument("{} is of type {}; allowed: an object", where, input.type_name());
  serve::Tensor tensor;
  TIDEPOOL_ASSIGN_OR_RETURN(tensor.name, StringField(input, "name", where, /*required=*/true));
  where = fmt::format("input '{}'", tensor.name);
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string datatype, StringField(input, "datatype", where, /*required=*/true));
  const StatusOr<DType> dtype = DTypeFromInference(datatype);
  if (!dtype.ok()) return Annotate(dtype.status(), where);
  tensor.datatype = *dtype;
  TIDEPOOL_ASSIGN_OR_RETURN(tensor.shape, ReadShape(input, where));
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t count, ElementCount(tensor.name, tensor.shape));
  TIDEPOOL_ASSIGN_OR_RETURN(const Json* parameters, ParametersOf(input, where));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<int64_t> binary_size, CountParameter(*parameters, "binary_data_size", where));
  const auto data = input.find("data");
  if (binary_size.has_value()) {
    if (data != input.end()) return InvalidArgument("{} has both \"data\" and binary_data_size; allowed: one of them", where);
    if (!has_binary) {
      return InvalidArgument("{} has binary_data_size, but the request has no Inference-Header-Content-Length header", where);
    }
    if (*binary_size > static_cast<int64_t>(binary->size())) {
      return InvalidArgument("{} says it has {} bytes of binary data, but {} are left in the body", where, *binary_size,
                             binary->size());
    }
    tensor.data.assign(binary->substr(0, static_cast<size_t>(*binary_size)));
    binary->remove_prefix(static_cast<size_t>(*binary_size));
  } else {
    if (data == input.end()) return InvalidArgument("{} has no \"data\" and no binary_data_size", where);
    TIDEPOOL_RETURN_IF_ERROR(ReadJsonData(*data, count, &tensor));
  }
  TIDEPOOL_RETURN_IF_ERROR(CheckTensor(tensor));
  return tensor;
}

Status ReadOutputs(const Json& root, DecodedJson* decoded) {
  const auto outputs = root.find("outputs");
  if (outputs == root.end()) return absl::OkStatus();
  if (!outputs->is_array() || outputs->size() > kMaxTensors) {
    return InvalidArgument("\"outputs\" is of type {} with {} entries; allowed: an array of at most {}", outputs->type_name(),
                           outputs->size(), kMaxTensors);
  }
  for (size_t i = 0; i < outputs->size(); ++i) {
    const Json& output = (*outputs)[i];
    std::string where = fmt::format("output {}", i);
    if (!output.is_object()) return InvalidArgument("{} is of type {}; allowed: an object", where, output.type_name());
    TIDEPOOL_ASSIGN_OR_RETURN(std::string name, StringField(output, "name", where, /*required=*/true));
    where = fmt::format("output '{}'", name);
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* parameters, ParametersOf(output, where));
    TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<bool> binary, BoolParameter(*parameters, "binary_data", where));
    if (binary.has_value()) decoded->forms.binary[name] = *binary;
    decoded->request.outputs.push_back(std::move(name));
  }
  return absl::OkStatus();
}

template <typename Element>
void WriteNumbers(const std::string& data, std::string* out) {
  const size_t count = data.size() / sizeof(Element);
  for (size_t i = 0; i < count; ++i) {
    Element element;
    std::memcpy(&element, data.data() + i * sizeof(Element), sizeof(Element));
    if (i > 0) out->push_back(',');
    if constexpr (std::is_floating_point_v<Element>) {
      if (!std::isfinite(element)) {
        out->append("null");
        continue;
      }
      fmt::format_to(std::back_inserter(*out), "{}", element);
    } else {
      fmt::format_to(std::back_inserter(*out), "{}", +element);
    }
  }
}

Status WriteJsonData(const serve::Tensor& tensor, std::string* out) {
  switch (tensor.datatype) {
    case DType::kBool:
      for (size_t i = 0; i < tensor.data.size(); ++i)
        out->append(i > 0 ? "," : "").append(tensor.data[i] != 0 ? "true" : "false");
      break;
    case DType::kU8: WriteNumbers<uint8_t>(tensor.data, out); break;
    case DType::kU16: WriteNumbers<uint16_t>(tensor.data, out); break;
    case DType::kU32: WriteNumbers<uint32_t>(tensor.data, out); break;
    case DType::kU64: WriteNumbers<uint64_t>(tensor.data, out); break;
    case DType::kI8: WriteNumbers<int8_t>(tensor.data, out); break;
    case DType::kI16: WriteNumbers<int16_t>(tensor.data, out); break;
    case DType::kI32: WriteNumbers<int32_t>(tensor.data, out); break;
    case DType::kI64: WriteNumbers<int64_t>(tensor.data, out); break;
    case DType::kF32: WriteNumbers<float>(tensor.data, out); break;
    case DType::kF64: WriteNumbers<double>(tensor.data, out); break;
    case DType::kBytes: {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string_view> elements, BytesElements(tensor.name, tensor.data));
      for (size_t i = 0; i < elements.size(); ++i) out->append(i > 0 ? "," : "").append(JsonQuoted(elements[i]));
      break;
    }
    case DType::kF16:
    case DType::kBF16:
      return InvalidArgument("output '{}' of type {} has no JSON form; ask for it with \"binary_data\": true", tensor.name,
                             InferenceName(tensor.datatype));
  }
  return absl::OkStatus();
}

}  // namespace

bool OutputForms::IsBinary(const std::string& output) const {
  const auto it = binary.find(output);
  return it == binary.end() ? binary_by_default : it->second;
}

StatusOr<DecodedJson> DecodeInferBody(std::string_view body, std::optional<int64_t> json_length, int64_t max_json_bytes) {
  if (json_length.has_value() && (*json_length < 0 || *json_length > static_cast<int64_t>(body.size()))) {
    return InvalidArgument("Inference-Header-Content-Length is {}; allowed: 0 to the size of the body, {}", *json_length,
                           body.size());
  }
  const size_t json_size = static_cast<size_t>(json_length.value_or(static_cast<int64_t>(body.size())));
  if (static_cast<int64_t>(json_size) > max_json_bytes) {
    return InvalidArgument("the JSON of the request has {} bytes; allowed: {}. Send large tensors with binary_data_size",
                           json_size, max_json_bytes);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const Json root, ParseJson(body.substr(0, json_size)));
  std::string_view binary = body.substr(json_size);
  if (!root.is_object()) return InvalidArgument("the request is JSON of type {}; allowed: an object", root.type_name());

  DecodedJson decoded;
  TIDEPOOL_ASSIGN_OR_RETURN(decoded.request.id, StringField(root, "id", "the request", /*required=*/false));
  TIDEPOOL_ASSIGN_OR_RETURN(const Json* parameters, ParametersOf(root, "the request"));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<bool> binary_output,
                            BoolParameter(*parameters, "binary_data_output", "the request"));
  decoded.forms.binary_by_default = binary_output.value_or(false);
  TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<int64_t> timeout, CountParameter(*parameters, "timeout", "the request"));
  decoded.timeout = absl::Microseconds(timeout.value_or(0));

  const auto inputs = root.find("inputs");
  if (inputs == root.end()) return InvalidArgument("the request has no \"inputs\"");
  if (!inputs->is_array() || inputs->size() > kMaxTensors) {
    return InvalidArgument("\"inputs\" is of type {} with {} entries; allowed: an array of at most {}", inputs->type_name(),
                           inputs->size(), kMaxTensors);
  }
  for (size_t i = 0; i < inputs->size(); ++i) {
    TIDEPOOL_ASSIGN_OR_RETURN(serve::Tensor tensor, ReadInput((*inputs)[i], i, &binary, json_length.has_value()));
    decoded.request.inputs.push_back(std::move(tensor));
  }
  if (!binary.empty()) {
    return InvalidArgument("the body has {} bytes more than its JSON and the binary_data_size of its inputs", binary.size());
  }
  TIDEPOOL_RETURN_IF_ERROR(ReadOutputs(root, &decoded));
  return decoded;
}

StatusOr<EncodedJson> EncodeInferBody(const serve::InferResponse& response, const OutputForms& forms) {
  EncodedJson encoded;
  std::string& body = encoded.body;
  body = fmt::format("{{\"model_name\":{},\"model_version\":{}", JsonQuoted(response.model), JsonQuoted(response.version));
  if (!response.id.empty()) body += fmt::format(",\"id\":{}", JsonQuoted(response.id));
  body += ",\"outputs\":[";
  size_t binary_bytes = 0;
  bool any_binary = false;
  for (size_t i = 0; i < response.outputs.size(); ++i) {
    const serve::Tensor& tensor = response.outputs[i];
    body += fmt::format("{}{{\"name\":{},\"datatype\":\"{}\",\"shape\":{}", i > 0 ? "," : "", JsonQuoted(tensor.name),
                        InferenceName(tensor.datatype), ShapeText(tensor.shape));
    if (forms.IsBinary(tensor.name)) {
      any_binary = true;
      binary_bytes += tensor.data.size();
      body += fmt::format(",\"parameters\":{{\"binary_data_size\":{}}}}}", tensor.data.size());
    } else {
      body += ",\"data\":[";
      TIDEPOOL_RETURN_IF_ERROR(WriteJsonData(tensor, &body));
      body += "]}";
    }
  }
  body += "]}";
  if (any_binary) {
    encoded.json_length = static_cast<int64_t>(body.size());
    body.reserve(body.size() + binary_bytes);
    for (const serve::Tensor& tensor : response.outputs) {
      if (forms.IsBinary(tensor.name)) body += tensor.data;
    }
  }
  return encoded;
}

std::string ErrorBody(std::string_view message) { return fmt::format("{{\"error\":{}}}", JsonQuoted(message)); }

}  // namespace tidepool::api
