// A plan: how a network is cut into pipeline stages, on how many devices each runs, and how each op of it is split.
//
// Stages are immutable and shared: a search that changes one stage of a plan copies a vector of pointers, not ops.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "plan/hash.h"

namespace tidepool::plan {

// How one op runs: data_parallel replicas of tensor_parallel devices each; each replica has micro_batch / data_parallel samples.
struct OpChoice {
  int32_t tensor_parallel = 1;
  int32_t data_parallel = 1;
  uint8_t algorithm = 0;   // which way to split, index into DistinctOp::algorithms
  bool recompute = false;  // activations are dropped and computed again in the backward pass
  int32_t gpus() const { return tensor_parallel * data_parallel; }
  friend bool operator==(const OpChoice&, const OpChoice&) = default;
};
// The same split, whatever is recomputed.
inline bool SameSplit(const OpChoice& a, const OpChoice& b) {
  return a.tensor_parallel == b.tensor_parallel && a.data_parallel == b.data_parallel && a.algorithm == b.algorithm;
}

// `count` ops in a row with one choice.
struct ChoiceRun {
  int32_t count = 0;
  OpChoice choice;
  friend bool operator==(const ChoiceRun&, const ChoiceRun&) = default;
};

class Stage;
using StagePtr = std::shared_ptr<const Stage>;

// Ops [first, first + count) of the op list. Neighbouring runs differ, so equal stages have equal runs and equal keys.
class Stage {
 public:
  static StagePtr Make(int32_t first, std::span<const OpChoice> choices);       // one per op, at least one
  static StagePtr MakeRuns(int32_t first, const std::vector<ChoiceRun>& runs);  // counts above 0; equal neighbours are joined
  static StagePtr MakeUniform(int32_t first, int32_t count, const OpChoice& choice);

  int32_t first() const { return first_; }
  int32_t count() const { return count_; }
  int32_t end() const { return first_ + count_; }
  int32_t gpus() const { return runs_.front().choice.gpus(); }  // of a valid stage: of every op
  const std::vector<ChoiceRun>& runs() const { return runs_; }
  const Key128& key() const { return key_; }
  bool recomputes() const;                     // any op
  bool is_uniform() const;                     // one split for all ops, whatever is recomputed
  OpChoice choice_at(int32_t position) const;  // of an op of the stage, by its place in the op list. O(runs)
  std::vector<OpChoice> Choices() const;       // one per op

  // The same ops and splits with other recompute flags, one per op.
  StagePtr WithRecompute(std::span<const uint8_t> flags) const;

 private:
  Stage(int32_t first, const std::vector<ChoiceRun>& runs);
  int32_t first_ = 0, count_ = 0;
  std::vector<ChoiceRun> runs_;
  Key128 key_;
};

// Keeps one object per distinct stage, so that equal stages are equal pointers and caches can be keyed by key(). Thread-safe.
class StagePool {
 public:
  explicit StagePool(size_t limit = size_t{1} << 20) : limit_(limit) {}
  // The pooled stage equal to this one. Once the pool holds `limit` stages new ones are returned as they are.
  StagePtr Intern(StagePtr stage);
  size_t size() const;

 private:
  static constexpr size_t kShards = 16;
  struct Shard {
    mutable absl::Mutex mutex;
    std::unordered_map<Key128, StagePtr, Key128Hash> stages ABSL_GUARDED_BY(mutex);
  };
  size_t limit_;
  std::array<Shard, kShards> shards_;
};

struct Plan {
  int64_t global_batch = 0;  // samples of one iteration
  int32_t micro_batch = 0;   // samples that go through the pipeline at once, over all replicas
  std::vector<StagePtr> stages;

  int64_t micro_batches() const { return micro_batch > 0 ? global_batch / micro_batch : 0; }
  int32_t gpus() const;
  Key128 Key() const;  // of micro-batch and stages; O(stages)
};

}  // namespace tidepool::plan
