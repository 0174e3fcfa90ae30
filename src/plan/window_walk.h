// How an oracle goes through the windows of one start class: one walk over the ops serves all of its starts.
//
// A `Front` stands at the last op of what it walked: Start(op, edge), Step(op). A `Table` reads fronts and writes windows:
//   using Ends                                    what a front that stands at the end of a window says
//   void Read(const Front&, Ends*)                as Ends, of a window or of a part of one
//   bool joins()                                  false: no window is joined of parts
//   void Join(const Ends& head, const Ends& tail, int32_t op, Ends*)   of a window whose tail begins with `op`
//   void Write(const Ends&, int32_t last_op, int32_t length, WindowBlock*)
//
// Windows that reach far over their segment's end are joined from two parts, so that one tail serves all starts; those that
// reach over by a few ops are walked to the end.
#pragma once

#include <algorithm>
#include <vector>

#include "plan/stage_programme.h"

namespace tidepool::plan {

template <typename Front, typename Table>
class WindowWalk {
 public:
  WindowWalk(const StageProgramme& programme, StartClass* blocks, Table* table)
      : programme_(programme), blocks_(blocks), table_(table) {}

  // `front` has not started; it is copied for the tail.
  void Run(const Front& empty) {
    const int32_t start = ExtentOf(*blocks_).first, first_op = programme_.OpAt(start);
    WindowBlock& inside = blocks_->inside;
    int32_t longest = inside.empty() ? 0 : inside.hi;
    for (const WindowBlock& block : blocks_->beyond) longest = std::max(longest, Within(block));
    Front front = empty;
    int32_t op = first_op;
    size_t beyond = blocks_->beyond.size();  // starts ascend, so later ones reach the segment's end first
    for (int32_t length = 0; length <= longest; ++length) {
      for (const int32_t end = programme_.OpAt(start + length); op < end; ++op) {
        op == first_op ? front.Start(op, true) : front.Step(op);
      }
      if (!inside.empty() && length >= std::max(1, inside.lo) && length <= inside.hi) {
        table_->Read(front, &ends_);
        table_->Write(ends_, op - 1, length, &inside);
      }
      for (; beyond > 0 && Within(blocks_->beyond[beyond - 1]) == length; --beyond) {
        Beyond(empty, front, length, &blocks_->beyond[beyond - 1]);
      }
    }
  }

 private:
  static constexpr int32_t kWalked = 8;  // ops beyond the segment

  int32_t Within(const WindowBlock& block) const { return programme_.SegmentEnd(block.first) - block.first; }

  // `front` has walked `length` points of the block's windows.
  void Beyond(const Front& empty, const Front& front, int32_t length, WindowBlock* block) {
    const int32_t from = block->first + length;
    if (!table_->joins() || length == 0 || blocks_->beyond.size() == 1 ||
        programme_.OpAt(block->first + block->hi) - programme_.OpAt(from) <= kWalked) {
      Front on = front;
      int32_t op = programme_.OpAt(from);
      while (length < block->hi) {
        ++length;
        for (const int32_t end = programme_.OpAt(block->first + length); op < end; ++op) {
          op == programme_.OpAt(block->first) ? on.Start(op, true) : on.Step(op);
        }
        if (length < block->lo) continue;
        table_->Read(on, &ends_);
        table_->Write(ends_, op - 1, length, block);
      }
      return;
    }
    if (tails_.empty()) MakeTails(empty, from);
    table_->Read(front, &head_);
    while (length < block->hi) {
      ++length;
      if (length < block->lo) continue;
      const int32_t end = block->first + length;
      table_->Join(head_, tails_[end - from], programme_.OpAt(from), &ends_);
      table_->Write(ends_, programme_.OpAt(end) - 1, length, block);
    }
  }

  // What begins at the segment's end, for all starts of the class.
  void MakeTails(const Front& empty, int32_t from) {
    int32_t until = from;
    for (const WindowBlock& block : blocks_->beyond) until = std::max(until, block.first + block.hi);
    tails_.resize(until - from + 1);
    Front tail = empty;
    const int32_t first_op = programme_.OpAt(from);
    int32_t op = first_op;
    for (int32_t end = from + 1; end <= until; ++end) {
      for (const int32_t end_op = programme_.OpAt(end); op < end_op; ++op) {
        op == first_op ? tail.Start(op, false) : tail.Step(op);
      }
      table_->Read(tail, &tails_[end - from]);
    }
  }

  const StageProgramme& programme_;
  StartClass* blocks_;
  Table* table_;
  typename Table::Ends ends_, head_;
  std::vector<typename Table::Ends> tails_;  // by points behind the segment's end
};

}  // namespace tidepool::plan
