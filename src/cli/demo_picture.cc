#include <algorithm>
#include <array>
#include <cmath>

#include "cli/demo_data.h"

namespace tidepool::cli {
namespace {

// SplitMix64: small, and the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double Uniform(double low, double high) { return low + (high - low) * static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  int Integer(int low, int high) { return low + static_cast<int>(Next() % static_cast<uint64_t>(high - low + 1)); }

 private:
  uint64_t state_;
};

struct Rgb {
  double r = 0, g = 0, b = 0;
};

// hue in degrees, the others 0 to 1.
Rgb FromHsv(double hue, double saturation, double value) {
  const double h = std::fmod(std::fmod(hue, 360.0) + 360.0, 360.0) / 60.0;
  const double chroma = value * saturation, x = chroma * (1 - std::fabs(std::fmod(h, 2.0) - 1)), base = value - chroma;
  const std::array<Rgb, 6> sectors = {
      {{chroma, x, 0}, {x, chroma, 0}, {0, chroma, x}, {0, x, chroma}, {x, 0, chroma}, {chroma, 0, x}}};
  const Rgb& c = sectors[std::min<size_t>(5, static_cast<size_t>(h))];
  return {(c.r + base) * 255, (c.g + base) * 255, (c.b + base) * 255};
}

// Whether a point of the shape's own coordinates (its circle has radius 1) belongs to the shape.
bool Inside(int shape, double u, double v) {
  const double radius = std::hypot(u, v);
  switch (shape) {
    case 0: return radius < 0.95;                                               // disk
    case 1: return radius < 1 && radius > 0.58;                                 // ring
    case 2: return std::fabs(u) < 0.78 && std::fabs(v) < 0.78;                  // square
    case 3: return v > -0.6 && v < 0.9 && std::fabs(u) < (0.9 - v) * 0.62;      // triangle
    case 4: return radius < 1.1 && (std::fabs(u) < 0.3 || std::fabs(v) < 0.3);  // cross
    case 5: return radius < 0.55 + 0.45 * std::cos(5 * std::atan2(v, u));       // star
    case 6: return radius < 1 && std::fmod(u + 8, 0.66) < 0.33;                 // bars
    default: return radius < 1 && v > 0.05;                                     // half
  }
}

}  // namespace

const std::vector<std::string>& DemoClasses() {
  static const auto* const kClasses =
      new std::vector<std::string>{"disk", "ring", "square", "triangle", "cross", "star", "bars", "half"};
  return *kClasses;
}

DemoPicture DrawDemoPicture(int class_index, uint64_t seed, uint64_t index) {
  Random random(seed * 0x9E3779B97F4A7C15u + index * 8 + static_cast<uint64_t>(class_index));
  DemoPicture picture{.width = random.Integer(96, 160), .height = random.Integer(96, 160)};
  const double side = std::min(picture.width, picture.height);
  // One picture in five has a hue that says nothing of its class, and neighbouring hues overlap: colour helps, but not to the
  // end.
  const double hue = random.Uniform(0, 1) < 0.2 ? random.Uniform(0, 360) : class_index * 45.0 + random.Uniform(-32, 32);
  const Rgb shape = FromHsv(hue, random.Uniform(0.5, 0.95), random.Uniform(0.6, 1.0));
  const double ground_hue = random.Uniform(0, 360);
  const Rgb ground_a = FromHsv(ground_hue, random.Uniform(0.05, 0.5), random.Uniform(0.1, 0.75));
  const Rgb ground_b = FromHsv(ground_hue + random.Uniform(-60, 60), random.Uniform(0.05, 0.5), random.Uniform(0.1, 0.75));
  const double angle = random.Uniform(0, 6.283185307), cosine = std::cos(angle), sine = std::sin(angle);
  const double radius = side * random.Uniform(0.26, 0.42);
  const double x0 = picture.width * random.Uniform(0.4, 0.6), y0 = picture.height * random.Uniform(0.4, 0.6);
  const double slope = random.Uniform(0, 6.283185307), slope_x = std::cos(slope) / side, slope_y = std::sin(slope) / side;
  struct Blob {
    double x, y, radius;
    Rgb color;
  };
  std::array<Blob, 4> blobs;
  for (Blob& blob : blobs) {
    blob = {.x = random.Uniform(0, picture.width),
            .y = random.Uniform(0, picture.height),
            .radius = side * random.Uniform(0.03, 0.1),
            .color = FromHsv(random.Uniform(0, 360), random.Uniform(0.3, 0.9), random.Uniform(0.3, 1.0))};
  }
  const double noise = random.Uniform(6, 22);
  picture.rgb.resize(static_cast<size_t>(picture.width) * picture.height * 3);
  uint8_t* out = picture.rgb.data();
  for (int y = 0; y < picture.height; ++y) {
    for (int x = 0; x < picture.width; ++x) {
      const double mix = std::clamp(0.5 + (x - picture.width / 2.0) * slope_x + (y - picture.height / 2.0) * slope_y, 0.0, 1.0);
      Rgb color{ground_a.r + (ground_b.r - ground_a.r) * mix, ground_a.g + (ground_b.g - ground_a.g) * mix,
                ground_a.b + (ground_b.b - ground_a.b) * mix};
      for (const Blob& blob : blobs) {
        if (std::hypot(x - blob.x, y - blob.y) < blob.radius) color = blob.color;
      }
      const double dx = (x - x0) / radius, dy = (y - y0) / radius;
      if (Inside(class_index, dx * cosine + dy * sine, dy * cosine - dx * sine)) color = shape;
      const uint64_t bits = random.Next();
      const auto jitter = [&](int shift) { return (static_cast<double>((bits >> shift) & 0xFFFF) / 65535.0 - 0.5) * 2 * noise; };
      *out++ = static_cast<uint8_t>(std::clamp(color.r + jitter(0), 0.0, 255.0));
      *out++ = static_cast<uint8_t>(std::clamp(color.g + jitter(16), 0.0, 255.0));
      *out++ = static_cast<uint8_t>(std::clamp(color.b + jitter(32), 0.0, 255.0));
    }
  }
  return picture;
}

}  // namespace tidepool::cli
