#include "pool/space.h"

#include <algorithm>
#include <bit>

#include "base/status.h"
#include "base/units.h"

namespace tidepool::pool {

Space::Space(int64_t page_bytes, int32_t page_count)
    : page_bytes_(page_bytes),
      head_(static_cast<size_t>(page_count)),
      tail_(static_cast<size_t>(page_count)),
      held_(static_cast<size_t>(page_count)) {}

Space::Node* Space::NewNode(int64_t start, int64_t size) {
  Node* node;
  if (unused_.empty()) {
    node = &storage_.emplace_back();
  } else {
    node = unused_.back();
    unused_.pop_back();
  }
  *node = {};
  node->start = start;
  node->size = size;
  return node;
}

void Space::Recycle(Node* node) { unused_.push_back(node); }

int64_t Space::WholePages(const Node* node) const {
  const int64_t first = CeilDiv(node->start, page_bytes_);
  return std::max<int64_t>(0, node->end() / page_bytes_ - first);
}

void Space::LinkFree(Node* node) {
  node->free = true;
  cached_pages_ += WholePages(node);
  if (node->size > kSmallBytes) {
    large_.emplace(std::pair(node->size, node->start), node);
    return;
  }
  const auto bin = static_cast<size_t>(node->size / kBlockAlignment - 1);
  node->bin_before = nullptr;
  node->bin_after = bins_[bin];
  if (bins_[bin] != nullptr) bins_[bin]->bin_before = node;
  bins_[bin] = node;
  bin_used_[bin / 64] |= uint64_t{1} << (bin % 64);
}

void Space::UnlinkFree(Node* node) {
  node->free = false;
  cached_pages_ -= WholePages(node);
  if (node->size > kSmallBytes) {
    large_.erase({node->size, node->start});
    return;
  }
  const auto bin = static_cast<size_t>(node->size / kBlockAlignment - 1);
  if (node->bin_before != nullptr) {
    node->bin_before->bin_after = node->bin_after;
  } else {
    bins_[bin] = node->bin_after;
    if (bins_[bin] == nullptr) bin_used_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
  }
  if (node->bin_after != nullptr) node->bin_after->bin_before = node->bin_before;
}

Space::Node* Space::FindFree(int64_t size_bytes) const {
  if (size_bytes <= kSmallBytes) {
    const auto bin = static_cast<size_t>(size_bytes / kBlockAlignment - 1);
    uint64_t word = bin_used_[bin / 64] & (~uint64_t{0} << (bin % 64));
    for (size_t i = bin / 64;;) {
      if (word != 0) return bins_[i * 64 + static_cast<size_t>(std::countr_zero(word))];
      if (++i == bin_used_.size()) break;
      word = bin_used_[i];
    }
  }
  const auto best = large_.lower_bound({size_bytes, 0});
  return best == large_.end() ? nullptr : best->second;
}

void Space::SetHead(Node* node) {
  if (node->before == nullptr) head_[PageOf(node->start)] = node;
}

Space::Node* Space::SplitFront(Node* node, int64_t size_bytes) {
  Node* front = NewNode(node->start, size_bytes);
  node->start += size_bytes;
  node->size -= size_bytes;
  front->before = node->before;
  front->after = node;
  if (front->before != nullptr) front->before->after = front;
  node->before = front;
  SetHead(front);
  return front;
}

void Space::Join(Node* left, Node* right) {
  right->start = left->start;
  right->size += left->size;
  right->before = left->before;
  if (right->before != nullptr) right->before->after = right;
  SetHead(right);
  Recycle(left);
}

void Space::AddPages(Extent extent) {
  Node* node = NewNode(extent.first * page_bytes_, extent.count * page_bytes_);
  const auto first = static_cast<size_t>(extent.first), last = static_cast<size_t>(extent.end() - 1);
  std::fill(held_.begin() + extent.first, held_.begin() + extent.end(), true);
  held_pages_ += extent.count;
  if (first > 0 && held_[first - 1]) {
    Node* left = tail_[first - 1];
    node->before = left;
    left->after = node;
    if (left->free) {
      UnlinkFree(left);
      Join(left, node);
    }
  }
  SetHead(node);
  if (last + 1 < held_.size() && held_[last + 1]) {
    Node* right = head_[last + 1];
    node->after = right;
    right->before = node;
    if (right->free) {
      UnlinkFree(right);
      Join(node, right);
      node = right;
    }
  } else {
    tail_[last] = node;
  }
  LinkFree(node);
}

int64_t Space::Allocate(int64_t size_bytes) {
  Node* node = FindFree(size_bytes);
  if (node == nullptr) return -1;
  UnlinkFree(node);
  if (node->size > size_bytes) {
    Node* rest = node;
    node = SplitFront(rest, size_bytes);
    LinkFree(rest);
  }
  live_[node->start] = node;
  live_bytes_ += node->size;
  return node->start;
}

int64_t Space::Free(int64_t offset) {
  const auto found = live_.find(offset);
  TIDEPOOL_CHECK(found != live_.end(), "no block starts at byte {} of the device", offset);
  Node* node = found->second;
  live_.erase(found);
  const int64_t size = node->size;
  live_bytes_ -= size;
  if (Node* left = node->before; left != nullptr && left->free) {
    UnlinkFree(left);
    Join(left, node);
  }
  if (Node* right = node->after; right != nullptr && right->free) {
    UnlinkFree(right);
    Join(node, right);
    node = right;
  }
  LinkFree(node);
  return size;
}

void Space::RemovePages(Node* node, Extent extent) {
  const int64_t cut_start = extent.first * page_bytes_, cut_end = extent.end() * page_bytes_;
  std::fill(held_.begin() + extent.first, held_.begin() + extent.end(), false);
  held_pages_ -= extent.count;
  Node* left = node->before;
  if (node->start < cut_start) {
    left = SplitFront(node, cut_start - node->start);
    LinkFree(left);
  }
  if (left != nullptr) {
    left->after = nullptr;
    tail_[static_cast<size_t>(extent.first) - 1] = left;
  }
  Node* right = node->after;
  if (cut_end < node->end()) {
    // What stays at the end keeps the object, so that the run's tail needs no change.
    node->size = node->end() - cut_end;
    node->start = cut_end;
    node->before = nullptr;
    SetHead(node);
    LinkFree(node);
    return;
  }
  if (right != nullptr) {
    right->before = nullptr;
    SetHead(right);
  }
  Recycle(node);
}

std::vector<Extent> Space::TakeLowestCachedPages(int64_t most) {
  std::vector<Node*> blocks;
  for (const auto& [size, node] : large_) {
    if (WholePages(node) > 0) blocks.push_back(node);
  }
  for (Node* node : bins_) {
    for (; node != nullptr; node = node->bin_after) {
      if (WholePages(node) > 0) blocks.push_back(node);
    }
  }
  std::sort(blocks.begin(), blocks.end(), [](const Node* a, const Node* b) { return a->start < b->start; });
  std::vector<Extent> taken;
  for (Node* node : blocks) {
    if (most <= 0) break;
    const auto count = static_cast<int32_t>(std::min(most, WholePages(node)));
    const Extent extent{static_cast<PageIndex>(CeilDiv(node->start, page_bytes_)), count};
    UnlinkFree(node);
    RemovePages(node, extent);
    taken.push_back(extent);
    most -= count;
  }
  return taken;
}

std::vector<Extent> Space::TakeCachedPages(int64_t most, Placement placement) {
  if (placement == Placement::kHigh) return TakeLowestCachedPages(most);
  std::vector<Extent> taken;
  while (most > 0 && cached_pages_ > 0) {
    // Only blocks of a page or more can hold whole pages; small blocks count when pages are small.
    Node* best = nullptr;
    int64_t best_pages = 0;
    for (auto entry = large_.rbegin(); entry != large_.rend() && entry->first.first >= page_bytes_; ++entry) {
      if (const int64_t pages = WholePages(entry->second); pages > best_pages) {
        best = entry->second;
        best_pages = pages;
      }
      if (best_pages >= entry->first.first / page_bytes_) break;  // those that follow are no longer
    }
    if (best == nullptr) {
      for (size_t bin = kBins; bin-- > 0 && best == nullptr;) {
        for (Node* node = bins_[bin]; node != nullptr && best == nullptr; node = node->bin_after) {
          if (WholePages(node) > 0) best = node;
        }
      }
      if (best == nullptr) break;
      best_pages = WholePages(best);
    }
    const auto count = static_cast<int32_t>(std::min(most, best_pages));
    // From the end, so that what is kept stays together with what lies before it.
    const Extent extent{static_cast<PageIndex>(best->end() / page_bytes_) - count, count};
    UnlinkFree(best);
    RemovePages(best, extent);
    taken.push_back(extent);
    most -= count;
  }
  std::sort(taken.begin(), taken.end(), [](const Extent& a, const Extent& b) { return a.first < b.first; });
  return taken;
}

int64_t Space::longest_free_bytes() const {
  if (!large_.empty()) return large_.rbegin()->first.first;
  for (size_t i = bin_used_.size(); i-- > 0;) {
    if (bin_used_[i] != 0) {
      return static_cast<int64_t>(i * 64 + 64 - static_cast<size_t>(std::countl_zero(bin_used_[i]))) * kBlockAlignment;
    }
  }
  return 0;
}

bool Space::Consistent() const {
  if (page_bytes_ <= 0) return false;
  int64_t live = 0, live_blocks = 0, cached = 0, pages = 0;
  size_t free_blocks = 0;
  for (size_t page = 0; page < held_.size(); ++page) {
    if (!held_[page]) continue;
    const bool is_head = page == 0 || !held_[page - 1];
    ++pages;
    if (!is_head) continue;
    size_t end = page;
    while (end < held_.size() && held_[end]) ++end;
    int64_t at = static_cast<int64_t>(page) * page_bytes_;
    const Node* before = nullptr;
    for (const Node* node = head_[page]; node != nullptr; before = node, node = node->after) {
      if (node->start != at || node->size <= 0 || node->size % kBlockAlignment != 0 || node->before != before) return false;
      if (node->free && before != nullptr && before->free) return false;
      at += node->size;
      if (node->free) {
        ++free_blocks;
        cached += WholePages(node);
        if (node->size > kSmallBytes && !large_.contains({node->size, node->start})) return false;
      } else {
        ++live_blocks;
        live += node->size;
        const auto found = live_.find(node->start);
        if (found == live_.end() || found->second != node) return false;
      }
    }
    if (at != static_cast<int64_t>(end) * page_bytes_ || tail_[end - 1] != before) return false;
  }
  size_t linked = large_.size();
  for (const Node* bin : bins_) {
    for (const Node* node = bin; node != nullptr; node = node->bin_after) ++linked;
  }
  return linked == free_blocks && live == live_bytes_ && live_blocks == blocks() && cached == cached_pages_ &&
         pages == held_pages_;
}

}  // namespace tidepool::pool
