// Lagrangian paths: the least of time + prices * memory over all paths through a window, for many prices at once. Both lower
// bounds (lower_bound.cc, calibrated_bound.cc) are made of them; docs/plan.md has the proof.
//
// The objective of a path under a lane is
//   time + lambda * state + lambda * scale * waiting * live [+ lambda * weights]
// which is a sum over ops and neighbours, so one Viterbi pass with states (split, recompute) gives its minimum at every end.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/op_splits.h"

namespace tidepool::plan {

struct BoundLane {
  double lambda = 0, waiting = 1;
  bool with_weights = false;  // the reserve is at least a buffer of the weights' size; else: at least what some op needs
  int32_t waiting_index = 0, price = -1;  // which of a grid; -1: none
};

// What a cost model makes of the sums over a stage's ops, and what a stage is sure to hold.
struct BoundTerms {
  double messages = 1;            // times what it receives and sends over its edges
  bool pays_at_list_ends = true;  // false: ops like the list's first (last) one pay nothing for what comes in (goes out)
  // memory = context + state + scale * (held * live + peak run + reserved)
  double context_mib = 0, scale = 1;
  bool last_op_reserves = false;  // else the reserve of a stage's last op does not count
  std::vector<double> held;       // by stages behind: micro-batches that a stage holds at least; ascending
};

// The least objective of every lane over all paths to an op, by the state at the op. What it refers to must outlive it. Copies
// are independent. Thread-compatible.
class BoundFront {
 public:
  using Shift = std::vector<double>;  // [lane]
  // `least_reserved_mib`: of each distinct op, with any split.
  BoundFront(const CostModel& model, const BoundTerms& terms, const OpSplits& splits,
             const std::vector<double>& least_reserved_mib, std::vector<BoundLane> lanes);

  const std::vector<BoundLane>& lanes() const { return lanes_; }
  // `edge`: a stage begins here, and what comes in is paid for.
  void Start(int32_t position, bool edge = true);
  // Goes on to the next op, which is like op `position` (a window that repeats may be walked at another place).
  void Step(int32_t position);
  // How much a repeat of ops, of which `before` has walked one less, made the objectives of each lane larger at least. False: it
  // made some of them larger by more than that, so that going on so would make the bounds weaker. As objectives are minima of
  // sums, each repeat more adds at least as much.
  bool Repeats(const BoundFront& before, std::vector<double>* shift) const;
  // As if it had walked `count` repeats more.
  void Advance(const std::vector<double>& shift, double count);
  // Of the window that ends here, with one link behind it: a bound on its time for every lane, for a limit of 0.
  void Ends(LinkClass out_link, std::vector<double>* bounds) const;
  // The same without anything that leaves.
  void Open(std::vector<double>* bounds) const;
  // What any op but the last needs at least; any op.
  double reserved_mib() const { return reserved_mib_; }
  double ReservedWithLast() const;
  // Whether a stage that begins (ends) with such an op pays for what it receives (sends). Equal ops are not told apart, because
  // windows that begin alike share what is computed here.
  bool Receives(int32_t position) const;
  bool Sends(int32_t position) const;

 private:
  const CostModel& model_;
  const BoundTerms& terms_;
  const OpSplits& splits_;
  const std::vector<double>& least_reserved_mib_;
  std::vector<BoundLane> lanes_;
  int32_t width_, last_ = -1;
  double reserved_mib_ = 0;
  std::vector<double> lambda_, nu_, weights_;  // [lane]: prices of state, live activations, weights
  std::vector<double> now_, next_;             // [state][lane]
};

}  // namespace tidepool::plan
