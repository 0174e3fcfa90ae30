// How an oracle goes through the windows of one start class: one walk over the ops serves all of its starts.
//
// A `Front` stands at the last op of what it walked: Start(op, edge), Step(op), and
//   using Shift                                   what one more repeat adds
//   bool Repeats(const Front& before, Shift*)     whether it goes on for ever as it has since `before`, a repeat ago
//   void Advance(const Shift&, double count)      as if it had walked so many repeats more
// A `Table` reads fronts and writes windows:
//   using Ends                                    what a front that stands at the end of a window says
//   void Read(const Front&, Ends*)                as Ends, of a window or of a part of one
//   void Shift(const Front::Shift&, double count, Ends*)   as if the front had walked so many repeats more
//   bool joins()                                  false: no window is joined of parts
//   void Join(const Ends& head, const Ends& tail, int32_t op, Ends*)   of a window whose tail begins with `op`
//   void Write(const Ends&, int32_t last_op, int32_t length, WindowBlock*)
//
// Within a segment, the best paths soon do the same in every repeat. From there on nothing is walked: one repeat is kept, and the
// next ones are that and a multiple of the shift.
//
// Windows that reach far over their segment's end are joined from two parts, so that one tail serves all starts; those that
// reach over by a few ops are walked to the end.
#pragma once

#include <algorithm>
#include <optional>
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
    const int32_t start = ExtentOf(*blocks_).first;
    WindowBlock& inside = blocks_->inside;
    int32_t longest = inside.empty() ? 0 : inside.hi;
    for (const WindowBlock& block : blocks_->beyond) longest = std::max(longest, Within(block));
    period_ = programme_.PeriodOf(start);
    Front front = empty;
    size_t beyond = blocks_->beyond.size();  // starts ascend, so later ones reach the segment's end first
    for (int32_t length = 0; length <= longest; ++length) {
      if (steady_at_ < 0 || length < steady_at_ + period_) Walk(start, length, &front);
      if (!inside.empty() && length >= std::max(1, inside.lo) && length <= inside.hi) {
        ReadAt(length, front, &ends_);
        table_->Write(ends_, programme_.OpAt(start + length) - 1, length, &inside);
      }
      for (; beyond > 0 && Within(blocks_->beyond[beyond - 1]) == length; --beyond) {
        Beyond(empty, front, length, &blocks_->beyond[beyond - 1]);
      }
    }
  }

 private:
  static constexpr int32_t kWalked = 8;  // ops beyond the segment

  int32_t Within(const WindowBlock& block) const { return programme_.SegmentEnd(block.first) - block.first; }

  // To the end of the window of `length` points, from that of one less.
  void Walk(int32_t start, int32_t length, Front* front) {
    const int32_t first_op = programme_.OpAt(start);
    for (int32_t op = programme_.OpAt(start + std::max(0, length - 1)); op < programme_.OpAt(start + length); ++op) {
      op == first_op ? front->Start(op, true) : front->Step(op);
    }
    if (period_ == 0 || length == 0) return;
    if (steady_at_ < 0 && length % period_ == 0) {
      if (length > period_ && front->Repeats(*before_, &shift_)) {
        steady_at_ = length;
      } else {
        before_.emplace(*front);
      }
    }
    if (steady_at_ >= 0) {
      repeat_.push_back(*front);
      table_->Read(*front, &repeat_ends_.emplace_back());
    }
  }

  // Repeats between what is kept and a window of `length` points.
  double RepeatsTo(int32_t length) const { return (length - steady_at_) / period_; }
  void ReadAt(int32_t length, const Front& front, typename Table::Ends* ends) {
    if (steady_at_ < 0) return table_->Read(front, ends);
    *ends = repeat_ends_[(length - steady_at_) % period_];
    table_->Shift(shift_, RepeatsTo(length), ends);
  }
  Front FrontAt(int32_t length, const Front& walked) const {
    if (steady_at_ < 0) return walked;
    Front front = repeat_[(length - steady_at_) % period_];
    front.Advance(shift_, RepeatsTo(length));
    return front;
  }

  // Windows of the block that are longer than the `length` points which lie in the segment.
  void Beyond(const Front& empty, const Front& front, int32_t length, WindowBlock* block) {
    const int32_t from = block->first + length;
    if (!table_->joins() || length == 0 || blocks_->beyond.size() == 1 ||
        programme_.OpAt(block->first + block->hi) - programme_.OpAt(from) <= kWalked) {
      Front on = FrontAt(length, front);
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
    ReadAt(length, front, &head_);
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
  int32_t period_ = 0;      // points of a repeat; 0: none
  int32_t steady_at_ = -1;  // from windows of this many points on, each repeat does the same; -1: not yet
  typename Front::Shift shift_;
  std::optional<Front> before_;  // at the end of the repeat before; none yet
  // At the ends of windows of steady_at_ points and more, one repeat of them.
  std::vector<Front> repeat_;
  std::vector<typename Table::Ends> repeat_ends_;
  std::vector<typename Table::Ends> tails_;  // by points behind the segment's end
};

}  // namespace tidepool::plan
