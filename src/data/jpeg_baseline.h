// A decoder for the kind of JPEG file that nearly all photographs are: baseline Huffman coding of Y, Cb and Cr in one scan, with
// chroma at the size of luma or at half of it (ITU-T T.81, annexes A.3 and F.2). Entropy decoding is most of the time of a
// loader, and a decoder that knows one kind of file only does it faster than a general one. Whatever it does not know, damage
// above all, is left to libjpeg-turbo, which has also parsed the headers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "data/jpeg_huffman.h"
#include "data/jpeg_planes.h"

namespace tidepool::data {

// What the headers say.
struct BaselineHeader {
  struct Table {
    const uint8_t* counts = nullptr;   // of codes of 1 to 16 bits, at 1 to 16; none: there is no such table
    const uint8_t* symbols = nullptr;  // as many as the counts say
  };
  struct Component {
    const uint16_t* quantiser = nullptr;  // 64, row by row
    int dc = 0, ac = 0;                   // which tables
  };
  int restart_interval = 0;  // in units; 0: none
  std::array<Table, 4> dc, ac;
  std::array<Component, 3> components;  // Y, Cb, Cr
  std::span<const std::byte> scan;      // all that stands behind the header of the scan
};

// Keeps its memory and its tables from picture to picture. Thread-compatible.
class BaselineDecoder {
 public:
  // As DecodeJpegPlanes. `whole`: everything is decoded, whatever is wanted.
  bool Decode(const BaselineHeader& header, const PlaneLayout& layout, bool whole, const PlaneParts& wanted, PlaneSink* sink);

 private:
  // A unit (the standard's MCU) is a block of each chroma plane and the one, two or four blocks of luma over it.
  struct Units {
    int columns = 0;                               // of the picture
    int left = 0, right = 0, top = 0, bottom = 0;  // that are decoded; right and bottom lie outside
  };
  static Units FindUnits(const PlaneLayout& layout, bool whole, const PlaneParts& wanted);
  bool Prepare(const BaselineHeader& header);
  bool RemoveStuffing(const BaselineHeader& header);
  void EnterSegment(size_t segment);
  bool SkipUnit(const BaselineHeader& header, const PlaneLayout& layout);
  bool DecodeUnit(const BaselineHeader& header, const PlaneLayout& layout, uint8_t* const* out, const ptrdiff_t* strides);

  std::array<HuffmanTable, 4> dc_, ac_;
  alignas(32) int16_t quantisers_[3][64] = {};
  alignas(32) int16_t block_[kBlockSize] = {};  // zero between blocks
  int level_ = 0;                               // of instructions

  std::vector<uint8_t> bytes_;        // of the scan without stuffing and markers, and zeros behind them
  std::vector<size_t> segment_ends_;  // within `bytes_`; one segment for each restart interval
  BitReader in_;
  const uint8_t* segment_ = nullptr;
  int64_t segment_bits_ = 0;
  int predictors_[3] = {0, 0, 0};
};

}  // namespace tidepool::data
