// The accurate integer inverse DCT of libjpeg (the algorithm of Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT
// algorithms with 11 multiplications", ICASSP 1989, with 13-bit constants), and the reduced ones that give a block at half, a
// quarter or an eighth of its size from its lower frequencies: the same bits as libjpeg-turbo's JDCT_ISLOW.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tidepool::data {

// `coefficients` and `quantiser` have 64 places in the order of jpeg_huffman.h. `size` (8, 4, 2 or 1) rows of as many samples go
// to `out`, `stride` bytes apart. The coefficients are zero afterwards. `level` of instructions as in resize_filter.h; the result
// does not depend on it.
void InverseDct(int level, int size, int16_t* coefficients, const int16_t* quantiser, uint8_t* out, ptrdiff_t stride);
// For a block of which only the first coefficient is not zero.
void InverseDctFlat(int size, int coefficient, int quantiser, uint8_t* out, ptrdiff_t stride);

}  // namespace tidepool::data
