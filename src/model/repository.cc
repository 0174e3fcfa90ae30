#include "model/repository.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>
#include <system_error>

#include "base/text.h"
#include "model/families.h"
#include "model/model_toml.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "model/weights_file.h"

namespace tidepool::model {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxNameLength = 128;
constexpr size_t kChunkBytes = 4 << 20;

bool IsName(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameLength || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

// "1", "27"; 0 for anything else.
int64_t VersionOf(const std::string& text) {
  int64_t version = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
  if (error != std::errc() || end != text.data() + text.size() || version < 1 || text[0] == '0') return 0;
  return version;
}

// One folder, before replicas are expanded. Versions whose weights are not there (yet) are left out.
RepositoryModel ScanFolder(const std::string& repository, const std::string& name) {
  RepositoryModel model{.name = name, .base_name = name};
  if (!IsName(name)) {
    model.status = InvalidArgument("folder name '{}' is not a model name; allowed: {} of A-Z a-z 0-9 _ . - not starting with '.'",
                                   name, kMaxNameLength);
    return model;
  }
  StatusOr<ModelToml> toml = ReadModelToml(TomlPath(repository, name));
  if (!toml.ok()) {
    model.status = toml.status();
    return model;
  }
  model.spec = toml->spec;
  model.description = toml->description;
  model.serving = toml->serving;
  if (const StatusOr<Spec> spec = ParseSpec(model.spec); !spec.ok()) {
    model.status = Annotate(spec.status(), TomlPath(repository, name));
    return model;
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(ModelFolder(repository, name), error)) {
    const int64_t version = VersionOf(entry.path().filename().string());
    std::error_code absent;
    if (version > 0 && fs::exists(entry.path() / "model.safetensors", absent)) model.versions.push_back(version);
  }
  std::sort(model.versions.begin(), model.versions.end());
  if (error) {
    model.status = ErrnoError(error.value(), fmt::format("reading folder '{}'", ModelFolder(repository, name)));
  } else if (model.versions.empty()) {
    model.status =
        NotFound("'{}' has no version; allowed: folders 1, 2, ... that hold model.safetensors", ModelFolder(repository, name));
  }
  return model;
}

}  // namespace

std::string RepositoryModel::WeightsPath(const std::string& repository, int64_t version) const {
  return WeightsPathOf(repository, base_name, version);
}

StatusOr<ReplicaName> ParseReplicaName(std::string_view text) {
  ReplicaName result{std::string(text), 1};
  const size_t bracket = text.find('[');
  if (bracket != std::string_view::npos) {
    const std::string_view inner = text.substr(bracket + 1, text.size() - bracket - 2);
    const auto [end, error] = std::from_chars(inner.data(), inner.data() + inner.size(), result.replicas);
    if (text.back() != ']' || inner.empty() || error != std::errc() || end != inner.data() + inner.size() ||
        result.replicas < 1 || result.replicas > kMaxReplicas) {
      return InvalidArgument("'{}' is not a model name with replicas; allowed: name[N] with N from 1 to {}", text, kMaxReplicas);
    }
    result.name = std::string(text.substr(0, bracket));
  }
  if (!IsName(result.name)) {
    return InvalidArgument("model name '{}' is not allowed; allowed: 1 to {} of A-Z a-z 0-9 _ . - not starting with '.'",
                           result.name, kMaxNameLength);
  }
  return result;
}

StatusOr<std::vector<RepositoryModel>> ScanRepository(const std::string& repository) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(repository, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    const std::string name = it->path().filename().string();
    if (name[0] != '.' && it->is_directory(ignored)) names.push_back(name);
  }
  if (error) return ErrnoError(error.value(), fmt::format("reading the model repository '{}'", repository));
  const std::set<std::string> folders(names.begin(), names.end());
  std::vector<RepositoryModel> models;
  for (const std::string& name : names) {
    RepositoryModel model = ScanFolder(repository, name);
    for (int i = 1; i < model.serving.replicas && model.status.ok(); ++i) {
      const std::string replica = fmt::format("{}-{}", name, i);
      if (folders.contains(replica)) {
        model.status =
            AlreadyExists("replicas = {} of '{}' makes the name '{}', which a folder has", model.serving.replicas, name, replica);
      }
    }
    const int replicas = model.status.ok() ? model.serving.replicas : 1;
    for (int i = 1; i < replicas; ++i) {
      RepositoryModel replica = model;
      replica.name = fmt::format("{}-{}", name, i);
      models.push_back(std::move(replica));
    }
    models.push_back(std::move(model));
  }
  // A name splits at its last '-' in one way, so replicas of two folders never meet: names are distinct here.
  std::sort(models.begin(), models.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return models;
}

StatusOr<RepositoryModel> FindModel(const std::string& repository, const std::string& name) {
  TIDEPOOL_ASSIGN_OR_RETURN(std::vector<RepositoryModel> models, ScanRepository(repository));
  std::vector<std::string> names;
  for (RepositoryModel& model : models) {
    if (model.name == name) return std::move(model);
    names.push_back(model.name);
  }
  const std::string nearest = NearestName(name, names);
  return NotFound("model '{}' is not in the repository '{}'{}", name, repository,
                  nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest));
}

Status CreateModel(const CreateOptions& options) {
  TIDEPOOL_ASSIGN_OR_RETURN(const VersionPlan plan, PlanVersion({.repository = options.repository,
                                                                 .name = options.name,
                                                                 .spec = options.spec,
                                                                 .version = options.version,
                                                                 .overwrite = options.overwrite,
                                                                 .serving = options.serving}));
  TIDEPOOL_ASSIGN_OR_RETURN(const Graph graph, BuildGraph(options.spec));
  TIDEPOOL_RETURN_IF_ERROR(PrepareFolder(plan));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer, CreateWeightsFile(plan.weights_path, graph));
  std::vector<std::byte> chunk(kChunkBytes);
  for (const ParamId id : FileOrder(graph)) {
    const Param& param = graph.params[id];
    const int64_t total = BytesOf(param);
    for (int64_t done = 0; done < total;) {
      const auto part = std::span(chunk).first(static_cast<size_t>(std::min<int64_t>(total - done, kChunkBytes)));
      TIDEPOOL_RETURN_IF_ERROR(FillSeeded(param, options.seed, done / SizeOf(param.dtype), part));
      TIDEPOOL_RETURN_IF_ERROR(writer->Append(part));
      done += static_cast<int64_t>(part.size());
    }
  }
  TIDEPOOL_RETURN_IF_ERROR(writer->Finish());
  return plan.write_toml ? WriteModelToml(plan.toml_path, plan.toml) : Status();
}

Status CheckModel(const std::string& repository, const RepositoryModel& model) {
  TIDEPOOL_RETURN_IF_ERROR(model.status);
  TIDEPOOL_ASSIGN_OR_RETURN(const Graph graph, BuildGraph(model.spec));
  std::vector<std::string> faults;
  for (const int64_t version : model.versions) {
    const std::string path = model.WeightsPath(repository, version);
    const auto fault = [&](const std::string& text) { faults.push_back(fmt::format("version {}: {}", version, text)); };
    const StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
    if (!file.ok()) {
      fault(MessageOf(file.status()));
      continue;
    }
    std::set<std::string> expected;
    for (const Param& param : graph.params) {
      expected.insert(param.name);
      const StatusOr<const TensorEntry*> entry = (*file)->Find(param.name);
      if (!entry.ok()) {
        fault(fmt::format("tensor '{}' is missing", param.name));
      } else if (const std::string difference = Difference(param, **entry); !difference.empty()) {
        fault(difference);
      }
    }
    for (const TensorEntry& tensor : (*file)->header().tensors) {
      if (!expected.contains(tensor.name)) fault(fmt::format("tensor '{}' is not of {}", tensor.name, model.spec));
    }
  }
  if (faults.empty()) return {};
  return InvalidArgument("model '{}' has {} fault{}:\n{}", model.name, faults.size(), faults.size() == 1 ? "" : "s",
                         JoinText(faults, "\n"));
}

}  // namespace tidepool::model
