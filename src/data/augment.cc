#include "data/augment.h"

#include <algorithm>
#include <cmath>

namespace tidepool::data {

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

}  // namespace tidepool::data
