// Pictures in planes of luma and chroma, as JPEG files store them: the chroma planes of most files have half the width and half
// the height. Sample (x, y) of a plane lies in the middle of the pixels that it is for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "data/jpeg.h"

namespace tidepool::data {

// A part of each plane, in its samples; both chroma planes have the same one.
struct PlaneParts {
  PixelRect luma, chroma;
};

// Takes planes strip by strip, from the top. Calls come from the thread that decodes.
class PlaneSink {
 public:
  virtual ~PlaneSink() = default;
  // What will come; in whole blocks of 8 x 8 samples, so that it may reach beyond the edges of the picture.
  virtual void Begin(const PlaneParts& parts) = 0;
  // Where a strip of the part from row `y` of the plane on is to be written, `*stride` bytes from row to row: 8 rows of chroma,
  // and the 8 or 16 rows of luma over them. plane 0: Y, 1: Cb, 2: Cr.
  virtual uint8_t* Rows(int plane, int y, ptrdiff_t* stride) = 0;
  // The rows before these are written, and are not touched again.
  virtual void Done(int luma_end, int chroma_end) = 0;
};

// What DecodeJpegRows decodes at full size, of a file that JpegInfo::planes says to be of the common kind, into its planes;
// nothing is thrown away or invented on the way to colours. A decoder of our own, at about twice the speed of libjpeg-turbo's, to
// the same bits.
//
// False if there is anything unusual about the file, damage included: then DecodeJpegRows has to decode it, and says what is
// wrong with it if something is. `sink` may have seen some rows by then.
bool DecodeJpegPlanes(std::span<const std::byte> jpeg, const JpegInfo& info, Extraction extraction, const PlaneParts& wanted,
                      PlaneSink* sink);

}  // namespace tidepool::data
