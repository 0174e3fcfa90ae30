// Parsing of safetensors headers. The JSON comes from anywhere: it is read as a stream of events, so that duplicate keys are
// seen, nesting is limited, and nothing is built that the format does not have.
#include <algorithm>
#include <cstring>
#include <set>

#include "base/json.h"
#include "model/safetensors.h"

namespace tidepool::model {
namespace {

// A name in a message: hostile ones may be megabytes long.
std::string Shown(const std::string& name) { return name.size() <= 120 ? name : name.substr(0, 117) + "..."; }

// What one entry of the header says.
struct RawTensor {
  TensorEntry entry;
  std::string dtype;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  std::vector<uint64_t> offsets;
};

// Receives the events of nlohmann's parser. An event that the format does not have sets `fault` and ends the parse.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<RawTensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string fault;

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Unexpected(fmt::format("the number {}", Shown(text)));
  }
  bool number_integer(number_integer_t value) override { return Unexpected(fmt::format("the negative number {}", value)); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ == Where::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX)) return Unexpected(fmt::format("the number {}", value));
      auto& shape = tensors.back().entry.shape;
      if (shape.size() == kMaxSafetensorsRank) {
        return Fail("tensor '{}' has more than {} dimensions", Shown(tensors.back().entry.name), kMaxSafetensorsRank);
      }
      shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (where_ == Where::kOffsets) {
      tensors.back().offsets.push_back(value);
      if (tensors.back().offsets.size() > 2) {
        return Fail("data_offsets of tensor '{}' has more than 2 numbers", Shown(tensors.back().entry.name));
      }
      return true;
    }
    return Unexpected(fmt::format("the number {}", value));
  }

  bool string(string_t& value) override {
    if (where_ == Where::kMetadata) {
      metadata[key_] = value;
      return true;
    }
    if (where_ == Where::kTensor && key_ == "dtype") {
      tensors.back().dtype = value;
      return true;
    }
    return Unexpected("a string");
  }

  bool start_object(std::size_t) override {
    if (where_ == Where::kStart) {
      where_ = Where::kTop;
      return true;
    }
    if (where_ != Where::kTop) return Unexpected("an object");
    if (key_ == "__metadata__") {
      where_ = Where::kMetadata;
      return true;
    }
    where_ = Where::kTensor;
    tensors.emplace_back().entry.name = key_;
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kTensor) {
      const RawTensor& tensor = tensors.back();
      for (const auto& [present, name] : {std::pair{tensor.has_dtype, "dtype"}, std::pair{tensor.has_shape, "shape"},
                                          std::pair{tensor.has_offsets, "data_offsets"}}) {
        if (!present) return Fail("tensor '{}' has no {}", Shown(tensor.entry.name), name);
      }
    }
    where_ = Where::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (where_ == Where::kTensor && key_ == "shape") {
      where_ = Where::kShape;
    } else if (where_ == Where::kTensor && key_ == "data_offsets") {
      where_ = Where::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (where_ == Where::kOffsets && tensors.back().offsets.size() != 2) {
      return Fail("data_offsets of tensor '{}' has {} numbers; allowed: 2", Shown(tensors.back().entry.name),
                  tensors.back().offsets.size());
    }
    where_ = Where::kTensor;
    return true;
  }

  bool key(string_t& value) override {
    key_ = value;
    if (where_ == Where::kTop) {
      if (!names_.insert(value).second) return Fail("key '{}' appears twice", Shown(value));
      return true;
    }
    if (where_ == Where::kMetadata) {
      if (metadata.contains(value)) return Fail("metadata key '{}' appears twice", Shown(value));
      return true;
    }
    RawTensor& tensor = tensors.back();
    bool* seen = value == "dtype"          ? &tensor.has_dtype
                 : value == "shape"        ? &tensor.has_shape
                 : value == "data_offsets" ? &tensor.has_offsets
                                           : nullptr;
    if (seen == nullptr) {
      return Fail("tensor '{}' has the key '{}'; allowed: dtype, shape, data_offsets", Shown(tensor.entry.name), Shown(value));
    }
    if (*seen) return Fail("key '{}' of tensor '{}' appears twice", value, Shown(tensor.entry.name));
    *seen = true;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    return Fail("the header is not JSON at byte {}: {}", position, Shown(error.what()));
  }

 private:
  enum class Where { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  template <typename... Args>
  bool Fail(fmt::format_string<Args...> format, Args&&... args) {
    if (fault.empty()) fault = fmt::format(format, std::forward<Args>(args)...);
    return false;
  }

  bool Unexpected(const std::string& what) {
    switch (where_) {
      case Where::kStart: return Fail("the header is {}; allowed: an object", what);
      case Where::kTop: return Fail("'{}' is {}; allowed: an object", Shown(key_), what);
      case Where::kMetadata: return Fail("'{}' of __metadata__ is {}; allowed: a string", Shown(key_), what);
      case Where::kTensor:
        return Fail("{} of tensor '{}' is {}; allowed: {}", key_, Shown(tensors.back().entry.name), what,
                    key_ == "dtype" ? "a string" : "a list of numbers");
      default:
        return Fail("{} of tensor '{}' holds {}; allowed: numbers from 0 to 2^63-1", key_, Shown(tensors.back().entry.name),
                    what);
    }
  }

  Where where_ = Where::kStart;
  std::string key_;
  std::set<std::string> names_;
};

// Fills dtype, offset and size of an entry, which must agree with each other and lie within the buffer.
Status Complete(RawTensor* raw, int64_t data_offset_bytes, int64_t buffer_bytes) {
  TensorEntry& entry = raw->entry;
  const std::string name = Shown(entry.name);
  const StatusOr<DType> dtype = DTypeFromSafetensors(raw->dtype);
  if (!dtype.ok()) return InvalidArgument("tensor '{}': dtype '{}' is not supported", name, Shown(raw->dtype));
  entry.dtype = *dtype;
  const uint64_t begin = raw->offsets[0], end = raw->offsets[1];
  if (begin > end) return InvalidArgument("tensor '{}' begins at {} and ends at {}, before it begins", name, begin, end);
  if (end > static_cast<uint64_t>(buffer_bytes)) {
    return InvalidArgument("tensor '{}' ends at {}; allowed: the buffer's {} bytes", name, end, buffer_bytes);
  }
  // A zero anywhere makes the tensor empty, however large the other dimensions are.
  int64_t size = SizeOf(entry.dtype);
  if (std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end()) size = 0;
  for (const int64_t dim : entry.shape) {
    if (__builtin_mul_overflow(size, dim, &size)) return InvalidArgument("the shape of tensor '{}' overflows 64 bits", name);
  }
  if (static_cast<uint64_t>(size) != end - begin) {
    return InvalidArgument("tensor '{}' has {} bytes by its shape and type but {} by its data_offsets", name, size, end - begin);
  }
  entry.offset_bytes = data_offset_bytes + static_cast<int64_t>(begin);
  entry.size_bytes = size;
  return {};
}

}  // namespace

StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> prefix, int64_t file_bytes) {
  if (file_bytes < 8 || prefix.size() < 8) {
    return InvalidArgument("{} bytes are too few for a safetensors file; allowed: at least 8",
                           std::min<int64_t>(file_bytes, static_cast<int64_t>(prefix.size())));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | std::to_integer<uint64_t>(prefix[i]);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return InvalidArgument("the header has {} bytes; allowed: {}", length, kMaxSafetensorsHeaderBytes);
  }
  if (length > static_cast<uint64_t>(file_bytes) - 8 || length > prefix.size() - 8) {
    return InvalidArgument("the header has {} bytes but only {} follow its length", length,
                           std::min<uint64_t>(static_cast<uint64_t>(file_bytes), prefix.size()) - 8);
  }
  const char* text = reinterpret_cast<const char*>(prefix.data()) + 8;
  if (length == 0 || text[0] != '{') return InvalidArgument("the header does not start with '{{'");
  size_t used = length;
  while (text[used - 1] == ' ') --used;
  if (text[used - 1] != '}') {
    return InvalidArgument("the header ends with byte 0x{:02x}; allowed: '}}', then spaces",
                           static_cast<unsigned char>(text[used - 1]));
  }

  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text, text + used, &reader) || !reader.fault.empty()) return InvalidArgument("{}", reader.fault);

  SafetensorsHeader header;
  header.metadata = std::move(reader.metadata);
  header.data_offset_bytes = 8 + static_cast<int64_t>(length);
  header.file_bytes = file_bytes;
  const int64_t buffer_bytes = file_bytes - header.data_offset_bytes;
  for (RawTensor& raw : reader.tensors) {
    TIDEPOOL_RETURN_IF_ERROR(Complete(&raw, header.data_offset_bytes, buffer_bytes));
    header.tensors.push_back(std::move(raw.entry));
  }
  // Empty tensors share their offset with what follows them, so they come first there.
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.offset_bytes != b.offset_bytes ? a.offset_bytes < b.offset_bytes : a.size_bytes < b.size_bytes;
  });
  int64_t expected = header.data_offset_bytes;
  for (const TensorEntry& tensor : header.tensors) {
    if (tensor.offset_bytes != expected) {
      return InvalidArgument("tensor '{}' begins at {} where {} ends the tensors before it: {}", Shown(tensor.name),
                             tensor.offset_bytes - header.data_offset_bytes, expected - header.data_offset_bytes,
                             tensor.offset_bytes > expected ? "a hole" : "an overlap");
    }
    expected += tensor.size_bytes;
  }
  if (expected != file_bytes) {
    return InvalidArgument("{} bytes follow the last tensor; allowed: none", file_bytes - expected);
  }
  return header;
}

}  // namespace tidepool::model
