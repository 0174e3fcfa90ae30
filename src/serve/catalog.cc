#include "serve/catalog.h"

#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>

#include "base/text.h"
#include "base/units.h"
#include "model/families.h"
#include "model/safetensors.h"
#include "serve/packer.h"
#include "serve/protocol.h"
#include "serve/weights.h"

namespace tidepool::serve {
namespace {

std::string FileIdentity(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return "absent";
  return fmt::format("{}:{}:{}:{}", info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

Status Describe(const model::Graph& graph, const std::vector<model::ValueId>& ids, const char* what,
                std::vector<TensorMetadata>* metadata, std::vector<int64_t>* sample_bytes) {
  if (ids.size() > kMaxProtocolTensors) return InvalidArgument("{} {}; allowed: up to {}", ids.size(), what, kMaxProtocolTensors);
  for (model::ValueId id : ids) {
    const model::Value& value = graph.values[static_cast<size_t>(id)];
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t bytes, BytesPerSample(value));
    metadata->push_back({value.name, value.dtype, value.shape});
    sample_bytes->push_back(bytes);
  }
  return {};
}

// Graphs and header checks are shared by the replicas of one file.
struct ScanCache {
  struct File {
    Status status;
    int64_t weight_bytes = 0, packed_bytes = 0;
  };
  std::map<std::string, StatusOr<std::shared_ptr<const model::Graph>>> graphs;  // by spec
  std::map<std::string, File> files;                                            // by path

  StatusOr<std::shared_ptr<const model::Graph>> GraphOf(const std::string& spec) {
    const auto found = graphs.find(spec);
    if (found != graphs.end()) return found->second;
    StatusOr<model::Graph> graph = model::BuildGraph(spec);
    StatusOr<std::shared_ptr<const model::Graph>> shared =
        graph.ok() ? StatusOr<std::shared_ptr<const model::Graph>>(std::make_shared<const model::Graph>(std::move(graph).value()))
                   : graph.status();
    return graphs.emplace(spec, std::move(shared)).first->second;
  }

  const File& FileOf(const std::string& path, const model::Graph& graph) {
    const auto [it, fresh] = files.try_emplace(path);
    if (!fresh) return it->second;
    auto opened = model::SafetensorsFile::Open(path);
    if (!opened.ok()) {
      it->second.status = opened.status();
      return it->second;
    }
    auto weights = MatchWeights(graph, **opened);
    it->second.status = weights.status();
    if (weights.ok()) {
      it->second.weight_bytes = weights->total_bytes;
      it->second.packed_bytes = PackedBytes(weights->sizes_bytes);
    }
    return it->second;
  }
};

Status FillModel(ScanCache* cache, int64_t page_bytes, CatalogModel* model) {
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const model::Graph> graph, cache->GraphOf(model->spec));
  TIDEPOOL_RETURN_IF_ERROR(Describe(*graph, graph->inputs, "inputs", &model->inputs, &model->input_sample_bytes));
  TIDEPOOL_RETURN_IF_ERROR(Describe(*graph, graph->outputs, "outputs", &model->outputs, &model->output_sample_bytes));
  const ScanCache::File& file = cache->FileOf(model->weights_path, *graph);
  TIDEPOOL_RETURN_IF_ERROR(file.status);
  model->weight_bytes = file.weight_bytes;
  model->pages = std::max<int64_t>(1, CeilDiv(file.packed_bytes, page_bytes));
  model->workspace_pages = CeilDiv(EstimateWorkspaceBytes(*graph, model->serving.max_batch_size), page_bytes);
  model->least_workspace_pages = CeilDiv(EstimateWorkspaceBytes(*graph, 1), page_bytes);
  model->graph = std::move(graph);
  return {};
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ",")); }

std::vector<std::string> NamesOf(const std::vector<TensorMetadata>& tensors) {
  std::vector<std::string> names;
  for (const TensorMetadata& tensor : tensors) names.push_back(tensor.name);
  return names;
}

// Whether `tensor` may be input `expected`; the batch size it has goes to `*batch`.
void CheckInput(const TensorMetadata& expected, int64_t sample_bytes, const Tensor& tensor, int max_batch, int64_t* batch,
                std::vector<std::string>* faults) {
  const std::string who = fmt::format("input '{}'", expected.name);
  if (tensor.datatype != expected.datatype) {
    faults->push_back(
        fmt::format("{} has datatype {}; allowed: {}", who, InferenceName(tensor.datatype), InferenceName(expected.datatype)));
  }
  const bool fits = tensor.shape.size() == expected.shape.size() &&
                    std::equal(tensor.shape.begin() + 1, tensor.shape.end(), expected.shape.begin() + 1);
  if (!fits) {
    faults->push_back(fmt::format("{} has shape {}; allowed: {} with -1 from 1 to {}", who, ShapeText(tensor.shape),
                                  ShapeText(expected.shape), max_batch));
    return;
  }
  const int64_t size = tensor.shape[0];
  if (size < 1 || size > max_batch) {
    faults->push_back(fmt::format("{} has batch size {}; allowed: 1 to {}", who, size, max_batch));
    return;
  }
  if (static_cast<int64_t>(tensor.data.size()) != size * sample_bytes) {
    faults->push_back(fmt::format("{} has {} bytes of data; allowed: {} for shape {}", who, tensor.data.size(),
                                  size * sample_bytes, ShapeText(tensor.shape)));
  }
  if (*batch == 0) *batch = size;
  if (*batch != size)
    faults->push_back(fmt::format("{} has batch size {}; allowed: {} as in the inputs before", who, size, *batch));
}

}  // namespace

StatusOr<std::shared_ptr<const Catalog>> Catalog::Scan(const std::string& repository, int64_t page_bytes, const Catalog* previous,
                                                       uint32_t* next_id) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<model::RepositoryModel> found, model::ScanRepository(repository));
  auto catalog = std::make_shared<Catalog>();
  ScanCache cache;
  for (const model::RepositoryModel& source : found) {
    CatalogEntry& entry = catalog->entries_[source.name];
    entry.name = source.name;
    entry.spec = source.spec;
    entry.status = source.status;
    if (entry.status.ok() && source.versions.empty()) entry.status = NotFound("model '{}' has no version", source.name);
    if (!entry.status.ok()) continue;
    for (int64_t version : source.versions) {
      auto model = std::make_shared<CatalogModel>();
      const bool highest = version == source.versions.back();
      model->name = source.name;
      model->lease_name = highest ? source.name : fmt::format("{}:{}", source.name, version);
      model->version = version;
      model->spec = source.spec;
      model->weights_path = source.WeightsPath(repository, version);
      model->serving = source.serving;
      model->identity =
          fmt::format("{}|{}|{}|{}|{}|{}|{}|{}", model->lease_name, model->spec, model->weights_path,
                      FileIdentity(model->weights_path), source.serving.max_batch_size, source.serving.queue_limit,
                      absl::ToInt64Nanoseconds(source.serving.slo), absl::ToInt64Nanoseconds(source.serving.batch_delay));
      std::shared_ptr<const CatalogModel> old;
      if (previous != nullptr) {
        const auto same_name = previous->entries_.find(source.name);
        if (same_name != previous->entries_.end()) {
          const auto same_version = same_name->second.versions.find(version);
          if (same_version != same_name->second.versions.end()) old = same_version->second;
        }
      }
      if (old != nullptr && old->identity == model->identity && old->status.ok()) {
        entry.versions[version] = old;
        continue;
      }
      model->id = ModelId(++*next_id);
      model->status = FillModel(&cache, page_bytes, model.get());
      entry.versions[version] = model;
    }
    entry.status = entry.versions.rbegin()->second->status;
  }
  return std::shared_ptr<const Catalog>(std::move(catalog));
}

StatusOr<std::shared_ptr<const CatalogModel>> Catalog::Find(const std::string& name, const std::string& version) const {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) {
    std::vector<std::string> names;
    for (const auto& [known, unused] : entries_) names.push_back(known);
    const std::string nearest = NearestName(name, names);
    return NotFound("no model '{}' in the repository{}", name,
                    nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest));
  }
  const auto& versions = entry->second.versions;
  if (versions.empty()) return FailedPrecondition("model '{}' cannot be served: {}", name, MessageOf(entry->second.status));
  auto found = std::prev(versions.end());
  if (!version.empty()) {
    int64_t number = -1;
    const auto [end, error] = std::from_chars(version.data(), version.data() + version.size(), number);
    const bool is_number = error == std::errc() && end == version.data() + version.size();
    found = is_number ? versions.find(number) : versions.end();
    if (found == versions.end()) {
      std::vector<std::string> known;
      for (const auto& [each, unused] : versions) known.push_back(fmt::format("{}", each));
      return NotFound("model '{}' has no version '{}'; allowed: {}", name, version, JoinText(known, ", "));
    }
  }
  if (!found->second->status.ok()) {
    return FailedPrecondition("model '{}' version {} cannot be served: {}", name, found->first, MessageOf(found->second->status));
  }
  return found->second;
}

StatusOr<CheckedRequest> CheckRequest(const CatalogModel& model, const InferRequest& request) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  CheckedRequest checked;
  checked.inputs.assign(model.inputs.size(), kNone);
  std::vector<std::string> faults;
  int64_t batch = 0;
  for (size_t i = 0; i < request.inputs.size(); ++i) {
    const Tensor& tensor = request.inputs[i];
    const auto found =
        std::find_if(model.inputs.begin(), model.inputs.end(), [&](const auto& each) { return each.name == tensor.name; });
    if (found == model.inputs.end()) {
      faults.push_back(fmt::format("input '{}' is unknown; allowed: {}", tensor.name, JoinText(NamesOf(model.inputs), ", ")));
      continue;
    }
    const size_t index = static_cast<size_t>(found - model.inputs.begin());
    if (checked.inputs[index] != kNone) {
      faults.push_back(fmt::format("input '{}' is given twice; allowed: once", tensor.name));
      continue;
    }
    checked.inputs[index] = i;
    CheckInput(*found, model.input_sample_bytes[index], tensor, model.serving.max_batch_size, &batch, &faults);
  }
  for (size_t i = 0; i < model.inputs.size(); ++i) {
    if (checked.inputs[i] == kNone) {
      faults.push_back(fmt::format("input '{}' is missing; needed: {} of shape {}", model.inputs[i].name,
                                   InferenceName(model.inputs[i].datatype), ShapeText(model.inputs[i].shape)));
    }
  }
  for (const std::string& name : request.outputs) {
    const auto found =
        std::find_if(model.outputs.begin(), model.outputs.end(), [&](const auto& each) { return each.name == name; });
    if (found == model.outputs.end()) {
      faults.push_back(fmt::format("output '{}' is unknown; allowed: {}", name, JoinText(NamesOf(model.outputs), ", ")));
    } else {
      checked.outputs.push_back(static_cast<size_t>(found - model.outputs.begin()));
    }
  }
  if (!faults.empty()) return InvalidArgument("request to model '{}': {}", model.name, JoinText(faults, "; "));
  if (request.outputs.empty()) {
    for (size_t i = 0; i < model.outputs.size(); ++i) checked.outputs.push_back(i);
  }
  checked.batch = static_cast<int>(batch);
  for (int64_t bytes : model.input_sample_bytes) checked.slab_bytes += RoundUp(bytes * batch, kSlabAlignment);
  for (int64_t bytes : model.output_sample_bytes) checked.slab_bytes += RoundUp(bytes * batch, kSlabAlignment);
  return checked;
}

}  // namespace tidepool::serve
