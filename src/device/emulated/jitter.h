// How the time of an operation varies from run to run.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "device/emulated/cost_source.h"

namespace tidepool::device::emulated {

enum class Jitter : uint8_t {
  kNone,       // always the median
  kResample,   // drawn from the measured quantiles: straight lines through p10, median and p90, prolonged to both ends
  kLognormal,  // with the measured median and the spread of p10 to p90
};
std::string_view NameOf(Jitter jitter);
StatusOr<Jitter> ParseJitter(std::string_view text);

// Half of p10 to p90, as a part of the median, where a row does not record it: the median over the measured reference tables.
inline constexpr double kUsualSpread = 0.004;

// Durations of one device. The same seed gives the same sequence. Thread-compatible.
class DurationSampler {
 public:
  DurationSampler(Jitter jitter, uint64_t seed) : jitter_(jitter), state_(seed) {}
  int64_t Draw(const OpTime& time);

 private:
  double Uniform();  // in (0, 1)
  Jitter jitter_;
  uint64_t state_;
};

}  // namespace tidepool::device::emulated
