#include "data/augment.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tidepool::data {
namespace {

// Weights are 12-bit fractions. After the vertical pass a sample has 6 fractional bits (at most 255 * 64, so it fits 16 signed bits),
// after the horizontal pass 18.
constexpr int kWeightBits = 12;
constexpr int kRowBits = 6;
constexpr float kToPixel = 1.0f / (1 << (kWeightBits + kRowBits));

// The source samples of each output sample along one axis: `taps` weights per output, which add up to 1 << kWeightBits exactly.
struct Axis {
  int taps = 0;
  std::vector<int> first;
  std::vector<int16_t> weights;
};

// `start` and `length` are the crop along this axis in source samples, `limit` the number of source samples.
void BuildAxis(double start, double length, int limit, int outputs, Axis* axis) {
  const double step = length / outputs;
  const double support = std::max(step, 1.0);
  axis->taps = std::min(static_cast<int>(std::ceil(support)) * 2 + 1, limit);
  axis->first.resize(outputs);
  axis->weights.assign(size_t(outputs) * axis->taps, 0);
  std::vector<double> exact(axis->taps);
  for (int i = 0; i < outputs; ++i) {
    const double centre = start + (i + 0.5) * step;
    const int first = std::clamp(static_cast<int>(std::floor(centre - support + 0.5)), 0, limit - axis->taps);
    double sum = 0;
    for (int t = 0; t < axis->taps; ++t) {
      exact[t] = std::max(0.0, 1.0 - std::abs(first + t + 0.5 - centre) / support);
      sum += exact[t];
    }
    int16_t* weights = axis->weights.data() + size_t(i) * axis->taps;
    int left = 1 << kWeightBits;
    int largest = 0;
    for (int t = 0; t < axis->taps; ++t) {
      weights[t] = static_cast<int16_t>(std::floor(exact[t] / sum * (1 << kWeightBits) + 0.5));
      left -= weights[t];
      if (weights[t] > weights[largest]) largest = t;
    }
    weights[largest] = static_cast<int16_t>(weights[largest] + left);
    axis->first[i] = first;
  }
}

// One row of the vertical pass: a weighted sum of `taps` source rows over `count` bytes.
void BlendRows(const uint8_t* source, size_t stride, const int16_t* weights, int taps, int count, int16_t* out) {
  constexpr int kChunk = 256;
  int32_t sum[kChunk];
  for (int begin = 0; begin < count; begin += kChunk) {
    const int n = std::min(kChunk, count - begin);
    std::fill(sum, sum + n, 1 << (kWeightBits - kRowBits - 1));
    for (int t = 0; t < taps; ++t) {
      const int16_t weight = weights[t];
      if (weight == 0) continue;
      const uint8_t* row = source + t * stride + begin;
      for (int i = 0; i < n; ++i) sum[i] += static_cast<int16_t>(row[i]) * weight;
    }
    for (int i = 0; i < n; ++i) out[begin + i] = static_cast<int16_t>(sum[i] >> (kWeightBits - kRowBits));
  }
}

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
  BuildAxis(crop.x / denominator, crop.width / denominator, image.width, size, &columns);
  BuildAxis(crop.y / denominator, crop.height / denominator, image.height, size, &rows);

  // Only the columns that some output needs are blended.
  const int first_column = columns.first.front();
  const int column_count = columns.first.back() + columns.taps - first_column;
  blended.resize(size_t(column_count) * 4);
  std::array<float, 3> scale;
  for (int c = 0; c < 3; ++c) scale[c] = normalisation.scale[c] * kToPixel;

  const size_t stride = size_t(image.width) * 4;
  const size_t plane = size_t(size) * size;
  for (int y = 0; y < size; ++y) {
    BlendRows(image.rgbx.data() + rows.first[y] * stride + size_t(first_column) * 4, stride,
              rows.weights.data() + size_t(y) * rows.taps, rows.taps, column_count * 4, blended.data());
    float* out = output.data() + size_t(y) * size;
    for (int x = 0; x < size; ++x) {
      const int16_t* weights = columns.weights.data() + size_t(x) * columns.taps;
      const int16_t* pixel = blended.data() + size_t(columns.first[x] - first_column) * 4;
      int32_t sum[4] = {0, 0, 0, 0};
      for (int t = 0; t < columns.taps; ++t) {
        for (int c = 0; c < 4; ++c) sum[c] += pixel[4 * t + c] * weights[t];
      }
      const int target = crop.flip ? size - 1 - x : x;
      for (int c = 0; c < 3; ++c) out[plane * c + target] = static_cast<float>(sum[c]) * scale[c] + normalisation.bias[c];
    }
  }
}

}  // namespace tidepool::data
