#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "report/plot.h"

namespace tidepool::report {
namespace {

constexpr double kKiB = 1024.0;

// The smallest "round" step that is not below `raw`: 1, 2 or 5 times a power of ten, or a power of two for bytes.
double RoundStep(double raw, Unit unit) {
  if (unit == Unit::kBytes) return std::max(1.0, std::exp2(std::ceil(std::log2(raw) - 1e-9)));
  const double decade = std::pow(10.0, std::floor(std::log10(raw) + 1e-9));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * decade >= raw * (1 - 1e-9)) return factor * decade;
  }
  return 10 * decade;
}

}  // namespace

std::vector<double> LinearTicks(double low, double high, int most, Unit unit) {
  std::vector<double> ticks;
  if (!std::isfinite(low) || !std::isfinite(high) || most < 1) return ticks;
  if (high <= low) return {low};
  const double step = RoundStep((high - low) / most, unit);
  const double first = std::ceil(low / step - 1e-9);
  for (int i = 0; i <= most + 1; ++i) {
    const double tick = (first + i) * step;
    if (tick > high + step * 1e-9) break;
    ticks.push_back(tick == 0 ? 0 : tick);
  }
  return ticks;
}

std::vector<double> LogTicks(double low, double high, int most) {
  std::vector<double> ticks;
  if (!(low > 0) || !(high >= low) || !std::isfinite(high) || most < 1) return ticks;
  const auto collect = [&](std::initializer_list<double> factors, int stride) {
    ticks.clear();
    const int first = static_cast<int>(std::floor(std::log10(low) + 1e-9));
    const int last = static_cast<int>(std::floor(std::log10(high) + 1e-9));
    for (int decade = first; decade <= last; decade += stride) {
      for (const double factor : factors) {
        const double tick = factor * std::pow(10.0, decade);
        if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
      }
    }
    return static_cast<int>(ticks.size()) <= most;
  };
  if (collect({1, 2, 5}, 1) || collect({1}, 1)) return ticks;
  for (int stride = 2; !collect({1}, stride); ++stride) {
  }
  return ticks;
}

Scale ScaleFor(double magnitude, Unit unit) {
  const double size = std::fabs(magnitude);
  switch (unit) {
    case Unit::kNumber: return {};
    case Unit::kPercent: return {.divisor = 0.01, .suffix = "%"};
    case Unit::kSeconds:
      if (size >= 1 || size == 0) return {.divisor = 1, .suffix = "s"};
      if (size >= 1e-3) return {.divisor = 1e-3, .suffix = "ms"};
      return {.divisor = 1e-6, .suffix = "us"};
    case Unit::kBytes:
      if (size >= kKiB * kKiB * kKiB * 4) return {.divisor = kKiB * kKiB * kKiB, .suffix = "GiB"};
      if (size >= kKiB * kKiB) return {.divisor = kKiB * kKiB, .suffix = "MiB"};
      if (size >= kKiB) return {.divisor = kKiB, .suffix = "KiB"};
      return {.divisor = 1, .suffix = "B"};
  }
  return {};
}

std::string FormatNumber(double value, int digits) {
  if (std::isnan(value)) return "-";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (value == 0) return "0";
  const int magnitude = static_cast<int>(std::floor(std::log10(std::fabs(value))));
  if (magnitude < -6 || magnitude > 14) return fmt::format("{:.{}g}", value, digits);
  std::string text = fmt::format("{:.{}f}", value, std::max(0, digits - 1 - magnitude));
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

std::string FormatValue(double value, Unit unit) {
  if (!std::isfinite(value)) return FormatNumber(value);
  const Scale scale = ScaleFor(value, unit);
  const std::string number = FormatNumber(value / scale.divisor, 4);
  return scale.suffix.empty() ? number : number + " " + scale.suffix;
}

}  // namespace tidepool::report
