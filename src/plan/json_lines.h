// On which line of a JSON text each value stands, for messages about it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/status.h"

namespace tidepool::plan {

class JsonLines {
 public:
  // INVALID_ARGUMENT names `file` and line: not JSON, nested deeper than `max_depth`, a key of one object twice.
  static StatusOr<JsonLines> Scan(std::string_view text, const std::string& file, int max_depth);

  // The line of a value by its path ("ops[3].parameters"; "" is the outermost); that of the nearest value around it if there is
  // none at the path. Lines count from 1.
  int64_t Of(std::string_view path) const;

 private:
  std::unordered_map<std::string, int64_t> lines_;
};

}  // namespace tidepool::plan
