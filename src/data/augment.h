// The choices that are made for a sample on its way into a tensor: a crop, a flip, normalisation (resize.h carries them out). All
// choices come from (key, index) by counting, never from a shared generator, so that they do not depend on threads or on the
// order of reading; the arithmetic is integer until the last multiply and add, so that every machine makes the same bytes.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace tidepool::data {

// The n-th random number of stream (key, index).
uint64_t RandomBits(uint64_t key, uint64_t index, uint64_t n);
// Uniform in [0, 1).
double RandomUnit(uint64_t key, uint64_t index, uint64_t n);

// A rectangle in pixels of the full-size picture; edges may lie between pixels.
struct Crop {
  double x = 0, y = 0, width = 0, height = 0;
  bool flip = false;  // left to right
};

// A rectangle of `min_area` to 1 of the area and of proportion 3:4 to 4:3; the central square if none of ten tries fits.
Crop RandomResizedCrop(int width, int height, double min_area, uint64_t key, uint64_t index);
Crop CentreCrop(int width, int height);

// value = pixel * scale + bias, per channel; pixel is 0 ... 255.
struct Normalisation {
  std::array<float, 3> scale;
  std::array<float, 3> bias;
};
// From mean and standard deviation of pixels in 0 ... 1.
Normalisation MakeNormalisation(std::span<const float> mean, std::span<const float> stddev);

}  // namespace tidepool::data
