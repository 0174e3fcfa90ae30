#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "data/resize.h"
#include "data/resize_filter.h"

namespace tidepool::data {
namespace {

Image Filled(int width, int height, const std::function<int(int x, int y, int c)>& value) {
  Image image{.width = width, .height = height};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 4; ++c) image.rgbx.push_back(static_cast<uint8_t>(value(x, y, c)));
    }
  }
  image.rgbx.resize(image.rgbx.size() + kPixelPadding, 0xee);
  return image;
}

const Normalisation kPlain = {{1, 1, 1}, {0, 0, 0}};

TEST(RandomBits, DependsOnKeyIndexAndCounterOnly) {
  std::set<uint64_t> seen;
  for (uint64_t key = 0; key < 10; ++key) {
    for (uint64_t index = 0; index < 10; ++index) {
      for (uint64_t n = 0; n < 10; ++n) {
        EXPECT_EQ(RandomBits(key, index, n), RandomBits(key, index, n));
        seen.insert(RandomBits(key, index, n));
      }
    }
  }
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(RandomBits, KeepsItsValuesBetweenReleases) {
  // Journals and checkpoints name samples by these numbers.
  EXPECT_EQ(RandomBits(0, 0, 0), 2558736989570252433u);
  EXPECT_EQ(RandomBits(1, 2, 3), 3127806226352399438u);
}

TEST(RandomUnit, IsUniform) {
  double sum = 0, square = 0;
  const int count = 20000;
  for (int i = 0; i < count; ++i) {
    const double u = RandomUnit(7, i, 0);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    square += u * u;
  }
  EXPECT_NEAR(sum / count, 0.5, 0.01);
  EXPECT_NEAR(square / count, 1.0 / 3, 0.01);
}

TEST(RandomResizedCrop, StaysInsideThePictureAndInItsBounds) {
  int flips = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    const Crop crop = RandomResizedCrop(500, 375, 0.25, 1, i);
    ASSERT_GE(crop.x, 0);
    ASSERT_GE(crop.y, 0);
    ASSERT_LE(crop.x + crop.width, 500 + 1e-9);
    ASSERT_LE(crop.y + crop.height, 375 + 1e-9);
    const double area = crop.width * crop.height / (500.0 * 375.0);
    ASSERT_GE(area, 0.25 - 1e-9);
    ASSERT_GE(crop.width / crop.height, 0.75 - 1e-9);
    ASSERT_LE(crop.width / crop.height, 4.0 / 3 + 1e-9);
    flips += crop.flip;
  }
  EXPECT_NEAR(flips, 1000, 100);
}

TEST(RandomResizedCrop, FallsBackToTheCentreOfAVeryLongPicture) {
  const Crop crop = RandomResizedCrop(10000, 10, 0.9, 1, 1);
  EXPECT_EQ(crop.width, 10);
  EXPECT_EQ(crop.height, 10);
  EXPECT_EQ(crop.x, 4995);
}

TEST(CropToTensor, CopiesPixelsWhenNothingIsScaled) {
  const Image image = Filled(8, 8, [](int x, int y, int c) { return 10 * x + y + 100 * c; });
  std::vector<float> out(3 * 4 * 4);
  CropToTensor(image, 1, {.x = 2, .y = 3, .width = 4, .height = 4}, 4, kPlain, out);
  for (int c = 0; c < 3; ++c) {
    for (int y = 0; y < 4; ++y) {
      for (int x = 0; x < 4; ++x) {
        EXPECT_FLOAT_EQ(out[c * 16 + y * 4 + x], static_cast<uint8_t>(10 * (x + 2) + y + 3 + 100 * c));
      }
    }
  }
}

TEST(CropToTensor, FlipsLeftToRight) {
  const Image image = Filled(6, 6, [](int x, int y, int) { return 20 * x + y; });
  std::vector<float> straight(3 * 36), flipped(3 * 36);
  Crop crop = CentreCrop(6, 6);
  CropToTensor(image, 1, crop, 6, kPlain, straight);
  crop.flip = true;
  CropToTensor(image, 1, crop, 6, kPlain, flipped);
  for (int y = 0; y < 18; ++y) {
    for (int x = 0; x < 6; ++x) EXPECT_EQ(flipped[y * 6 + x], straight[y * 6 + 5 - x]);
  }
}

TEST(CropToTensor, AveragesEverySourcePixelWhenShrinking) {
  // A fine chequerboard: a filter that skipped pixels would give 0 or 255.
  const Image image = Filled(64, 64, [](int x, int y, int) { return (x + y) % 2 == 0 ? 255 : 0; });
  std::vector<float> out(3 * 16 * 16);
  CropToTensor(image, 1, CentreCrop(64, 64), 16, kPlain, out);
  for (const float value : out) EXPECT_NEAR(value, 127.5, 2);
}

TEST(CropToTensor, EnlargesAndKeepsAFlatPictureFlat) {
  const Image image = Filled(3, 2, [](int, int, int c) { return 50 * (c + 1); });
  std::vector<float> out(3 * 32 * 32);
  const float mean[] = {0.5f, 0.5f, 0.5f}, stddev[] = {0.25f, 0.25f, 0.25f};
  CropToTensor(image, 1, {.x = 0, .y = 0, .width = 3, .height = 2}, 32, MakeNormalisation(mean, stddev), out);
  for (int i = 0; i < 3 * 32 * 32; ++i) EXPECT_NEAR(out[i], (50 * (i / 1024 + 1) / 255.0 - 0.5) / 0.25, 1e-4);
}

TEST(CropToTensor, TakesPicturesOfFewPixels) {
  for (int width = 1; width < 6; ++width) {
    for (int height = 1; height < 6; ++height) {
      const Image image = Filled(width, height, [](int, int, int) { return 9; });
      for (const int size : {1, 2, 5, 16}) {
        std::vector<float> out(3 * size * size);
        CropToTensor(image, 1, {.x = 0, .y = 0, .width = double(width), .height = double(height)}, size, kPlain, out);
        for (const float value : out) ASSERT_FLOAT_EQ(value, 9) << width << " x " << height << " to " << size;
      }
    }
  }
}

// The plain definition, in floating point.
float Reference(const Image& image, double x0, double y0, double step_x, double step_y, int x, int y, int c) {
  auto axis = [](double start, double step, int i, int limit) {
    std::vector<double> weights(limit);
    const double support = std::max(step, 1.0), centre = start + (i + 0.5) * step;
    double sum = 0;
    for (int s = 0; s < limit; ++s) sum += weights[s] = std::max(0.0, 1 - std::abs(s + 0.5 - centre) / support);
    for (double& weight : weights) weight /= sum;
    return weights;
  };
  const auto wx = axis(x0, step_x, x, image.width), wy = axis(y0, step_y, y, image.height);
  double sum = 0;
  for (int v = 0; v < image.height; ++v) {
    for (int u = 0; u < image.width; ++u) sum += wx[u] * wy[v] * image.rgbx[4 * (v * image.width + u) + c];
  }
  return static_cast<float>(sum);
}

TEST(CropToTensor, IsTheTriangleFilter) {
  const Image image = Filled(37, 29, [](int x, int y, int c) { return static_cast<int>(RandomBits(1, x * 100 + y, c) % 256); });
  for (uint64_t i = 0; i < 20; ++i) {
    Crop crop = RandomResizedCrop(37, 29, 0.1, 3, i);
    crop.flip = false;
    const int size = 3 + static_cast<int>(i) * 2;
    std::vector<float> out(3 * size * size);
    CropToTensor(image, 1, crop, size, kPlain, out);
    for (int c = 0; c < 3; ++c) {
      for (int y = 0; y < size; ++y) {
        for (int x = 0; x < size; ++x) {
          const float wanted = Reference(image, crop.x, crop.y, crop.width / size, crop.height / size, x, y, c);
          ASSERT_NEAR(out[(c * size + y) * size + x], wanted, 0.5) << "crop " << i << " at " << x << ", " << y;
        }
      }
    }
  }
}

TEST(CropToTensor, ScalesTheCropWithAReducedDecode) {
  const Image half = Filled(32, 32, [](int x, int, int) { return 8 * x; });
  std::vector<float> out(3 * 16 * 16);
  CropToTensor(half, 2, {.x = 16, .y = 16, .width = 32, .height = 32}, 16, kPlain, out);
  for (int x = 0; x < 16; ++x) EXPECT_FLOAT_EQ(out[x], 8.0f * (x + 8));
}

TEST(CropResizer, GivesTheSameBitsWithEveryKindOfInstructions) {
  std::vector<float> plain, fast;
  for (uint64_t i = 0; i < 60; ++i) {
    const int width = 5 + static_cast<int>(RandomBits(9, i, 0) % 120), height = 5 + static_cast<int>(RandomBits(9, i, 1) % 120);
    const Image image =
        Filled(width, height, [&](int x, int y, int c) { return static_cast<int>(RandomBits(i, x * 1000 + y, c) % 256); });
    const Crop crop = RandomResizedCrop(width, height, 0.05, 4, i);
    const int size = 1 + static_cast<int>(RandomBits(9, i, 2) % 40);
    const float mean[] = {0.485f, 0.456f, 0.406f}, stddev[] = {0.229f, 0.224f, 0.225f};
    plain.assign(3 * size * size, -1);
    internal::ForceResizeLevel(0);
    CropToTensor(image, 1, crop, size, MakeNormalisation(mean, stddev), plain);
    for (const int level : {1, 2}) {
      fast.assign(3 * size * size, -2);
      internal::ForceResizeLevel(level);
      CropToTensor(image, 1, crop, size, MakeNormalisation(mean, stddev), fast);
      ASSERT_EQ(plain, fast) << "level " << level << " picture " << i << " of " << width << " x " << height << " to " << size;
    }
  }
  internal::ForceResizeLevel(-1);
}

TEST(CropResizer, GivesTheSameBitsFromThePartThatItNeeds) {
  for (uint64_t i = 0; i < 60; ++i) {
    const int width = 20 + static_cast<int>(RandomBits(8, i, 0) % 100), height = 20 + static_cast<int>(RandomBits(8, i, 1) % 100);
    const auto pixel = [&](int x, int y, int c) { return static_cast<int>(RandomBits(i, x * 1000 + y, c) % 256); };
    const Crop crop = RandomResizedCrop(2 * width, 2 * height, 0.05, 4, i);
    const int size = 1 + static_cast<int>(RandomBits(8, i, 2) % 30);
    std::vector<float> from_whole(3 * size * size), from_part(3 * size * size);
    CropToTensor(Filled(width, height, pixel), 2, crop, size, kPlain, from_whole);
    CropResizer resizer;
    resizer.Plan(width, height, 2, crop, size, kPlain, from_part);
    const PixelRect part = resizer.needed();
    ASSERT_GE(part.x, 0);
    ASSERT_LE(part.x + part.width, width);
    ASSERT_LE(part.y + part.height, height);
    resizer.Begin(part);
    // Rows come in bunches, as a decoder gives them.
    for (int y = part.y; y < part.y + part.height;) {
      const int end = std::min(y + 1 + static_cast<int>(i) % RowSink::kMostRows, part.y + part.height);
      for (; y < end; ++y) {
        uint8_t* const row = resizer.Row(y);
        for (int x = 0; x < part.width; ++x) {
          for (int c = 0; c < 3; ++c) row[4 * x + c] = static_cast<uint8_t>(pixel(x + part.x, y, c));
        }
      }
      resizer.Done(end);
    }
    ASSERT_EQ(from_whole, from_part) << "picture " << i;
  }
}

}  // namespace
}  // namespace tidepool::data
