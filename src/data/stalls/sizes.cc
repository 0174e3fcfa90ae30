#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/text.h"
#include "data/augment.h"
#include "data/stalls/pipeline.h"

namespace tidepool::data::stalls {
namespace {

constexpr uint64_t kSizeStream = 0x73697a65;
constexpr uint64_t kDrawStream = 0x64726177;
constexpr int64_t kMostSampleBytes = int64_t{1} << 40;

// In (0, 1).
double Uniform(uint64_t seed, uint64_t draw, uint64_t stream) {
  return (static_cast<double>(RandomBits(seed, draw, stream) >> 11) + 0.5) * 0x1p-53;
}

}  // namespace

SampleSizes ConstantSizes(int64_t samples, int64_t bytes) { return std::make_shared<std::vector<int64_t>>(samples, bytes); }

SampleSizes LogNormalSizes(int64_t samples, int64_t mean_bytes, double variation, uint64_t seed) {
  if (variation <= 0) return ConstantSizes(samples, mean_bytes);
  const double sigma = std::sqrt(std::log1p(variation * variation));
  const double mu = std::log(static_cast<double>(mean_bytes)) - sigma * sigma / 2;
  auto sizes = std::make_shared<std::vector<int64_t>>(samples);
  for (int64_t i = 0; i < samples; ++i) {
    // Box and Muller.
    const double u = Uniform(seed, 2 * i, kSizeStream), v = Uniform(seed, 2 * i + 1, kSizeStream);
    const double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
    const double bytes = std::exp(mu + sigma * normal);
    (*sizes)[i] = std::max<int64_t>(1, std::llround(std::min(bytes, static_cast<double>(kMostSampleBytes))));
  }
  return sizes;
}

StatusOr<SampleSizes> DrawSizes(std::string_view text, int64_t samples, uint64_t seed) {
  std::vector<int64_t> known;
  int64_t number = 0;
  for (const std::string& line : SplitText(text, '\n')) {
    ++number;
    if (line.empty()) continue;
    int64_t bytes = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), bytes);
    if (error != std::errc() || end != line.data() + line.size() || bytes < 1 || bytes > kMostSampleBytes) {
      return InvalidArgument("line {}: size '{}'; allowed: a number of bytes, 1 to {}", number, line.substr(0, 40),
                             kMostSampleBytes);
    }
    known.push_back(bytes);
  }
  if (known.empty()) return InvalidArgument("there are no sizes; needed: one number of bytes a line");
  auto sizes = std::make_shared<std::vector<int64_t>>(samples);
  for (int64_t i = 0; i < samples; ++i) (*sizes)[i] = known[RandomBits(seed, i, kDrawStream) % known.size()];
  return SampleSizes(sizes);
}

int64_t TotalBytes(const SampleSizes& sizes) { return std::accumulate(sizes->begin(), sizes->end(), int64_t{0}); }

}  // namespace tidepool::data::stalls
