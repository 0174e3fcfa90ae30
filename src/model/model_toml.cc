#include "model/model_toml.h"

#include <filesystem>
#include <system_error>

#include "base/fd.h"
#include "base/options.h"
#include "base/text.h"
#include "model/families.h"

namespace tidepool::model {
namespace {

namespace fs = std::filesystem;

void Describe(ModelToml* toml, OptionTable* table) {
  ServingConfig& serving = toml->serving;
  table->Add({.key = "spec", .help = "What network it is: family or preset, with options"}, &toml->spec);
  table->Add({.key = "description", .help = "For people"}, &toml->description);
  table->Add({.key = "replicas", .help = "Serves the one file under N names"}, &serving.replicas);
  table->Add({.key = "serving.max_batch_size", .help = "Samples in one run"}, &serving.max_batch_size);
  table->Add({.key = "serving.queue_limit", .help = "Requests that may wait"}, &serving.queue_limit);
  table->Add({.key = "serving.slo", .help = "Latency objective; 0: 4 times the solo latency"}, &serving.slo);
  table->Add({.key = "serving.batch_delay", .help = "The longest a request waits for company"}, &serving.batch_delay);
}

// A TOML basic string. DEL is the one character that TOML wants escaped and JSON does not.
std::string TomlString(const std::string& text) {
  std::string quoted;
  for (const char c : JsonQuoted(text)) quoted += c == 0x7f ? std::string("\\u007F") : std::string(1, c);
  return quoted;
}

std::string Microseconds(absl::Duration duration) { return fmt::format("{}us", absl::ToInt64Microseconds(duration)); }

bool SameServing(const ServingConfig& a, const ServingConfig& b) {
  return a.max_batch_size == b.max_batch_size && a.queue_limit == b.queue_limit && a.slo == b.slo &&
         a.batch_delay == b.batch_delay && a.replicas == b.replicas;
}

}  // namespace

Status ValidateServing(const ServingConfig& serving) {
  std::vector<std::string> faults;
  const auto check = [&](const char* name, int64_t value, int64_t min, int64_t max) {
    if (value < min || value > max) faults.push_back(fmt::format("{} is {}; allowed: {} to {}", name, value, min, max));
  };
  check("serving.max_batch_size", serving.max_batch_size, 1, 65536);
  check("serving.queue_limit", serving.queue_limit, 1, 1 << 24);
  check("replicas", serving.replicas, 1, kMaxReplicas);
  const auto duration = [&](const char* name, absl::Duration value) {
    if (value < absl::ZeroDuration() || value > absl::Hours(1))
      faults.push_back(fmt::format("{} is {}us; allowed: 0 to 1h", name, absl::ToInt64Microseconds(value)));
  };
  duration("serving.slo", serving.slo);
  duration("serving.batch_delay", serving.batch_delay);
  if (faults.empty()) return {};
  return InvalidArgument("{}", JoinText(faults, "; "));
}

StatusOr<ModelToml> ReadModelToml(const std::string& path) {
  ModelToml toml;
  OptionTable table;
  Describe(&toml, &table);
  const Status loaded = table.LoadFile(path);
  if (loaded.code() == StatusCode::kNotFound) return NotFound("'{}' is missing; it says which network the model is", path);
  TIDEPOOL_RETURN_IF_ERROR(loaded);
  if (toml.spec.empty())
    return InvalidArgument("{}: key 'spec' is missing; it says which network this is, for example \"resnet18\"", path);
  const Status valid = ValidateServing(toml.serving);
  if (!valid.ok()) return Annotate(valid, path);
  return toml;
}

Status WriteModelToml(const std::string& path, const ModelToml& toml) {
  const ServingConfig defaults;
  const ServingConfig& serving = toml.serving;
  std::string text = fmt::format("spec = {}\n", TomlString(toml.spec));
  if (!toml.description.empty()) text += fmt::format("description = {}\n", TomlString(toml.description));
  if (serving.replicas != defaults.replicas) text += fmt::format("replicas = {}\n", serving.replicas);
  std::string limits;
  if (serving.max_batch_size != defaults.max_batch_size) limits += fmt::format("max_batch_size = {}\n", serving.max_batch_size);
  if (serving.queue_limit != defaults.queue_limit) limits += fmt::format("queue_limit = {}\n", serving.queue_limit);
  if (serving.slo != defaults.slo) limits += fmt::format("slo = \"{}\"\n", Microseconds(serving.slo));
  if (serving.batch_delay != defaults.batch_delay)
    limits += fmt::format("batch_delay = \"{}\"\n", Microseconds(serving.batch_delay));
  if (!limits.empty()) text += "\n[serving]\n" + limits;
  return WriteFileAtomically(path, text);
}

std::string ModelFolder(const std::string& repository, const std::string& name) { return repository + "/" + name; }
std::string TomlPath(const std::string& repository, const std::string& name) {
  return ModelFolder(repository, name) + "/model.toml";
}
std::string WeightsPathOf(const std::string& repository, const std::string& name, int64_t version) {
  return fmt::format("{}/{}/model.safetensors", ModelFolder(repository, name), version);
}

StatusOr<VersionPlan> PlanVersion(const VersionRequest& request) {
  if (request.repository.empty()) return InvalidArgument("the repository has no path");
  if (request.version < 1) return InvalidArgument("version is {}; allowed: 1 or more", request.version);
  TIDEPOOL_ASSIGN_OR_RETURN(const ReplicaName parsed, ParseReplicaName(request.name));
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(request.spec));
  VersionPlan plan{.weights_path = WeightsPathOf(request.repository, parsed.name, request.version),
                   .toml_path = TomlPath(request.repository, parsed.name)};
  plan.toml.spec = request.spec;
  plan.toml.serving = request.serving;
  if (request.name != parsed.name) plan.toml.serving.replicas = parsed.replicas;
  TIDEPOOL_RETURN_IF_ERROR(ValidateServing(plan.toml.serving));
  std::error_code ignored;
  if (!request.overwrite && fs::exists(plan.weights_path, ignored)) {
    return AlreadyExists("'{}' exists; overwrite it, or choose another version", plan.weights_path);
  }
  plan.write_toml = request.overwrite || !fs::exists(plan.toml_path, ignored);
  if (plan.write_toml) return plan;

  TIDEPOOL_ASSIGN_OR_RETURN(const ModelToml existing, ReadModelToml(plan.toml_path));
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec existing_spec, ParseSpec(existing.spec));
  if (existing_spec.family != spec.family || existing_spec.config != spec.config) {
    return FailedPrecondition("'{}' says spec = '{}' but '{}' was asked for; all versions of a model have one spec",
                              plan.toml_path, existing.spec, request.spec);
  }
  if (!SameServing(plan.toml.serving, ServingConfig{}) && !SameServing(plan.toml.serving, existing.serving)) {
    return FailedPrecondition("'{}' exists with other serving limits; edit it, or overwrite it", plan.toml_path);
  }
  return plan;
}

Status PrepareFolder(const VersionPlan& plan) {
  std::error_code error;
  const fs::path folder = fs::path(plan.weights_path).parent_path();
  fs::create_directories(folder, error);
  if (error) return ErrnoError(error.value(), fmt::format("making the folder '{}'", folder.string()));
  return {};
}

}  // namespace tidepool::model
