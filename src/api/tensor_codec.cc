#include "api/tensor_codec.h"

#include <fmt/ranges.h>

namespace tidepool::api {

std::string ShapeText(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ",")); }

StatusOr<int64_t> ElementCount(std::string_view tensor, std::span<const int64_t> shape) {
  if (shape.size() > kMaxRank) {
    return InvalidArgument("tensor '{}' has {} dimensions; allowed: at most {}", tensor, shape.size(), kMaxRank);
  }
  int64_t count = 1;
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) {
      return InvalidArgument("tensor '{}' has shape {}; allowed: dimensions of 0 and above", tensor, ShapeText(shape));
    }
    if (dim == 0) {
      empty = true;
    } else if (count > kMaxElements / dim) {
      return InvalidArgument("tensor '{}' has shape {}, which is more than {} elements", tensor, ShapeText(shape), kMaxElements);
    } else {
      count *= dim;
    }
  }
  return empty ? 0 : count;
}

void AppendBytesElement(std::string_view element, std::string* data) {
  const uint32_t length = static_cast<uint32_t>(element.size());
  for (int shift = 0; shift < 32; shift += 8) data->push_back(static_cast<char>(length >> shift));
  data->append(element);
}

StatusOr<std::vector<std::string_view>> BytesElements(std::string_view tensor, std::string_view data) {
  std::vector<std::string_view> elements;
  size_t at = 0;
  while (at < data.size()) {
    if (data.size() - at < 4) {
      return InvalidArgument("tensor '{}' of type BYTES ends within the length of element {}", tensor, elements.size());
    }
    uint32_t length = 0;
    for (int i = 0; i < 4; ++i) length |= static_cast<uint32_t>(static_cast<unsigned char>(data[at + i])) << (8 * i);
    at += 4;
    if (length > data.size() - at) {
      return InvalidArgument("tensor '{}' of type BYTES: element {} says it has {} bytes, but {} are left", tensor,
                             elements.size(), length, data.size() - at);
    }
    elements.push_back(data.substr(at, length));
    at += length;
  }
  return elements;
}

Status CheckTensor(const serve::Tensor& tensor) {
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t count, ElementCount(tensor.name, tensor.shape));
  if (tensor.datatype == DType::kBytes) {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string_view> elements, BytesElements(tensor.name, tensor.data));
    if (static_cast<int64_t>(elements.size()) != count) {
      return InvalidArgument("tensor '{}' has {} BYTES elements; its shape {} needs {}", tensor.name, elements.size(),
                             ShapeText(tensor.shape), count);
    }
    return absl::OkStatus();
  }
  const int64_t needed = count * SizeOf(tensor.datatype);
  if (static_cast<int64_t>(tensor.data.size()) != needed) {
    return InvalidArgument("tensor '{}' has {} bytes of data; its type {} and shape {} need {}", tensor.name, tensor.data.size(),
                           InferenceName(tensor.datatype), ShapeText(tensor.shape), needed);
  }
  return absl::OkStatus();
}

}  // namespace tidepool::api
