// The accurate integer inverse DCT of libjpeg (the algorithm of Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT
// algorithms with 11 multiplications", ICASSP 1989, with 13-bit constants): the same bits as JDCT_ISLOW for every picture.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tidepool::data {

// `coefficients` and `quantiser` have 64 places in the order of jpeg_huffman.h. Eight rows of eight samples go to `out`, `stride`
// bytes apart. `level` of instructions as in resize_filter.h; the result does not depend on it.
void InverseDct(int level, const int16_t* coefficients, const int16_t* quantiser, uint8_t* out, ptrdiff_t stride);
// For a block of which only the first coefficient is not zero.
void InverseDctFlat(int coefficient, int quantiser, uint8_t* out, ptrdiff_t stride);

}  // namespace tidepool::data
