#include "serve/packer.h"

#include <algorithm>
#include <numeric>

#include "base/units.h"

namespace tidepool::serve {

int64_t PackedBytes(std::span<const int64_t> sizes_bytes) {
  int64_t total = 0;
  for (int64_t size : sizes_bytes) total += RoundUp(size, kTensorAlignment);
  return total;
}

Packing Pack(std::span<const int64_t> sizes_bytes, std::span<const device::Extent> extents, int64_t page_bytes) {
  Packing packing;
  packing.offsets.assign(sizes_bytes.size(), -1);
  std::vector<size_t> order(sizes_bytes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sizes_bytes[a] > sizes_bytes[b]; });

  std::vector<int64_t> used(extents.size(), 0);
  for (size_t tensor : order) {
    const int64_t size = RoundUp(sizes_bytes[tensor], kTensorAlignment);
    for (size_t i = 0; i < extents.size(); ++i) {
      if (used[i] + size > extents[i].count * page_bytes) continue;
      // A tensor of no bytes behind a full extent would lie on a page that is not ours.
      packing.offsets[tensor] = extents[i].first * page_bytes + (size == 0 ? 0 : used[i]);
      used[i] += size;
      break;
    }
    if (packing.offsets[tensor] < 0) packing.left_over.push_back(tensor);
  }
  for (size_t i = 0; i < extents.size(); ++i) {
    const auto filled = static_cast<int32_t>(CeilDiv(used[i], page_bytes));
    if (filled < extents[i].count) packing.unused.push_back({extents[i].first + filled, extents[i].count - filled});
  }
  return packing;
}

}  // namespace tidepool::serve
