// The cheapest ways through the ops of a stage, for several prices of memory at once.
//
// A path gives each op a split and a recompute flag. Its objective under a lane (lambda, m) is
//   time + lambda * (state + m * live activations)
// where m is the number of micro-batches that wait. The objective is a sum over ops and neighbours, so the best path to every
// end is found by one pass over the ops (Viterbi). What is not a sum - the largest run that recomputation brings back, the
// largest reserve - is carried along each best path, so that the memory of what was found is exact for models like the published
// one; the searches check with the cost model all the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan/op_splits.h"

namespace tidepool::plan {

struct PathLane {
  double lambda = 0;               // us per MiB
  double waiting = 1;              // m
  int32_t group = -1, price = -1;  // which waiting and which price of a grid; -1: none
};

// What the best paths of all lanes come to, as one array per quantity.
struct PathEnds {
  std::vector<double> us;  // without the transfers over the stage's edges
  std::vector<double> state_mib, weight_mib, live_mib, peak_mib;
  std::vector<double> forward_mib, backward_mib;  // largest workspaces; the last op's do not count
  std::vector<int32_t> first_split, last_split;

  int32_t lanes() const { return static_cast<int32_t>(us.size()); }
  void Resize(int32_t lanes);
  double ReservedMib(int32_t lane) const { return std::max(forward_mib[lane] + backward_mib[lane], weight_mib[lane]); }
};
// Paths that `head` ends at op position - 1 and `tail` (Start without an edge) begins at `position`, one behind the other. What
// resharding between them costs and what recomputation frees there is left out.
void JoinEnds(const OpSplits& splits, const PathEnds& head, const PathEnds& tail, int32_t position, PathEnds* joined);

// What one more repeat adds to each lane, once all paths go through it alike.
struct PathShift {
  std::vector<double> objective, us, state_mib, weight_mib, live_mib;
  // Of `count` repeats, to `ends`.
  void AddTo(PathEnds* ends, double count) const;
};

// The best paths that begin at one op and end at another, for every lane. Copies are independent. Thread-compatible.
class PathFront {
 public:
  using Shift = PathShift;
  PathFront(const CostModel& model, const OpSplits& splits, std::vector<PathLane> lanes);

  const std::vector<PathLane>& lanes() const { return lanes_; }
  // `edge`: a stage begins here, and what comes in is paid for. False: the paths go on what others began.
  void Start(int32_t position, bool edge = true);
  // Goes on to the next op, which is like op `position` (a window that repeats may be walked at another place).
  void Step(int32_t position);
  // Whether a repeat of ops, of which `before` has walked one less, made all paths longer by the same: so will the next ones.
  bool Repeats(const PathFront& before, PathShift* shift) const;
  // As if it had walked `count` repeats more.
  void Advance(const PathShift& shift, double count);
  // Where an end costs as much as another, the first split is taken to be the last one.
  void Ends(PathEnds* ends) const;

 private:
  enum Field { kObjective, kUs, kState, kWeight, kLive, kOpen, kPeak, kForward, kBackward, kFirst, kFields };
  double* At(std::vector<double>& from, int field, int32_t state) const {
    return &from[(static_cast<size_t>(state) * kFields + field) * width_];
  }
  const double* At(const std::vector<double>& from, int field, int32_t state) const {
    return &from[(static_cast<size_t>(state) * kFields + field) * width_];
  }
  void Pair(int32_t position);
  void Choose(int32_t position, int32_t split, int32_t recompute);
  void Extend(int32_t position, int32_t split, int32_t recompute);

  const CostModel& model_;
  const OpSplits& splits_;
  std::vector<PathLane> lanes_;
  int32_t states_ = 0;                    // split * 2 + recompute
  int32_t width_ = 0;                     // lanes, rounded up
  int32_t last_ = -1;                     // position of the last op
  std::vector<double> lambda_, nu_;       // of a lane; nu = lambda * waiting
  std::vector<double> now_, next_;        // [state][field][lane]
  std::vector<double> pair_, pair_from_;  // [recompute][split before][lane]: the better of its two states, and which
  std::vector<double> best_, from_;       // [lane]: of the state that is being computed
};

// The best path of one lane through ops [first, first + count).
std::vector<OpChoice> BestPath(const CostModel& model, const OpSplits& splits, int32_t first, int32_t count,
                               const PathLane& lane);

}  // namespace tidepool::plan
