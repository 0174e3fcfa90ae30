// A directory of models: <repo>/<model>/model.toml and <repo>/<model>/<version>/model.safetensors.
//
// model.toml (docs/model.md has every key): spec = "resnet18:classes=100"; optional display keys, serving limits and
// replicas = N, which serves the one file under the names m, m-1 ... m-(N-1). `name[N]` on the command line writes that key.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/graph.h"

namespace tidepool::model {

// What model.toml says of serving. Zero or absent means: the server's default.
struct ServingConfig {
  int max_batch_size = 8;
  int queue_limit = 256;
  absl::Duration slo = absl::ZeroDuration();          // zero: 4 x the measured solo latency
  absl::Duration batch_delay = absl::ZeroDuration();  // the longest a request waits for company
  int replicas = 1;
};

struct RepositoryModel {
  std::string name;       // the name it is served under (replicas have names of their own)
  std::string base_name;  // the folder it comes from
  std::string spec;       // as families.h reads it
  std::string description;
  std::vector<int64_t> versions;  // ascending; the highest is served by default
  ServingConfig serving;
  Status status;  // why it cannot be served, if it cannot; the other models are unaffected
  std::string WeightsPath(const std::string& repository, int64_t version) const;
};

// Every model of the repository, replicas expanded, sorted by name. A broken model is listed with its reason; only an unreadable
// repository is an error.
StatusOr<std::vector<RepositoryModel>> ScanRepository(const std::string& repository);
// The one called `name`. NOT_FOUND with the nearest name; a broken model is returned with its status.
StatusOr<RepositoryModel> FindModel(const std::string& repository, const std::string& name);

struct CreateOptions {
  std::string repository;
  std::string name;  // [A-Za-z0-9_.-]+, optionally "name[N]" for replicas
  std::string spec;
  uint64_t seed = 0;
  int64_t version = 1;
  bool overwrite = false;
  ServingConfig serving;
};
// Makes a model with seeded weights: the same seed gives the same bytes on every machine. ALREADY_EXISTS if the version is there
// and `overwrite` is not set. A further version of a model keeps its model.toml, so its spec must be the same
// (FAILED_PRECONDITION).
Status CreateModel(const CreateOptions& options);

struct ImportReport {
  std::vector<std::string> loaded, missing, unexpected, mismatched;  // names; mismatched with both shapes
  std::vector<std::string> ignored;  // known to be no parameters of the network: attention masks, pre-training heads
  std::string spec;                  // what was imported
};
struct ImportOptions {
  std::string repository;
  std::string name;
  std::string source;  // a safetensors file, or a Hugging Face folder (config.json + safetensors, sharded or not)
  std::string spec;    // needed for a bare file; for a folder it comes from config.json unless it is given
  int64_t version = 1;
  bool overwrite = false;
  bool allow_partial = false;  // keep seeded values for missing and mismatched tensors instead of failing
  uint64_t seed = 0;           // of those values
};
// FAILED_PRECONDITION on any missing, unexpected or mismatched tensor unless allow_partial; `report` is filled either way.
Status ImportModel(const ImportOptions& options, ImportReport* report);

// Splits "name[N]" into name and N (1 without brackets). INVALID_ARGUMENT names what is allowed.
struct ReplicaName {
  std::string name;
  int replicas = 1;
};
StatusOr<ReplicaName> ParseReplicaName(std::string_view text);

// Opens every file of one model and compares each tensor with the graph. The error lists all faults.
Status CheckModel(const std::string& repository, const RepositoryModel& model);

}  // namespace tidepool::model
