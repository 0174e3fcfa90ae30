#include "plan/plan.h"

#include <algorithm>

namespace tidepool::plan {

Stage::Stage(int32_t first, const std::vector<ChoiceRun>& runs) : first_(first) {
  TIDEPOOL_CHECK(!runs.empty(), "a stage without ops");
  for (const ChoiceRun& run : runs) {
    TIDEPOOL_CHECK(run.count > 0, "a run of {} ops", run.count);
    count_ += run.count;
    if (!runs_.empty() && runs_.back().choice == run.choice) {
      runs_.back().count += run.count;
    } else {
      runs_.push_back(run);
    }
  }
  std::vector<uint64_t> words = {static_cast<uint64_t>(static_cast<uint32_t>(first_))};
  words.reserve(1 + 2 * runs_.size());
  for (const ChoiceRun& run : runs_) {
    words.push_back(static_cast<uint64_t>(run.count) << 32 | static_cast<uint64_t>(run.choice.algorithm) << 1 |
                    static_cast<uint64_t>(run.choice.recompute));
    words.push_back(static_cast<uint64_t>(static_cast<uint32_t>(run.choice.tensor_parallel)) << 32 |
                    static_cast<uint32_t>(run.choice.data_parallel));
  }
  key_ = KeyOf(words);
}

StagePtr Stage::MakeRuns(int32_t first, const std::vector<ChoiceRun>& runs) { return StagePtr(new Stage(first, runs)); }

StagePtr Stage::Make(int32_t first, std::span<const OpChoice> choices) {
  std::vector<ChoiceRun> runs;
  for (const OpChoice& choice : choices) {
    if (!runs.empty() && runs.back().choice == choice) {
      ++runs.back().count;
    } else {
      runs.push_back({1, choice});
    }
  }
  return MakeRuns(first, runs);
}

StagePtr Stage::MakeUniform(int32_t first, int32_t count, const OpChoice& choice) { return MakeRuns(first, {{count, choice}}); }

bool Stage::recomputes() const {
  return std::any_of(runs_.begin(), runs_.end(), [](const ChoiceRun& run) { return run.choice.recompute; });
}

bool Stage::is_uniform() const {
  return std::all_of(runs_.begin(), runs_.end(), [&](const ChoiceRun& run) { return SameSplit(run.choice, runs_[0].choice); });
}

OpChoice Stage::choice_at(int32_t position) const {
  TIDEPOOL_CHECK(position >= first_ && position < end(), "op {} of a stage with ops {} to {}", position, first_, end() - 1);
  int32_t at = first_;
  for (const ChoiceRun& run : runs_) {
    at += run.count;
    if (position < at) return run.choice;
  }
  return runs_.back().choice;
}

std::vector<OpChoice> Stage::Choices() const {
  std::vector<OpChoice> choices;
  choices.reserve(count_);
  for (const ChoiceRun& run : runs_) choices.insert(choices.end(), run.count, run.choice);
  return choices;
}

StagePtr Stage::WithRecompute(std::span<const uint8_t> flags) const {
  TIDEPOOL_CHECK(flags.size() == static_cast<size_t>(count_), "{} flags for {} ops", flags.size(), count_);
  std::vector<ChoiceRun> runs;
  size_t at = 0;
  for (const ChoiceRun& run : runs_) {
    for (int32_t i = 0; i < run.count; ++i, ++at) {
      OpChoice choice = run.choice;
      choice.recompute = flags[at] != 0;
      if (!runs.empty() && runs.back().choice == choice) {
        ++runs.back().count;
      } else {
        runs.push_back({1, choice});
      }
    }
  }
  return MakeRuns(first_, runs);
}

StagePtr StagePool::Intern(StagePtr stage) {
  Shard& shard = shards_[stage->key().high % kShards];
  absl::MutexLock lock(&shard.mutex);
  const auto found = shard.stages.find(stage->key());
  if (found != shard.stages.end()) return found->second;
  if (shard.stages.size() < limit_ / kShards + 1) shard.stages.emplace(stage->key(), stage);
  return stage;
}

size_t StagePool::size() const {
  size_t sum = 0;
  for (const Shard& shard : shards_) {
    absl::MutexLock lock(&shard.mutex);
    sum += shard.stages.size();
  }
  return sum;
}

int32_t Plan::gpus() const {
  int32_t sum = 0;
  for (const StagePtr& stage : stages) sum += stage->gpus();
  return sum;
}

Key128 Plan::Key() const {
  std::vector<uint64_t> words = {static_cast<uint64_t>(micro_batch)};
  for (const StagePtr& stage : stages) {
    words.push_back(stage->key().high);
    words.push_back(stage->key().low);
  }
  return KeyOf(words);
}

}  // namespace tidepool::plan
