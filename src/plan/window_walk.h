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
// next ones are that and a multiple of the shift. The same is true for windows that go on beyond the segment, so that one walk
// serves all starts. Shorter windows that reach far over their segment's end are joined from two parts, so that one tail serves
// them; those that reach over by a few ops are walked to the end.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "plan/stage_programme.h"

namespace tidepool::plan {

// Goes on from point to point, with one front.
template <typename Front, typename Table>
class PointWalk {
 public:
  using Ends = typename Table::Ends;
  enum class From { kStage, kWithoutEdge, kFront };  // a stage begins there; something begins there; `front` has come up to there

  PointWalk(const StageProgramme& programme, const Table& table, Front front, int32_t point, From from)
      : programme_(programme), table_(table), front_(std::move(front)), at_(point), from_(from) {}

  // To the next point.
  void Next() {
    if (steady() && at_ == end_) LeaveSegment();
    if (!steady() || at_ + 1 < steady_at_ + period_) {
      for (int32_t op = programme_.OpAt(at_); op < programme_.OpAt(at_ + 1); ++op) {
        from_ == From::kFront ? front_->Step(op) : front_->Start(op, from_ == From::kStage);
        from_ = From::kFront;
      }
    }
    ++at_;
    if (programme_.PeriodOf(at_ - 1) > 0 && at_ <= programme_.SegmentEnd(at_ - 1)) SeeRepeats();
  }

  // What ends here.
  void Read(Ends* ends) const {
    if (!steady()) return table_.Read(*front_, ends);
    *ends = repeat_[(at_ - steady_at_) % period_];
    table_.Shift(shift_, repeats(), ends);
  }

  const Front& front() const { return *front_; }  // if it is not steady
  // Every repeat does the same. So do starts further back in the segment: what they come to is shifted by their repeats.
  bool steady() const { return steady_at_ >= 0; }
  const typename Front::Shift& shift() const { return shift_; }
  int32_t repeats() const { return (at_ - steady_at_) / period_; }  // that were not walked
  const Front& at_end() const { return *at_end_; }                  // of the segment, without them

 private:
  // The last op lies in a segment.
  void SeeRepeats() {
    if (const int32_t end = programme_.SegmentEnd(at_ - 1); end != end_) {
      before_.reset();
      end_ = end;
      period_ = programme_.PeriodOf(at_ - 1);
    }
    if (!steady() && (!before_ || at_ == before_at_ + period_)) {
      if (before_ && front_->Repeats(*before_, &shift_)) {
        steady_at_ = at_;
      } else if (end_ - at_ >= 2 * period_) {
        before_.emplace(*front_);
        before_at_ = at_;
      } else {
        before_.reset();
      }
    }
    if (!steady() || at_ >= steady_at_ + period_) return;
    table_.Read(*front_, &repeat_.emplace_back());
    if ((end_ - at_) % period_ == 0) at_end_.emplace(*front_);
  }

  void LeaveSegment() {
    front_.emplace(std::move(*at_end_));
    front_->Advance(shift_, repeats());
    steady_at_ = -1;
    before_.reset();
    at_end_.reset();
    repeat_.clear();
  }

  const StageProgramme& programme_;
  const Table& table_;
  std::optional<Front> front_;
  int32_t at_;
  From from_;
  int32_t period_ = 0, end_ = -1;  // of the segment of the last op: points of a repeat; its last point
  int32_t steady_at_ = -1;         // from this point on; -1: it is not
  typename Front::Shift shift_;
  std::optional<Front> before_;  // at point before_at_
  int32_t before_at_ = -1;
  std::vector<Ends> repeat_;     // at steady_at_ and behind it, one repeat
  std::optional<Front> at_end_;  // as far from a repeat's end as the segment's end
};

template <typename Front, typename Table>
class WindowWalk {
 public:
  WindowWalk(const StageProgramme& programme, StartClass* blocks, Table* table)
      : programme_(programme), blocks_(blocks), table_(table) {}

  // `empty` has not started.
  void Run(const Front& empty) {
    const int32_t start = ExtentOf(*blocks_).first;
    WindowBlock& inside = blocks_->inside;
    int32_t longest = inside.empty() ? 0 : inside.hi;
    for (const WindowBlock& block : blocks_->beyond) longest = std::max(longest, Within(block));
    Walk walk(programme_, *table_, empty, start, From::kStage);
    size_t beyond = blocks_->beyond.size();  // starts ascend, so later ones reach the segment's end first
    for (int32_t length = 0; length <= longest; ++length) {
      if (length > 0) walk.Next();
      if (!inside.empty() && length >= std::max(1, inside.lo) && length <= inside.hi) {
        walk.Read(&ends_);
        table_->Write(ends_, programme_.OpAt(start + length) - 1, length, &inside);
      }
      for (; beyond > 0 && Within(blocks_->beyond[beyond - 1]) == length; --beyond) {
        Beyond(empty, walk, length, &blocks_->beyond[beyond - 1]);
      }
    }
  }

 private:
  using Ends = typename Table::Ends;
  using Walk = PointWalk<Front, Table>;
  using From = typename Walk::From;
  static constexpr int32_t kWalked = 8;  // ops beyond the segment

  int32_t Within(const WindowBlock& block) const { return programme_.SegmentEnd(block.first) - block.first; }

  // Windows of the block that are longer than the `length` points which lie in the segment, and which `walk` has done.
  void Beyond(const Front& empty, const Walk& walk, int32_t length, WindowBlock* block) {
    const int32_t from = block->first + length, last = block->first + block->hi;
    const int32_t shortest = std::max(from + 1, block->first + block->lo);
    const auto write = [&](int32_t end) { table_->Write(ends_, programme_.OpAt(end) - 1, end - block->first, block); };
    if (walk.steady()) {
      if (steady_tails_.empty()) ReadAll(Walk(programme_, *table_, walk.at_end(), from, From::kFront), from, &steady_tails_);
      for (int32_t end = shortest; end <= last; ++end) {
        ends_ = steady_tails_[end - from];
        table_->Shift(walk.shift(), walk.repeats(), &ends_);
        write(end);
      }
    } else if (!table_->joins() || length == 0 || blocks_->beyond.size() == 1 ||
               programme_.OpAt(last) - programme_.OpAt(from) <= kWalked) {
      Walk on(programme_, *table_, walk.front(), from, length == 0 ? From::kStage : From::kFront);
      for (int32_t end = from + 1; end <= last; ++end) {
        on.Next();
        if (end < shortest) continue;
        on.Read(&ends_);
        write(end);
      }
    } else {
      if (tails_.empty()) ReadAll(Walk(programme_, *table_, empty, from, From::kWithoutEdge), from, &tails_);
      table_->Read(walk.front(), &head_);
      for (int32_t end = shortest; end <= last; ++end) {
        table_->Join(head_, tails_[end - from], programme_.OpAt(from), &ends_);
        write(end);
      }
    }
  }

  // All that ends behind point `from`, the segment's end, in windows of the class.
  void ReadAll(Walk walk, int32_t from, std::vector<Ends>* ends) const {
    int32_t until = from;
    for (const WindowBlock& block : blocks_->beyond) until = std::max(until, block.first + block.hi);
    ends->resize(until - from + 1);
    for (int32_t end = from + 1; end <= until; ++end) {
      walk.Next();
      walk.Read(&(*ends)[end - from]);
    }
  }

  const StageProgramme& programme_;
  StartClass* blocks_;
  Table* table_;
  Ends ends_, head_;
  std::vector<Ends> steady_tails_;  // by points behind the segment's end, of what was steady there
  std::vector<Ends> tails_;         // of what begins there
};

}  // namespace tidepool::plan
