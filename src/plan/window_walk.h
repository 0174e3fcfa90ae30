// How an oracle goes through the windows of one start class: one walk over the ops serves all of its starts.
//
// A `Front` stands at the last op of what it walked: Start(op, edge), Step(op), and
//   using Shift                                   what one more repeat adds
//   bool Repeats(const Front& before, Shift*)     whether it goes on for ever as it has since `before`, a repeat ago
// A `Table` reads fronts and writes windows:
//   using Ends                                    what a front that stands at the end of a window says
//   void Read(const Front&, Ends*)                as Ends, of a window or of a part of one
//   void Shift(const Front::Shift&, double count, Ends*)   as if the front had walked so many repeats more
//   bool joins()                                  false: no window is joined of parts
//   void Join(const Ends& head, const Ends& tail, int32_t op, Ends*)   of a window whose tail begins with `op`
//   void Write(const Ends&, int32_t last_op, int32_t length, WindowBlock*)
//
// Within a segment, the best paths soon do the same in every repeat. From there on nothing is walked: one repeat is kept, and the
// next ones are that and a multiple of the shift. The same is true for windows that go on beyond the segment, so that one walk
// serves all starts. Shorter windows that reach far over their segment's end are joined from two parts, so that one tail serves
// them; those that reach over by a few ops are walked to the end.
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
      table_->Read(*front, &repeat_ends_.emplace_back());
      if (!blocks_->beyond.empty() && (Within(blocks_->beyond.front()) - length) % period_ == 0) at_end_.emplace(*front);
    }
  }

  // Repeats between what is kept and a window of `length` points.
  double RepeatsTo(int32_t length) const { return (length - steady_at_) / period_; }
  void ReadAt(int32_t length, const Front& front, typename Table::Ends* ends) {
    if (steady_at_ < 0) return table_->Read(front, ends);
    *ends = repeat_ends_[(length - steady_at_) % period_];
    table_->Shift(shift_, RepeatsTo(length), ends);
  }

  // Windows of the block that are longer than the `length` points which lie in the segment. `front` has walked those, unless it
  // is known what they come to.
  void Beyond(const Front& empty, const Front& front, int32_t length, WindowBlock* block) {
    const int32_t from = block->first + length, last = block->first + block->hi;
    const auto write = [&](int32_t end) { table_->Write(ends_, programme_.OpAt(end) - 1, end - block->first, block); };
    if (steady_at_ >= 0 && length >= steady_at_) {
      if (steady_tails_.empty()) WalkOn(*at_end_, true, from, &steady_tails_);
      for (int32_t end = std::max(from + 1, block->first + block->lo); end <= last; ++end) {
        ends_ = steady_tails_[end - from];
        table_->Shift(shift_, RepeatsTo(length), &ends_);
        write(end);
      }
    } else if (!table_->joins() || length == 0 || blocks_->beyond.size() == 1 ||
               programme_.OpAt(last) - programme_.OpAt(from) <= kWalked) {
      Front on = front;
      int32_t op = programme_.OpAt(from);
      for (int32_t end = from + 1; end <= last; ++end) {
        for (; op < programme_.OpAt(end); ++op) op == programme_.OpAt(block->first) ? on.Start(op, true) : on.Step(op);
        if (end - block->first < block->lo) continue;
        table_->Read(on, &ends_);
        write(end);
      }
    } else {
      if (tails_.empty()) WalkOn(empty, false, from, &tails_);
      table_->Read(front, &head_);
      for (int32_t end = std::max(from + 1, block->first + block->lo); end <= last; ++end) {
        table_->Join(head_, tails_[end - from], programme_.OpAt(from), &ends_);
        write(end);
      }
    }
  }

  // What the ends behind the segment say, by points behind it; of all starts of the class. `begun`: `front` has walked up to
  // there.
  void WalkOn(Front front, bool begun, int32_t from, std::vector<typename Table::Ends>* ends) {
    int32_t until = from;
    for (const WindowBlock& block : blocks_->beyond) until = std::max(until, block.first + block.hi);
    ends->resize(until - from + 1);
    const int32_t first_op = programme_.OpAt(from);
    int32_t op = first_op;
    for (int32_t end = from + 1; end <= until; ++end) {
      for (; op < programme_.OpAt(end); ++op) op == first_op && !begun ? front.Start(op, false) : front.Step(op);
      table_->Read(front, &(*ends)[end - from]);
    }
  }

  const StageProgramme& programme_;
  StartClass* blocks_;
  Table* table_;
  typename Table::Ends ends_, head_;
  int32_t period_ = 0;      // points of a repeat; 0: none
  int32_t steady_at_ = -1;  // from windows of this many points on, each repeat does the same; -1: not yet
  typename Front::Shift shift_;
  std::optional<Front> before_;                     // at the end of the repeat before; none yet
  std::vector<typename Table::Ends> repeat_ends_;   // of windows of steady_at_ points and more, one repeat of them
  std::optional<Front> at_end_;                     // as far from its repeat's begin as the segment's end
  std::vector<typename Table::Ends> steady_tails_;  // by points behind the segment's end, of what at_end_ goes on to
  std::vector<typename Table::Ends> tails_;         // of what begins there
};

}  // namespace tidepool::plan
