// A job's state at the end of a global batch, on disk: manifest.json (written last, by rename) names the safetensors file that
// holds parameters, buffers and optimizer state. A directory holds the old checkpoint or the new one, whenever the process dies.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/safetensors.h"

namespace tidepool::train {

struct CheckpointManifest {
  // What the run that goes on must have in common with the one that wrote it.
  std::string model;      // complete spec
  std::string optimizer;  // "sgd", "adamw"
  uint64_t seed = 0;
  int64_t global_batch = 0;
  int64_t dataset_size = 0;
  // Where it stood.
  int64_t step = 0;
  int64_t epoch = 0;
  int64_t position = 0;       // the first one that is not trained on
  int64_t journal_bytes = 0;  // how much of the journal belongs to it; 0: there was none
  std::string state_file;     // in the directory; set by SaveCheckpoint

  // FAILED_PRECONDITION lists every difference in what must be common.
  Status CheckFits(const CheckpointManifest& run, const std::string& directory) const;
};

std::string ToJson(const CheckpointManifest& manifest);
StatusOr<CheckpointManifest> ParseCheckpointManifest(const std::string& json);

// Creates the directory if need be, and removes the state file of the checkpoint before.
Status SaveCheckpoint(const std::string& directory, CheckpointManifest manifest, std::span<const model::TensorToWrite> state);

// Nothing if the directory holds no checkpoint (or does not exist).
StatusOr<std::optional<CheckpointManifest>> FindCheckpoint(const std::string& directory);

// Where a tensor of the running job lies.
struct TensorToLoad {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<std::byte> data;
};
// Fills every tensor. DATA_LOSS lists all that are missing, unexpected or of another shape; nothing is loaded then.
Status LoadCheckpoint(const std::string& directory, const CheckpointManifest& manifest, std::span<const TensorToLoad> state);

}  // namespace tidepool::train
