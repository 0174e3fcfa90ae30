// Reading and printing of sizes and durations. Byte counts are int64_t named `..._bytes`; durations are absl::Duration.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidepool {

inline constexpr int64_t kKiB = int64_t{1} << 10;
inline constexpr int64_t kMiB = int64_t{1} << 20;
inline constexpr int64_t kGiB = int64_t{1} << 30;

// Accepts "123", "64KiB", "1.5GiB", "200MB" (powers of ten) and "12K/M/G" (powers of two). INVALID_ARGUMENT otherwise,
// for negative values and for values above 2^62.
StatusOr<int64_t> ParseBytes(std::string_view text);
// "512 B", "1.5 MiB".
std::string FormatBytes(int64_t bytes);

// Accepts "250us", "4ms", "1.5s", "2m", "1h" and "inf". INVALID_ARGUMENT otherwise and for negative values.
StatusOr<absl::Duration> ParseDuration(std::string_view text);
// "4.2 ms", "1.50 s". Call it as tidepool::FormatDuration: Abseil has one of the same name.
std::string FormatDuration(absl::Duration duration);

inline int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
inline int64_t RoundUp(int64_t value, int64_t multiple) { return CeilDiv(value, multiple) * multiple; }

}  // namespace tidepool
