// When which model is asked: the arrivals of a load, made before it starts. Pure; the same options give the same plan on every
// machine.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/load/load.h"

namespace tidepool::api {

struct PlannedRequest {
  absl::Duration at;   // since the start of the load
  uint32_t model = 0;  // index into the models of the load
};

inline constexpr int64_t kMaxPlannedRequests = 5'000'000;

// Sorted by time. For kTrace it reads options.trace_file. INVALID_ARGUMENT if the plan would be larger than kMaxPlannedRequests.
StatusOr<std::vector<PlannedRequest>> MakePlan(const LoadOptions& options, std::span<const std::string> models);

// "seconds,model" rows; a header row, empty lines and lines that begin with '#' are skipped. Rows at or after `length` are left
// out. The error names the line.
StatusOr<std::vector<PlannedRequest>> ParseTrace(std::string_view text, std::span<const std::string> models,
                                                 absl::Duration length);

// Shares of the models under a Zipf law, in order; they add up to 1.
std::vector<double> ZipfShares(size_t models, double exponent);

// Uniform numbers in [0, 1) with 53 random bits, the same everywhere.
class UniformSource {
 public:
  explicit UniformSource(uint64_t seed) : state_(seed) {}
  uint64_t NextBits();  // splitmix64 (Steele, Lea, Flood 2014)
  double Next() { return static_cast<double>(NextBits() >> 11) * 0x1.0p-53; }
  double NextExponential(double mean);
  double NextNormal();

 private:
  uint64_t state_;
};

}  // namespace tidepool::api
