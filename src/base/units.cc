#include "base/units.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

namespace tidepool {
namespace {

// Splits "1.5GiB" into 1.5 and "GiB".
StatusOr<std::pair<double, std::string_view>> SplitNumber(std::string_view text, std::string_view kind,
                                                          std::string_view allowed) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value) || value < 0) {
    return InvalidArgument("{} '{}' is not a number with a unit; allowed: {}", kind, text, allowed);
  }
  std::string_view unit(end, text.data() + text.size() - end);
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  return std::make_pair(value, unit);
}

}  // namespace

StatusOr<int64_t> ParseBytes(std::string_view text) {
  constexpr std::string_view kAllowed = "for example 4096, 64KiB, 512MiB, 1.5GiB, 200MB";
  constexpr std::array<std::pair<std::string_view, double>, 14> kUnits = {{{"", 1},
                                                                           {"B", 1},
                                                                           {"K", 1 << 10},
                                                                           {"KiB", 1 << 10},
                                                                           {"M", 1 << 20},
                                                                           {"MiB", 1 << 20},
                                                                           {"G", 1 << 30},
                                                                           {"GiB", 1 << 30},
                                                                           {"T", 1099511627776.0},
                                                                           {"TiB", 1099511627776.0},
                                                                           {"kB", 1e3},
                                                                           {"KB", 1e3},
                                                                           {"MB", 1e6},
                                                                           {"GB", 1e9}}};
  TIDEPOOL_ASSIGN_OR_RETURN(const auto parts, SplitNumber(text, "size", kAllowed));
  for (const auto& [unit, factor] : kUnits) {
    if (unit != parts.second) continue;
    const double bytes = parts.first * factor;
    if (bytes > 0x1p62) return InvalidArgument("size '{}' is too large; the largest is 4 EiB", text);
    return static_cast<int64_t>(std::llround(bytes));
  }
  return InvalidArgument("size '{}' has the unknown unit '{}'; allowed: {}", text, parts.second, kAllowed);
}

std::string FormatBytes(int64_t bytes) {
  constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (std::abs(value) >= 1024 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, std::abs(value) < 10 ? 2 : std::abs(value) < 100 ? 1 : 0, kNames[unit]);
}

StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  constexpr std::string_view kAllowed = "for example 250us, 4ms, 1.5s, 2m, 1h, inf";
  if (text == "inf") return absl::InfiniteDuration();
  constexpr std::array<std::pair<std::string_view, double>, 6> kUnits = {
      {{"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}}};
  TIDEPOOL_ASSIGN_OR_RETURN(const auto parts, SplitNumber(text, "duration", kAllowed));
  for (const auto& [unit, seconds] : kUnits) {
    if (unit == parts.second) return absl::Seconds(parts.first * seconds);
  }
  return InvalidArgument("duration '{}' has the unknown unit '{}'; allowed: {}", text, parts.second, kAllowed);
}

std::string FormatDuration(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "inf";
  const double seconds = absl::ToDoubleSeconds(duration);
  const double magnitude = std::abs(seconds);
  if (magnitude < 1e-6) return fmt::format("{:.0f} ns", seconds * 1e9);
  if (magnitude < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (magnitude < 1) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (magnitude < 120) return fmt::format("{:.2f} s", seconds);
  return fmt::format("{:.1f} min", seconds / 60);
}

}  // namespace tidepool
