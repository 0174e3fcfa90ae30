// The free and used space of one lease: blocks inside the pages that it holds, with free neighbours always merged.
//
// Best fit: the smallest free block that is large enough, the lowest address among equals of more than 16 KiB. A request costs
// O(log free blocks); one that a block of exactly its size or of a small size can serve costs O(1). Sizes are multiples of 64
// bytes. Nothing is written into the managed memory.
//
// Pure bookkeeping over byte offsets of the device. Thread-compatible.
#pragma once

#include <absl/container/btree_map.h>
#include <absl/container/flat_hash_map.h>

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "pool/types.h"

namespace tidepool::pool {

inline constexpr int64_t kBlockAlignment = 64;

class Space {
 public:
  Space(int64_t page_bytes, int32_t page_count);

  // Pages that the lease has got; they join their neighbours.
  void AddPages(Extent extent);
  // The start of a block of `size_bytes` (a multiple of 64), or -1 if no free block is large enough.
  int64_t Allocate(int64_t size_bytes);
  // Whether a block starts at `offset`.
  bool IsBlock(int64_t offset) const { return live_.contains(offset); }
  // Gives a block back and returns its size.
  int64_t Free(int64_t offset);
  // Takes up to `most` pages without a live byte out: kLow those of the longest free blocks first, kHigh the lowest ones, so that
  // what is kept lies at the high end.
  std::vector<Extent> TakeCachedPages(int64_t most, Placement placement = Placement::kLow);

  int64_t held_pages() const { return held_pages_; }
  int64_t cached_pages() const { return cached_pages_; }
  int64_t live_bytes() const { return live_bytes_; }
  int64_t blocks() const { return static_cast<int64_t>(live_.size()); }
  int64_t longest_free_bytes() const;
  // For tests: walks every run of pages and compares the structures with each other.
  bool Consistent() const;

 private:
  // A block; the blocks of one run of held pages form a list in order of address.
  struct Node {
    int64_t start = 0, size = 0;
    Node *before = nullptr, *after = nullptr;          // neighbours in memory
    Node *bin_before = nullptr, *bin_after = nullptr;  // in a bin of small free blocks
    bool free = false;
    int64_t end() const { return start + size; }
  };
  static constexpr int64_t kSmallBytes = int64_t{16} << 10;
  static constexpr size_t kBins = kSmallBytes / kBlockAlignment;  // bin i: free blocks of exactly (i + 1) * 64 bytes

  Node* NewNode(int64_t start, int64_t size);
  void Recycle(Node* node);
  // A free block enters or leaves the free structures.
  void LinkFree(Node* node);
  void UnlinkFree(Node* node);
  Node* FindFree(int64_t size_bytes) const;
  // Cuts the first `size_bytes` off `node` and returns them as a new block before it. (The block at the end of a run so stays the
  // same object.)
  Node* SplitFront(Node* node, int64_t size_bytes);
  void Join(Node* left, Node* right);  // right survives
  void SetHead(Node* node);
  std::vector<Extent> TakeLowestCachedPages(int64_t most);
  int64_t WholePages(const Node* node) const;
  // Removes whole pages from a free, unlinked node; what is left of it is linked again.
  void RemovePages(Node* node, Extent extent);
  size_t PageOf(int64_t offset) const { return static_cast<size_t>(offset / page_bytes_); }

  const int64_t page_bytes_;
  absl::flat_hash_map<int64_t, Node*> live_;                   // by start
  absl::btree_map<std::pair<int64_t, int64_t>, Node*> large_;  // free blocks above kSmallBytes, by size and start
  std::array<Node*, kBins> bins_{};
  std::array<uint64_t, kBins / 64> bin_used_{};
  // At the first (last) page of every run of held pages: its first (last) block. Elsewhere meaningless.
  std::vector<Node*> head_, tail_;
  std::vector<bool> held_;
  std::deque<Node> storage_;
  std::vector<Node*> unused_;
  int64_t held_pages_ = 0, cached_pages_ = 0, live_bytes_ = 0;
};

}  // namespace tidepool::pool
