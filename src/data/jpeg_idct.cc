#include "data/jpeg_idct.h"

#include <algorithm>
#include <cstring>

#include "data/jpeg_huffman.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tidepool::data {
namespace {

// The two passes scale by 1 << 2 in between; the constants are 13-bit fractions.
constexpr int kConstBits = 13, kPassBits = 2;
constexpr int kFirstShift = kConstBits - kPassBits, kSecondShift = kConstBits + kPassBits + 3;

constexpr int kOne = 1 << kConstBits;
constexpr int k0298 = 2446, k0390 = 3196, k0541 = 4433, k0765 = 6270, k0899 = 7373, k1175 = 9633, k1501 = 12299, k1847 = 15137,
              k1961 = 16069, k2053 = 16819, k2562 = 20995, k3072 = 25172;
// Products with whole numbers are exact, so that factors may be added up beforehand. Each row: what two inputs add to an output.
constexpr int kEven[2][2] = {{k0541 + k0765, k0541}, {k0541, k0541 - k1847}};     // of inputs 2 and 6, to outputs 0 and 1
constexpr int kSums[2][2] = {{k1175 - k1961, k1175}, {k1175, k1175 - k0390}};     // of 3 + 7 and 1 + 5, to 3 and 1, 2 and 0
constexpr int kOuter[2][2] = {{k1501 - k0899, -k0899}, {-k0899, k0298 - k0899}};  // of 1 and 7, to 0 and 3
constexpr int kInner[2][2] = {{k3072 - k2562, -k2562}, {-k2562, k2053 - k2562}};  // of 3 and 5, to 1 and 2

// The reduced ones, of outputs 0 and 1; the others have the opposite sign of the odd inputs. Inputs 1, 5 and 3, 7; 2 and 6.
constexpr int kHalfOdd[2][4] = {{20995, -4926, 7373, -4176}, {8697, 11893, -17799, -1730}};
constexpr int kHalfEven[2] = {k1847, -k0765};
constexpr int kQuarterOdd[4] = {29692, 6967, -10426, -5906};
constexpr int kHalfFirst = kFirstShift + 1, kHalfSecond = kSecondShift + 1;
constexpr int kQuarterFirst = kFirstShift + 2, kQuarterSecond = kSecondShift + 2;

int16_t Saturated(int32_t value) { return static_cast<int16_t>(std::clamp(value, -32768, 32767)); }
uint8_t Sample(int32_t value) { return static_cast<uint8_t>(std::clamp(value, -128, 127) + 128); }

// One dimension, of `in[0], in[step], ...`. Sums of two inputs have 16 bits, as in libjpeg-turbo: that matters for coefficients
// that only damaged files have.
void Pass(const int16_t* in, int step, int shift, int16_t* out, int out_step) {
  const auto at = [in, step](int i) { return int32_t{in[i * step]}; };
  const auto sum_of = [](int32_t a, int32_t b) { return int32_t{static_cast<int16_t>(a + b)}; };
  const auto products = [](const int(&factors)[2], int32_t a, int32_t b) { return a * factors[0] + b * factors[1]; };
  const int32_t half = 1 << (shift - 1);
  const int32_t sum = sum_of(at(0), at(4)) * kOne + half, difference = sum_of(at(0), -at(4)) * kOne + half;
  const int32_t turned0 = products(kEven[0], at(2), at(6)), turned1 = products(kEven[1], at(2), at(6));
  const int32_t even[4] = {sum + turned0, difference + turned1, difference - turned1, sum - turned0};
  const int32_t sum37 = sum_of(at(3), at(7)), sum15 = sum_of(at(1), at(5));
  const int32_t shared31 = products(kSums[0], sum37, sum15), shared20 = products(kSums[1], sum37, sum15);
  const int32_t odd[4] = {products(kOuter[0], at(1), at(7)) + shared20, products(kInner[0], at(3), at(5)) + shared31,
                          products(kInner[1], at(3), at(5)) + shared20, products(kOuter[1], at(1), at(7)) + shared31};
  for (int i = 0; i < 4; ++i) {
    out[i * out_step] = Saturated((even[i] + odd[i]) >> shift);
    out[(7 - i) * out_step] = Saturated((even[i] - odd[i]) >> shift);
  }
}

// The last 32 bits, as the instructions for many at once have it: more matter in damaged files only.
int16_t Descaled(int64_t sum, int shift) { return Saturated(static_cast<int32_t>(sum) >> shift); }

// To four outputs, of all inputs but the fifth.
void HalfPass(const int16_t* in, int step, int shift, int16_t* out, int out_step) {
  const auto at = [in, step](int i) { return int64_t{in[i * step]}; };
  const int64_t first = at(0) * (2 * kOne) + (1 << (shift - 1)), turned = at(2) * kHalfEven[0] + at(6) * kHalfEven[1];
  for (int i = 0; i < 2; ++i) {
    const int64_t even = i == 0 ? first + turned : first - turned;
    const int64_t odd = at(1) * kHalfOdd[i][0] + at(5) * kHalfOdd[i][1] + at(3) * kHalfOdd[i][2] + at(7) * kHalfOdd[i][3];
    out[i * out_step] = Descaled(even + odd, shift);
    out[(3 - i) * out_step] = Descaled(even - odd, shift);
  }
}

// To two outputs, of the first input and the odd ones.
void QuarterPass(const int16_t* in, int step, int shift, int16_t* out, int out_step) {
  const auto at = [in, step](int i) { return int64_t{in[i * step]}; };
  const int64_t even = at(0) * (4 * kOne) + (1 << (shift - 1));
  const int64_t odd = at(1) * kQuarterOdd[0] + at(5) * kQuarterOdd[1] + at(3) * kQuarterOdd[2] + at(7) * kQuarterOdd[3];
  out[0] = Descaled(even + odd, shift);
  out[out_step] = Descaled(even - odd, shift);
}

// With the rows in their order; the coefficients are zero afterwards.
void Dequantise(int16_t* coefficients, const int16_t* quantiser, int16_t* rows) {
  for (int y = 0; y < 8; ++y) {
    for (int x = 0; x < 8; ++x) {
      const int i = 8 * kBlockRow[y] + x;
      rows[8 * y + x] = static_cast<int16_t>(coefficients[i] * quantiser[i]);
    }
  }
  std::memset(coefficients, 0, 64 * sizeof(int16_t));
}

void InverseDctHalf(int16_t* coefficients, const int16_t* quantiser, uint8_t* out, ptrdiff_t stride) {
  int16_t rows[64], between[32] = {};
  Dequantise(coefficients, quantiser, rows);
  for (const int x : {0, 1, 2, 3, 5, 6, 7}) HalfPass(rows + x, 8, kHalfFirst, between + x, 8);
  for (int y = 0; y < 4; ++y) {
    int16_t samples[4];
    HalfPass(between + 8 * y, 1, kHalfSecond, samples, 1);
    for (int x = 0; x < 4; ++x) out[y * stride + x] = Sample(samples[x]);
  }
}

void InverseDctQuarter(int16_t* coefficients, const int16_t* quantiser, uint8_t* out, ptrdiff_t stride) {
  int16_t rows[64], between[16] = {};
  Dequantise(coefficients, quantiser, rows);
  for (const int x : {0, 1, 3, 5, 7}) QuarterPass(rows + x, 8, kQuarterFirst, between + x, 8);
  for (int y = 0; y < 2; ++y) {
    int16_t samples[2];
    QuarterPass(between + 8 * y, 1, kQuarterSecond, samples, 1);
    for (int x = 0; x < 2; ++x) out[y * stride + x] = Sample(samples[x]);
  }
}

void InverseDctPlain(int16_t* coefficients, const int16_t* quantiser, uint8_t* out, ptrdiff_t stride) {
  int16_t rows[64], between[64];
  Dequantise(coefficients, quantiser, rows);
  for (int x = 0; x < 8; ++x) Pass(rows + x, 8, kFirstShift, between + x, 8);
  for (int y = 0; y < 8; ++y) {
    int16_t samples[8];
    Pass(between + 8 * y, 1, kSecondShift, samples, 1);
    for (int x = 0; x < 8; ++x) out[y * stride + x] = Sample(samples[x]);
  }
}

#if defined(__x86_64__)
#define TIDEPOOL_AVX2 __attribute__((target("avx2"), always_inline)) inline

constexpr int32_t Pair(int first, int second) {
  return static_cast<int32_t>(static_cast<uint32_t>(second & 0xffff) << 16 | static_cast<uint32_t>(first & 0xffff));
}

TIDEPOOL_AVX2 __m256i Products(const int (&factors)[2], __m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi32(Pair(factors[0], factors[1])));
}

// 16-bit numbers of the lower half of each lane, times 1 << kConstBits.
TIDEPOOL_AVX2 __m256i TimesOne(__m256i numbers) {
  return _mm256_srai_epi32(_mm256_unpacklo_epi16(_mm256_setzero_si256(), numbers), 16 - kConstBits);
}

// Along the columns of `t`, which hold the rows 0|4, 1|5, 2|6, 3|7; then rows and columns are exchanged.
template <int kShift>
TIDEPOOL_AVX2 void PassAvx2(__m256i t[4]) {
  // Columns 0 to 3 of both rows into the low lane, 4 to 7 into the high one; and the same with the other row first.
  const __m256i r04 = _mm256_permute4x64_epi64(t[0], 0xd8), r15 = _mm256_permute4x64_epi64(t[1], 0xd8);
  const __m256i r26 = _mm256_permute4x64_epi64(t[2], 0xd8), r37 = _mm256_permute4x64_epi64(t[3], 0xd8);
  const __m256i r40 = _mm256_shuffle_epi32(r04, 0x4e), r51 = _mm256_shuffle_epi32(r15, 0x4e);
  const __m256i r73 = _mm256_shuffle_epi32(r37, 0x4e);
  const __m256i interleave = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                              0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  const __m256i half = _mm256_set1_epi32(1 << (kShift - 1));
  const __m256i sum = _mm256_add_epi32(TimesOne(_mm256_add_epi16(r04, r40)), half);
  const __m256i difference = _mm256_add_epi32(TimesOne(_mm256_sub_epi16(r04, r40)), half);
  const __m256i in26 = _mm256_shuffle_epi8(r26, interleave);
  const __m256i turned0 = Products(kEven[0], in26), turned1 = Products(kEven[1], in26);
  const __m256i even[4] = {_mm256_add_epi32(sum, turned0), _mm256_add_epi32(difference, turned1),
                           _mm256_sub_epi32(difference, turned1), _mm256_sub_epi32(sum, turned0)};
  const __m256i sums = _mm256_unpacklo_epi16(_mm256_add_epi16(r37, r73), _mm256_add_epi16(r15, r51));
  const __m256i in17 = _mm256_unpacklo_epi16(r15, r73), in35 = _mm256_unpacklo_epi16(r37, r51);
  const __m256i shared31 = Products(kSums[0], sums), shared20 = Products(kSums[1], sums);
  const __m256i odd[4] = {
      _mm256_add_epi32(Products(kOuter[0], in17), shared20), _mm256_add_epi32(Products(kInner[0], in35), shared31),
      _mm256_add_epi32(Products(kInner[1], in35), shared20), _mm256_add_epi32(Products(kOuter[1], in17), shared31)};
  __m256i out[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_srai_epi32(_mm256_add_epi32(even[i], odd[i]), kShift);
    out[7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(even[i], odd[i]), kShift);
  }
  const __m256i p01 = _mm256_packs_epi32(out[0], out[1]), p23 = _mm256_packs_epi32(out[2], out[3]);
  const __m256i p45 = _mm256_packs_epi32(out[4], out[5]), p67 = _mm256_packs_epi32(out[6], out[7]);
  const __m256i a = _mm256_unpacklo_epi16(p01, p23), b = _mm256_unpackhi_epi16(p01, p23);
  const __m256i c = _mm256_unpacklo_epi16(p45, p67), d = _mm256_unpackhi_epi16(p45, p67);
  const __m256i ab_low = _mm256_unpacklo_epi16(a, b), ab_high = _mm256_unpackhi_epi16(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi16(c, d), cd_high = _mm256_unpackhi_epi16(c, d);
  t[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
  t[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
  t[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
  t[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}

// Dequantised, and zero afterwards.
TIDEPOOL_AVX2 void LoadBlock(int16_t* coefficients, const int16_t* quantiser, __m256i t[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    auto* const rows = reinterpret_cast<__m256i*>(coefficients) + i;
    t[i] = _mm256_mullo_epi16(_mm256_loadu_si256(rows), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quantiser) + i));
    _mm256_storeu_si256(rows, _mm256_setzero_si256());
  }
}

__attribute__((target("avx2"))) void InverseDctAvx2(int16_t* coefficients, const int16_t* quantiser, uint8_t* out,
                                                    ptrdiff_t stride) {
  __m256i t[4];
  LoadBlock(coefficients, quantiser, t);
  PassAvx2<kFirstShift>(t);
  PassAvx2<kSecondShift>(t);
  const __m256i middle = _mm256_set1_epi8(-128);
  const __m256i r0145 = _mm256_xor_si256(_mm256_packs_epi16(t[0], t[1]), middle);
  const __m256i r2367 = _mm256_xor_si256(_mm256_packs_epi16(t[2], t[3]), middle);
  const auto store = [ out, stride ](int y, __m128i two) __attribute__((target("avx2"), always_inline)) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + y * stride), two);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (y + 1) * stride), _mm_unpackhi_epi64(two, two));
  };
  store(0, _mm256_castsi256_si128(r0145));
  store(2, _mm256_castsi256_si128(r2367));
  store(4, _mm256_extracti128_si256(r0145, 1));
  store(6, _mm256_extracti128_si256(r2367, 1));
}

// What HalfPass does, from pairs of inputs 0 and 4, 2 and 6, 1 and 5, 3 and 7.
template <int kShift>
TIDEPOOL_AVX2 void HalfPassAvx2(__m256i in04, __m256i in26, __m256i in15, __m256i in37, __m256i out[4]) {
  constexpr int kFirst[2] = {2 * kOne, 0};
  const __m256i first = _mm256_add_epi32(Products(kFirst, in04), _mm256_set1_epi32(1 << (kShift - 1)));
  const __m256i turned = Products(kHalfEven, in26);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const int with15[2] = {kHalfOdd[i][0], kHalfOdd[i][1]}, with37[2] = {kHalfOdd[i][2], kHalfOdd[i][3]};
    const __m256i even = i == 0 ? _mm256_add_epi32(first, turned) : _mm256_sub_epi32(first, turned);
    const __m256i odd = _mm256_add_epi32(Products(with15, in15), Products(with37, in37));
    out[i] = _mm256_srai_epi32(_mm256_add_epi32(even, odd), kShift);
    out[3 - i] = _mm256_srai_epi32(_mm256_sub_epi32(even, odd), kShift);
  }
}

__attribute__((target("avx2"))) void InverseDctHalfAvx2(int16_t* coefficients, const int16_t* quantiser, uint8_t* out,
                                                        ptrdiff_t stride) {
  __m256i t[4], o[4];
  LoadBlock(coefficients, quantiser, t);
  const __m256i interleave = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                              0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (__m256i& rows : t) rows = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(rows, 0xd8), interleave);
  HalfPassAvx2<kHalfFirst>(t[0], t[2], t[1], t[3], o);
  // Rows and columns are exchanged: columns 0, 1 | 4, 5 and 2, 3 | 6, 7 of the four rows.
  const __m256i p01 = _mm256_packs_epi32(o[0], o[1]), p23 = _mm256_packs_epi32(o[2], o[3]);
  const __m256i a = _mm256_unpacklo_epi16(p01, p23), b = _mm256_unpackhi_epi16(p01, p23);
  const __m256i c0145 = _mm256_unpacklo_epi16(a, b), c2367 = _mm256_unpackhi_epi16(a, b);
  // The column that has no weight may hold anything; the low lanes are used.
  const __m128i c01 = _mm256_castsi256_si128(c0145), c45 = _mm256_extracti128_si256(c0145, 1);
  const __m128i c23 = _mm256_castsi256_si128(c2367), c67 = _mm256_extracti128_si256(c2367, 1);
  HalfPassAvx2<kHalfSecond>(
      _mm256_castsi128_si256(_mm_unpacklo_epi16(c01, c45)), _mm256_castsi128_si256(_mm_unpacklo_epi16(c23, c67)),
      _mm256_castsi128_si256(_mm_unpackhi_epi16(c01, c45)), _mm256_castsi128_si256(_mm_unpackhi_epi16(c23, c67)), o);
  const __m128i q01 = _mm256_castsi256_si128(_mm256_packs_epi32(o[0], o[1]));
  const __m128i q23 = _mm256_castsi256_si128(_mm256_packs_epi32(o[2], o[3]));
  const __m128i low = _mm_unpacklo_epi16(q01, q23), high = _mm_unpackhi_epi16(q01, q23);
  const __m128i samples =
      _mm_xor_si128(_mm_packs_epi16(_mm_unpacklo_epi16(low, high), _mm_unpackhi_epi16(low, high)), _mm_set1_epi8(-128));
  alignas(16) uint8_t rows[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(rows), samples);
  for (int y = 0; y < 4; ++y) std::memcpy(out + y * stride, rows + 4 * y, 4);
}
#endif  // __x86_64__

}  // namespace

void InverseDct(int level, int size, int16_t* coefficients, const int16_t* quantiser, uint8_t* out, ptrdiff_t stride) {
  switch (size) {
    case 1: {
      const int first = coefficients[0];
      std::memset(coefficients, 0, 64 * sizeof(int16_t));
      return InverseDctFlat(1, first, quantiser[0], out, stride);
    }
    case 2: return InverseDctQuarter(coefficients, quantiser, out, stride);
    case 4:
#if defined(__x86_64__)
      if (level >= 2) return InverseDctHalfAvx2(coefficients, quantiser, out, stride);
#endif
      return InverseDctHalf(coefficients, quantiser, out, stride);
    default:
#if defined(__x86_64__)
      if (level >= 2) return InverseDctAvx2(coefficients, quantiser, out, stride);
#endif
      return InverseDctPlain(coefficients, quantiser, out, stride);
  }
}

void InverseDctFlat(int size, int coefficient, int quantiser, uint8_t* out, ptrdiff_t stride) {
  const int32_t between = Saturated(int32_t{static_cast<int16_t>(coefficient * quantiser)} * (1 << kPassBits));
  const uint8_t sample = Sample((between + (1 << (kPassBits + 2))) >> (kPassBits + 3));
  for (int y = 0; y < size; ++y) std::memset(out + y * stride, sample, static_cast<size_t>(size));
}

}  // namespace tidepool::data
