#include "serve/weights.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "base/text.h"

namespace tidepool::serve {
namespace {

constexpr size_t kShownFaults = 4;
constexpr double kScratchAllowance = 1.5;

void AppendFaults(const std::string& kind, const std::vector<std::string>& names, std::vector<std::string>* parts) {
  if (names.empty()) return;
  const std::vector<std::string> shown(names.begin(),
                                       names.begin() + static_cast<ptrdiff_t>(std::min(names.size(), kShownFaults)));
  parts->push_back(
      fmt::format("{} {}: {}{}", names.size(), kind, JoinText(shown, ", "), names.size() > kShownFaults ? ", ..." : ""));
}

// Calls `visit` with each value that the call reads.
template <typename Visit>
void ForEachRead(const model::AtenCall& call, Visit visit) {
  for (const model::Arg& arg : call.args) {
    if (const auto* one = std::get_if<model::ValueArg>(&arg)) visit(one->value);
    if (const auto* list = std::get_if<model::ValueListArg>(&arg)) std::for_each(list->values.begin(), list->values.end(), visit);
  }
}

}  // namespace

StatusOr<WeightList> MatchWeights(const model::Graph& graph, const model::SafetensorsFile& file) {
  std::map<std::string, const model::TensorEntry*> in_file;
  for (const model::TensorEntry& entry : file.header().tensors) in_file[entry.name] = &entry;
  WeightList list;
  std::vector<std::string> missing, unexpected, mismatched;
  std::set<std::string> known;
  for (const model::Param& param : graph.params) {
    known.insert(param.name);
    const auto found = in_file.find(param.name);
    if (found == in_file.end()) {
      missing.push_back("'" + param.name + "'");
      continue;
    }
    const model::TensorEntry& entry = *found->second;
    if (entry.dtype != param.dtype || entry.shape != param.shape) {
      mismatched.push_back(fmt::format("'{}' is {} [{}], needed: {} [{}]", param.name, SafetensorsName(entry.dtype),
                                       fmt::join(entry.shape, ","), SafetensorsName(param.dtype), fmt::join(param.shape, ",")));
      continue;
    }
    list.tensors.push_back(entry);
    list.sizes_bytes.push_back(entry.size_bytes);
    list.total_bytes += entry.size_bytes;
  }
  for (const auto& [name, entry] : in_file) {
    if (!known.contains(name)) unexpected.push_back("'" + name + "'");
  }
  std::vector<std::string> parts;
  AppendFaults("missing", missing, &parts);
  AppendFaults("unexpected", unexpected, &parts);
  AppendFaults("mismatched", mismatched, &parts);
  if (!parts.empty()) {
    return InvalidArgument("the tensors in '{}' are not those of {}: {}", file.path(), graph.name, JoinText(parts, "; "));
  }
  return list;
}

StatusOr<int64_t> BytesPerSample(const model::Value& value) {
  constexpr int64_t kLimit = int64_t{1} << 40;
  if (value.shape.empty() || value.shape[0] != model::kBatchDim) {
    return InvalidArgument("'{}' has shape [{}]; allowed: the batch (-1) first", value.name, fmt::join(value.shape, ","));
  }
  int64_t bytes = SizeOf(value.dtype);
  for (size_t i = 1; i < value.shape.size(); ++i) {
    const int64_t dimension = value.shape[i];
    if (dimension < 0 || (dimension > 0 && bytes > kLimit / dimension)) {
      return InvalidArgument("'{}' has shape [{}]; allowed: fixed dimensions of at most 2^40 bytes in all after the batch",
                             value.name, fmt::join(value.shape, ","));
    }
    bytes *= dimension;
  }
  return bytes;
}

int64_t EstimateWorkspaceBytes(const model::Graph& graph, int batch) {
  std::vector<int64_t> bytes(graph.values.size(), 0), last_use(graph.values.size(), -1);
  for (size_t i = 0; i < graph.values.size(); ++i) {
    const auto sample = BytesPerSample(graph.values[i]);
    bytes[i] = sample.ok() ? *sample * batch : 0;
  }
  int64_t step = 0;
  for (const model::Op& op : graph.ops) {
    for (const model::AtenCall& call : op.body) {
      ForEachRead(call, [&](model::ValueId id) { last_use[static_cast<size_t>(id)] = step; });
      ++step;
    }
  }
  for (model::ValueId id : graph.outputs) last_use[static_cast<size_t>(id)] = step;
  for (model::ValueId id : graph.inputs) bytes[static_cast<size_t>(id)] = 0;  // they lie in the slab

  int64_t live = 0, peak = 0;
  step = 0;
  for (const model::Op& op : graph.ops) {
    for (const model::AtenCall& call : op.body) {
      for (model::ValueId id : call.outputs) {
        if (id != model::kNoValue) live += bytes[static_cast<size_t>(id)];
      }
      peak = std::max(peak, live);
      std::set<model::ValueId> dying;
      ForEachRead(call, [&](model::ValueId id) {
        if (last_use[static_cast<size_t>(id)] == step) dying.insert(id);
      });
      for (model::ValueId id : call.outputs) {
        if (id != model::kNoValue && last_use[static_cast<size_t>(id)] < 0) dying.insert(id);
      }
      for (model::ValueId id : dying) live -= bytes[static_cast<size_t>(id)];
      ++step;
    }
  }
  return static_cast<int64_t>(static_cast<double>(peak) * kScratchAllowance);
}

}  // namespace tidepool::serve
