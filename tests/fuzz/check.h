// What fuzzers check beside crashes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidepool::fuzz {

inline std::string_view TextOf(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

inline void Check(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

// A refusal names the file and is short, whatever the file holds.
inline void CheckRefusal(const Status& status, std::string_view file) {
  constexpr size_t kLongest = 16384;
  const std::string message = MessageOf(status);
  Check(status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kFailedPrecondition ||
            status.code() == StatusCode::kNotFound,
        "a refusal has the code of a fault in the file: " + ToString(status).substr(0, kLongest));
  Check(message.find(file) != std::string::npos, "a refusal names the file: " + message.substr(0, kLongest));
  Check(message.size() <= kLongest, "a refusal is short: " + message.substr(0, kLongest));
}

}  // namespace tidepool::fuzz
