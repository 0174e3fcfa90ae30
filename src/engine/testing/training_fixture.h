// What the training tests share.
#pragma once

#include <cstring>
#include <memory>
#include <string>

#include "base/units.h"
#include "engine/testing/test_networks.h"
#include "engine/testing/test_pool.h"
#include "engine/training.h"

namespace tidepool::engine {

// A network in training with everything it stands on.
struct Trainee {
  explicit Trainee(const std::string& spec, const TrainingOptions& options = {}) : Trainee(TestGraph(spec), options) {}
  Trainee(std::shared_ptr<const model::Graph> network, const TrainingOptions& options)
      : graph(std::move(network)), weights(TestWeights(*graph, 1)) {
    StatusOr<std::unique_ptr<TrainingModule>> created = TrainingModule::Create(graph, weights.views(), &probe, options);
    TIDEPOOL_CHECK(created.ok(), "{}", ToString(created.status()));
    module = *std::move(created);
  }

  // One global batch of one micro-batch.
  StatusOr<MicroBatchResult> Step(const MicroBatch& batch, double learning_rate) {
    TIDEPOOL_RETURN_IF_ERROR(module->BeginGlobalBatch());
    TIDEPOOL_ASSIGN_OR_RETURN(MicroBatchResult result, module->RunMicroBatch(batch));
    TIDEPOOL_RETURN_IF_ERROR(module->CommitMicroBatch());
    TIDEPOOL_RETURN_IF_ERROR(module->OptimizerStep(learning_rate));
    return result;
  }

  // Every tensor of the state that differs from `other`'s in a bit.
  std::vector<std::string> Differences(Trainee& other) {
    std::vector<std::string> names;
    const std::vector<NamedTensor> mine = module->State(), theirs = other.module->State();
    TIDEPOOL_CHECK(mine.size() == theirs.size(), "{} tensors beside {}", mine.size(), theirs.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      if (std::memcmp(mine[i].view.data, theirs[i].view.data, static_cast<size_t>(mine[i].view.size_bytes())) != 0) {
        names.push_back(mine[i].name);
      }
    }
    return names;
  }

  std::shared_ptr<const model::Graph> graph;
  TensorSet weights;
  std::unique_ptr<TestPool> pool = TestPool::Make(16 * kMiB);
  std::unique_ptr<pool::Arena> arena = pool->MakeArena(16 * kMiB);
  ProbeArena probe{arena.get()};
  std::unique_ptr<TrainingModule> module;
};

}  // namespace tidepool::engine
