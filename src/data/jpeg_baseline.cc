#include "data/jpeg_baseline.h"

#include <algorithm>
#include <cstring>

#include "data/jpeg_idct.h"
#include "data/resize_filter.h"

namespace tidepool::data {
namespace {

constexpr size_t kPadding = 4096;  // more than the bits of a unit's codes: whether they were there is checked after it
static_assert(kPadding >= 6 * 256 + 8);

int CeilOf(int value, int divisor) { return (value + divisor - 1) / divisor; }

}  // namespace

bool BaselineDecoder::Prepare(const BaselineHeader& header) {
  level_ = internal::ResizeLevel();
  for (size_t c = 0; c < header.components.size(); ++c) {
    const BaselineHeader::Component& component = header.components[c];
    if (component.dc < 0 || component.dc > 3 || component.ac < 0 || component.ac > 3 || component.quantiser == nullptr)
      return false;
    const BaselineHeader::Table& dc = header.dc[component.dc];
    const BaselineHeader::Table& ac = header.ac[component.ac];
    if (dc.counts == nullptr || !dc_[component.dc].Build(HuffmanTable::Kind::kDc, dc.counts, dc.symbols)) return false;
    if (ac.counts == nullptr || !ac_[component.ac].Build(HuffmanTable::Kind::kAc, ac.counts, ac.symbols)) return false;
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

bool BaselineDecoder::SkipUnit(const BaselineHeader& header) {
  const int luma_blocks = header.chroma_width * header.chroma_height;
  for (int i = 0; i < luma_blocks + 2; ++i) {
    const int c = std::max(i - luma_blocks + 1, 0);
    const BaselineHeader::Component& component = header.components[c];
    if (!SkipBlock(dc_[component.dc], ac_[component.ac], &in_, &predictors_[c])) return false;
  }
  return true;
}

// `out`: where the unit's samples of each plane go.
bool BaselineDecoder::DecodeUnit(const BaselineHeader& header, uint8_t* const* out, const ptrdiff_t* strides) {
  const int luma_blocks = header.chroma_width * header.chroma_height;
  for (int i = 0; i < luma_blocks + 2; ++i) {
    const int c = std::max(i - luma_blocks + 1, 0);
    const BaselineHeader::Component& component = header.components[c];
    uint8_t* to = out[c];
    if (c == 0) to += 8 * (i / header.chroma_width * strides[0] + i % header.chroma_width);
    const int result = DecodeBlock(dc_[component.dc], ac_[component.ac], &in_, &predictors_[c], block_);
    if (result == 1) {
      InverseDctFlat(block_[0], quantisers_[c][0], to, strides[c]);
      block_[0] = 0;
      continue;
    }
    if (result == 2) InverseDct(level_, block_, quantisers_[c], to, strides[c]);
    std::memset(block_, 0, sizeof(block_));
    if (result == 0) return false;
  }
  return true;
}

bool BaselineDecoder::Decode(const BaselineHeader& header, bool whole, const PlaneParts& wanted, PlaneSink* sink) {
  if (!Prepare(header) || !RemoveStuffing(header)) return false;
  const int luma_width = 8 * header.chroma_width, luma_height = 8 * header.chroma_height;
  const int columns = CeilOf(header.width, luma_width), rows = CeilOf(header.height, luma_height);
  Units kept = {.left = 0, .right = columns, .top = 0, .bottom = rows};
  if (!whole) {
    const PixelRect &luma = wanted.luma, &chroma = wanted.chroma;
    kept.left = std::max(0, std::min(luma.x / luma_width, chroma.x / 8));
    kept.top = std::max(0, std::min(luma.y / luma_height, chroma.y / 8));
    kept.right = std::min(columns, std::max(CeilOf(luma.x + luma.width, luma_width), CeilOf(chroma.x + chroma.width, 8)));
    kept.bottom = std::min(rows, std::max(CeilOf(luma.y + luma.height, luma_height), CeilOf(chroma.y + chroma.height, 8)));
  }
  const PixelRect part = {
      .x = 8 * kept.left, .y = 8 * kept.top, .width = 8 * (kept.right - kept.left), .height = 8 * (kept.bottom - kept.top)};
  sink->Begin({.luma = {.x = part.x * header.chroma_width,
                        .y = part.y * header.chroma_height,
                        .width = part.width * header.chroma_width,
                        .height = part.height * header.chroma_height},
               .chroma = part});
  size_t segment = 0;
  int until_restart = header.restart_interval;
  EnterSegment(0);
  for (int row = 0; row < kept.bottom; ++row) {
    uint8_t* out[3] = {};
    ptrdiff_t strides[3] = {};
    const bool in_part = row >= kept.top;
    if (in_part) {
      out[0] = sink->Rows(0, luma_height * row, &strides[0]);
      for (int c = 1; c < 3; ++c) out[c] = sink->Rows(c, 8 * row, &strides[c]);
    }
    for (int column = 0; column < columns; ++column) {
      if (header.restart_interval > 0 && until_restart-- == 0) {
        if (++segment == segment_ends_.size()) return false;
        EnterSegment(segment);
        until_restart = header.restart_interval - 1;
      }
      if (in_part && column >= kept.left && column < kept.right) {
        if (!DecodeUnit(header, out, strides)) return false;
        out[0] += luma_width;
        out[1] += 8;
        out[2] += 8;
      } else if (row + 1 == kept.bottom && column >= kept.right) {
        break;
      } else if (!SkipUnit(header)) {
        return false;
      }
      if (in_.position(segment_) > segment_bits_) return false;
    }
    if (in_part) sink->Done(luma_height * (row + 1), 8 * (row + 1));
  }
  return true;
}

}  // namespace tidepool::data
