// Import of public checkpoints: their tensors under our names, converted to the network's types, in one file.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <system_error>

#include "base/fd.h"
#include "base/text.h"
#include "base/units.h"
#include "model/families.h"
#include "model/hugging_face.h"
#include "model/model_toml.h"
#include "model/repository.h"
#include "model/safetensors.h"
#include "model/weights.h"
#include "model/weights_file.h"

namespace tidepool::model {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunkElements = 1 << 20;
constexpr size_t kShownNames = 8;

struct Source {
  const SafetensorsFile* file = nullptr;
  const TensorEntry* tensor = nullptr;
};

// Half precision to single, exactly.
float FromHalf(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  uint32_t bits = 0;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
  } else {
    bits = exponent == 0x1f ? 0x7f800000 | fraction << 13 : (exponent + 112) << 23 | fraction << 13;
  }
  bits |= sign;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float FromBFloat(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

bool CanConvert(DType from, DType to) {
  if (from == to) return true;
  return to == DType::kF32 && (from == DType::kF16 || from == DType::kBF16 || from == DType::kF64);
}

// `from` holds elements of type `type`; `to` is as many F32.
void ConvertToF32(DType type, std::span<const std::byte> from, std::span<std::byte> to) {
  const size_t width = static_cast<size_t>(SizeOf(type));
  for (size_t i = 0; i * width < from.size(); ++i) {
    float value = 0;
    if (type == DType::kF64) {
      double wide = 0;
      std::memcpy(&wide, from.data() + i * width, width);
      value = static_cast<float>(wide);
    } else {
      uint16_t half = 0;
      std::memcpy(&half, from.data() + i * width, width);
      value = type == DType::kF16 ? FromHalf(half) : FromBFloat(half);
    }
    std::memcpy(to.data() + i * sizeof(float), &value, sizeof(float));
  }
}

// Where each parameter of the graph comes from, and what does not fit.
class Matcher {
 public:
  Matcher(const Graph& graph, ImportReport* report) : graph_(graph), report_(report) {
    for (size_t i = 0; i < graph.params.size(); ++i) ids_[graph.params[i].name] = static_cast<ParamId>(i);
    sources_.resize(graph.params.size());
    seen_.resize(graph.params.size());
  }

  void AddFile(const SafetensorsFile& file) {
    for (const TensorEntry& tensor : file.header().tensors) AddTensor(file, tensor);
  }

  void Finish() {
    for (size_t i = 0; i < graph_.params.size(); ++i) {
      const std::string& name = graph_.params[i].name;
      if (seen_[i]) continue;
      // Checkpoints older than the counter lack it; it starts at zero.
      if (name.ends_with(".num_batches_tracked")) continue;
      report_->missing.push_back(name);
    }
  }

  const Source& source(ParamId id) const { return sources_[id]; }

 private:
  void AddTensor(const SafetensorsFile& file, const TensorEntry& tensor) {
    const std::string name = ParameterName(graph_.family, tensor.name);
    const auto id = ids_.find(name);
    if (id == ids_.end()) {
      (IsIgnored(graph_.family, name) ? report_->ignored : report_->unexpected).push_back(tensor.name);
      return;
    }
    if (seen_[id->second]) {
      report_->unexpected.push_back(fmt::format("{} (a second tensor for {})", tensor.name, name));
      return;
    }
    seen_[id->second] = true;
    const Param& param = graph_.params[id->second];
    if (tensor.shape != param.shape || !CanConvert(tensor.dtype, param.dtype)) {
      report_->mismatched.push_back(Difference(param, tensor));
      return;
    }
    report_->loaded.push_back(name);
    sources_[id->second] = {&file, &tensor};
  }

  const Graph& graph_;
  ImportReport* report_;
  std::map<std::string, ParamId> ids_;
  std::vector<Source> sources_;
  std::vector<bool> seen_;
};

std::string FirstNames(const char* what, const std::vector<std::string>& names) {
  if (names.empty()) return {};
  std::vector<std::string> shown(names.begin(), names.begin() + static_cast<int64_t>(std::min(names.size(), kShownNames)));
  const std::string more = names.size() > kShownNames ? fmt::format(", and {} more", names.size() - kShownNames) : "";
  return fmt::format("{} {}: {}{}; ", names.size(), what, JoinText(shown, ", "), more);
}

Status Verdict(const ImportOptions& options, const ImportReport& report) {
  if (report.loaded.empty()) return InvalidArgument("no tensor of '{}' belongs to {}", options.source, report.spec);
  if (options.allow_partial) return {};
  if (report.missing.empty() && report.unexpected.empty() && report.mismatched.empty()) return {};
  return FailedPrecondition(
      "'{}' does not fit {}: {}{}{}allow a partial import to keep seeded values for the missing and mismatched", options.source,
      report.spec, FirstNames("missing", report.missing), FirstNames("unexpected", report.unexpected),
      FirstNames("mismatched", report.mismatched));
}

// Writes one parameter: from its source, or seeded if it has none.
Status CopyParam(const Param& param, const Source& source, uint64_t seed, SafetensorsWriter* writer) {
  std::vector<std::byte> raw, converted;
  const int64_t total = ElementsOf(param);
  for (int64_t done = 0; done < total;) {
    const int64_t count = std::min(total - done, kChunkElements);
    converted.resize(static_cast<size_t>(count * SizeOf(param.dtype)));
    if (source.file == nullptr) {
      TIDEPOOL_RETURN_IF_ERROR(FillSeeded(param, seed, done, converted));
    } else if (source.tensor->dtype == param.dtype) {
      TIDEPOOL_RETURN_IF_ERROR(source.file->ReadPart(*source.tensor, done * SizeOf(param.dtype), converted));
    } else {
      const int64_t width = SizeOf(source.tensor->dtype);
      raw.resize(static_cast<size_t>(count * width));
      TIDEPOOL_RETURN_IF_ERROR(source.file->ReadPart(*source.tensor, done * width, raw));
      ConvertToF32(source.tensor->dtype, raw, converted);
    }
    TIDEPOOL_RETURN_IF_ERROR(writer->Append(converted));
    done += count;
  }
  return {};
}

}  // namespace

Status ImportModel(const ImportOptions& options, ImportReport* report) {
  *report = {};
  std::error_code error;
  std::vector<std::string> paths = {options.source};
  report->spec = options.spec;
  if (fs::is_directory(options.source, error)) {
    TIDEPOOL_ASSIGN_OR_RETURN(paths, WeightFiles(options.source));
    if (report->spec.empty()) {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string config, ReadFile(options.source + "/config.json", kMiB));
      TIDEPOOL_ASSIGN_OR_RETURN(report->spec, SpecFromConfig(config));
    }
  } else if (report->spec.empty()) {
    return InvalidArgument("'{}' is a file, which does not say what network it holds; give a spec, for example resnet18",
                           options.source);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const Graph graph, BuildGraph(report->spec));

  std::vector<std::unique_ptr<SafetensorsFile>> files;
  Matcher matcher(graph, report);
  for (const std::string& path : paths) {
    TIDEPOOL_ASSIGN_OR_RETURN(files.emplace_back(), SafetensorsFile::Open(path));
    matcher.AddFile(*files.back());
  }
  matcher.Finish();
  TIDEPOOL_RETURN_IF_ERROR(Verdict(options, *report));

  TIDEPOOL_ASSIGN_OR_RETURN(const VersionPlan plan, PlanVersion({.repository = options.repository,
                                                                 .name = options.name,
                                                                 .spec = report->spec,
                                                                 .version = options.version,
                                                                 .overwrite = options.overwrite}));
  TIDEPOOL_RETURN_IF_ERROR(PrepareFolder(plan));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer, CreateWeightsFile(plan.weights_path, graph));
  for (const ParamId id : FileOrder(graph)) {
    TIDEPOOL_RETURN_IF_ERROR(CopyParam(graph.params[id], matcher.source(id), options.seed, writer.get()));
  }
  TIDEPOOL_RETURN_IF_ERROR(writer->Finish());
  return plan.write_toml ? WriteModelToml(plan.toml_path, plan.toml) : Status();
}

}  // namespace tidepool::model
