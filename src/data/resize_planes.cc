#include "data/resize_planes.h"

#include <algorithm>
#include <bit>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tidepool::data {
namespace {

// Samples behind a row that may be read, with a weight of zero or not at all.
constexpr int kSlack = 64;
constexpr int kGroup = 8;  // of outputs

// Colours from luma and chroma, and the range of values that a pixel can have, in units of 1 / (1 << 18).
constexpr int32_t kMiddle = 128 << (kWeightBits + kRowBits);
constexpr float kTop = 255.0f * (1 << (kWeightBits + kRowBits));
constexpr float kRedOfCr = 1.402f, kGreenOfCb = 0.344136f, kGreenOfCr = 0.714136f, kBlueOfCb = 1.772f;

int RoundedUp(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

void BuildColumns(const FilterAxis& axis, bool flip, PlaneColumns* columns) {
  const int size = static_cast<int>(axis.first.size()), padded = RoundedUp(size, kGroup);
  columns->pairs = axis.taps / 2;
  columns->narrow = true;
  columns->first.resize(padded);
  columns->starts.resize(padded / 4);
  columns->shuffle.resize(size_t{4} * padded);
  columns->weights.resize(size_t(padded) * axis.taps);
  const auto column_of = [&](int t) { return flip ? size - 1 - std::min(t, size - 1) : std::min(t, size - 1); };
  for (int t = 0; t < padded; ++t) columns->first[t] = axis.first[column_of(t)] - axis.first.front();
  for (int t = 0; t < padded; ++t) {
    const int* const four = columns->first.data() + t / 4 * 4;
    const int start = *std::min_element(four, four + 4), distance = four[t % 4] - start;
    columns->starts[t / 4] = start;
    columns->narrow &= distance + 2 <= 8;
    for (int i = 0; i < 4; ++i) columns->shuffle[4 * t + i] = static_cast<uint8_t>(2 * distance + i);
    const int16_t* const weights = axis.weights.data() + size_t(column_of(t)) * axis.taps;
    for (int p = 0; p < columns->pairs; ++p) {
      int16_t* const to = columns->weights.data() + 2 * (size_t(t / kGroup * columns->pairs + p) * kGroup + t % kGroup);
      to[0] = weights[2 * p];
      to[1] = weights[2 * p + 1];
    }
  }
}

// One row of output: of the blended rows of the three planes.
struct RowPlan {
  const PlaneColumns* columns[3];
  const int16_t* blended[3];
  const float* scale;
  const float* bias;
  int size = 0;
  float* out = nullptr;
  size_t plane = 0;  // of the output
};

void ColourRowPlain(const RowPlan& plan) {
  for (int t = 0; t < plan.size; ++t) {
    int32_t sums[3] = {};
    for (int c = 0; c < 3; ++c) {
      const PlaneColumns& columns = *plan.columns[c];
      const int16_t* const samples = plan.blended[c] + columns.first[t];
      for (int p = 0; p < columns.pairs; ++p) {
        const int16_t* const weights =
            columns.weights.data() + 2 * (size_t(t / kGroup * columns.pairs + p) * kGroup + t % kGroup);
        sums[c] += samples[2 * p] * weights[0] + samples[2 * p + 1] * weights[1];
      }
    }
    const auto luma = static_cast<float>(sums[0]);
    const auto cb = static_cast<float>(sums[1] - kMiddle), cr = static_cast<float>(sums[2] - kMiddle);
    const float colours[3] = {luma + kRedOfCr * cr, luma - kGreenOfCb * cb - kGreenOfCr * cr, luma + kBlueOfCb * cb};
    for (int c = 0; c < 3; ++c) {
      const float above = colours[c] > 0 ? colours[c] : 0.0f;
      const float within = above < kTop ? above : kTop;
      plan.out[plan.plane * c + t] = within * plan.scale[c] + plan.bias[c];
    }
  }
}

#if defined(__x86_64__)
#define TIDEPOOL_AVX2 __attribute__((target("avx2")))

// Eight outputs of a plane. kPairs 0: as many as there are.
template <int kPairs>
TIDEPOOL_AVX2 inline __m256i Sum8(const PlaneColumns& columns, const int16_t* blended, int group) {
  const int pairs = kPairs > 0 ? kPairs : columns.pairs;
  const auto* weights = reinterpret_cast<const __m256i*>(columns.weights.data()) + ptrdiff_t{group} * pairs;
  __m256i sum = _mm256_setzero_si256();
  if (columns.narrow) {
    const int16_t* const low = blended + columns.starts[2 * group];
    const int16_t* const high = blended + columns.starts[2 * group + 1];
    const __m256i shuffle = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns.shuffle.data()) + group);
    for (int p = 0; p < pairs; ++p) {
      const __m256i low_samples = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low + 2 * p)));
      const __m256i samples =
          _mm256_inserti128_si256(low_samples, _mm_loadu_si128(reinterpret_cast<const __m128i*>(high + 2 * p)), 1);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(samples, shuffle), _mm256_loadu_si256(weights + p)));
    }
    return sum;
  }
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns.first.data()) + group);
  for (int p = 0; p < pairs; ++p) {
    const __m256i samples = _mm256_i32gather_epi32(reinterpret_cast<const int*>(blended + 2 * p), first, 2);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(samples, _mm256_loadu_si256(weights + p)));
  }
  return sum;
}

TIDEPOOL_AVX2 inline __m256 Normalised(__m256 colour, float scale, float bias) {
  const __m256 within = _mm256_min_ps(_mm256_max_ps(colour, _mm256_setzero_ps()), _mm256_set1_ps(kTop));
  return _mm256_add_ps(_mm256_mul_ps(within, _mm256_set1_ps(scale)), _mm256_set1_ps(bias));
}

template <int kLumaPairs, int kChromaPairs>
TIDEPOOL_AVX2 void ColourRowAvx2(const RowPlan& plan) {
  const __m256i middle = _mm256_set1_epi32(kMiddle);
  for (int t = 0; t < plan.size; t += kGroup) {
    const int group = t / kGroup;
    const __m256 luma = _mm256_cvtepi32_ps(Sum8<kLumaPairs>(*plan.columns[0], plan.blended[0], group));
    const __m256 cb = _mm256_cvtepi32_ps(_mm256_sub_epi32(Sum8<kChromaPairs>(*plan.columns[1], plan.blended[1], group), middle));
    const __m256 cr = _mm256_cvtepi32_ps(_mm256_sub_epi32(Sum8<kChromaPairs>(*plan.columns[2], plan.blended[2], group), middle));
    const __m256 red = _mm256_add_ps(luma, _mm256_mul_ps(_mm256_set1_ps(kRedOfCr), cr));
    const __m256 green = _mm256_sub_ps(_mm256_sub_ps(luma, _mm256_mul_ps(_mm256_set1_ps(kGreenOfCb), cb)),
                                       _mm256_mul_ps(_mm256_set1_ps(kGreenOfCr), cr));
    const __m256 blue = _mm256_add_ps(luma, _mm256_mul_ps(_mm256_set1_ps(kBlueOfCb), cb));
    const __m256 values[3] = {Normalised(red, plan.scale[0], plan.bias[0]), Normalised(green, plan.scale[1], plan.bias[1]),
                              Normalised(blue, plan.scale[2], plan.bias[2])};
    for (int c = 0; c < 3; ++c) {
      float* const to = plan.out + plan.plane * c + t;
      if (t + kGroup <= plan.size) {
        _mm256_storeu_ps(to, values[c]);
      } else {
        alignas(32) float rest[kGroup];
        _mm256_store_ps(rest, values[c]);
        std::copy_n(rest, plan.size - t, to);
      }
    }
  }
}
#endif  // __x86_64__

void ColourRow(int level, const RowPlan& plan) {
#if defined(__x86_64__)
  if (level >= 2) {
    const int luma = plan.columns[0]->pairs, chroma = plan.columns[1]->pairs;
    if (luma == 2 && chroma == 1) return ColourRowAvx2<2, 1>(plan);
    if (luma == 1 && chroma == 1) return ColourRowAvx2<1, 1>(plan);
    if (luma == 2 && chroma == 2) return ColourRowAvx2<2, 2>(plan);
    return ColourRowAvx2<0, 0>(plan);
  }
#endif
  (void)level;
  ColourRowPlain(plan);
}

}  // namespace

void PlaneResizer::PlanGeometry(const Crop& crop, const PlaneLayout::Plane& plane, Geometry* geometry) {
  BuildAxis(crop.x * plane.x_scale, crop.width * plane.x_scale, plane.width, size_, &exact_, &geometry->axis);
  BuildAxis(crop.y * plane.y_scale, crop.height * plane.y_scale, plane.height, size_, &exact_, &geometry->rows);
  const FilterAxis &axis = geometry->axis, &rows = geometry->rows;
  geometry->needed.x = axis.first.front();
  geometry->needed.y = rows.first.front();
  geometry->needed.width = std::min(axis.first.back() + axis.taps, plane.width) - axis.first.front();
  geometry->needed.height = std::min(rows.first.back() + rows.taps, plane.height) - rows.first.front();
  geometry->end = geometry->needed.y + geometry->needed.height;
  geometry->strip = plane.unit_height();
  geometry->count = RoundedUp(axis.first.back() + axis.taps - axis.first.front(), 32);
  BuildColumns(axis, crop.flip, &geometry->columns);
}

void PlaneResizer::Plan(const JpegInfo& info, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
                        std::span<float> output) {
  size_ = size;
  output_ = output;
  for (int c = 0; c < 3; ++c) {
    scale_[c] = normalisation.scale[c] * kToPixel;
    bias_[c] = normalisation.bias[c];
  }
  const PlaneLayout layout = LayOutPlanes(info, denominator);
  PlanGeometry(crop, layout.luma, &luma_);
  PlanGeometry(crop, layout.chroma, &chroma_);
}

// Strips from the top of the picture on, until output row `y` can be made.
int PlaneResizer::StripsFor(int y) const {
  int strips = 0;
  for (const Geometry* each : {&luma_, &chroma_}) {
    const int end = std::min(each->rows.first[y] + each->rows.taps, each->end);
    strips = std::max(strips, (end + each->strip - 1) / each->strip);
  }
  return strips;
}

void PlaneResizer::Begin(const PlaneParts& parts) {
  level_ = internal::ResizeLevel();
  next_ = 0;
  luma_.part = parts.luma;
  chroma_.part = parts.chroma;
  for (Geometry* each : {&luma_, &chroma_}) {
    // When the strip comes that completes output row y, the rows that y needs are still there.
    int span = each->strip;
    for (int y = 0; y < size_; ++y) span = std::max(span, StripsFor(y) * each->strip - each->rows.first[y]);
    const auto rows = std::bit_ceil(static_cast<unsigned>(span));
    each->ring_mask = static_cast<int>(rows) - 1;
    each->stride = each->part.width + kSlack;
  }
  for (int c = 0; c < 3; ++c) {
    const Geometry& geometry = c == 0 ? luma_ : chroma_;
    rings_[c].resize(size_t(geometry.ring_mask + 1) * geometry.stride);
    blended_[c].resize(geometry.count + kSlack);
  }
}

uint8_t* PlaneResizer::Rows(int plane, int y, ptrdiff_t* stride) {
  const Geometry& geometry = plane == 0 ? luma_ : chroma_;
  *stride = geometry.stride;
  return rings_[plane].data() + (y & geometry.ring_mask) * geometry.stride;
}

void PlaneResizer::Blend(int plane, int y) {
  const Geometry& geometry = plane == 0 ? luma_ : chroma_;
  const FilterAxis& rows = geometry.rows;
  sources_.resize(rows.taps);
  for (int t = 0; t < rows.taps; ++t) {
    const int row = std::min(rows.first[y] + t, geometry.end - 1);
    sources_[t] = rings_[plane].data() + (row & geometry.ring_mask) * geometry.stride + (geometry.needed.x - geometry.part.x);
  }
  BlendRows(level_, {.taps = rows.taps, .count = geometry.count}, sources_.data(), rows.weights.data() + size_t(y) * rows.taps,
            blended_[plane].data());
}

// Makes the rows of output whose strips have come.
void PlaneResizer::Done(int luma_end, int chroma_end) {
  RowPlan plan = {.columns = {&luma_.columns, &chroma_.columns, &chroma_.columns},
                  .blended = {blended_[0].data(), blended_[1].data(), blended_[2].data()},
                  .scale = scale_,
                  .bias = bias_,
                  .size = size_,
                  .plane = size_t(size_) * size_};
  for (; next_ < size_; ++next_) {
    const int strips = StripsFor(next_);
    if (strips * luma_.strip > luma_end || strips * chroma_.strip > chroma_end) return;
    for (int c = 0; c < 3; ++c) Blend(c, next_);
    plan.out = output_.data() + size_t(next_) * size_;
    ColourRow(level_, plan);
  }
}

}  // namespace tidepool::data
