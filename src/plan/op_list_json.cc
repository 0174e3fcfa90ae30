#include "plan/op_list_json.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>

#include "base/fd.h"
#include "base/json.h"
#include "base/text.h"
#include "plan/json_lines.h"

namespace tidepool::plan {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr int64_t kMaxBytes = int64_t{4} << 20;
constexpr int kMaxDepth = 8;
constexpr int64_t kMaxOps = 1000000, kMaxDistinct = 65535, kMaxAlgorithms = 8, kMaxSkips = 1000000, kMaxTied = 1000;
constexpr int64_t kMaxValue = int64_t{1} << 50;
constexpr double kMaxFactor = 1000;

constexpr std::pair<char, Split> kSplitLetters[] = {{'1', Split::kNone}, {'t', Split::kTensor}, {'d', Split::kData}};

std::string LayoutText(const Layout& layout) {
  const auto letter = [](Split split) {
    for (const auto& [name, value] : kSplitLetters) {
      if (value == split) return name;
    }
    return '?';
  };
  return {letter(layout.replicas), letter(layout.dims[0]), letter(layout.dims[1]), letter(layout.dims[2])};
}

class Reader {
 public:
  Reader(const JsonLines& lines, const std::string& file) : lines_(lines), file_(file) {}

  Status ReadList(const Json& json, OpList* list) {
    TIDEPOOL_RETURN_IF_ERROR(CheckKeys(json, "",
                                       {"schema", "name", "profile_model", "dtype", "gradient_factor", "master_factor",
                                        "optimizer_factor", "resharding_has_price", "ops", "sequence", "skips", "tied"}));
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t schema, Integer(json, "", "schema", 1, INT32_MAX, std::nullopt));
    if (schema > kOpListSchema) return Fault("schema", "is {}; this version reads up to {}", schema, kOpListSchema);
    TIDEPOOL_ASSIGN_OR_RETURN(list->name, Text(json, "", "name", std::nullopt));
    TIDEPOOL_ASSIGN_OR_RETURN(list->profile_model, Text(json, "", "profile_model", list->name));
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string dtype, Text(json, "", "dtype", std::nullopt));
    const auto parsed = DTypeFromSafetensors(dtype);
    if (!parsed.ok()) return Fault("dtype", "{}", MessageOf(parsed.status()));
    list->dtype = *parsed;
    if (SizeOf(list->dtype) == 0) return Fault("dtype", "is '{}'; allowed: a type of fixed size", dtype);
    TIDEPOOL_ASSIGN_OR_RETURN(list->gradient_factor, Factor(json, "", "gradient_factor", list->gradient_factor));
    TIDEPOOL_ASSIGN_OR_RETURN(list->master_factor, Factor(json, "", "master_factor", list->master_factor));
    TIDEPOOL_ASSIGN_OR_RETURN(list->optimizer_factor, Factor(json, "", "optimizer_factor", list->optimizer_factor));
    TIDEPOOL_ASSIGN_OR_RETURN(list->resharding_has_price, Bool(json, "", "resharding_has_price", true));
    list->file_model_name = list->name;
    TIDEPOOL_RETURN_IF_ERROR(ReadOps(json, list));
    TIDEPOOL_RETURN_IF_ERROR(ReadSequence(json, list));
    list->file_num_layers = {std::max<int64_t>(1, list->size())};
    TIDEPOOL_RETURN_IF_ERROR(ReadSkips(json, list));
    return ReadTied(json, list);
  }

 private:
  template <typename... Args>
  Status Fault(const std::string& path, fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgument("{}:{}: {}: {}", file_, lines_.Of(path), path.empty() ? "the file" : path,
                           fmt::format(format, std::forward<Args>(args)...));
  }
  static std::string Shown(const Json& value) {
    return value.is_structured() ? value.type_name() : value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80);
  }
  static std::string PathOf(const std::string& around, const std::string& key) {
    return around.empty() ? key : around + "." + key;
  }

  Status CheckKeys(const Json& json, const std::string& path, const std::vector<std::string>& known) const {
    if (!json.is_object()) return Fault(path, "is {}; allowed: an object", Shown(json));
    for (const auto& [key, value] : json.items()) {
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      const std::string nearest = NearestName(key, known);
      return Fault(PathOf(path, key.substr(0, 80)), "unknown key; {}",
                   nearest.empty() ? "allowed: " + JoinText(known, ", ") : fmt::format("did you mean '{}'?", nearest));
    }
    return {};
  }
  // The value, or null where the key may be missing.
  StatusOr<const Json*> Get(const Json& json, const std::string& path, const std::string& key, bool needed) const {
    const auto found = json.find(key);
    if (found != json.end()) return &*found;
    if (needed) return Fault(path, "key '{}' is missing", key);
    return nullptr;
  }
  StatusOr<int64_t> Integer(const Json& json, const std::string& path, const std::string& key, int64_t min, int64_t max,
                            std::optional<int64_t> usual) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(json, path, key, !usual));
    if (value == nullptr) return *usual;
    return IntegerOf(*value, PathOf(path, key), min, max);
  }
  StatusOr<int64_t> IntegerOf(const Json& value, const std::string& path, int64_t min, int64_t max) const {
    const bool whole =
        value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX) : value.is_number_integer();
    if (!whole || value.get<int64_t>() < min || value.get<int64_t>() > max) {
      return Fault(path, "is {}; allowed: an integer from {} to {}", Shown(value), min, max);
    }
    return value.get<int64_t>();
  }
  StatusOr<double> Factor(const Json& json, const std::string& path, const std::string& key, double usual) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(json, path, key, false));
    if (value == nullptr) return usual;
    if (!value->is_number() || !(value->get<double>() >= 0 && value->get<double>() <= kMaxFactor)) {
      return Fault(PathOf(path, key), "is {}; allowed: a number from 0 to {}", Shown(*value), kMaxFactor);
    }
    return value->get<double>();
  }
  StatusOr<bool> Bool(const Json& json, const std::string& path, const std::string& key, bool usual) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(json, path, key, false));
    if (value == nullptr) return usual;
    if (!value->is_boolean()) return Fault(PathOf(path, key), "is {}; allowed: true or false", Shown(*value));
    return value->get<bool>();
  }
  StatusOr<std::string> Text(const Json& json, const std::string& path, const std::string& key,
                             std::optional<std::string> usual) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(json, path, key, !usual));
    if (value == nullptr) return *usual;
    return TextOf(*value, PathOf(path, key));
  }
  StatusOr<std::string> TextOf(const Json& value, const std::string& path) const {
    if (!value.is_string() || value.get_ref<const std::string&>().empty() || value.get_ref<const std::string&>().size() > 200) {
      return Fault(path, "is {}; allowed: a string of 1 to 200 bytes", Shown(value));
    }
    return value.get<std::string>();
  }
  StatusOr<const Json*> List(const Json& json, const std::string& path, const std::string& key, bool needed, int64_t most) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(json, path, key, needed));
    if (value == nullptr) return value;
    if (!value->is_array() || (needed && value->empty()) || value->size() > static_cast<size_t>(most)) {
      return Fault(PathOf(path, key), "is {}; allowed: a list of {} to {}",
                   value->is_array() ? fmt::format("a list of {}", value->size()) : Shown(*value), needed ? 1 : 0, most);
    }
    return value;
  }

  StatusOr<Layout> LayoutOf(const Json& json, const std::string& path, const std::string& key) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, Text(json, path, key, std::nullopt));
    const auto split = [](char letter) -> std::optional<Split> {
      for (const auto& [name, value] : kSplitLetters) {
        if (name == letter) return value;
      }
      return std::nullopt;
    };
    Layout layout;
    Split* const parts[] = {&layout.replicas, &layout.dims[0], &layout.dims[1], &layout.dims[2]};
    bool good = text.size() == std::size(parts);
    for (size_t i = 0; good && i < std::size(parts); ++i) {
      const auto part = split(text[i]);
      good = part.has_value();
      if (good) *parts[i] = *part;
    }
    // Replicas and parts together must be all devices, so each width stands there once.
    good = good && std::count(text.begin(), text.end(), 't') == 1 && std::count(text.begin(), text.end(), 'd') == 1;
    if (!good) return Fault(PathOf(path, key), "is '{}'; allowed: four of 1, t, d with one t and one d, such as 'td11'", text);
    return layout;
  }

  Status ReadOp(const Json& json, const std::string& path, DistinctOp* op) const {
    TIDEPOOL_RETURN_IF_ERROR(CheckKeys(json, path,
                                       {"name", "kind", "parameters", "forward_flops_per_sample", "input_bytes_per_sample",
                                        "output_bytes_per_sample", "activation_bytes_per_sample", "tunable", "recompute_seed",
                                        "starts_layer", "activation_factor", "live_factor", "algorithms"}));
    TIDEPOOL_ASSIGN_OR_RETURN(op->name, Text(json, path, "name", std::nullopt));
    TIDEPOOL_ASSIGN_OR_RETURN(op->kind, Text(json, path, "kind", "op"));
    TIDEPOOL_ASSIGN_OR_RETURN(op->parameters, Integer(json, path, "parameters", 0, kMaxValue, 0));
    TIDEPOOL_ASSIGN_OR_RETURN(op->forward_flops_per_sample, Integer(json, path, "forward_flops_per_sample", 0, kMaxValue, 0));
    TIDEPOOL_ASSIGN_OR_RETURN(op->input_bytes_per_sample,
                              Integer(json, path, "input_bytes_per_sample", 0, kMaxValue, std::nullopt));
    TIDEPOOL_ASSIGN_OR_RETURN(op->output_bytes_per_sample,
                              Integer(json, path, "output_bytes_per_sample", 0, kMaxValue, std::nullopt));
    TIDEPOOL_ASSIGN_OR_RETURN(op->activation_bytes_per_sample,
                              Integer(json, path, "activation_bytes_per_sample", 0, kMaxValue, op->output_bytes_per_sample));
    TIDEPOOL_ASSIGN_OR_RETURN(op->tunable, Bool(json, path, "tunable", false));
    TIDEPOOL_ASSIGN_OR_RETURN(op->recompute_seed, Bool(json, path, "recompute_seed", true));
    TIDEPOOL_ASSIGN_OR_RETURN(op->starts_layer, Bool(json, path, "starts_layer", false));
    TIDEPOOL_ASSIGN_OR_RETURN(op->activation_factor, Factor(json, path, "activation_factor", 1));
    TIDEPOOL_ASSIGN_OR_RETURN(op->live_factor, Factor(json, path, "live_factor", 1));
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* algorithms, List(json, path, "algorithms", false, kMaxAlgorithms));
    if (algorithms == nullptr) return {};
    if (algorithms->empty()) return Fault(path + ".algorithms", "is empty; allowed: at least one, or leave the key out");
    op->algorithms.clear();
    for (size_t i = 0; i < algorithms->size(); ++i) {
      const std::string inner = fmt::format("{}.algorithms[{}]", path, i);
      TIDEPOOL_RETURN_IF_ERROR(CheckKeys((*algorithms)[i], inner, {"input", "output"}));
      SplitAlgorithm& algorithm = op->algorithms.emplace_back();
      TIDEPOOL_ASSIGN_OR_RETURN(algorithm.input, LayoutOf((*algorithms)[i], inner, "input"));
      TIDEPOOL_ASSIGN_OR_RETURN(algorithm.output, LayoutOf((*algorithms)[i], inner, "output"));
    }
    return {};
  }

  Status ReadOps(const Json& json, OpList* list) {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* ops, List(json, "", "ops", true, kMaxDistinct));
    for (size_t i = 0; i < ops->size(); ++i) {
      const std::string path = fmt::format("ops[{}]", i);
      DistinctOp op;
      TIDEPOOL_RETURN_IF_ERROR(ReadOp((*ops)[i], path, &op));
      if (!ids_.emplace(op.name, static_cast<uint16_t>(i)).second) return Fault(path + ".name", "'{}' is defined twice", op.name);
      list->distinct.push_back(std::move(op));
    }
    return {};
  }

  Status AppendOp(const Json& value, const std::string& path, OpList* list) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string name, TextOf(value, path));
    const auto found = ids_.find(name);
    if (found != ids_.end()) {
      list->ops.push_back(found->second);
      return {};
    }
    constexpr size_t kMostCompared = 1000;
    std::vector<std::string> names;
    for (const auto& [known, id] : ids_) {
      names.push_back(known);
      if (names.size() == kMostCompared) break;
    }
    const std::string nearest = NearestName(name, names);
    return Fault(path, "'{}' is not among the ops{}", name,
                 nearest.empty() ? std::string() : fmt::format("; did you mean '{}'?", nearest));
  }

  Status ReadSequence(const Json& json, OpList* list) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* sequence, List(json, "", "sequence", true, kMaxOps));
    for (size_t i = 0; i < sequence->size(); ++i) {
      const Json& entry = (*sequence)[i];
      const std::string path = fmt::format("sequence[{}]", i);
      if (entry.is_string()) {
        TIDEPOOL_RETURN_IF_ERROR(AppendOp(entry, path, list));
        continue;
      }
      TIDEPOOL_RETURN_IF_ERROR(CheckKeys(entry, path, {"repeat", "ops"}));
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t repeats, Integer(entry, path, "repeat", 1, kMaxOps, std::nullopt));
      TIDEPOOL_ASSIGN_OR_RETURN(const Json* inner, List(entry, path, "ops", true, kMaxOps));
      if (static_cast<int64_t>(inner->size()) * repeats + list->size() > kMaxOps) {
        return Fault(path, "brings the list to more than {} ops", kMaxOps);
      }
      const int32_t first = list->size();
      for (size_t k = 0; k < inner->size(); ++k) {
        TIDEPOOL_RETURN_IF_ERROR(AppendOp((*inner)[k], fmt::format("{}.ops[{}]", path, k), list));
      }
      const int32_t period = list->size() - first;
      for (int64_t r = 1; r < repeats; ++r) {
        for (int32_t k = 0; k < period; ++k) list->ops.push_back(list->ops[first + k]);
      }
      if (repeats > 1) list->segments.push_back({first, period, static_cast<int32_t>(repeats)});
    }
    return {};
  }

  Status ReadSkips(const Json& json, OpList* list) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* skips, List(json, "", "skips", false, kMaxSkips));
    if (skips == nullptr) return {};
    for (size_t i = 0; i < skips->size(); ++i) {
      const std::string path = fmt::format("skips[{}]", i);
      const Json& entry = (*skips)[i];
      if (!entry.is_array() || entry.size() != 2) return Fault(path, "is {}; allowed: [producer, consumer]", Shown(entry));
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t producer, IntegerOf(entry[0], path + "[0]", 0, list->size() - 1));
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t consumer, IntegerOf(entry[1], path + "[1]", producer + 1, list->size() - 1));
      list->skips.push_back({static_cast<int32_t>(producer), static_cast<int32_t>(consumer)});
    }
    return {};
  }

  Status ReadTied(const Json& json, OpList* list) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* tied, List(json, "", "tied", false, kMaxTied));
    if (tied == nullptr) return {};
    for (size_t i = 0; i < tied->size(); ++i) {
      const std::string path = fmt::format("tied[{}]", i);
      TIDEPOOL_RETURN_IF_ERROR(CheckKeys((*tied)[i], path, {"ops", "parameters"}));
      TiedWeight& weight = list->tied.emplace_back();
      TIDEPOOL_ASSIGN_OR_RETURN(weight.parameters, Integer((*tied)[i], path, "parameters", 0, kMaxValue, std::nullopt));
      TIDEPOOL_ASSIGN_OR_RETURN(const Json* ops, List((*tied)[i], path, "ops", true, kMaxTied));
      int64_t least = 0;
      for (size_t k = 0; k < ops->size(); ++k) {
        TIDEPOOL_ASSIGN_OR_RETURN(const int64_t op,
                                  IntegerOf((*ops)[k], fmt::format("{}.ops[{}]", path, k), least, list->size() - 1));
        weight.ops.push_back(static_cast<int32_t>(op));
        least = op + 1;
      }
    }
    return {};
  }

  const JsonLines& lines_;
  const std::string& file_;
  std::map<std::string, uint16_t> ids_;
};

OrderedJson OpJson(const DistinctOp& op) {
  OrderedJson json = {{"name", op.name},
                      {"kind", op.kind},
                      {"parameters", op.parameters},
                      {"forward_flops_per_sample", op.forward_flops_per_sample},
                      {"input_bytes_per_sample", op.input_bytes_per_sample},
                      {"output_bytes_per_sample", op.output_bytes_per_sample},
                      {"activation_bytes_per_sample", op.activation_bytes_per_sample},
                      {"tunable", op.tunable},
                      {"recompute_seed", op.recompute_seed},
                      {"starts_layer", op.starts_layer}};
  if (op.activation_factor != 1) json["activation_factor"] = op.activation_factor;
  if (op.live_factor != 1) json["live_factor"] = op.live_factor;
  json["algorithms"] = OrderedJson::array();
  for (const SplitAlgorithm& algorithm : op.algorithms) {
    json["algorithms"].push_back({{"input", LayoutText(algorithm.input)}, {"output", LayoutText(algorithm.output)}});
  }
  return json;
}

OrderedJson SequenceJson(const OpList& list) {
  OrderedJson json = OrderedJson::array();
  size_t next = 0;
  for (int32_t i = 0; i < list.size();) {
    if (next < list.segments.size() && list.segments[next].first == i) {
      const Segment& segment = list.segments[next++];
      OrderedJson names = OrderedJson::array();
      for (int32_t k = 0; k < segment.period; ++k) names.push_back(list.at(i + k).name);
      json.push_back({{"repeat", segment.repeats}, {"ops", std::move(names)}});
      i = segment.end();
    } else {
      json.push_back(list.at(i++).name);
    }
  }
  return json;
}

// One entry of a list per line.
std::string ListText(const OrderedJson& list) {
  std::string text = "[";
  for (size_t i = 0; i < list.size(); ++i) text += (i == 0 ? "\n    " : ",\n    ") + list[i].dump();
  return text + (list.empty() ? "]" : "\n  ]");
}

}  // namespace

StatusOr<OpList> ParseOpList(std::string_view text, const std::string& file) {
  if (static_cast<int64_t>(text.size()) > kMaxBytes) {
    return InvalidArgument("{}: {} bytes; allowed for an op list: {}", file, text.size(), kMaxBytes);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const JsonLines lines, JsonLines::Scan(text, file, kMaxDepth));
  const Json json = Json::parse(text, nullptr, false);
  OpList list;
  TIDEPOOL_RETURN_IF_ERROR(Reader(lines, file).ReadList(json, &list));
  const Status finished = list.Finish();
  if (!finished.ok()) return Annotate(finished, file);
  return list;
}

StatusOr<OpList> ReadOpList(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
  return ParseOpList(text, path);
}

std::string FormatOpList(const OpList& list) {
  OrderedJson head = {{"schema", kOpListSchema},
                      {"name", list.name},
                      {"profile_model", list.profile_model},
                      {"dtype", SafetensorsName(list.dtype)},
                      {"gradient_factor", list.gradient_factor},
                      {"master_factor", list.master_factor},
                      {"optimizer_factor", list.optimizer_factor},
                      {"resharding_has_price", list.resharding_has_price}};
  std::string text = "{\n";
  for (const auto& [key, value] : head.items()) text += fmt::format("  \"{}\": {},\n", key, value.dump());
  OrderedJson ops = OrderedJson::array(), skips = OrderedJson::array();
  for (const DistinctOp& op : list.distinct) ops.push_back(OpJson(op));
  for (const SkipTensor& skip : list.skips) skips.push_back({skip.producer, skip.consumer});
  text += fmt::format("  \"ops\": {},\n  \"sequence\": {},\n", ListText(ops), ListText(SequenceJson(list)));
  OrderedJson tied = OrderedJson::array();
  for (const TiedWeight& weight : list.tied) tied.push_back({{"ops", weight.ops}, {"parameters", weight.parameters}});
  return text + fmt::format("  \"skips\": {},\n  \"tied\": {}\n}}\n", skips.dump(), tied.dump());
}

}  // namespace tidepool::plan
