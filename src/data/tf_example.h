// The two features that a labelled picture has in a tf.train.Example, found in the message's bytes without copying them.
//
// The schema, of which the rest is skipped: Example {1: Features}, Features {1: map entry {1: name, 2: Feature}}, Feature {1:
// BytesList, 2: FloatList, 3: Int64List}, BytesList {1: repeated bytes}, Int64List {1: repeated int64, packed or not}.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

struct ExampleKeys {
  // The first one that is there counts.
  std::vector<std::string_view> picture = {"image/encoded", "image"};
  std::vector<std::string_view> label = {"image/class/label", "label"};
};

struct ExamplePicture {
  std::span<const std::byte> picture;
  std::optional<int64_t> label;
};

// INVALID_ARGUMENT, with the offset within the message, for bytes that are no Example; NOT_FOUND if it has no picture.
StatusOr<ExamplePicture> ParseExample(std::span<const std::byte> message, const ExampleKeys& keys = {});

}  // namespace tidepool::data
