// JPEG files to pixels and back, on libjpeg-turbo.
//
// Decoding can use the scaled inverse DCT: a picture that is needed at half its size or less is decoded at 1/2, 1/4 or 1/8, which
// skips most of the arithmetic. Grey pictures become RGB; CMYK pictures (stored inverted, as every writer of note does) too.
//
// Errors: INVALID_ARGUMENT for what is no JPEG file or too large; DATA_LOSS for a file that is cut short or damaged. Both carry
// the library's text. All functions are thread-safe; codec state is kept per thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

// A picture's header is believed up to here, so that a small hostile file cannot ask for gigabytes.
struct JpegLimits {
  int max_side = 16384;
  int64_t max_pixels = int64_t{64} << 20;
};

struct JpegInfo {
  int width = 0;
  int height = 0;
  bool cmyk = false;
  // Baseline coding of Y, Cb and Cr in one scan, for DecodeJpegPlanes (jpeg_planes.h); and how many pixels a chroma sample is
  // for.
  bool planes = false;
  int chroma_width = 1, chroma_height = 1;
  uint64_t header = 0;  // internal: lets the decoder go on where ReadJpegInfo stopped
};
StatusOr<JpegInfo> ReadJpegInfo(std::span<const std::byte> jpeg, const JpegLimits& limits = {});

// Pixels as R, G, B, unused: four bytes each, rows without gaps, and kPixelPadding readable bytes behind the last one.
inline constexpr size_t kPixelPadding = 16;
struct Image {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgbx;
};

// A part of a picture, in pixels.
struct PixelRect {
  int x = 0, y = 0, width = 0, height = 0;
  friend bool operator==(const PixelRect&, const PixelRect&) = default;
};

// The size of a picture decoded at 1/denominator.
inline int ScaledSide(int side, int denominator) { return (side + denominator - 1) / denominator; }
// The largest of 8, 4, 2, 1 that leaves a crop of `crop_width` x `crop_height` at least `width` x `height` large.
int ChooseScaleDenominator(double crop_width, double crop_height, int width, int height);

// Decodes at 1/scale_denominator (1, 2, 4 or 8) into `image`, whose storage is reused.
Status DecodeJpeg(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Image* image);

// Takes a picture row by row, so that it need not lie in memory as a whole. Calls come from the thread that decodes.
class RowSink {
 public:
  virtual ~RowSink() = default;
  // The part of the picture (at its scale) that will come. Rows have part.width pixels of four bytes: R, G, B, unused.
  virtual void Begin(const PixelRect& part) = 0;
  // Where row `y` of the picture is to be written; at most kMostRows are asked for before Done.
  static constexpr int kMostRows = 8;
  virtual uint8_t* Row(int y) = 0;
  // All rows before `end` are written. What was written is not touched again.
  virtual void Done(int end) = 0;
};

// Which rows and columns are decoded. The pixels are the same; kPart parses the rows above and does not look at those below, so
// that damage there is not seen, except that a file without its end marker is decoded as a whole.
enum class Extraction : uint8_t { kWhole, kPart };

// Decodes what covers `wanted` of the picture at 1/scale_denominator, or all of it, into `sink`. After an error it has seen some
// rows.
Status DecodeJpegRows(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Extraction extraction,
                      const PixelRect& wanted, RowSink* sink);

// Encodes rows of R, G, B bytes with 4:2:0 chroma. quality 1 ... 100. The same input gives the same bytes.
StatusOr<std::string> EncodeJpeg(std::span<const uint8_t> rgb, int width, int height, int quality);

}  // namespace tidepool::data
