#include "data/augment.h"

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tidepool::data {
namespace {

// Weights are 12-bit fractions. After the vertical pass a sample has 6 fractional bits (at most 255 * 64, so it fits 16 signed
// bits), after the horizontal pass 18.
constexpr int kWeightBits = 12;
constexpr int kRowBits = 6;
constexpr float kToPixel = 1.0f / (1 << (kWeightBits + kRowBits));

// The source samples of each output sample along one axis: `taps` weights per output, which add up to 1 << kWeightBits exactly.
// `taps` is even (a weight may be zero), because the multiplications below take two samples at once.
struct Axis {
  int taps = 0;
  std::vector<int> first;
  std::vector<int16_t> weights;
};

// `start` and `length` are the crop along this axis in source samples, `limit` the number of source samples. The last tap of an
// axis may lie one sample behind the source, with weight zero.
void BuildAxis(double start, double length, int limit, int outputs, Axis* axis) {
  const double step = length / outputs;
  const double support = std::max(step, 1.0);
  const int used = std::min(static_cast<int>(std::ceil(2 * support)), limit);
  axis->taps = (used + 1) / 2 * 2;
  axis->first.resize(outputs);
  axis->weights.assign(size_t(outputs) * axis->taps, 0);
  std::vector<double> exact(used);
  for (int i = 0; i < outputs; ++i) {
    const double centre = start + (i + 0.5) * step;
    const int first = std::clamp(static_cast<int>(std::ceil(centre - support - 0.5)), 0, limit - used);
    double sum = 0;
    for (int t = 0; t < used; ++t) {
      exact[t] = std::max(0.0, 1.0 - std::abs(first + t + 0.5 - centre) / support);
      sum += exact[t];
    }
    int16_t* weights = axis->weights.data() + size_t(i) * axis->taps;
    int left = 1 << kWeightBits;
    int largest = 0;
    for (int t = 0; t < used; ++t) {
      weights[t] = static_cast<int16_t>(std::floor(exact[t] / sum * (1 << kWeightBits) + 0.5));
      left -= weights[t];
      if (weights[t] > weights[largest]) largest = t;
    }
    weights[largest] = static_cast<int16_t>(weights[largest] + left);
    axis->first[i] = first;
  }
}

constexpr int32_t kHalf = 1 << (kWeightBits - kRowBits - 1);

// Both variants of each function below give the same bits: the sums are of integers.
#if defined(__SSE2__)

__m128i WeightPair(const int16_t* weights) {
  return _mm_set1_epi32(static_cast<uint16_t>(weights[0]) |
                        static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(weights[1])) << 16));
}

// One row of the vertical pass: out[i] = the weighted sum of rows[t][i]. `count` is a multiple of 8; rows and out are padded to
// it.
void BlendRows(const uint8_t* const* rows, const int16_t* weights, int taps, int count, int16_t* out) {
  const __m128i zero = _mm_setzero_si128();
  for (int i = 0; i < count; i += 8) {
    __m128i low = _mm_set1_epi32(kHalf), high = low;
    for (int t = 0; t < taps; t += 2) {
      const __m128i a = _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[t] + i)), zero);
      const __m128i b = _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[t + 1] + i)), zero);
      const __m128i pair = WeightPair(weights + t);
      low = _mm_add_epi32(low, _mm_madd_epi16(_mm_unpacklo_epi16(a, b), pair));
      high = _mm_add_epi32(high, _mm_madd_epi16(_mm_unpackhi_epi16(a, b), pair));
    }
    const __m128i packed =
        _mm_packs_epi32(_mm_srai_epi32(low, kWeightBits - kRowBits), _mm_srai_epi32(high, kWeightBits - kRowBits));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), packed);
  }
}

// One pixel of the horizontal pass, scaled and shifted: pixel holds `taps` times four channels.
void BlendPixel(const int16_t* pixel, const int16_t* weights, int taps, const float* scale, const float* bias, float* out) {
  __m128i sum = _mm_setzero_si128();
  for (int t = 0; t < taps; t += 2) {
    const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel + 4 * t));
    sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_unpacklo_epi16(two, _mm_srli_si128(two, 8)), WeightPair(weights + t)));
  }
  _mm_storeu_ps(out, _mm_add_ps(_mm_mul_ps(_mm_cvtepi32_ps(sum), _mm_loadu_ps(scale)), _mm_loadu_ps(bias)));
}

#else

void BlendRows(const uint8_t* const* rows, const int16_t* weights, int taps, int count, int16_t* out) {
  for (int i = 0; i < count; ++i) {
    int32_t sum = kHalf;
    for (int t = 0; t < taps; ++t) sum += rows[t][i] * weights[t];
    out[i] = static_cast<int16_t>(sum >> (kWeightBits - kRowBits));
  }
}

void BlendPixel(const int16_t* pixel, const int16_t* weights, int taps, const float* scale, const float* bias, float* out) {
  int32_t sum[4] = {0, 0, 0, 0};
  for (int t = 0; t < taps; ++t) {
    for (int c = 0; c < 4; ++c) sum[c] += pixel[4 * t + c] * weights[t];
  }
  for (int c = 0; c < 4; ++c) out[c] = static_cast<float>(sum[c]) * scale[c] + bias[c];
}

#endif

}  // namespace

uint64_t RandomBits(uint64_t key, uint64_t index, uint64_t n) {
  // Three rounds of a 64-bit finaliser over the counters; neighbouring counters give unrelated bits.
  auto mix = [](uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  return mix(mix(mix(key) ^ index) + n * 0xd1342543de82ef95u);
}

double RandomUnit(uint64_t key, uint64_t index, uint64_t n) {
  return static_cast<double>(RandomBits(key, index, n) >> 11) * 0x1.0p-53;
}

Crop CentreCrop(int width, int height) {
  const double side = std::min(width, height);
  return {.x = (width - side) / 2, .y = (height - side) / 2, .width = side, .height = side};
}

Crop RandomResizedCrop(int width, int height, double min_area, uint64_t key, uint64_t index) {
  Crop crop = CentreCrop(width, height);
  for (uint64_t attempt = 0; attempt < 10; ++attempt) {
    const double area = (min_area + (1 - min_area) * RandomUnit(key, index, 4 * attempt)) * width * height;
    // Only basic operations and a square root, which every machine rounds alike.
    const double u = 2 * RandomUnit(key, index, 4 * attempt + 1) - 1;
    const double proportion = u >= 0 ? 1 + u / 3 : 1 / (1 - u / 3);
    const double crop_width = std::sqrt(area * proportion);
    const double crop_height = std::sqrt(area / proportion);
    if (crop_width > width || crop_height > height) continue;
    crop.width = crop_width;
    crop.height = crop_height;
    crop.x = (width - crop_width) * RandomUnit(key, index, 4 * attempt + 2);
    crop.y = (height - crop_height) * RandomUnit(key, index, 4 * attempt + 3);
    break;
  }
  crop.flip = (RandomBits(key, index, 1000) & 1) != 0;
  return crop;
}

Normalisation MakeNormalisation(std::span<const float> mean, std::span<const float> stddev) {
  Normalisation result;
  for (int c = 0; c < 3; ++c) {
    result.scale[c] = 1.0f / (255.0f * stddev[c]);
    result.bias[c] = -mean[c] / stddev[c];
  }
  return result;
}

void CropToTensor(const Image& image, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
                  std::span<float> output) {
  thread_local Axis columns, rows;
  thread_local std::vector<int16_t> blended;
  thread_local std::vector<const uint8_t*> sources;
  BuildAxis(crop.x / denominator, crop.width / denominator, image.width, size, &columns);
  BuildAxis(crop.y / denominator, crop.height / denominator, image.height, size, &rows);

  // Only the columns that some output needs are blended, rounded up to pairs of pixels. At most two of them lie behind the row's
  // end, in the next row or in the padding; their weight is zero.
  const int first_column = columns.first.front();
  const int column_count = (columns.first.back() + columns.taps - first_column + 1) / 2 * 2;
  blended.resize(size_t(column_count) * 4);
  float scale[4] = {0, 0, 0, 0}, bias[4] = {0, 0, 0, 0};
  for (int c = 0; c < 3; ++c) {
    scale[c] = normalisation.scale[c] * kToPixel;
    bias[c] = normalisation.bias[c];
  }
  const size_t stride = size_t(image.width) * 4;
  const size_t begin = size_t(first_column) * 4;
  const uint8_t* const pixels = image.rgbx.data();
  sources.resize(rows.taps);

  const size_t plane = size_t(size) * size;
  for (int y = 0; y < size; ++y) {
    for (int t = 0; t < rows.taps; ++t) {
      sources[t] = pixels + std::min(rows.first[y] + t, image.height - 1) * stride + begin;
    }
    BlendRows(sources.data(), rows.weights.data() + size_t(y) * rows.taps, rows.taps, column_count * 4, blended.data());
    float* out = output.data() + size_t(y) * size;
    for (int x = 0; x < size; ++x) {
      float values[4];
      BlendPixel(blended.data() + size_t(columns.first[x] - first_column) * 4, columns.weights.data() + size_t(x) * columns.taps,
                 columns.taps, scale, bias, values);
      const int target = crop.flip ? size - 1 - x : x;
      for (int c = 0; c < 3; ++c) out[plane * c + target] = values[c];
    }
  }
}

}  // namespace tidepool::data
