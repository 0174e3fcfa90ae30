#include "data/resize_filter.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tidepool::data {
namespace {

std::atomic<int> forced_level{-1};

int BestLevel() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") ? 2 : 1;
#else
  return 0;
#endif
}

// Inline, where the library's function would be called; `value` fits an int.
int CeilToInt(double value) {
  const int below = static_cast<int>(value);
  return below + (value > below ? 1 : 0);
}

// For i from `begin` on.
void BlendPlain(const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int begin, int16_t* out) {
  for (int i = begin; i < shape.count; ++i) {
    int32_t sum = kHalf;
    for (int t = 0; t < shape.taps; ++t) sum += sources[t][i] * weights[t];
    out[i] = static_cast<int16_t>(sum >> (kWeightBits - kRowBits));
  }
}

#if defined(__x86_64__)

void BlendSse2(const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int begin, int16_t* out) {
  const __m128i zero = _mm_setzero_si128();
  for (int i = begin; i < shape.count; i += 8) {
    __m128i low = _mm_set1_epi32(kHalf), high = low;
    for (int t = 0; t < shape.taps; t += 2) {
      const __m128i a = _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sources[t] + i)), zero);
      const __m128i b = _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sources[t + 1] + i)), zero);
      const __m128i pair = _mm_set1_epi32(WeightPair(weights + t));
      low = _mm_add_epi32(low, _mm_madd_epi16(_mm_unpacklo_epi16(a, b), pair));
      high = _mm_add_epi32(high, _mm_madd_epi16(_mm_unpackhi_epi16(a, b), pair));
    }
    const __m128i packed =
        _mm_packs_epi32(_mm_srai_epi32(low, kWeightBits - kRowBits), _mm_srai_epi32(high, kWeightBits - kRowBits));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), packed);
  }
}

#define TIDEPOOL_AVX2 __attribute__((target("avx2")))

template <int kTaps>
TIDEPOOL_AVX2 void BlendRow(const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int16_t* out) {
  const int taps = kTaps > 0 ? kTaps : shape.taps;
  int i = 0;
  for (; i + 16 <= shape.count; i += 16) {
    __m256i low = _mm256_set1_epi32(kHalf), high = low;
    for (int t = 0; t < taps; t += 2) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sources[t] + i));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sources[t + 1] + i));
      const __m256i pair = _mm256_set1_epi32(WeightPair(weights + t));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), pair));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)), pair));
    }
    const __m256i packed =
        _mm256_packs_epi32(_mm256_srai_epi32(low, kWeightBits - kRowBits), _mm256_srai_epi32(high, kWeightBits - kRowBits));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  if (i < shape.count) BlendSse2(shape, sources, weights, i, out);
}

// Up to four taps: a weight is 64 * high + low, with low in [-32, 31], so that products of bytes fit 16 bits, and so do their
// sums: at most 4 * 32 * 255 for the low parts and 65 * 255 for the high ones. (sum + half) >> 6 == high sum + ((low sum + half)
// >> 6).
template <int kTaps>
TIDEPOOL_AVX2 void BlendBytes(const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int16_t* out) {
  static_assert(kTaps <= 4 && kWeightBits - kRowBits == 6);
  __m256i high[kTaps / 2], low[kTaps / 2];
  for (int t = 0; t < kTaps; t += 2) {
    const int high0 = (weights[t] + 32) >> 6, high1 = (weights[t + 1] + 32) >> 6;
    const int low0 = weights[t] - 64 * high0, low1 = weights[t + 1] - 64 * high1;
    high[t / 2] = _mm256_set1_epi16(static_cast<int16_t>((high1 & 0xff) << 8 | (high0 & 0xff)));
    low[t / 2] = _mm256_set1_epi16(static_cast<int16_t>((low1 & 0xff) << 8 | (low0 & 0xff)));
  }
  int i = 0;
  for (; i + 32 <= shape.count; i += 32) {
    __m256i high_first = _mm256_setzero_si256(), high_second = high_first;
    __m256i low_first = _mm256_set1_epi16(kHalf), low_second = low_first;
    for (int t = 0; t < kTaps; t += 2) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sources[t] + i));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sources[t + 1] + i));
      const __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
      high_first = _mm256_add_epi16(high_first, _mm256_maddubs_epi16(first, high[t / 2]));
      high_second = _mm256_add_epi16(high_second, _mm256_maddubs_epi16(second, high[t / 2]));
      low_first = _mm256_add_epi16(low_first, _mm256_maddubs_epi16(first, low[t / 2]));
      low_second = _mm256_add_epi16(low_second, _mm256_maddubs_epi16(second, low[t / 2]));
    }
    // Bytes 0 to 7 and 16 to 23 are in `first`, the others in `second`.
    const __m256i first = _mm256_add_epi16(high_first, _mm256_srai_epi16(low_first, 6));
    const __m256i second = _mm256_add_epi16(high_second, _mm256_srai_epi16(low_second, 6));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i + 16), _mm256_permute2x128_si256(first, second, 0x31));
  }
  if (i < shape.count) BlendSse2(shape, sources, weights, i, out);
}

void BlendAvx2(const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int16_t* out) {
  switch (shape.taps) {
    case 2: return BlendBytes<2>(shape, sources, weights, out);
    case 4: return BlendBytes<4>(shape, sources, weights, out);
    case 6: return BlendRow<6>(shape, sources, weights, out);
    default: return BlendRow<0>(shape, sources, weights, out);
  }
}

#endif  // __x86_64__

}  // namespace

void internal::ForceResizeLevel(int level) { forced_level = level; }

int internal::ResizeLevel() {
  static const int best = BestLevel();
  const int forced = forced_level.load(std::memory_order_relaxed);
  return forced < 0 ? best : std::min(forced, best);
}

void BuildAxis(double start, double length, int limit, int outputs, std::vector<double>* exact, FilterAxis* axis) {
  const double step = length / outputs;
  const double support = std::max(step, 1.0);
  const int used = std::min(static_cast<int>(std::ceil(2 * support)), limit);
  axis->taps = (used + 1) / 2 * 2;
  axis->first.resize(outputs);
  axis->weights.assign(size_t(outputs) * axis->taps, 0);
  exact->resize(used);
  for (int i = 0; i < outputs; ++i) {
    const double centre = start + (i + 0.5) * step;
    const int first = std::clamp(CeilToInt(centre - support - 0.5), 0, limit - used);
    double sum = 0;
    for (int t = 0; t < used; ++t) {
      (*exact)[t] = std::max(0.0, 1.0 - std::abs(first + t + 0.5 - centre) / support);
      sum += (*exact)[t];
    }
    int16_t* weights = axis->weights.data() + size_t(i) * axis->taps;
    int left = 1 << kWeightBits;
    int largest = 0;
    for (int t = 0; t < used; ++t) {
      // Not negative: rounds to the nearest.
      weights[t] = static_cast<int16_t>((*exact)[t] / sum * (1 << kWeightBits) + 0.5);  // NOLINT(bugprone-incorrect-roundings)
      left -= weights[t];
      if (weights[t] > weights[largest]) largest = t;
    }
    weights[largest] = static_cast<int16_t>(weights[largest] + left);
    axis->first[i] = first;
  }
}

void BlendRows(int level, const BlendShape& shape, const uint8_t* const* sources, const int16_t* weights, int16_t* out) {
#if defined(__x86_64__)
  if (level >= 2) return BlendAvx2(shape, sources, weights, out);
  if (level == 1) return BlendSse2(shape, sources, weights, 0, out);
#endif
  (void)level;
  BlendPlain(shape, sources, weights, 0, out);
}

}  // namespace tidepool::data
