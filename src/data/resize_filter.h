// What both resizers share: the weights of an axis, and the vertical pass. For resize.cc and resize_planes.cc only.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace tidepool::data {

// Weights are 12-bit fractions. After the vertical pass a sample has 6 fractional bits (at most 255 * 64, so it fits 16 signed
// bits), after the horizontal pass 18.
inline constexpr int kWeightBits = 12;
inline constexpr int kRowBits = 6;
inline constexpr float kToPixel = 1.0f / (1 << (kWeightBits + kRowBits));
inline constexpr int32_t kHalf = 1 << (kWeightBits - kRowBits - 1);

// The source samples of each output sample along one axis: `taps` weights per output, which add up to 1 << 12 exactly. `taps` is
// even (a weight may be zero), because the multiplications take two samples at once.
struct FilterAxis {
  int taps = 0;
  std::vector<int> first;
  std::vector<int16_t> weights;
};

// `start` and `length` are the crop along this axis in source samples, `limit` the number of source samples. The last tap of an
// axis may lie one sample behind the source, with weight zero. `exact` is scratch.
void BuildAxis(double start, double length, int limit, int outputs, std::vector<double>* exact, FilterAxis* axis);

// The vertical pass: out[i] = the weighted sum of sources[t][i], with kRowBits fractional bits. `count` is a multiple of 8.
struct BlendShape {
  int taps = 0;  // even
  int count = 0;
};
void BlendRows(int level, const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int16_t* out);

// Two neighbouring weights, as the multiplications take them.
inline int32_t WeightPair(const int16_t* weights) {
  int32_t pair;
  std::memcpy(&pair, weights, sizeof(pair));
  return pair;
}

namespace internal {
// Of instructions: 0 plain, 1 SSE2, 2 AVX2. Results do not depend on it.
int ResizeLevel();
// Instead of the best level of this machine, for tests; -1 the best again.
void ForceResizeLevel(int level);
}  // namespace internal

}  // namespace tidepool::data
