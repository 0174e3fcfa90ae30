// The runs of available pages, indexed by address and by length: every question and every change is O(log pages).
#pragma once

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "pool/types.h"

namespace tidepool::pool {

// Thread-compatible.
class RunIndex {
 public:
  explicit RunIndex(int32_t pages);

  // `extent` must not overlap what is in the index; it is merged with its neighbours.
  void Add(Extent extent);
  // `extent` must lie inside one run.
  void Remove(Extent extent);

  int64_t pages() const { return pages_; }
  // 0 if there is no run.
  int32_t longest() const { return by_length_.empty() ? 0 : by_length_.rbegin()->first; }
  const std::map<PageIndex, int32_t>& runs() const { return by_address_; }

  // The place for `count` pages in one run: the part of the chosen run at its low or high end. An empty extent if no run is long
  // enough.
  Extent Find(int32_t count, FitPolicy fit, Placement placement);
  // The longest run, or an empty extent. Of several the one nearest to the side of `placement`.
  Extent Longest(Placement placement) const;

 private:
  void Insert(PageIndex first, int32_t count);
  void Erase(std::map<PageIndex, int32_t>::iterator run);
  void SetLength(PageIndex first, int32_t count);
  // The first run at or after `from` (or the last one that starts before `before`) with at least `count` pages; -1 if none.
  PageIndex FirstFrom(PageIndex from, int32_t count) const;
  PageIndex LastBefore(PageIndex before, int32_t count) const;

  std::map<PageIndex, int32_t> by_address_;
  std::set<std::pair<int32_t, PageIndex>> by_length_;
  // A complete binary tree over pages: leaf i holds the length of the run that starts at page i (else 0), an inner node the
  // maximum of its two children.
  int32_t leaves_ = 1;
  std::vector<int32_t> tree_;
  int64_t pages_ = 0;
  PageIndex next_low_ = 0, next_high_;
};

}  // namespace tidepool::pool
