// Where each tensor of a model goes in the runs of pages that its lease holds. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"

namespace tidepool::serve {

inline constexpr int64_t kTensorAlignment = 64;

// Bytes that the tensors need in one run, each aligned.
int64_t PackedBytes(std::span<const int64_t> sizes_bytes);

struct Packing {
  std::vector<int64_t> offsets;        // by tensor: from the device's page 0, in bytes; -1 for one that found no place
  std::vector<size_t> left_over;       // tensors without a place
  std::vector<device::Extent> unused;  // pages that hold nothing
};

// First fit by falling size: large tensors choose first. Tensors never straddle two extents and never overlap; one of no bytes
// gets an aligned offset inside the first extent.
Packing Pack(std::span<const int64_t> sizes_bytes, std::span<const device::Extent> extents, int64_t page_bytes);

}  // namespace tidepool::serve
