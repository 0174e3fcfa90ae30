// Pictures in planes of luma and chroma, as JPEG files store them: the chroma planes of most files have half the width and half
// the height. Sample (x, y) of a plane lies in the middle of the pixels that it is for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "data/jpeg.h"

namespace tidepool::data {

// The planes of a picture that is decoded at 1/denominator. Chroma of half the size is decoded at twice the scale if it can be:
// then both have the same size.
struct PlaneLayout {
  struct Plane {
    int block = 8;                    // samples across what was coded as a block of 8 x 8
    int across = 1, down = 1;         // blocks of a unit: 2 by 2, 2 by 1 or 1 by 2 of luma where chroma has 1
    int width = 0, height = 0;        // in samples
    double x_scale = 1, y_scale = 1;  // samples per pixel of the full-size picture
    int unit_width() const { return block * across; }
    int unit_height() const { return block * down; }
  };
  Plane luma, chroma;  // of Y; of Cb and of Cr
};
// denominator: 1, 2, 4 or 8.
PlaneLayout LayOutPlanes(const JpegInfo& info, int denominator);

// A part of each plane, in its samples; both chroma planes have the same one.
struct PlaneParts {
  PixelRect luma, chroma;
};

// Takes planes strip by strip, from the top. Calls come from the thread that decodes.
class PlaneSink {
 public:
  virtual ~PlaneSink() = default;
  // What will come; in whole units, so that it may reach beyond the edges of the picture.
  virtual void Begin(const PlaneParts& parts) = 0;
  // Where the rows of the part from row `y` of the plane on are to be written, as many as a unit has, `*stride` bytes apart.
  // plane 0: Y, 1: Cb, 2: Cr.
  virtual uint8_t* Rows(int plane, int y, ptrdiff_t* stride) = 0;
  // The rows before these are written, and are not touched again.
  virtual void Done(int luma_end, int chroma_end) = 0;
};

// What DecodeJpegRows decodes, of a file that JpegInfo::planes says to be of the common kind, into its planes;
// nothing is thrown away or invented on the way to colours. A decoder of our own, at about twice the speed of libjpeg-turbo's, to
// the same bits.
//
// False if there is anything unusual about the file, damage included: then DecodeJpegRows has to decode it, and says what is
// wrong with it if something is. `sink` may have seen some rows by then.
bool DecodeJpegPlanes(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Extraction extraction,
                      const PlaneParts& wanted, PlaneSink* sink);

}  // namespace tidepool::data
