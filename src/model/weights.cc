// Compiled without fused multiply-add (CMakeLists.txt), which would round differently on machines that have it.
#include "model/weights.h"

#include <cmath>
#include <cstring>

namespace tidepool::model {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;  // 2^64 divided by the golden ratio

// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). Used with a
// counter it needs no state.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t BitsAt(uint64_t key, uint64_t index) { return Mix(key + (index + 1) * kGolden); }

// The library's logarithm and cosine may differ in the last bit from one C library to the next; these do not.
// ln(x) for x in (0, 1]: x = m 2^e with m near 1, then the series of 2 artanh((m - 1) / (m + 1)).
double Log(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m *= 2;
    --exponent;
  }
  const double s = (m - 1) / (m + 1);
  const double s2 = s * s;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
  return 2 * s * sum + exponent * 0.69314718055994531;
}

struct CosSin {
  double cos, sin;
};

// Of 2 pi u for u in [0, 1): a quarter turn is split off exactly, the rest is in [-pi/4, pi/4].
CosSin Turn(double u) {
  const double quarters = std::floor(4 * u + 0.5);
  const double a = (4 * u - quarters) * 1.5707963267948966;
  const double a2 = a * a;
  double c = 0, s = 0;
  for (int k = 16; k >= 2; k -= 2) c = (1 + c) * -a2 / (k * (k - 1));
  for (int k = 17; k >= 3; k -= 2) s = (1 + s) * -a2 / (k * (k - 1));
  c += 1;
  s = a + a * s;
  switch (static_cast<int>(quarters) & 3) {
    case 0: return {c, s};
    case 1: return {-s, c};
    case 2: return {-c, -s};
    default: return {s, -c};
  }
}

// Box and Muller's pair of normal numbers, from two uniform ones.
CosSin NormalPair(uint64_t key, uint64_t pair) {
  const double u = static_cast<double>((BitsAt(key, 2 * pair) >> 11) + 1) * 0x1p-53;  // never 0
  const double radius = std::sqrt(-2 * Log(u));
  const CosSin turn = Turn(UniformAt(key, 2 * pair + 1));
  return {radius * turn.cos, radius * turn.sin};
}

void Put(std::span<std::byte> target, size_t i, double value) {
  const float rounded = static_cast<float>(value);
  std::memcpy(target.data() + i * sizeof(float), &rounded, sizeof(float));
}

Status FillOnes(const Param& param, std::span<std::byte> target) {
  if (param.dtype == DType::kF32) {
    for (size_t i = 0; i < target.size() / sizeof(float); ++i) Put(target, i, 1);
    return {};
  }
  const bool integer = param.dtype == DType::kI64 || param.dtype == DType::kI32 || param.dtype == DType::kU8;
  if (!integer)
    return InvalidArgument("parameter '{}' of type {} cannot start as ones", param.name, SafetensorsName(param.dtype));
  std::memset(target.data(), 0, target.size());
  for (size_t i = 0; i < target.size(); i += static_cast<size_t>(SizeOf(param.dtype))) target[i] = std::byte{1};
  return {};
}

}  // namespace

uint64_t StreamKey(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return Mix(hash ^ Mix(seed + kGolden));
}

double UniformAt(uint64_t key, uint64_t index) { return static_cast<double>(BitsAt(key, index) >> 11) * 0x1p-53; }

double NormalAt(uint64_t key, uint64_t index) {
  const CosSin pair = NormalPair(key, index / 2);
  return index % 2 == 0 ? pair.cos : pair.sin;
}

int64_t ElementsOf(const Param& param) {
  int64_t elements = 1;
  for (const int64_t dim : param.shape) elements *= dim;
  return elements;
}

int64_t BytesOf(const Param& param) { return ElementsOf(param) * SizeOf(param.dtype); }

Status FillSeeded(const Param& param, uint64_t seed, int64_t first_element, std::span<std::byte> target) {
  if (param.init.rule == Init::Rule::kZeros) {
    std::memset(target.data(), 0, target.size());
    return {};
  }
  if (param.init.rule == Init::Rule::kOnes) return FillOnes(param, target);
  if (param.dtype != DType::kF32) {
    return InvalidArgument("parameter '{}' of type {} cannot start at random; allowed: F32", param.name,
                           SafetensorsName(param.dtype));
  }
  const uint64_t key = StreamKey(seed, param.name);
  const uint64_t first = static_cast<uint64_t>(first_element);
  const size_t count = target.size() / sizeof(float);
  const double scale = param.init.scale;
  if (param.init.rule == Init::Rule::kUniform) {
    for (size_t i = 0; i < count; ++i) Put(target, i, scale * (2 * UniformAt(key, first + i) - 1));
    return {};
  }
  size_t i = 0;
  if (first % 2 == 1 && count > 0) Put(target, i++, scale * NormalAt(key, first));
  for (; i + 1 < count; i += 2) {
    const CosSin pair = NormalPair(key, (first + i) / 2);
    Put(target, i, scale * pair.cos);
    Put(target, i + 1, scale * pair.sin);
  }
  if (i < count) Put(target, i, scale * NormalAt(key, first + i));
  return {};
}

}  // namespace tidepool::model
