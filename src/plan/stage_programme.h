// The dynamic programme that cuts an op list into stages.
//
// For one micro-batch: which ops and how many devices does each stage get, so that (N - 1) * slowest stage + sum of all stages is
// least? What a stage costs comes from a StageOracle; the programme knows nothing of splits and recomputation.
//
//   f_T[s][g][i] = least sum of the times of s stages, none above T, that do ops [i, n) on the last g devices
//
// A first pass with max instead of the sum gives the least possible T. f_T falls in steps as T grows; the best T is found by
// bisection with bounds, every step once. Exact: a result is the best of all that the oracle offers. Source: stage programmes are
// common (PipeDream, Alpa); the search over T is ours.
//
// Only stages that can be part of a plan below a given bound are looked at: the ops before, in and behind a stage need
// devices * time of at least their fastest splits, whatever the plan. docs/plan.md has the argument.
#pragma once

#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "plan/cost_model.h"
#include "plan/workers.h"

namespace tidepool::plan {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

// Windows [first, first + length) of one number of devices, for lengths lo to hi, q_lo to q_hi stages behind, and every kind of
// place. `first` and lengths count points: the places where stages may begin, every op unless StageBounds::cuts says otherwise.
// Times in us; infinite: does not fit.
struct WindowBlock {
  int32_t first = 0;
  int32_t lo = 0, hi = -1;      // both included
  int32_t q_lo = 0, q_hi = -1;  // both included
  std::vector<double> us;       // [q - q_lo][place kind][length - lo]
  // [q - q_lo][place kind][chunk]: of kChunk lengths each; no window of that chunk or a longer one is faster.
  std::vector<double> least_us;
  static constexpr int32_t kChunk = 16;
  int32_t chunks() const { return (lengths() + kChunk - 1) / kChunk; }
  int32_t lengths() const { return hi - lo + 1; }
  bool empty() const { return hi < lo || q_hi < q_lo; }
};

// Windows that begin alike. `inside`: those that lie in one segment, for all starts of the class at once. `beyond`: those that
// reach over the segment's end, one block per start; ascending starts.
struct StartClass {
  WindowBlock inside;
  std::vector<WindowBlock> beyond;
};

// Of all blocks of a class together: the first start, stages behind.
struct ClassExtent {
  int32_t first = 0, q_lo = 0, q_hi = 0;
};
ClassExtent ExtentOf(const StartClass& blocks);

class StageProgramme;

// What stages cost. Must be usable from any number of threads at once.
class StageOracle {
 public:
  virtual ~StageOracle() = default;
  // Fills the blocks' times, for sizes()[size] devices. Times above `limit_us` may be given as infinite.
  virtual void Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const = 0;
};

struct CutStage {
  int32_t first = 0, end = 0, gpus = 0;
  StagePlace place;
  double us = 0;
};
struct CutSolution {
  double objective_us = kNever;
  std::vector<CutStage> stages;
};

struct StageBounds {
  int32_t min_stages = 1, max_stages = 0;  // 0: as many as there are devices
  std::vector<uint8_t> forbidden;          // by number of stages; shorter: the rest is allowed
  // Ops at which stages may begin, ascending, 0 among them; empty: all. What a segment repeats is priced once only if the same
  // ops of each repeat are in it.
  std::vector<int32_t> cuts;
  // By number of devices g, 0 to all: the op that the last g devices begin with lies between these (both included). Empty: any.
  std::vector<std::pair<int32_t, int32_t>> corridor;
  int32_t least_gpus = 1;      // of a stage
  double expected_us = 0;      // objective of a plan that is known to be possible; 0: none is
  double slowest_us = kNever;  // of a stage; plans with a slower one are not looked for
  bool Allows(int32_t stages) const {
    return stages >= min_stages && stages <= max_stages &&
           (static_cast<size_t>(stages) >= forbidden.size() || forbidden[stages] == 0);
  }
};

// One micro-batch of one model. Thread-compatible; reading is thread-safe.
class StageProgramme {
 public:
  StageProgramme(const CostModel& model, int32_t micro_batch, int64_t micro_batches, StageBounds bounds);

  const CostModel& model() const { return model_; }
  int32_t micro_batch() const { return micro_batch_; }
  int64_t micro_batches() const { return micro_batches_; }
  const std::vector<int32_t>& sizes() const { return sizes_; }
  // A kind of place: link in, link out, device group. `stages_behind` is the caller's.
  int32_t kinds() const { return static_cast<int32_t>(kinds_.size()); }
  const StagePlace& kind(int32_t index) const { return kinds_[index]; }
  // The kind of a stage that has devices [first, first + count).
  int32_t KindOf(int32_t first_gpu, int32_t count) const;
  double limit_mib(int32_t kind) const { return model_.cluster().MemoryLimitOf(kinds_[kind].first_gpu); }

  // The op that a point stands for; the op behind the last one for the point behind the last one.
  int32_t OpAt(int32_t point) const { return op_at_[point]; }
  int32_t PointOf(int32_t op) const;
  // The last point that the segment of point `first` reaches, and that windows of its class share; `first` if there is none.
  int32_t SegmentEnd(int32_t first) const { return segment_end_[first]; }
  // How many points a repeat of the segment of point `first` has; 0: it is in none.
  int32_t PeriodOf(int32_t first) const { return period_[first]; }

  // No plan of this micro-batch is faster, whatever the oracle says. Infinite: nothing can be cut at all.
  double FloorUs() const;

  // The slowest stage of a plan that is known to be possible: Prepare begins there instead of feeling its way from below.
  void Expect(double slowest_us) { expected_us_ = slowest_us; }
  // Fills the table as far as the slowest stage of some plan needs it, but not above `most_us`. The objective of a good plan, or
  // infinite.
  double Prepare(const StageOracle& oracle, double most_us, Workers* workers, const std::function<bool()>& interrupted);
  // No stage of a plan with this objective is slower.
  double Cap(double objective_us) const;

  // The best plan with an objective of at most `bound_us`; none if there is none. `interrupted` is asked between passes: true
  // ends the search with the best so far.
  //
  // `actual`, if there is one: what a stage of a solution costs when it is looked at closely; infinite: it does not fit. The
  // oracle's times are estimates then. They are replaced for the stages of each solution, and the programme is solved again, at
  // most `rounds` times, or until no estimate promises more. The times of the result are actual. `tolerance`: solutions that are
  // better by a smaller part are not looked for.
  std::optional<CutSolution> Solve(const StageOracle& oracle, double bound_us, Workers* workers,
                                   const std::function<bool()>& interrupted,
                                   const std::function<double(const CutStage&)>& actual = nullptr, int32_t rounds = 0,
                                   double tolerance = 0);
  bool was_interrupted() const { return was_interrupted_; }
  // Windows that the oracle was asked for, times places.
  int64_t evaluations() const { return evaluations_; }
  // The slowest stage that was allowed in the last pass, and how many passes were made.
  int64_t passes() const { return passes_; }

 private:
  struct Sum {  // of one pass
    double us = kNever;
    int32_t stages = 0;
    double slowest_us = 0;
    double next_us = kNever;  // the least stage time above the pass's limit
  };
  void PreparePoints();
  void PrepareOps();
  void PrepareClasses();
  void Limit(double limit_us);  // sets what is looked at
  void Fill(const StageOracle& oracle, Workers* workers);
  // Passes: f of every number of stages, devices and point; with max instead of the sum, the least slowest stage.
  void RelaxSum(int32_t stages, int32_t gpus, double limit_us, double* next_us);
  void RelaxMax(int32_t stages, int32_t gpus, double limit_us);
  Sum SumPass(double limit_us, Workers* workers);
  double MaxPass(double limit_us, Workers* workers);
  bool CanBeCut() const { return band_lo_[0] <= band_hi_[0] && band_lo_[gpus_] <= band_hi_[gpus_]; }
  // The least of all numbers of stages.
  Sum LeastOfAll() const;
  std::vector<CutStage> Trace(int32_t stages) const;
  void SetTime(const CutStage& cut);  // in the table
  // Replaces the estimates of the solution's stages; its times become actual, and *best the better of the two.
  void Actualize(CutSolution solution, const std::function<double(const CutStage&)>& actual, CutSolution* best);
  bool SolveLimited(Workers* workers, const std::function<bool()>& interrupted, CutSolution* best);
  double& State(int32_t stages, int32_t gpus, int32_t op) {
    return state_[static_cast<size_t>(stages) * states_ + offset_[gpus] + static_cast<size_t>(op - band_lo_[gpus])];
  }
  double& LeastState(int32_t stages, int32_t gpus, int32_t op) {
    return least_state_[static_cast<size_t>(stages % 2) * states_ + offset_[gpus] + static_cast<size_t>(op - band_lo_[gpus])];
  }
  const double& State(int32_t stages, int32_t gpus, int32_t op) const {
    return const_cast<StageProgramme*>(this)->State(stages, gpus, op);
  }
  double LeastSumUs(double slowest_us) const;
  // Devices * time sets the bands, and the request's corridor.
  void SetBands();
  // After a pass with max instead of the sum: from now on passes look only at states that some plan without a stage above
  // `limit_us` goes through.
  void Narrow(double limit_us, Workers* workers);
  struct Row {                                        // windows of one start and place, by length
    const double *us = nullptr, *least_us = nullptr;  // of length lo; of the first chunk
    int32_t lo = 0, hi = -1;                          // both included
    int32_t skipped = 0;                              // lengths of the first chunk and on that are below lo
  };
  static void ScanMax(const Row& row, const double* rest, const double* least_rest, double limit_us, double* value);
  // Calls visit(row) for what may follow from point i with `size`, of s stages on g devices.
  template <typename Visit>
  void ForWindows(int32_t stages, int32_t gpus, int32_t size, int32_t i, const Visit& visit) const;
  struct Range {
    int32_t lo = 0, hi = -1;
  };
  Range& Narrowed(int32_t stages, int32_t gpus) { return narrowed_[static_cast<size_t>(stages) * (gpus_ + 1) + gpus]; }
  const Range& Narrowed(int32_t stages, int32_t gpus) const {
    return narrowed_[static_cast<size_t>(stages) * (gpus_ + 1) + gpus];
  }

  const CostModel& model_;
  int32_t micro_batch_;
  int64_t micro_batches_;
  StageBounds bounds_;
  int32_t points_, gpus_;
  std::vector<int32_t> sizes_;
  std::vector<StagePlace> kinds_;
  std::vector<int32_t> kind_of_;  // [first gpu][size]; -1: no stage may be there
  std::vector<int32_t> op_at_;    // [point]
  // Prefix sums at points.
  std::vector<std::vector<double>> fastest_us_, least_state_mib_;  // [size][point]
  std::vector<double> work_us_;                                    // devices * time
  std::vector<int32_t> least_length_;                              // of a stage that does not reach the end (skip tensors)
  std::vector<int32_t> class_of_, segment_end_, period_;           // of a start

  double limit_us_ = 0;
  double expected_us_ = 0;  // 0: not known
  bool prepared_ = false;
  double least_slowest_us_ = kNever;             // of Prepare
  double tolerance_ = 0;                         // solutions that are better by a smaller part are not looked for
  std::vector<int32_t> gpus_lo_, gpus_hi_;       // devices that what begins at a point may have
  std::vector<int32_t> band_lo_, band_hi_;       // points that may begin what g devices do; empty: hi < lo
  std::vector<Range> narrowed_;                  // [stages][devices]: the part of the band that passes look at
  std::vector<size_t> offset_;                   // of a number of devices in a layer of states
  size_t states_ = 0;                            // in one layer
  std::vector<std::vector<StartClass>> table_;   // [size][class]
  std::vector<std::vector<int32_t>> beyond_of_;  // [size][start]: index in its class, or -1
  std::vector<double> state_;                    // [stages][devices][op]
  std::vector<double> least_state_;  // [odd stages][devices][op]: of a max pass, the least of this op and those before
  int64_t evaluations_ = 0, passes_ = 0;
  bool was_interrupted_ = false;
};

}  // namespace tidepool::plan
