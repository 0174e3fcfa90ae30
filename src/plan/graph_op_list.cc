// Op lists of graphs: which ops are the same, what repeats, what passes by.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "plan/op_list.h"

namespace tidepool::plan {
namespace {

using model::Graph;
using model::Op;
using model::PartitionAxis;
using model::ValueId;

constexpr Layout kWhole{Split::kTensor, {Split::kData, Split::kNone, Split::kNone}};     // [batch / d, ., channel]
constexpr Layout kChannels{Split::kNone, {Split::kData, Split::kNone, Split::kTensor}};  // [batch / d, ., channel / t]
constexpr int32_t kMaxPeriod = 512;
constexpr size_t kMaxDistinct = 65535;
// A value that more ops than this read goes along with every op between (the encoder's result in T5); others are skip tensors.
constexpr size_t kMaxSkipReaders = 2;

int64_t BytesPerSample(const Graph& graph, ValueId id) {
  const model::Value& value = graph.values[id];
  if (value.shape.empty() || value.shape[0] != model::kBatchDim) return 0;
  int64_t bytes = std::max<int64_t>(SizeOf(value.dtype), 1);
  for (size_t i = 1; i < value.shape.size(); ++i) bytes *= std::max<int64_t>(value.shape[i], 1);
  return bytes;
}

// Text of all that makes two ops the same but for which values and parameters they touch.
class Signature {
 public:
  explicit Signature(const Graph& graph) : graph_(graph) {}
  std::string Of(const Op& op) {
    values_.clear();
    text_ = fmt::format("{}|{}|{}|{}", op.kind, static_cast<int>(op.partition_axis), op.forward_flops_per_sample,
                        op.activation_bytes_per_sample);
    for (const model::AtenCall& call : op.body) {
      fmt::format_to(std::back_inserter(text_), ";{}.{}", call.op, call.overload);
      for (const model::Arg& arg : call.args) {
        text_ += ',';
        std::visit([this](const auto& value) { Append(value); }, arg);
      }
      for (const ValueId id : call.outputs) {
        text_ += '>';
        AppendValue(id);
      }
    }
    for (const model::ParamId id : op.params) Append(model::ParamArg{id});
    return text_;
  }

 private:
  void AppendShape(DType dtype, const model::Shape& shape) {
    fmt::format_to(std::back_inserter(text_), ":{}", static_cast<int>(dtype));
    for (const int64_t dim : shape) fmt::format_to(std::back_inserter(text_), "x{}", dim);
  }
  void AppendValue(ValueId id) {
    if (id < 0) return;
    const auto [entry, fresh] = values_.try_emplace(id, values_.size());
    fmt::format_to(std::back_inserter(text_), "v{}", entry->second);
    if (fresh) AppendShape(graph_.values[id].dtype, graph_.values[id].shape);
  }
  void Append(const model::NoneArg&) { text_ += "none"; }
  void Append(const model::ValueArg& arg) { AppendValue(arg.value); }
  void Append(const model::ParamArg& arg) {
    text_ += 'p';
    AppendShape(graph_.params[arg.param].dtype, graph_.params[arg.param].shape);
  }
  void Append(const model::TrainingArg&) { text_ += "training"; }
  void Append(const model::ValueListArg& arg) {
    for (const ValueId id : arg.values) AppendValue(id);
  }
  void Append(const std::vector<int64_t>& list) {
    for (const int64_t value : list) fmt::format_to(std::back_inserter(text_), "{} ", value);
  }
  void Append(DType dtype) { fmt::format_to(std::back_inserter(text_), "d{}", static_cast<int>(dtype)); }
  void Append(bool value) { text_ += value ? "true" : "false"; }
  void Append(int64_t value) { fmt::format_to(std::back_inserter(text_), "{}", value); }
  void Append(double value) { fmt::format_to(std::back_inserter(text_), "{}", value); }
  void Append(const std::string& value) { text_ += value; }

  const Graph& graph_;
  std::string text_;
  std::map<ValueId, size_t> values_;
};

// Positions of the op that makes each value (-1: an input of the graph) and of those that read it.
struct Uses {
  std::vector<int32_t> producer;
  std::vector<std::vector<int32_t>> readers;
};

Uses UsesOf(const Graph& graph) {
  Uses uses;
  uses.producer.assign(graph.values.size(), -1);
  uses.readers.resize(graph.values.size());
  for (size_t i = 0; i < graph.ops.size(); ++i) {
    for (const ValueId id : graph.ops[i].inputs) uses.readers[id].push_back(static_cast<int32_t>(i));
    for (const ValueId id : graph.ops[i].outputs) uses.producer[id] = static_cast<int32_t>(i);
  }
  return uses;
}

// Bytes of the values that are alive between op i - 1 and op i, for every i.
std::vector<int64_t> LiveBytes(const Graph& graph, const Uses& uses) {
  std::vector<int64_t> change(graph.ops.size() + 2, 0);
  for (size_t id = 0; id < graph.values.size(); ++id) {
    if (uses.readers[id].empty()) continue;
    const int64_t bytes = BytesPerSample(graph, static_cast<ValueId>(id));
    // An input of the network enters where it is first read.
    const int32_t from = uses.producer[id] >= 0 ? uses.producer[id] + 1 : uses.readers[id].front();
    change[from] += bytes;
    change[uses.readers[id].back() + 1] -= bytes;
  }
  for (size_t i = 1; i < change.size(); ++i) change[i] += change[i - 1];
  return change;
}

std::vector<SplitAlgorithm> AlgorithmsOf(const Op& op) {
  switch (op.partition_axis) {
    case PartitionAxis::kColumn:
      if (op.kind == "linear") return {{kWhole, kChannels}, {kChannels, kWhole}};
      return op.kind == "embedding" ? std::vector<SplitAlgorithm>{{kWhole, kWhole}}
                                    : std::vector<SplitAlgorithm>{{kChannels, kChannels}};
    case PartitionAxis::kRow: return {{kChannels, kWhole}, {kWhole, kChannels}};
    case PartitionAxis::kHead: return {{kChannels, kChannels}};
    case PartitionAxis::kChannel:
      if (op.kind == "conv2d") return {{kWhole, kWhole}, {kWhole, kWhole}};
      return {{kWhole, kWhole}};
    case PartitionAxis::kNone:
    case PartitionAxis::kBatchOnly: return {{kWhole, kWhole}};
  }
  return {{kWhole, kWhole}};
}

// Greedy: where the sequence goes on by repeating itself, the period that covers most of it.
std::vector<Segment> FindSegments(const std::vector<uint16_t>& ops) {
  const auto size = static_cast<int32_t>(ops.size());
  std::vector<Segment> segments;
  for (int32_t i = 0; i < size;) {
    Segment best;
    for (int32_t period = 1; period <= std::min(kMaxPeriod, (size - i) / 2); ++period) {
      int32_t end = i + period;
      while (end < size && ops[end] == ops[end - period]) ++end;
      const Segment found{i, period, (end - i) / period};
      if (found.repeats >= 2 && found.end() - i > best.end() - best.first) best = found;
    }
    if (best.repeats < 2) {
      ++i;
      continue;
    }
    segments.push_back(best);
    i = best.end();
  }
  return segments;
}

// In each repeated part, the first op before which least is alive begins a layer. If the same op stands elsewhere too, the places
// where it begins a layer get a distinct op of their own.
void MarkLayerStarts(const Graph& graph, OpList* list) {
  for (const Segment& segment : list->segments) {
    if (segment.period < 4) continue;
    int32_t start = segment.first;
    for (int32_t i = segment.first; i < segment.first + segment.period; ++i) {
      if (list->at(i).input_bytes_per_sample < list->at(start).input_bytes_per_sample) start = i;
    }
    const uint16_t op = list->ops[start];
    const auto uses = std::count(list->ops.begin(), list->ops.end(), op);
    if (uses == segment.repeats) {
      list->distinct[op].starts_layer = true;
      continue;
    }
    if (list->distinct.size() >= kMaxDistinct) continue;
    DistinctOp layer = list->distinct[op];
    layer.starts_layer = true;
    layer.name = graph.ops[start].name;
    for (int32_t i = start; i < segment.end(); i += segment.period) list->ops[i] = static_cast<uint16_t>(list->distinct.size());
    list->distinct.push_back(std::move(layer));
    const auto first = std::find(list->ops.begin(), list->ops.end(), op) - list->ops.begin();
    list->distinct[op].name = graph.ops[first].name;
  }
}

}  // namespace

StatusOr<OpList> OpListOfGraph(const Graph& graph, const GraphOpListOptions& options) {
  OpList list;
  list.name = options.name.empty() ? graph.name : options.name;
  list.profile_model = options.profile_model.empty() ? list.name : options.profile_model;
  list.master_factor = options.master_factor;
  list.optimizer_factor = options.optimizer_factor;
  list.file_model_name = graph.family;
  list.file_model_size = list.name;
  list.file_num_layers = {static_cast<int64_t>(graph.ops.size())};
  for (const model::Param& param : graph.params) {
    if (param.kind == model::ParamKind::kWeight) list.dtype = param.dtype;
  }
  const Uses uses = UsesOf(graph);
  const std::vector<int64_t> live = LiveBytes(graph, uses);
  Signature signature(graph);
  std::unordered_map<std::string, uint16_t> known;
  for (size_t i = 0; i < graph.ops.size(); ++i) {
    const Op& op = graph.ops[i];
    int64_t parameters = 0;
    for (const model::ParamId id : op.params) {
      const model::Param& param = graph.params[id];
      if (param.kind != model::ParamKind::kWeight) continue;
      int64_t count = 1;
      for (const int64_t dim : param.shape) count *= dim;
      parameters += count;
    }
    // What passes by is part of what an op costs at a stage edge.
    const std::string key = fmt::format("{}|{}|{}", signature.Of(op), live[i], live[i + 1]);
    if (known.size() >= kMaxDistinct)
      return InvalidArgument("graph '{}' has more than {} distinct ops", graph.name, kMaxDistinct);
    const auto [entry, fresh] = known.try_emplace(key, static_cast<uint16_t>(list.distinct.size()));
    list.ops.push_back(entry->second);
    if (!fresh) continue;
    DistinctOp distinct;
    distinct.name = op.name;
    distinct.kind = op.kind;
    distinct.algorithms = AlgorithmsOf(op);
    distinct.tunable = op.kind == "linear" || op.kind == "conv2d" || op.kind == "embedding";
    distinct.recompute_seed = op.kind != "embedding";
    distinct.parameters = parameters;
    distinct.forward_flops_per_sample = op.forward_flops_per_sample;
    distinct.activation_bytes_per_sample = op.activation_bytes_per_sample;
    distinct.input_bytes_per_sample = live[i];
    distinct.output_bytes_per_sample = live[i + 1];
    list.distinct.push_back(std::move(distinct));
  }
  for (size_t id = 0; id < graph.values.size(); ++id) {
    const std::vector<int32_t>& readers = uses.readers[id];
    if (uses.producer[id] < 0 || readers.empty() || readers.size() > kMaxSkipReaders) continue;
    if (readers.back() > uses.producer[id] + 1) list.skips.push_back({uses.producer[id], readers.back()});
  }
  std::map<model::ParamId, std::vector<int32_t>> users;
  for (size_t i = 0; i < graph.ops.size(); ++i) {
    for (const model::ParamId id : graph.ops[i].params) {
      std::vector<int32_t>& ops = users[id];
      if (ops.empty() || ops.back() != static_cast<int32_t>(i)) ops.push_back(static_cast<int32_t>(i));
    }
  }
  for (auto& [id, ops] : users) {
    const model::Param& param = graph.params[id];
    if (ops.size() < 2 || param.kind != model::ParamKind::kWeight) continue;
    int64_t count = 1;
    for (const int64_t dim : param.shape) count *= dim;
    list.tied.push_back({std::move(ops), count});
  }
  list.segments = FindSegments(list.ops);
  MarkLayerStarts(graph, &list);
  TIDEPOOL_RETURN_IF_ERROR(list.Finish());
  return list;
}

}  // namespace tidepool::plan
