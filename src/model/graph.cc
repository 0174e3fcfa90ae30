#include "model/graph.h"

#include <fmt/ranges.h>

#include <limits>
#include <optional>
#include <set>
#include <unordered_map>

#include "model/aten_rules.h"

namespace tidepool::model {
namespace {

int64_t ElementsOf(const Shape& shape) {
  int64_t elements = 1;
  for (const int64_t dim : shape) elements *= dim;
  return elements;
}

std::string_view ArgName(const Arg& arg) {
  static constexpr std::string_view kNames[] = {"None",    "value",  "parameter",    "training flag", "value list", "bool",
                                                "integer", "number", "integer list", "dtype",         "string"};
  static_assert(std::variant_size_v<Arg> == std::size(kNames));
  return kNames[arg.index()];
}

// What a letter of AtenRule::signature stands for, and whether `arg` fits it.
std::string_view AllowedFor(char letter) {
  switch (letter) {
    case 'T': return "value, parameter";
    case 'O': return "value, parameter, None";
    case 'L': return "value list";
    case 'I': return "integer list";
    case 'J': return "integer list, None";
    case 'i': return "integer";
    case 'j': return "integer, None";
    case 'f': return "number";
    case 'b': return "bool, training flag";
    case 'n': return "number, integer";
    case 's': return "string";
    case 'd': return "dtype, None";
    default: return "None";
  }
}

bool Fits(const Arg& arg, char letter) {
  const bool none = std::holds_alternative<NoneArg>(arg);
  const bool tensor = std::holds_alternative<ValueArg>(arg) || std::holds_alternative<ParamArg>(arg);
  const bool ints = std::holds_alternative<std::vector<int64_t>>(arg);
  const bool integer = std::holds_alternative<int64_t>(arg);
  switch (letter) {
    case 'T': return tensor;
    case 'O': return tensor || none;
    case 'L': return std::holds_alternative<ValueListArg>(arg);
    case 'I': return ints;
    case 'J': return ints || none;
    case 'i': return integer;
    case 'j': return integer || none;
    case 'f': return std::holds_alternative<double>(arg);
    case 'b': return std::holds_alternative<bool>(arg) || std::holds_alternative<TrainingArg>(arg);
    case 'n': return std::holds_alternative<double>(arg) || integer;
    case 's': return std::holds_alternative<std::string>(arg);
    case 'd': return std::holds_alternative<DType>(arg) || none;
    default: return none;
  }
}

// Collects every fault of one graph. Ids are checked before they are used, so that any content of a Graph is safe to pass in.
class Validator {
 public:
  explicit Validator(const Graph& graph)
      : graph_(graph), origin_(graph.values.size(), kUndefined), exported_(graph.values.size(), false) {}

  Status Run() {
    if (graph_.name.empty()) Fault("the graph has no name");
    CheckValues();
    CheckParams();
    CheckInputs();
    if (graph_.ops.empty()) Fault("there are no ops");
    for (size_t i = 0; i < graph_.ops.size(); ++i) CheckOp(static_cast<int>(i));
    CheckResults();
    if (faults_.empty()) return {};
    return InvalidArgument("graph '{}' has {} fault{}: {}", graph_.name, faults_.size(), faults_.size() == 1 ? "" : "s",
                           fmt::join(faults_, "; "));
  }

 private:
  static constexpr int kUndefined = -2;
  static constexpr int kInput = -1;

  template <typename... Args>
  void Fault(fmt::format_string<Args...> format, Args&&... args) {
    faults_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  bool IsValue(ValueId id) const { return id >= 0 && static_cast<size_t>(id) < graph_.values.size(); }
  bool IsParam(ParamId id) const { return id >= 0 && static_cast<size_t>(id) < graph_.params.size(); }
  const std::string& NameOf(ValueId id) const { return graph_.values[id].name; }

  // `free_first` lets the first dimension be the batch.
  void CheckShape(std::string_view what, const std::string& name, const Shape& shape, bool free_first) {
    int64_t elements = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (free_first && i == 0 && shape[i] == kBatchDim) continue;
      if (shape[i] <= 0) {
        Fault("{} '{}' has dimension {} = {}; allowed: 1 or more{}", what, name, i, shape[i],
              free_first ? ", -1 first for the batch" : "");
        return;
      }
      if (__builtin_mul_overflow(elements, shape[i], &elements) || elements > (int64_t{1} << 56)) {
        Fault("{} '{}' of shape [{}] is too large; allowed: 2^56 elements", what, name, fmt::join(shape, ","));
        return;
      }
    }
  }

  void CheckValues() {
    std::set<std::string_view> names;
    for (const Value& value : graph_.values) {
      if (value.name.empty()) Fault("a value has no name");
      if (!names.insert(value.name).second) Fault("two values are called '{}'", value.name);
      CheckShape("value", value.name, value.shape, true);
    }
  }

  void CheckParams() {
    std::set<std::string_view> names;
    for (const Param& param : graph_.params) {
      if (param.name.empty()) Fault("a parameter has no name");
      if (!names.insert(param.name).second) Fault("two parameters are called '{}'", param.name);
      if (SizeOf(param.dtype) == 0) Fault("parameter '{}' has no fixed element size", param.name);
      CheckShape("parameter", param.name, param.shape, false);
    }
    param_used_.assign(graph_.params.size(), false);
  }

  void CheckActivation(std::string_view what, ValueId id) {
    if (graph_.values[id].shape.empty()) {
      Fault("{} '{}' has an empty shape", what, NameOf(id));
    } else if (what != "output" && graph_.values[id].shape[0] != kBatchDim) {
      Fault("{} '{}' has first dimension {}; allowed: -1, the batch", what, NameOf(id), graph_.values[id].shape[0]);
    }
  }

  void CheckInputs() {
    if (graph_.inputs.empty()) Fault("there are no inputs");
    for (const ValueId id : graph_.inputs) {
      if (!IsValue(id)) {
        Fault("an input is value {}; allowed: 0 to {}", id, static_cast<int64_t>(graph_.values.size()) - 1);
        continue;
      }
      if (origin_[id] != kUndefined) Fault("value '{}' is an input twice", NameOf(id));
      origin_[id] = kInput;
      exported_[id] = true;
      CheckActivation("input", id);
    }
  }

  // A read of value `id` by op `index`; notes what comes from outside of the op.
  void Read(int index, ValueId id, std::set<ValueId>* external) {
    const Op& op = graph_.ops[index];
    if (!IsValue(id)) {
      Fault("op '{}' reads value {}; allowed: 0 to {}", op.name, id, static_cast<int64_t>(graph_.values.size()) - 1);
      return;
    }
    if (origin_[id] == index) return;
    external->insert(id);
    if (origin_[id] == kUndefined) {
      Fault("op '{}' reads value '{}' before anything makes it", op.name, NameOf(id));
    } else if (!exported_[id]) {
      Fault("op '{}' reads value '{}', which op '{}' does not list among its outputs", op.name, NameOf(id),
            graph_.ops[origin_[id]].name);
    }
  }

  void CheckArg(int index, const AtenCall& call, size_t position, const AtenRule* rule, std::set<ValueId>* external) {
    const Op& op = graph_.ops[index];
    const Arg& arg = call.args[position];
    if (rule != nullptr && position < rule->signature.size() && !Fits(arg, rule->signature[position])) {
      Fault("op '{}': argument {} of {} is a {}; allowed: {}", op.name, position, call.op, ArgName(arg),
            AllowedFor(rule->signature[position]));
    }
    if (const auto* value = std::get_if<ValueArg>(&arg)) {
      Read(index, value->value, external);
    } else if (const auto* list = std::get_if<ValueListArg>(&arg)) {
      for (const ValueId id : list->values) Read(index, id, external);
    } else if (const auto* param = std::get_if<ParamArg>(&arg)) {
      if (!IsParam(param->param)) {
        Fault("op '{}' reads parameter {}; allowed: 0 to {}", op.name, param->param,
              static_cast<int64_t>(graph_.params.size()) - 1);
      } else if (!own_params_.contains(param->param)) {
        Fault("op '{}' reads parameter '{}' without listing it", op.name, graph_.params[param->param].name);
      }
    }
  }

  void CheckCall(int index, const AtenCall& call, std::set<ValueId>* external) {
    const Op& op = graph_.ops[index];
    const AtenRule* rule = FindAtenRule(call.op, call.overload);
    if (rule == nullptr) {
      Fault("op '{}' calls {}{}{}, which is not on the list of allowed ATen calls", op.name, call.op,
            call.overload.empty() ? "" : ".", call.overload);
    } else {
      if (call.args.size() != rule->signature.size()) {
        Fault("op '{}' calls {} with {} arguments; allowed: {}", op.name, call.op, call.args.size(), rule->signature.size());
      }
      if (rule->results != AtenRule::kListResult && call.outputs.size() != static_cast<size_t>(rule->results)) {
        Fault("op '{}' takes {} results of {}; allowed: {}", op.name, call.outputs.size(), call.op, rule->results);
      }
    }
    for (size_t i = 0; i < call.args.size(); ++i) CheckArg(index, call, i, rule, external);
    for (const ValueId id : call.outputs) {
      if (id == kNoValue) continue;
      if (!IsValue(id)) {
        Fault("op '{}' makes value {}; allowed: -1 to {}", op.name, id, static_cast<int64_t>(graph_.values.size()) - 1);
      } else if (origin_[id] != kUndefined) {
        Fault("op '{}' makes value '{}' again", op.name, NameOf(id));
      } else {
        origin_[id] = index;
      }
    }
  }

  void CheckOp(int index) {
    const Op& op = graph_.ops[index];
    if (op.name.empty()) Fault("op {} has no name", index);
    if (!op_names_.insert(op.name).second) Fault("two ops are called '{}'", op.name);
    if (op.body.empty()) Fault("op '{}' has an empty body", op.name);
    if (op.forward_flops_per_sample < 0 || op.activation_bytes_per_sample < 0) {
      Fault("op '{}' has negative costs", op.name);
    }
    own_params_.clear();
    for (const ParamId id : op.params) {
      if (!IsParam(id)) {
        Fault("op '{}' lists parameter {}; allowed: 0 to {}", op.name, id, static_cast<int64_t>(graph_.params.size()) - 1);
      } else {
        param_used_[id] = true;
        if (!own_params_.insert(id).second) Fault("op '{}' lists parameter '{}' twice", op.name, graph_.params[id].name);
      }
    }
    std::set<ValueId> external;
    for (const AtenCall& call : op.body) CheckCall(index, call, &external);
    CheckLists(index, external);
  }

  // The lists of an op say exactly what its body reads from others and gives to others.
  void CheckLists(int index, const std::set<ValueId>& external) {
    const Op& op = graph_.ops[index];
    const std::set<ValueId> listed(op.inputs.begin(), op.inputs.end());
    if (listed.size() != op.inputs.size()) Fault("op '{}' lists an input twice", op.name);
    for (const ValueId id : external) {
      if (!listed.contains(id)) Fault("op '{}' reads value '{}' without listing it", op.name, NameOf(id));
    }
    for (const ValueId id : listed) {
      if (!external.contains(id)) Fault("op '{}' lists input {} but does not read it", op.name, id);
    }
    if (op.outputs.empty()) Fault("op '{}' has no outputs", op.name);
    for (const ValueId id : op.outputs) {
      if (!IsValue(id) || origin_[id] != index) {
        Fault("op '{}' lists output {} but does not make it", op.name, id);
      } else {
        if (exported_[id]) Fault("op '{}' lists output '{}' twice", op.name, NameOf(id));
        exported_[id] = true;
        CheckActivation("op output", id);
      }
    }
  }

  void CheckResults() {
    if (graph_.outputs.empty()) Fault("there are no outputs");
    for (const ValueId id : graph_.outputs) {
      if (!IsValue(id)) {
        Fault("an output is value {}; allowed: 0 to {}", id, static_cast<int64_t>(graph_.values.size()) - 1);
      } else if (origin_[id] == kUndefined || !exported_[id]) {
        Fault("output '{}' is not an output of any op", NameOf(id));
      } else {
        CheckActivation("output", id);
      }
    }
    for (size_t i = 0; i < graph_.values.size(); ++i) {
      if (origin_[i] == kUndefined) Fault("value '{}' is made by nothing", graph_.values[i].name);
    }
    for (size_t i = 0; i < graph_.params.size(); ++i) {
      if (!param_used_[i]) Fault("parameter '{}' belongs to no op", graph_.params[i].name);
    }
  }

  const Graph& graph_;
  std::vector<std::string> faults_;
  std::vector<int> origin_;  // of each value: the op that makes it, kInput or kUndefined
  std::vector<bool> exported_;
  std::vector<bool> param_used_;
  std::set<std::string_view> op_names_;
  std::set<ParamId> own_params_;  // of the op being checked
};

}  // namespace

int64_t Graph::parameter_bytes() const {
  int64_t total = 0;
  for (const Param& param : params) total += ElementsOf(param.shape) * SizeOf(param.dtype);
  return total;
}

int64_t Graph::trainable_parameters() const {
  int64_t total = 0;
  for (const Param& param : params) {
    if (param.kind == ParamKind::kWeight) total += ElementsOf(param.shape);
  }
  return total;
}

int64_t Graph::forward_flops_per_sample() const {
  int64_t total = 0;
  for (const Op& op : ops) total += op.forward_flops_per_sample;
  return total;
}

int64_t Graph::activation_bytes_per_sample() const {
  int64_t total = 0;
  for (const Op& op : ops) total += op.activation_bytes_per_sample;
  return total;
}

StatusOr<ParamId> Graph::FindParam(std::string_view name) const {
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].name == name) return static_cast<ParamId>(i);
  }
  return NotFound("graph '{}' has no parameter '{}'", this->name, name);
}

Status Validate(const Graph& graph) { return Validator(graph).Run(); }

LossKind DefaultLoss(const Graph& graph) {
  return graph.family == "gpt2" || graph.family == "t5" ? LossKind::kNextTokenCrossEntropy : LossKind::kCrossEntropy;
}

}  // namespace tidepool::model
