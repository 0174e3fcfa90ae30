// model.toml: read and written. Inside model only.
#pragma once

#include <string>

#include "base/status.h"
#include "model/repository.h"

namespace tidepool::model {

inline constexpr int kMaxReplicas = 1024;

struct ModelToml {
  std::string spec;
  std::string description;
  ServingConfig serving;
};

// INVALID_ARGUMENT lists unknown keys and values out of range, each with file and line; NOT_FOUND if there is no file.
StatusOr<ModelToml> ReadModelToml(const std::string& path);
// Keys at their defaults are left out.
Status WriteModelToml(const std::string& path, const ModelToml& toml);

// What is wrong with the limits, or OK.
Status ValidateServing(const ServingConfig& serving);

// --- Where things are; docs/model.md ---
std::string ModelFolder(const std::string& repository, const std::string& name);
std::string TomlPath(const std::string& repository, const std::string& name);
std::string WeightsPathOf(const std::string& repository, const std::string& name, int64_t version);

// Makes the folders of a new version and decides about model.toml: the text to write, or what is there already. Shared by create
// and import.
struct VersionPlan {
  std::string weights_path;
  std::string toml_path;
  bool write_toml = false;
  ModelToml toml;
};
struct VersionRequest {
  std::string repository, name, spec;
  int64_t version = 1;
  bool overwrite = false;
  ServingConfig serving;
};
StatusOr<VersionPlan> PlanVersion(const VersionRequest& request);
// Makes the version's folder.
Status PrepareFolder(const VersionPlan& plan);

}  // namespace tidepool::model
