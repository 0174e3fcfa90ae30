// Huffman codes of baseline JPEG files (ITU-T T.81, annexes C and F.2.2), read with one table look-up for a code and the bits of
// its coefficient together, wherever both are short enough for the table.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace tidepool::data {

// Takes bits from the front of bytes that have no stuffing left. It reads up to 8 bytes behind the bits that it has given, so
// there must be memory; position() tells whether more was taken than there is.
struct BitReader {
  const uint8_t* next = nullptr;
  uint64_t bits = 0;  // the next ones, from the highest on
  int count = 0;      // how many of them are there: 56 at least after Refill

  void Refill() {
    uint64_t word;
    std::memcpy(&word, next, sizeof(word));
    if constexpr (std::endian::native == std::endian::little) word = __builtin_bswap64(word);
    bits |= word >> count;
    next += (63 - count) >> 3;
    count |= 56;
  }
  void Skip(int n) {
    bits <<= n;
    count -= n;
  }
  // Bits from `begin` to the first that was not taken.
  int64_t position(const uint8_t* begin) const { return int64_t{8} * (next - begin) - count; }
};

// Where the k-th coefficient of a block's zigzag is kept: rows in the order 0, 4, 1, 5, 2, 6, 3, 7, which is how the inverse DCT
// takes them. Places from 64 on are for k that no block has.
inline constexpr int kBlockRow[8] = {0, 2, 4, 6, 1, 3, 5, 7};
inline constexpr int kBlockSize = 64 + 16;  // with room for what a damaged file writes behind the end
inline constexpr int kEndOfBlock = 128;     // the run of zeros that stands for "no more coefficients"

class HuffmanTable {
 public:
  enum class Kind : uint8_t { kDc, kAc };

  // `counts[l]` codes have l bits (1 to 16), for the symbols in their order. False if that is no prefix code or has symbols that
  // a picture of 8 bits cannot have. `skips`: prepare for many blocks that are skipped, which takes longer than the rest. Nothing
  // is done if the table is this one already.
  bool Build(Kind kind, const uint8_t* counts, const uint8_t* symbols, bool skips);

 private:
  friend bool TakeFirst(const HuffmanTable&, BitReader&, int*);
  friend int DecodeBlock(const HuffmanTable&, const HuffmanTable&, BitReader*, int*, int16_t*);
  friend bool SkipBlock(const HuffmanTable&, const HuffmanTable&, BitReader*, int*);

  // Few enough for the tables of a picture to stay in the first cache.
  static constexpr int kDcBits = 9, kAcBits = 11;
  struct Code {
    int16_t bits = 0;  // with those of the coefficient; 0: there is no such code
    int16_t run = 0, value = 0;
  };
  // The general way, for any code. `bits` are the next ones, from the highest on; 27 at least.
  Code Slow(uint64_t bits) const;
  void BuildSkips();

  bool built_ = false, has_skips_ = false;
  Kind kind_ = Kind::kDc;
  std::array<uint8_t, 17> counts_ = {};
  std::array<uint8_t, 256> symbols_ = {};
  std::array<uint32_t, 17> end_ = {};   // the first code behind those of l bits, as the upper bits of 16
  std::array<int32_t, 17> index_ = {};  // of the symbol of code 0 of l bits, were there one
  // By the next bits: value in the upper 16, run (or kEndOfBlock) in bits 8 to 15, bits in all in the lowest 8. If those are 0,
  // the coefficient is too long: the symbol and the bits of its code instead, or 0 if that is too long, too.
  std::array<uint32_t, 1 << kAcBits> entries_ = {};
  // By the next bits, of AC tables: how many coefficients all codes that stand there completely are for, from bit 5 on; whether
  // the last of them ends the block, in bit 4; bits in all. 0: none, or not prepared.
  std::array<uint16_t, 1 << kAcBits> skips_ = {};
};

// Takes the coefficients of the next block. 0 for damaged data, 1 if there is no code for any but the first coefficient (which is
// the predictor's new value), 2 otherwise. No check is made for the end of the data: at most 256 bytes are taken. `block` has
// kBlockSize places and is zero before; coefficients are not dequantised.
int DecodeBlock(const HuffmanTable& dc, const HuffmanTable& ac, BitReader* in, int* predictor, int16_t* block);
// The same for a block of which nothing but the predictor is needed. False for damaged data.
bool SkipBlock(const HuffmanTable& dc, const HuffmanTable& ac, BitReader* in, int* predictor);

}  // namespace tidepool::data
