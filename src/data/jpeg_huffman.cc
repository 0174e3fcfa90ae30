#include "data/jpeg_huffman.h"

#include <algorithm>
#include <numeric>

namespace tidepool::data {
namespace {

constexpr uint8_t kZigzag[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

// By k, which passes 63 at the end of a block and in damaged files.
constexpr std::array<uint8_t, 64 + kEndOfBlock> kPlaces = [] {
  std::array<uint8_t, 64 + kEndOfBlock> places = {};
  for (int k = 0; k < 64 + kEndOfBlock; ++k) {
    places[k] = k < 64 ? static_cast<uint8_t>(kBlockRow[kZigzag[k] / 8] * 8 + kZigzag[k] % 8) : 64;
  }
  return places;
}();

constexpr int kMostSize = 11;  // bits of a coefficient or of a difference, in pictures of 8 bits

// A coefficient of `size` bits: those that begin with 0 are negative.
int Extend(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

}  // namespace

bool HuffmanTable::Build(Kind kind, const uint8_t* counts, const uint8_t* symbols, bool skips) {
  const int total = std::accumulate(counts + 1, counts + 17, 0);
  if (total > 256) return false;
  if (built_ && kind == kind_ && has_skips_ >= skips && std::equal(counts_.begin() + 1, counts_.end(), counts + 1) &&
      std::equal(symbols, symbols + total, symbols_.begin())) {
    return true;
  }
  built_ = false;
  kind_ = kind;
  std::copy_n(counts, counts_.size(), counts_.begin());
  std::copy_n(symbols, total, symbols_.begin());
  entries_.fill(0);
  const int lookup = kind == Kind::kDc ? kDcBits : kAcBits;
  uint32_t code = 0;
  int next = 0;
  for (int length = 1; length <= 16; ++length) {
    index_[length] = next - static_cast<int>(code);
    for (int i = 0; i < counts[length]; ++i, ++next, ++code) {
      if (code >= 1u << length) return false;
      const int symbol = symbols_[next];
      const int size = kind == Kind::kDc ? symbol : symbol & 15;
      int run = kind == Kind::kDc ? 0 : symbol >> 4;
      if (size > kMostSize) return false;
      // 15 zeros and a zero; every other symbol without a coefficient ends the block.
      if (kind == Kind::kAc && size == 0 && run != 15) run = kEndOfBlock;
      const int bits = length + size;
      if (length > lookup) continue;
      if (bits > lookup) {
        const uint32_t entry = static_cast<uint32_t>(symbol) << 16 | static_cast<uint32_t>(length) << 8;
        std::fill_n(entries_.begin() + (code << (lookup - length)), 1 << (lookup - length), entry);
        continue;
      }
      for (int value = 0; value < 1 << size; ++value) {
        const auto coefficient = static_cast<uint16_t>(size == 0 ? 0 : Extend(value, size));
        const uint32_t entry = uint32_t{coefficient} << 16 | static_cast<uint32_t>(run << 8 | bits);
        const uint32_t first = (code << size | static_cast<uint32_t>(value)) << (lookup - bits);
        std::fill_n(entries_.begin() + first, 1 << (lookup - bits), entry);
      }
    }
    end_[length] = code << (16 - length);
    code <<= 1;
  }
  has_skips_ = skips;
  if (skips) {
    BuildSkips();
  } else {
    skips_.fill(0);
  }
  built_ = true;
  return true;
}

HuffmanTable::Code HuffmanTable::Slow(uint64_t bits) const {
  const uint32_t entry = entries_[bits >> (64 - (kind_ == Kind::kDc ? kDcBits : kAcBits))];
  if ((entry & 63) != 0) {
    return {.bits = static_cast<int16_t>(entry & 63),
            .run = static_cast<int16_t>(entry >> 8 & 0xff),
            .value = static_cast<int16_t>(entry >> 16)};
  }
  int symbol = static_cast<int>(entry >> 16), length = static_cast<int>(entry >> 8 & 0xff);
  if (length == 0) {
    const auto front = static_cast<uint32_t>(bits >> 48);
    length = 1;
    while (length <= 16 && front >= end_[length]) ++length;
    if (length > 16) return {};
    const int at = index_[length] + static_cast<int>(front >> (16 - length));
    symbol = symbols_[static_cast<size_t>(at)];
  }
  const int size = kind_ == Kind::kDc ? symbol : symbol & 15, run = kind_ == Kind::kDc ? 0 : symbol >> 4;
  if (size == 0) {
    return {.bits = static_cast<int16_t>(length),
            .run = static_cast<int16_t>(kind_ == Kind::kAc && run != 15 ? kEndOfBlock : run)};
  }
  const int value = Extend(static_cast<int>(bits << length >> (64 - size)), size);
  return {.bits = static_cast<int16_t>(length + size), .run = static_cast<int16_t>(run), .value = static_cast<int16_t>(value)};
}

// The codes that the next bits hold as a whole, one after the other, up to the end of the block.
void HuffmanTable::BuildSkips() {
  for (uint32_t first = 0; first < skips_.size(); ++first) {
    int bits = 0, coefficients = 0;
    bool ended = false;
    while (!ended) {
      const uint32_t entry = entries_[first << bits & (skips_.size() - 1)];
      const int more = static_cast<int>(entry & 63), run = static_cast<int>(entry >> 8 & 0xff);
      if (more == 0 || bits + more > kAcBits) break;
      bits += more;
      ended = run == kEndOfBlock;
      if (!ended) coefficients += run + 1;
    }
    skips_[first] = static_cast<uint16_t>(coefficients << 5 | (ended ? 16 : 0) | bits);
  }
}

// The functions that take a block work on a copy of the reader, which stays in registers.

inline bool TakeFirst(const HuffmanTable& dc, BitReader& in, int* predictor) {
  in.Refill();
  if (const uint32_t entry = dc.entries_[in.bits >> (64 - HuffmanTable::kDcBits)]; (entry & 63) != 0) [[likely]] {
    *predictor += static_cast<int16_t>(entry >> 16);
    in.Skip(static_cast<int>(entry & 63));
  } else {
    const HuffmanTable::Code code = dc.Slow(in.bits);
    if (code.bits == 0) return false;
    *predictor += code.value;
    in.Skip(code.bits);
  }
  return *predictor == static_cast<int16_t>(*predictor);
}

int DecodeBlock(const HuffmanTable& dc, const HuffmanTable& ac, BitReader* reader, int* predictor, int16_t* block) {
  BitReader in = *reader;
  if (!TakeFirst(dc, in, predictor)) return 0;
  block[0] = static_cast<int16_t>(*predictor);
  int k = 1;
  do {
    in.Refill();
    // As many codes as one filling is sure to hold.
    for (int i = 0; i < 56 / HuffmanTable::kAcBits && k < 64; ++i) {
      const uint32_t entry = ac.entries_[in.bits >> (64 - HuffmanTable::kAcBits)];
      if ((entry & 63) == 0) [[unlikely]] {
        in.Refill();
        const HuffmanTable::Code code = ac.Slow(in.bits);
        if (code.bits == 0) return 0;
        in.Skip(code.bits);
        k += code.run;
        block[kPlaces[k]] = code.value;
        ++k;
        break;
      }
      k += static_cast<int>(entry >> 8 & 0xff);
      block[kPlaces[k]] = static_cast<int16_t>(entry >> 16);
      ++k;
      in.Skip(static_cast<int>(entry & 63));
    }
  } while (k < 64);
  *reader = in;
  if (k > 64 && k <= kEndOfBlock) return 0;  // more coefficients than a block has
  return k == kEndOfBlock + 2 ? 1 : 2;
}

bool SkipBlock(const HuffmanTable& dc, const HuffmanTable& ac, BitReader* reader, int* predictor) {
  BitReader in = *reader;
  if (!TakeFirst(dc, in, predictor)) return false;
  int k = 1;
  while (k < 64) {
    in.Refill();
    for (int i = 0; i < 56 / HuffmanTable::kAcBits; ++i) {
      const uint32_t skip = ac.skips_[in.bits >> (64 - HuffmanTable::kAcBits)];
      const int after = k + static_cast<int>(skip >> 5);
      // A block may be full before the last of these codes, which then are the next block's: one by one.
      if (skip == 0 || after > 63) [[unlikely]] {
        in.Refill();
        const HuffmanTable::Code code = ac.Slow(in.bits);
        if (code.bits == 0) return false;
        in.Skip(code.bits);
        k += code.run + 1;
        break;
      }
      k = after;
      in.Skip(static_cast<int>(skip & 15));
      if ((skip & 16) != 0) {
        *reader = in;
        return true;
      }
    }
  }
  *reader = in;
  return k == 64 || k > kEndOfBlock;
}

}  // namespace tidepool::data
