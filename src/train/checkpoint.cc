#include "train/checkpoint.h"

#include <charconv>
#include <filesystem>
#include <set>

#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "base/units.h"

namespace tidepool::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kFormat = "tidepool.checkpoint";
constexpr int64_t kVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kStepKey = "tidepool.step";

std::string PathIn(const std::string& directory, const std::string& name) { return (fs::path(directory) / name).string(); }

bool IsStateFile(const std::string& name) { return name.starts_with("state-") && name.ends_with(".safetensors"); }

}  // namespace

std::string ToJson(const CheckpointManifest& m) {
  return Json{{"format", kFormat},
              {"version", kVersion},
              {"model", m.model},
              {"optimizer", m.optimizer},
              {"seed", fmt::format("{:016x}", m.seed)},
              {"global_batch", m.global_batch},
              {"dataset_size", m.dataset_size},
              {"step", m.step},
              {"epoch", m.epoch},
              {"position", m.position},
              {"journal_bytes", m.journal_bytes},
              {"state_file", m.state_file}}
      .dump(2);
}

StatusOr<CheckpointManifest> ParseCheckpointManifest(const std::string& json) {
  const Json object = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return InvalidArgument("the manifest is no JSON object");
  if (object.value("format", Json()) != kFormat)
    return InvalidArgument("format {}; allowed: \"{}\"", object.value("format", Json()).dump(), kFormat);
  if (object.value("version", Json()) != kVersion) {
    return InvalidArgument("version {}; this program reads version {}", object.value("version", Json()).dump(), kVersion);
  }
  CheckpointManifest m;
  std::vector<std::string> faults;
  auto text = [&](const char* key, std::string* field) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_string()) {
      faults.push_back(fmt::format("key '{}' is no string", key));
    } else {
      *field = found->get<std::string>();
    }
  };
  auto number = [&](const char* key, int64_t* field) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_number_integer() || found->get<int64_t>() < 0) {
      faults.push_back(fmt::format("key '{}' is no whole number from 0", key));
    } else {
      *field = found->get<int64_t>();
    }
  };
  std::string seed;
  text("model", &m.model);
  text("optimizer", &m.optimizer);
  text("seed", &seed);
  text("state_file", &m.state_file);
  number("global_batch", &m.global_batch);
  number("dataset_size", &m.dataset_size);
  number("step", &m.step);
  number("epoch", &m.epoch);
  number("position", &m.position);
  number("journal_bytes", &m.journal_bytes);
  const auto [end, error] = std::from_chars(seed.data(), seed.data() + seed.size(), m.seed, 16);
  if (seed.size() != 16 || error != std::errc() || end != seed.data() + seed.size())
    faults.push_back("key 'seed' is not 16 hexadecimal digits");
  // The name is used inside the directory only.
  if (faults.empty() && (!IsStateFile(m.state_file) || m.state_file.find('/') != std::string::npos)) {
    faults.push_back(fmt::format("key 'state_file' is '{}'; allowed: state-<step>.safetensors", m.state_file));
  }
  if (!faults.empty()) return InvalidArgument("{}", fmt::join(faults, "; "));
  return m;
}

Status CheckpointManifest::CheckFits(const CheckpointManifest& run, const std::string& directory) const {
  std::vector<std::string> faults;
  auto compare = [&](const char* what, const auto& saved, const auto& mine) {
    if (saved != mine) faults.push_back(fmt::format("{} is {} in the checkpoint and {} in this run", what, saved, mine));
  };
  compare("model", model, run.model);
  compare("optimizer", optimizer, run.optimizer);
  compare("seed", seed, run.seed);
  compare("global_batch", global_batch, run.global_batch);
  compare("the size of the data set", dataset_size, run.dataset_size);
  if (faults.empty()) return {};
  return FailedPrecondition("the checkpoint in '{}' does not fit: {}; use another directory to start afresh", directory,
                            fmt::join(faults, "; "));
}

Status SaveCheckpoint(const std::string& directory, CheckpointManifest manifest, std::span<const model::TensorToWrite> state) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return ErrnoError(error.value(), fmt::format("creating the checkpoint directory '{}'", directory));
  manifest.state_file = fmt::format("state-{:012}.safetensors", manifest.step);
  TIDEPOOL_RETURN_IF_ERROR(
      model::WriteSafetensors(PathIn(directory, manifest.state_file), state, {{kStepKey, fmt::format("{}", manifest.step)}}));
  TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(PathIn(directory, kManifest), ToJson(manifest) + "\n"));
  // What is left of older checkpoints, also of one that was cut off before its manifest.
  fs::directory_iterator entry(directory, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code ignored;
    if (IsStateFile(name) && name != manifest.state_file) fs::remove(entry->path(), ignored);
  }
  return {};
}

StatusOr<std::optional<CheckpointManifest>> FindCheckpoint(const std::string& directory) {
  const std::string path = PathIn(directory, kManifest);
  auto content = ReadFile(path, kMiB);
  if (content.status().code() == StatusCode::kNotFound) return std::optional<CheckpointManifest>();
  if (!content.ok()) return content.status();
  auto manifest = ParseCheckpointManifest(*content);
  if (!manifest.ok()) return Annotate(manifest.status(), path);
  return std::optional<CheckpointManifest>(std::move(*manifest));
}

Status LoadCheckpoint(const std::string& directory, const CheckpointManifest& manifest, std::span<const TensorToLoad> state) {
  const std::string path = PathIn(directory, manifest.state_file);
  TIDEPOOL_ASSIGN_OR_RETURN(const auto file, model::SafetensorsFile::Open(path));
  const auto& metadata = file->header().metadata;
  const auto step = metadata.find(kStepKey);
  if (step == metadata.end() || step->second != fmt::format("{}", manifest.step)) {
    return DataLoss("{}: it is of step {}, the manifest of step {}", path, step == metadata.end() ? "?" : step->second,
                    manifest.step);
  }
  std::vector<std::string> faults;
  std::set<std::string> wanted;
  std::vector<const model::TensorEntry*> entries;
  for (const TensorToLoad& tensor : state) {
    wanted.insert(tensor.name);
    auto entry = file->Find(tensor.name);
    if (!entry.ok()) {
      faults.push_back(fmt::format("'{}' is missing", tensor.name));
    } else if ((*entry)->dtype != tensor.dtype || (*entry)->shape != tensor.shape) {
      faults.push_back(fmt::format("'{}' is {} [{}], needed: {} [{}]", tensor.name, SafetensorsName((*entry)->dtype),
                                   fmt::join((*entry)->shape, ", "), SafetensorsName(tensor.dtype),
                                   fmt::join(tensor.shape, ", ")));
    } else {
      entries.push_back(*entry);
    }
  }
  for (const model::TensorEntry& entry : file->header().tensors) {
    if (!wanted.contains(entry.name)) faults.push_back(fmt::format("'{}' is not of this job", entry.name));
  }
  if (!faults.empty()) return DataLoss("{}: {}", path, fmt::join(faults, "; "));
  for (size_t i = 0; i < state.size(); ++i) TIDEPOOL_RETURN_IF_ERROR(file->Read(*entries[i], state[i].data));
  return {};
}

}  // namespace tidepool::train
