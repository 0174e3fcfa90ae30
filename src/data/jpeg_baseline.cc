#include "data/jpeg_baseline.h"

#include <algorithm>
#include <cstring>

#include "data/jpeg_idct.h"
#include "data/resize_filter.h"

namespace tidepool::data {
namespace {

constexpr size_t kPadding = 4096;  // more than the bits of a unit's codes: whether they were there is checked after it
// Bytes of a scan from which on it is faster to prepare for blocks that are skipped.
constexpr size_t kManyBlocks = 6 << 10;
static_assert(kPadding >= 6 * 256 + 8);

int CeilOf(int value, int divisor) { return (value + divisor - 1) / divisor; }

}  // namespace

bool BaselineDecoder::Prepare(const BaselineHeader& header) {
  level_ = internal::ResizeLevel();
  const bool skips = header.scan.size() >= kManyBlocks;
  for (size_t c = 0; c < header.components.size(); ++c) {
    const BaselineHeader::Component& component = header.components[c];
    if (component.dc < 0 || component.dc > 3 || component.ac < 0 || component.ac > 3 || component.quantiser == nullptr)
      return false;
    const BaselineHeader::Table& dc = header.dc[component.dc];
    const BaselineHeader::Table& ac = header.ac[component.ac];
    if (dc.counts == nullptr || !dc_[component.dc].Build(HuffmanTable::Kind::kDc, dc.counts, dc.symbols, false)) return false;
    if (ac.counts == nullptr || !ac_[component.ac].Build(HuffmanTable::Kind::kAc, ac.counts, ac.symbols, skips)) return false;
    for (int i = 0; i < 64; ++i) quantisers_[c][8 * kBlockRow[i / 8] + i % 8] = static_cast<int16_t>(component.quantiser[i]);
  }
  return true;
}

// A zero byte behind each 0xff is not data. Anything else behind one is a marker: restarts in their order, and the end of the
// picture behind the scan, are what is expected here.
bool BaselineDecoder::RemoveStuffing(const BaselineHeader& header) {
  const auto* from = reinterpret_cast<const uint8_t*>(header.scan.data());
  const uint8_t* const end = from + header.scan.size();
  bytes_.resize(header.scan.size() + kPadding);
  segment_ends_.clear();
  uint8_t* to = bytes_.data();
  while (true) {
    const auto* marker = static_cast<const uint8_t*>(std::memchr(from, 0xff, static_cast<size_t>(end - from)));
    if (marker == nullptr || end - marker < 2) return false;
    const auto plain = static_cast<size_t>(marker - from);
    std::memcpy(to, from, plain);
    to += plain;
    from = marker + 2;
    if (marker[1] == 0) {
      *to++ = 0xff;
      continue;
    }
    const size_t segment = segment_ends_.size();
    segment_ends_.push_back(static_cast<size_t>(to - bytes_.data()));
    if (marker[1] == 0xd9) break;
    if (header.restart_interval == 0 || marker[1] != 0xd0 + segment % 8) return false;
  }
  std::memset(to, 0, kPadding);
  return true;
}

void BaselineDecoder::EnterSegment(size_t segment) {
  const size_t begin = segment == 0 ? 0 : segment_ends_[segment - 1];
  segment_ = bytes_.data() + begin;
  segment_bits_ = int64_t{8} * static_cast<int64_t>(segment_ends_[segment] - begin);
  in_ = {.next = segment_};
  std::fill(std::begin(predictors_), std::end(predictors_), 0);
}

bool BaselineDecoder::SkipUnit(const BaselineHeader& header, const PlaneLayout& layout) {
  for (int c = 0; c < 3; ++c) {
    const HuffmanTable &dc = dc_[header.components[c].dc], &ac = ac_[header.components[c].ac];
    const int blocks = c == 0 ? layout.luma.across * layout.luma.down : 1;
    for (int i = 0; i < blocks; ++i) {
      if (!SkipBlock(dc, ac, &in_, &predictors_[c])) return false;
    }
  }
  return true;
}

// `out`: where the unit's samples of each plane go.
bool BaselineDecoder::DecodeUnit(const BaselineHeader& header, const PlaneLayout& layout, uint8_t* const* out,
                                 const ptrdiff_t* strides) {
  for (int c = 0; c < 3; ++c) {
    const HuffmanTable &dc = dc_[header.components[c].dc], &ac = ac_[header.components[c].ac];
    const PlaneLayout::Plane& plane = c == 0 ? layout.luma : layout.chroma;
    for (int y = 0; y < plane.down; ++y) {
      for (int x = 0; x < plane.across; ++x) {
        uint8_t* const to = out[c] + plane.block * (y * strides[c] + x);
        const int result = DecodeBlock(dc, ac, &in_, &predictors_[c], block_);
        if (result == 0) {
          std::memset(block_, 0, sizeof(block_));
          return false;
        }
        if (result == 1) {
          InverseDctFlat(plane.block, block_[0], quantisers_[c][0], to, strides[c]);
          block_[0] = 0;
        } else {
          InverseDct(level_, plane.block, block_, quantisers_[c], to, strides[c]);
        }
      }
    }
  }
  return true;
}

BaselineDecoder::Units BaselineDecoder::FindUnits(const PlaneLayout& layout, bool whole, const PlaneParts& wanted) {
  Units units = {.columns = CeilOf(layout.luma.width, layout.luma.unit_width())};
  const int rows = CeilOf(layout.luma.height, layout.luma.unit_height());
  if (whole) {
    units.right = units.columns;
    units.bottom = rows;
    return units;
  }
  units.left = units.columns;
  units.top = rows;
  const auto widen = [&units](const PixelRect& part, const PlaneLayout::Plane& plane) {
    units.left = std::min(units.left, part.x / plane.unit_width());
    units.top = std::min(units.top, part.y / plane.unit_height());
    units.right = std::max(units.right, CeilOf(part.x + part.width, plane.unit_width()));
    units.bottom = std::max(units.bottom, CeilOf(part.y + part.height, plane.unit_height()));
  };
  widen(wanted.luma, layout.luma);
  widen(wanted.chroma, layout.chroma);
  units.right = std::min(units.right, units.columns);
  units.bottom = std::min(units.bottom, rows);
  return units;
}

bool BaselineDecoder::Decode(const BaselineHeader& header, const PlaneLayout& layout, bool whole, const PlaneParts& wanted,
                             PlaneSink* sink) {
  const Units units = FindUnits(layout, whole, wanted);
  if (units.left < 0 || units.left >= units.right || units.top < 0 || units.top >= units.bottom) return false;
  if (!Prepare(header) || !RemoveStuffing(header)) return false;
  const auto part = [&units](const PlaneLayout::Plane& plane) -> PixelRect {
    return {.x = plane.unit_width() * units.left,
            .y = plane.unit_height() * units.top,
            .width = plane.unit_width() * (units.right - units.left),
            .height = plane.unit_height() * (units.bottom - units.top)};
  };
  sink->Begin({.luma = part(layout.luma), .chroma = part(layout.chroma)});
  size_t segment = 0;
  int until_restart = header.restart_interval;
  EnterSegment(0);
  for (int row = 0; row < units.bottom; ++row) {
    const int luma_y = layout.luma.unit_height() * row, chroma_y = layout.chroma.unit_height() * row;
    uint8_t* out[3] = {};
    ptrdiff_t strides[3] = {};
    const bool in_part = row >= units.top;
    for (int c = 0; in_part && c < 3; ++c) out[c] = sink->Rows(c, c == 0 ? luma_y : chroma_y, &strides[c]);
    for (int column = 0; column < units.columns; ++column) {
      // What stands beside the last row of the part, and below it, is not looked at.
      if (row + 1 == units.bottom && column >= units.right) break;
      if (header.restart_interval > 0 && until_restart-- == 0) {
        if (++segment == segment_ends_.size()) return false;
        EnterSegment(segment);
        until_restart = header.restart_interval - 1;
      }
      if (in_part && column >= units.left && column < units.right) {
        if (!DecodeUnit(header, layout, out, strides)) return false;
        for (int c = 0; c < 3; ++c) out[c] += c == 0 ? layout.luma.unit_width() : layout.chroma.unit_width();
      } else if (!SkipUnit(header, layout)) {
        return false;
      }
      if (in_.position(segment_) > segment_bits_) return false;
    }
    if (in_part) sink->Done(luma_y + layout.luma.unit_height(), chroma_y + layout.chroma.unit_height());
  }
  return true;
}

}  // namespace tidepool::data
