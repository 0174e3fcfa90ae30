#include "pool/run_index.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace tidepool::pool {

RunIndex::RunIndex(int32_t pages) : next_high_(pages) {
  while (leaves_ < pages) leaves_ *= 2;
  tree_.assign(static_cast<size_t>(leaves_) * 2, 0);
}

void RunIndex::SetLength(PageIndex first, int32_t count) {
  auto node = static_cast<size_t>(leaves_) + static_cast<size_t>(first);
  tree_[node] = count;
  for (node /= 2; node >= 1; node /= 2) tree_[node] = std::max(tree_[2 * node], tree_[2 * node + 1]);
}

void RunIndex::Insert(PageIndex first, int32_t count) {
  by_address_[first] = count;
  by_length_.emplace(count, first);
  SetLength(first, count);
  pages_ += count;
}

void RunIndex::Erase(std::map<PageIndex, int32_t>::iterator run) {
  by_length_.erase({run->second, run->first});
  SetLength(run->first, 0);
  pages_ -= run->second;
  by_address_.erase(run);
}

void RunIndex::Add(Extent extent) {
  PageIndex first = extent.first;
  int32_t count = extent.count;
  auto next = by_address_.lower_bound(first);
  if (next != by_address_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == first) {
      first = previous->first;
      count += previous->second;
      Erase(previous);
    }
  }
  if (next != by_address_.end() && next->first == extent.end()) {
    count += next->second;
    Erase(next);
  }
  Insert(first, count);
}

void RunIndex::Remove(Extent extent) {
  const auto run = std::prev(by_address_.upper_bound(extent.first));
  const Extent whole{run->first, run->second};
  Erase(run);
  if (whole.first < extent.first) Insert(whole.first, extent.first - whole.first);
  if (extent.end() < whole.end()) Insert(extent.end(), whole.end() - extent.end());
}

PageIndex RunIndex::FirstFrom(PageIndex from, int32_t count) const {
  if (from >= leaves_) return -1;
  auto node = static_cast<size_t>(leaves_) + static_cast<size_t>(from);
  // Climb until a subtree to the right (or the leaf itself) has a run that is long enough, then descend to its leftmost.
  if (tree_[node] < count) {
    while (true) {
      while (node > 1 && node % 2 == 1) node /= 2;
      if (node <= 1) return -1;
      ++node;
      if (tree_[node] >= count) break;
    }
  }
  while (node < static_cast<size_t>(leaves_)) node = tree_[2 * node] >= count ? 2 * node : 2 * node + 1;
  return static_cast<PageIndex>(node) - leaves_;
}

PageIndex RunIndex::LastBefore(PageIndex before, int32_t count) const {
  if (before <= 0) return -1;
  auto node = static_cast<size_t>(leaves_ + std::min(before, leaves_) - 1);
  if (tree_[node] < count) {
    while (true) {
      while (node > 1 && node % 2 == 0) node /= 2;
      if (node <= 1) return -1;
      --node;
      if (tree_[node] >= count) break;
    }
  }
  while (node < static_cast<size_t>(leaves_)) node = tree_[2 * node + 1] >= count ? 2 * node + 1 : 2 * node;
  return static_cast<PageIndex>(node) - leaves_;
}

Extent RunIndex::Find(int32_t count, FitPolicy fit, Placement placement) {
  if (count <= 0 || longest() < count) return {};
  const bool low = placement == Placement::kLow;
  PageIndex start = -1;
  switch (fit) {
    case FitPolicy::kFirstFit: start = low ? FirstFrom(0, count) : LastBefore(leaves_, count); break;
    case FitPolicy::kNextFit:
      start = low ? FirstFrom(next_low_, count) : LastBefore(next_high_, count);
      if (start < 0) start = low ? FirstFrom(0, count) : LastBefore(leaves_, count);
      break;
    case FitPolicy::kBestFit: {
      auto best = by_length_.lower_bound({count, std::numeric_limits<PageIndex>::min()});
      if (!low) best = std::prev(by_length_.lower_bound({best->first + 1, std::numeric_limits<PageIndex>::min()}));
      start = best->second;
      break;
    }
  }
  const int32_t length = by_address_.at(start);
  const Extent found{low ? start : start + length - count, count};
  if (low) {
    next_low_ = found.end();
  } else {
    next_high_ = found.first;
  }
  return found;
}

Extent RunIndex::Longest(Placement placement) const {
  if (by_length_.empty()) return {};
  auto run = std::prev(by_length_.end());
  if (placement == Placement::kLow) run = by_length_.lower_bound({run->first, std::numeric_limits<PageIndex>::min()});
  return {run->second, run->first};
}

}  // namespace tidepool::pool
