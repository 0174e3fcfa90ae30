#include "data/resize.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tidepool::data {
namespace {

// The horizontal pass for a band of output rows. All variants give the same bits: the sums are of integers.
struct Band {
  const FilterAxis* columns = nullptr;
  int first_column = 0;  // of the source rows, which hold R, G, B, x bytes
  bool flip = false;
  const float* scale = nullptr;  // 4 each
  const float* bias = nullptr;
  int size = 0;
  size_t plane = 0;
};

// Output column t comes from filter column x.
int FilterColumn(const Band& band, int t) { return band.flip ? band.size - 1 - t : t; }

void SumPlain(const Band& band, const int16_t* blended, float* out) {
  const int taps = band.columns->taps;
  for (int t = 0; t < band.size; ++t) {
    const int x = FilterColumn(band, t);
    const int16_t* pixel = blended + size_t(band.columns->first[x] - band.first_column) * 4;
    const int16_t* weights = band.columns->weights.data() + size_t(x) * taps;
    for (int c = 0; c < 3; ++c) {
      int32_t sum = 0;
      for (int k = 0; k < taps; ++k) sum += pixel[4 * k + c] * weights[k];
      out[band.plane * c + t] = static_cast<float>(sum) * band.scale[c] + band.bias[c];
    }
  }
}

#if defined(__x86_64__)

void SumSse2(const Band& band, const int16_t* blended, float* out) {
  const int taps = band.columns->taps;
  const __m128 scale = _mm_loadu_ps(band.scale), bias = _mm_loadu_ps(band.bias);
  for (int t = 0; t < band.size; ++t) {
    const int x = FilterColumn(band, t);
    const int16_t* pixel = blended + size_t(band.columns->first[x] - band.first_column) * 4;
    const int16_t* weights = band.columns->weights.data() + size_t(x) * taps;
    __m128i sum = _mm_setzero_si128();
    for (int k = 0; k < taps; k += 2) {
      const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel + 4 * k));
      const __m128i pair = _mm_set1_epi32(WeightPair(weights + k));
      sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_unpacklo_epi16(two, _mm_srli_si128(two, 8)), pair));
    }
    float values[4];
    _mm_storeu_ps(values, _mm_add_ps(_mm_mul_ps(_mm_cvtepi32_ps(sum), scale), bias));
    for (int c = 0; c < 3; ++c) out[band.plane * c + t] = values[c];
  }
}

#define TIDEPOOL_AVX2 __attribute__((target("avx2")))

// One output column of two rows: R, G, B, x of the upper row in the low half, of the lower row in the high half. kTaps 0: as many
// as the axis has.
template <int kTaps>
TIDEPOOL_AVX2 inline __m256 SumPixel2(const FilterAxis& axis, const int16_t* upper, const int16_t* lower, int x, __m256 scale,
                                      __m256 bias) {
  const int taps = kTaps > 0 ? kTaps : axis.taps;
  const ptrdiff_t at = ptrdiff_t{axis.first[x]} * 4;
  const int16_t* weights = axis.weights.data() + ptrdiff_t{x} * taps;
  // Pairs of the same channel of two neighbouring pixels.
  const __m256i by_channel = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                              0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  __m256i sum = _mm256_setzero_si256();
  for (int k = 0; k < taps; k += 2) {
    const __m128i top = _mm_loadu_si128(reinterpret_cast<const __m128i*>(upper + at + 4 * k));
    const __m128i bottom = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lower + at + 4 * k));
    const __m256i two = _mm256_inserti128_si256(_mm256_castsi128_si256(top), bottom, 1);
    sum = _mm256_add_epi32(sum,
                           _mm256_madd_epi16(_mm256_shuffle_epi8(two, by_channel), _mm256_set1_epi32(WeightPair(weights + k))));
  }
  return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), bias);
}

// Two rows at once. The blended rows begin with column 0 of the picture, as far as addresses go.
template <int kTaps>
TIDEPOOL_AVX2 void SumRows2(const Band& band, const int16_t* upper, const int16_t* lower, float* out, float* lower_out) {
  const FilterAxis& axis = *band.columns;
  const __m256 scale = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(band.scale));
  const __m256 bias = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(band.bias));
  const int step = band.flip ? -1 : 1;
  int x = band.flip ? band.size - 1 : 0;
  int t = 0;
  for (; t + 4 <= band.size; t += 4, x += 4 * step) {
    const __m256 p0 = SumPixel2<kTaps>(axis, upper, lower, x, scale, bias);
    const __m256 p1 = SumPixel2<kTaps>(axis, upper, lower, x + step, scale, bias);
    const __m256 p2 = SumPixel2<kTaps>(axis, upper, lower, x + 2 * step, scale, bias);
    const __m256 p3 = SumPixel2<kTaps>(axis, upper, lower, x + 3 * step, scale, bias);
    // Four pixels of R, G, B, x become four values of each channel, in each half.
    const __m256 rg01 = _mm256_unpacklo_ps(p0, p1), bx01 = _mm256_unpackhi_ps(p0, p1);
    const __m256 rg23 = _mm256_unpacklo_ps(p2, p3), bx23 = _mm256_unpackhi_ps(p2, p3);
    const __m256 r = _mm256_shuffle_ps(rg01, rg23, 0x44), g = _mm256_shuffle_ps(rg01, rg23, 0xee);
    const __m256 b = _mm256_shuffle_ps(bx01, bx23, 0x44);
    _mm_storeu_ps(out + t, _mm256_castps256_ps128(r));
    _mm_storeu_ps(out + band.plane + t, _mm256_castps256_ps128(g));
    _mm_storeu_ps(out + 2 * band.plane + t, _mm256_castps256_ps128(b));
    _mm_storeu_ps(lower_out + t, _mm256_extractf128_ps(r, 1));
    _mm_storeu_ps(lower_out + band.plane + t, _mm256_extractf128_ps(g, 1));
    _mm_storeu_ps(lower_out + 2 * band.plane + t, _mm256_extractf128_ps(b, 1));
  }
  for (; t < band.size; ++t, x += step) {
    float values[8];
    _mm256_storeu_ps(values, SumPixel2<kTaps>(axis, upper, lower, x, scale, bias));
    for (int c = 0; c < 3; ++c) {
      out[band.plane * c + t] = values[c];
      lower_out[band.plane * c + t] = values[4 + c];
    }
  }
}

// `lower_out` may be the same as `out` with the same blended row.
void SumAvx2(const Band& band, const int16_t* upper, const int16_t* lower, float* out, float* lower_out) {
  upper -= ptrdiff_t{band.first_column} * 4;
  lower -= ptrdiff_t{band.first_column} * 4;
  switch (band.columns->taps) {
    case 2: return SumRows2<2>(band, upper, lower, out, lower_out);
    case 4: return SumRows2<4>(band, upper, lower, out, lower_out);
    case 6: return SumRows2<6>(band, upper, lower, out, lower_out);
    default: return SumRows2<0>(band, upper, lower, out, lower_out);
  }
}

#endif  // __x86_64__

// One or two rows of output from as many blended ones.
void Sum(int level, const Band& band, int rows, int16_t* const* blended, float* out) {
#if defined(__x86_64__)
  if (level >= 2) {
    return rows == 2 ? SumAvx2(band, blended[0], blended[1], out, out + band.size)
                     : SumAvx2(band, blended[0], blended[0], out, out);
  }
#endif
  for (int r = 0; r < rows; ++r) {
    float* row = out + size_t(r) * band.size;
#if defined(__x86_64__)
    if (level == 1) {
      SumSse2(band, blended[r], row);
      continue;
    }
#endif
    SumPlain(band, blended[r], row);
  }
}

}  // namespace

void CropResizer::Plan(int width, int height, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
                       std::span<float> output) {
  size_ = size;
  flip_ = crop.flip;
  output_ = output;
  for (int c = 0; c < 3; ++c) {
    scale_[c] = normalisation.scale[c] * kToPixel;
    bias_[c] = normalisation.bias[c];
  }
  BuildAxis(crop.x / denominator, crop.width / denominator, width, size, &exact_, &columns_);
  BuildAxis(crop.y / denominator, crop.height / denominator, height, size, &exact_, &rows_);
  needed_.x = columns_.first.front();
  needed_.y = rows_.first.front();
  needed_.width = std::min(columns_.first.back() + columns_.taps, width) - needed_.x;
  needed_.height = std::min(rows_.first.back() + rows_.taps, height) - needed_.y;
}

void CropResizer::Begin(const PixelRect& part) {
  level_ = internal::ResizeLevel();
  left_ = part.x;
  last_row_ = part.y + part.height - 1;
  next_ = 0;
  // The rows that two rows of output need at once, and those that may be asked for before the first of them is done.
  int span = 0;
  for (int y = 0; y < size_; ++y) span = std::max(span, rows_.first[std::min(y + 1, size_ - 1)] + rows_.taps - rows_.first[y]);
  const auto ring_rows = std::bit_ceil(static_cast<unsigned>(span + kMostRows));
  ring_mask_ = static_cast<int>(ring_rows) - 1;
  stride_ = size_t(part.width) * 4 + kPixelPadding;
  ring_.resize(ring_rows * stride_);
}

// Makes the rows of output whose source rows have come.
void CropResizer::Done(int end) {
  // Only the columns that some output needs are blended, rounded up to pairs of pixels. At most two of them lie behind the row's
  // end, in the padding; their weight is zero.
  const int column_count = (columns_.first.back() + columns_.taps - needed_.x + 1) / 2 * 2;
  const Band band = {.columns = &columns_,
                     .first_column = needed_.x,
                     .flip = flip_,
                     .scale = scale_,
                     .bias = bias_,
                     .size = size_,
                     .plane = size_t(size_) * size_};
  const size_t row_size = size_t(column_count) * 4 + 16;
  blended_.resize(2 * row_size);
  sources_.resize(rows_.taps);
  int16_t* const blended[2] = {blended_.data(), blended_.data() + row_size};
  while (next_ < size_) {
    const int rows = std::min(2, size_ - next_);
    if (std::min(rows_.first[next_ + rows - 1] + rows_.taps - 1, last_row_) >= end) return;
    for (int r = 0; r < rows; ++r) {
      for (int t = 0; t < rows_.taps; ++t) {
        sources_[t] = Row(std::min(rows_.first[next_ + r] + t, last_row_)) + size_t(needed_.x - left_) * 4;
      }
      BlendRows(level_, {.taps = rows_.taps, .count = column_count * 4}, sources_.data(),
                rows_.weights.data() + size_t(next_ + r) * rows_.taps, blended[r]);
    }
    Sum(level_, band, rows, blended, output_.data() + size_t(next_) * size_);
    next_ += rows;
  }
}

void CropToTensor(const Image& image, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
                  std::span<float> output) {
  thread_local CropResizer resizer;
  resizer.Plan(image.width, image.height, denominator, crop, size, normalisation, output);
  resizer.Begin({.x = 0, .y = 0, .width = image.width, .height = image.height});
  for (int y = 0; y < image.height; ++y) {
    std::memcpy(resizer.Row(y), image.rgbx.data() + size_t(y) * image.width * 4, size_t(image.width) * 4);
    resizer.Done(y + 1);
  }
}

}  // namespace tidepool::data
