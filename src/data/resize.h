// A crop of a decoded picture, resized with a triangle filter that covers every source pixel when shrinking, and normalised into
// a tensor.
//
// The arithmetic is integer until the last multiply and add, which are not contracted: every machine makes the same bytes,
// whichever instructions it has.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/augment.h"
#include "data/jpeg.h"
#include "data/resize_filter.h"

namespace tidepool::data {

// Which pixels a crop needs, and then its tensor, made while the rows come: only as many are kept as one output row needs. One
// object serves one picture after the other and keeps its memory. Thread-compatible.
class CropResizer : public RowSink {
 public:
  // `crop` is in pixels of the full-size picture, which has width x height pixels at 1/denominator. `output` is written channel
  // by channel, 3 * size * size floats; it and what else is given here lives until the last row has come.
  void Plan(int width, int height, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
            std::span<float> output);
  // The part of the picture (at 1/denominator) that has to come.
  PixelRect needed() const { return needed_; }

  void Begin(const PixelRect& part) override;
  uint8_t* Row(int y) override { return ring_.data() + size_t(y & ring_mask_) * stride_; }
  void Done(int end) override;

 private:
  FilterAxis columns_, rows_;
  std::vector<double> exact_;  // scratch
  PixelRect needed_;
  int size_ = 0;
  bool flip_ = false;
  float scale_[4] = {0, 0, 0, 0}, bias_[4] = {0, 0, 0, 0};
  std::span<float> output_;

  int level_ = 0;                // of instructions
  int left_ = 0, last_row_ = 0;  // of the part that comes
  int next_ = 0;                 // the next row of the output
  int ring_mask_ = 0;            // rows of the ring, less one
  size_t stride_ = 0;
  std::vector<uint8_t> ring_;
  std::vector<int16_t> blended_;
  std::vector<const uint8_t*> sources_;
};

// For a whole picture decoded at 1/denominator.
void CropToTensor(const Image& image, int denominator, const Crop& crop, int size, const Normalisation& normalisation,
                  std::span<float> output);

}  // namespace tidepool::data
