// The crop of a picture in planes of luma and chroma, resized and normalised into a tensor. Each plane is resized from its own
// size to the output's with the same triangle filter as in resize.h, and colours are made of the output's pixels only (ITU-R
// BT.601 at full range, as JFIF says), clamped to 0 ... 255 and normalised. So chroma of half size is not enlarged first, and
// colours that no output needs are never made.
//
// Sums are of integers, and the float operations of each output are the same ones in the same order and not contracted: every
// machine makes the same bytes, whichever instructions it has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "data/augment.h"
#include "data/jpeg_planes.h"
#include "data/resize_filter.h"

namespace tidepool::data {

// The columns of a plane in the order of the output, in groups of eight; the last group is filled up.
struct PlaneColumns {
  int pairs = 0;                 // of taps
  bool narrow = false;           // four neighbouring outputs never need more than eight samples from the first of them on
  std::vector<int> first;        // by output: the first sample, counted from the first that any output needs
  std::vector<int> starts;       // by four outputs: the smallest `first`
  std::vector<uint8_t> shuffle;  // by output: where in the eight samples from `starts` on its first two are, as byte numbers
  std::vector<int16_t> weights;  // by group, pair of taps, output: two weights
};

// One object serves one picture after the other and keeps its memory. Thread-compatible.
class PlaneResizer : public PlaneSink {
 public:
  // `crop` is in pixels of the full-size picture, whose planes come at 1/denominator. `output` is written channel by channel, 3 *
  // size * size floats, and lives until the last strip has come.
  void Plan(const JpegInfo& info, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
            std::span<float> output);
  // What has to come.
  PlaneParts needed() const { return {.luma = luma_.needed, .chroma = chroma_.needed}; }

  void Begin(const PlaneParts& parts) override;
  uint8_t* Rows(int plane, int y, ptrdiff_t* stride) override;
  void Done(int luma_end, int chroma_end) override;

 private:
  // Of luma, or of both planes of chroma.
  struct Geometry {
    FilterAxis axis, rows;
    PlaneColumns columns;  // made of `axis`
    PixelRect needed, part;
    int end = 0;        // of the rows that have a weight
    int count = 0;      // samples of a row that are blended
    int strip = 8;      // rows that come at once
    int ring_mask = 0;  // rows of the ring, less one
    ptrdiff_t stride = 0;
  };
  void PlanGeometry(const Crop& crop, const PlaneLayout::Plane& plane, Geometry* geometry);
  int StripsFor(int y) const;
  void Blend(int plane, int y);

  int size_ = 0, level_ = 0;
  float scale_[3] = {}, bias_[3] = {};
  std::span<float> output_;
  int next_ = 0;  // the next row of the output
  Geometry luma_, chroma_;
  std::vector<uint8_t> rings_[3];
  std::vector<int16_t> blended_[3];
  std::vector<double> exact_;  // scratch
  std::vector<const uint8_t*> sources_;
};

}  // namespace tidepool::data
