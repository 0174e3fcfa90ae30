#include "device/emulated/jitter.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tidepool::device::emulated {
namespace {

constexpr double kP90OfNormal = 1.2815515655446004;

}  // namespace

std::string_view NameOf(Jitter jitter) {
  switch (jitter) {
    case Jitter::kNone: return "none";
    case Jitter::kResample: return "resample";
    case Jitter::kLognormal: return "lognormal";
  }
  return "?";
}

StatusOr<Jitter> ParseJitter(std::string_view text) {
  for (const Jitter jitter : {Jitter::kNone, Jitter::kResample, Jitter::kLognormal}) {
    if (text == NameOf(jitter)) return jitter;
  }
  return InvalidArgument("the jitter is '{}'; allowed: none, resample, lognormal", text);
}

double DurationSampler::Uniform() {
  state_ += 0x9e3779b97f4a7c15;  // SplitMix64
  uint64_t bits = state_;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  bits ^= bits >> 31;
  return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

int64_t DurationSampler::Draw(const OpTime& time) {
  if (jitter_ == Jitter::kNone || time.median_ns <= 0) return time.median_ns;
  const auto median = static_cast<double>(time.median_ns);
  const bool recorded = time.p10_ns > 0 && time.p90_ns > time.p10_ns;
  const double p10 = recorded ? static_cast<double>(time.p10_ns) : median * (1 - kUsualSpread);
  const double p90 = recorded ? static_cast<double>(time.p90_ns) : median * (1 + kUsualSpread);
  double drawn;
  if (jitter_ == Jitter::kResample) {
    const double u = Uniform();
    drawn = u < 0.5 ? median - (0.5 - u) * (median - p10) / 0.4 : median + (u - 0.5) * (p90 - median) / 0.4;
  } else {
    // Box and Muller (1958).
    const double normal = std::sqrt(-2 * std::log(Uniform())) * std::cos(2 * std::numbers::pi * Uniform());
    drawn = median * std::exp(normal * std::log(p90 / p10) / (2 * kP90OfNormal));
  }
  return std::max<int64_t>(0, std::llround(drawn));
}

}  // namespace tidepool::device::emulated
