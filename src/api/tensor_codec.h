// Checks that both APIs make on tensors before serving sees them. A request that passes has inputs whose byte counts are what
// their shapes and types say; whether they suit the model is serve's question.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "serve/server.h"

namespace tidepool::api {

inline constexpr size_t kMaxRank = 16;
inline constexpr size_t kMaxTensors = 256;  // of one request
inline constexpr int64_t kMaxElements = int64_t{1} << 40;

std::string ShapeText(std::span<const int64_t> shape);  // "[1,3,224,224]"

// The product of the dimensions. INVALID_ARGUMENT for a negative dimension, more than kMaxRank of them, or a product above
// kMaxElements.
StatusOr<int64_t> ElementCount(std::string_view tensor, std::span<const int64_t> shape);

// Whether tensor.data has as many bytes as its type and shape need, for BYTES also whether its length prefixes end where the data
// ends.
Status CheckTensor(const serve::Tensor& tensor);

// One BYTES element: u32 little-endian length, then the bytes.
void AppendBytesElement(std::string_view element, std::string* data);
// The elements of a BYTES tensor; views into `data`. INVALID_ARGUMENT if a length passes the end.
StatusOr<std::vector<std::string_view>> BytesElements(std::string_view tensor, std::string_view data);

}  // namespace tidepool::api
