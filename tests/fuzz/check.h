// What fuzzers check beside crashes.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidepool::fuzz {

inline void Check(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

inline void CheckNames(const Status& status, std::string_view file) {
  Check(MessageOf(status).find(file) != std::string::npos, "a refusal names the file: " + MessageOf(status));
}

}  // namespace tidepool::fuzz
