#include "data/tf_example.h"

#include <algorithm>

namespace tidepool::data {
namespace {

// Walks over the fields of one message in the wire format of protocol buffers.
class Fields {
 public:
  // `origin`: the offset of `bytes` in the outermost message, for errors.
  explicit Fields(std::span<const std::byte> bytes, size_t origin = 0) : bytes_(bytes), origin_(origin) {}

  // Reads the next field: number_, and content_ if it is length-delimited or varint_ if it is a varint. False at the end.
  StatusOr<bool> Next() {
    if (at_ == bytes_.size()) return false;
    TIDEPOOL_ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    number_ = tag >> 3;
    wire_ = static_cast<int>(tag & 7);
    content_ = {};
    if (wire_ == 0) {
      TIDEPOOL_ASSIGN_OR_RETURN(varint_, Varint());
      return true;
    }
    uint64_t size = 0;
    if (wire_ == 2) {
      TIDEPOOL_ASSIGN_OR_RETURN(size, Varint());
    } else if (wire_ == 1 || wire_ == 5) {
      size = wire_ == 1 ? 8 : 4;
    } else {
      return InvalidArgument("wire type {} at byte {}; no tf.train.Example has it", wire_, origin_ + at_);
    }
    if (size > bytes_.size() - at_) {
      return InvalidArgument("a field of {} bytes at byte {}, but the message ends at byte {}", size, origin_ + at_,
                             origin_ + bytes_.size());
    }
    content_origin_ = origin_ + at_;
    content_ = bytes_.subspan(at_, static_cast<size_t>(size));
    at_ += static_cast<size_t>(size);
    return true;
  }

  bool Is(uint64_t number, int wire) const { return number_ == number && wire_ == wire; }
  std::span<const std::byte> content() const { return content_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(content_.data()), content_.size()}; }
  Fields inner() const { return Fields(content_, content_origin_); }
  uint64_t varint() const { return varint_; }

  StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ == bytes_.size()) return InvalidArgument("the message ends within a number at byte {}", origin_ + at_);
      const auto byte = static_cast<uint8_t>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    return InvalidArgument("a number of more than ten bytes ends at byte {}", origin_ + at_);
  }

 private:
  std::span<const std::byte> bytes_, content_;
  size_t origin_ = 0, content_origin_ = 0, at_ = 0;
  uint64_t number_ = 0, varint_ = 0;
  int wire_ = 0;
};

struct Feature {
  std::optional<std::span<const std::byte>> bytes;  // the first value
  std::optional<int64_t> integer;
};

// The first value of the Feature in `feature`, or neither. Values of other kinds are skipped.
StatusOr<Feature> ParseFeature(Fields feature) {
  Feature result;
  while (true) {
    TIDEPOOL_ASSIGN_OR_RETURN(const bool more, feature.Next());
    if (!more) return result;
    if (!feature.Is(1, 2) && !feature.Is(3, 2)) continue;
    const bool is_bytes = feature.Is(1, 2);
    Fields list = feature.inner();
    while (true) {
      TIDEPOOL_ASSIGN_OR_RETURN(const bool value, list.Next());
      if (!value) break;
      if (is_bytes && list.Is(1, 2) && !result.bytes.has_value()) result.bytes = list.content();
      if (is_bytes || result.integer.has_value()) continue;
      if (list.Is(1, 0)) result.integer = static_cast<int64_t>(list.varint());
      if (list.Is(1, 2) && !list.content().empty()) {
        TIDEPOOL_ASSIGN_OR_RETURN(const uint64_t first, list.inner().Varint());
        result.integer = static_cast<int64_t>(first);
      }
    }
  }
}

}  // namespace

StatusOr<ExamplePicture> ParseExample(std::span<const std::byte> message, const ExampleKeys& keys) {
  ExamplePicture result;
  size_t picture_rank = keys.picture.size(), label_rank = keys.label.size();
  Fields example(message);
  while (true) {
    TIDEPOOL_ASSIGN_OR_RETURN(const bool more, example.Next());
    if (!more) break;
    if (!example.Is(1, 2)) continue;
    Fields features = example.inner();
    while (true) {
      TIDEPOOL_ASSIGN_OR_RETURN(const bool entry_found, features.Next());
      if (!entry_found) break;
      if (!features.Is(1, 2)) continue;
      Fields entry = features.inner();
      std::string_view name;
      std::optional<Fields> value;
      while (true) {
        TIDEPOOL_ASSIGN_OR_RETURN(const bool part, entry.Next());
        if (!part) break;
        if (entry.Is(1, 2)) name = entry.text();
        if (entry.Is(2, 2)) value = entry.inner();
      }
      const auto as_picture =
          static_cast<size_t>(std::find(keys.picture.begin(), keys.picture.end(), name) - keys.picture.begin());
      const auto as_label = static_cast<size_t>(std::find(keys.label.begin(), keys.label.end(), name) - keys.label.begin());
      if (!value.has_value() || (as_picture >= picture_rank && as_label >= label_rank)) continue;
      TIDEPOOL_ASSIGN_OR_RETURN(const Feature feature, ParseFeature(*value));
      if (as_picture < picture_rank && feature.bytes.has_value()) {
        picture_rank = as_picture;
        result.picture = *feature.bytes;
      }
      if (as_label < label_rank && feature.integer.has_value()) {
        label_rank = as_label;
        result.label = feature.integer;
      }
    }
  }
  if (picture_rank == keys.picture.size()) return NotFound("the Example has no feature {}", fmt::join(keys.picture, " or "));
  return result;
}

}  // namespace tidepool::data
