#include "engine/op_runner.h"

#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>

#include <optional>
#include <string_view>
#include <utility>

#include "engine/guard.h"
#include "engine/tensors.h"

namespace tidepool::engine {
namespace {

using c10::TypeKind;

// The type inside Optional[...], and whether it was inside one.
std::pair<c10::TypePtr, bool> StripOptional(const c10::TypePtr& type) {
  if (type->kind() != TypeKind::OptionalType) return {type, false};
  return {type->expectRef<c10::OptionalType>().getElementType(), true};
}

bool IsInteger(const c10::TypePtr& type) { return type->kind() == TypeKind::IntType || type->kind() == TypeKind::SymIntType; }

bool IsListOf(const c10::TypePtr& type, bool (*is_element)(const c10::TypePtr&)) {
  return type->kind() == TypeKind::ListType && is_element(type->expectRef<c10::ListType>().getElementType());
}

bool IsTensor(const c10::TypePtr& type) { return type->kind() == TypeKind::TensorType; }

std::string_view KindOf(const model::Arg& arg) {
  struct Visitor {
    std::string_view operator()(const model::NoneArg&) const { return "None"; }
    std::string_view operator()(const model::ValueArg&) const { return "a value"; }
    std::string_view operator()(const model::ParamArg&) const { return "a parameter"; }
    std::string_view operator()(const model::TrainingArg&) const { return "the training flag"; }
    std::string_view operator()(const model::ValueListArg&) const { return "a list of values"; }
    std::string_view operator()(bool) const { return "a bool"; }
    std::string_view operator()(int64_t) const { return "an integer"; }
    std::string_view operator()(double) const { return "a float"; }
    std::string_view operator()(const std::vector<int64_t>&) const { return "a list of integers"; }
    std::string_view operator()(DType) const { return "an element type"; }
    std::string_view operator()(const std::string&) const { return "a string"; }
  };
  return std::visit(Visitor{}, arg);
}

// The ready value of a constant argument, or nothing if it does not fit `type`. Strict: no number is turned into another kind,
// except where the schema itself takes any number.
std::optional<c10::IValue> ConstantOf(const model::Arg& arg, const c10::TypePtr& type) {
  const TypeKind kind = type->kind();
  if (const auto* flag = std::get_if<bool>(&arg); flag != nullptr && kind == TypeKind::BoolType) return c10::IValue(*flag);
  if (const auto* number = std::get_if<int64_t>(&arg); number != nullptr && (IsInteger(type) || kind == TypeKind::NumberType)) {
    return c10::IValue(*number);
  }
  if (const auto* number = std::get_if<double>(&arg);
      number != nullptr && (kind == TypeKind::FloatType || kind == TypeKind::NumberType)) {
    return c10::IValue(*number);
  }
  if (const auto* list = std::get_if<std::vector<int64_t>>(&arg); list != nullptr && IsListOf(type, &IsInteger)) {
    return c10::IValue(*list);
  }
  if (const auto* text = std::get_if<std::string>(&arg); text != nullptr && kind == TypeKind::StringType)
    return c10::IValue(*text);
  if (const auto* dtype = std::get_if<DType>(&arg); dtype != nullptr && kind == TypeKind::ScalarTypeType) {
    const StatusOr<at::ScalarType> type_or = ScalarTypeOf(*dtype);
    if (type_or.ok()) return c10::IValue(static_cast<int64_t>(*type_or));
  }
  return std::nullopt;
}

}  // namespace

StatusOr<std::unique_ptr<OpRunner>> OpRunner::Create(std::shared_ptr<const model::Graph> graph, std::vector<at::Tensor> params) {
  TIDEPOOL_RETURN_IF_ERROR(model::Validate(*graph));
  return Guard([&]() -> StatusOr<std::unique_ptr<OpRunner>> {
    std::unique_ptr<OpRunner> runner(new OpRunner(std::move(graph)));
    for (at::Tensor& param : params) runner->params_.emplace_back(std::move(param));
    for (const model::Op& op : runner->graph_->ops) {
      for (const model::AtenCall& call : op.body) TIDEPOOL_RETURN_IF_ERROR(runner->Prepare(op, call));
      runner->calls_end_.push_back(runner->calls_.size());
    }
    runner->ComputeLiveness();
    return runner;
  });
}

Status OpRunner::Prepare(const model::Op& op, const model::AtenCall& source) {
  const auto handle = c10::Dispatcher::singleton().findSchema({source.op, source.overload});
  const std::string name = source.overload.empty() ? source.op : source.op + "." + source.overload;
  if (!handle.has_value()) return InvalidArgument("op '{}' calls {}, which this libtorch does not have", op.name, name);
  const c10::FunctionSchema& schema = handle->schema();
  if (source.args.size() != schema.arguments().size()) {
    return InvalidArgument("op '{}': {} has {} arguments; allowed: {}", op.name, name, source.args.size(),
                           schema.arguments().size());
  }
  Call call{.handle = *handle, .source = &source};
  for (size_t i = 0; i < source.args.size(); ++i) {
    Slot slot;
    const Status status = PrepareArg(schema.arguments()[i], source.args[i], &slot);
    if (!status.ok()) return Annotate(status, fmt::format("op '{}': {}", op.name, name));
    call.slots.push_back(slot);
  }
  call.returns_list = schema.returns().size() == 1 && IsListOf(schema.returns()[0].type(), &IsTensor);
  if (!call.returns_list && source.outputs.size() != schema.returns().size()) {
    return InvalidArgument("op '{}': {} has {} results taken; allowed: {}", op.name, name, source.outputs.size(),
                           schema.returns().size());
  }
  for (const c10::Argument& result : schema.returns()) {
    if (!call.returns_list && !IsTensor(result.type())) {
      return InvalidArgument("op '{}': {} returns {}; allowed: tensors", op.name, name, result.type()->repr_str());
    }
  }
  calls_.push_back(std::move(call));
  return {};
}

Status OpRunner::PrepareArg(const c10::Argument& argument, const model::Arg& value, Slot* slot) {
  // real_type tells an element type from an integer, which are the same to the interpreter.
  const auto [type, optional] = StripOptional(argument.real_type());
  if (std::holds_alternative<model::NoneArg>(value) && optional) {
    *slot = {Slot::Kind::kConstant, static_cast<int32_t>(constants_.size())};
    constants_.emplace_back();
  } else if (const auto* id = std::get_if<model::ValueArg>(&value); id != nullptr && IsTensor(type)) {
    *slot = {Slot::Kind::kValue, id->value};
  } else if (const auto* param = std::get_if<model::ParamArg>(&value); param != nullptr && IsTensor(type)) {
    *slot = {Slot::Kind::kParam, param->param};
  } else if (std::holds_alternative<model::TrainingArg>(value) && type->kind() == TypeKind::BoolType) {
    *slot = {Slot::Kind::kTraining, 0};
  } else if (const auto* list = std::get_if<model::ValueListArg>(&value); list != nullptr && IsListOf(type, &IsTensor)) {
    *slot = {Slot::Kind::kValueList, static_cast<int32_t>(lists_.size())};
    lists_.push_back(list->values);
  } else if (std::optional<c10::IValue> constant = ConstantOf(value, type)) {
    *slot = {Slot::Kind::kConstant, static_cast<int32_t>(constants_.size())};
    constants_.push_back(*std::move(constant));
  } else {
    return InvalidArgument("argument '{}' is {}; allowed: {}", argument.name(), KindOf(value), argument.real_type()->repr_str());
  }
  return {};
}

// Walks the calls from the last to the first: the first sight of a value is its last use.
void OpRunner::ComputeLiveness() {
  std::vector<bool> seen(graph_->values.size(), false);
  for (const model::ValueId id : graph_->outputs) seen[id] = true;
  for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
    for (const model::ValueId id : call->source->outputs) {
      if (id != model::kNoValue && !seen[id]) call->drop_after.push_back(id);
    }
    for (auto slot = call->slots.rbegin(); slot != call->slots.rend(); ++slot) {
      if (slot->kind == Slot::Kind::kValue && !seen[slot->index]) {
        slot->kind = Slot::Kind::kLastUse;
        seen[slot->index] = true;
      }
      if (slot->kind != Slot::Kind::kValueList) continue;
      for (const model::ValueId id : lists_[slot->index]) {
        if (!seen[id]) call->drop_after.push_back(id);
        seen[id] = true;
      }
    }
  }
}

void OpRunner::Push(const Call& call, bool training, std::vector<at::Tensor>* values) {
  for (const Slot& slot : call.slots) {
    switch (slot.kind) {
      case Slot::Kind::kConstant: stack_.push_back(constants_[slot.index]); break;
      case Slot::Kind::kParam: stack_.push_back(params_[slot.index]); break;
      case Slot::Kind::kTraining: stack_.emplace_back(training); break;
      case Slot::Kind::kValue: stack_.emplace_back((*values)[slot.index]); break;
      case Slot::Kind::kLastUse: stack_.emplace_back(std::move((*values)[slot.index])); break;
      case Slot::Kind::kValueList: {
        c10::List<at::Tensor> list;
        for (const model::ValueId id : lists_[slot.index]) list.push_back((*values)[id]);
        stack_.emplace_back(std::move(list));
        break;
      }
    }
  }
}

Status OpRunner::Store(const Call& call, std::vector<at::Tensor>* values) {
  const std::vector<model::ValueId>& outputs = call.source->outputs;
  if (call.returns_list) {
    const c10::List<at::Tensor> list = std::move(stack_.back()).toTensorList();
    stack_.clear();
    if (list.size() != outputs.size()) {
      return InvalidArgument("{}: {} results; allowed: {}, as the graph takes", Where(), list.size(), outputs.size());
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i] != model::kNoValue) (*values)[outputs[i]] = list.get(i);
    }
  } else {
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i] != model::kNoValue) (*values)[outputs[i]] = std::move(stack_[i]).toTensor();
    }
    stack_.clear();
  }
  for (const model::ValueId id : call.drop_after) (*values)[id].reset();
  return {};
}

StatusOr<std::vector<at::Tensor>> OpRunner::Run(std::vector<at::Tensor> inputs, bool training, const RunOptions& options) {
  std::vector<at::Tensor> values(graph_->values.size());
  for (size_t i = 0; i < inputs.size(); ++i) values[graph_->inputs[i]] = std::move(inputs[i]);
  // A call that throws leaves its arguments on the stack; they must not stay alive.
  struct Clear {
    std::vector<c10::IValue>* stack;
    ~Clear() { stack->clear(); }
  } clear{&stack_};
  size_t next = 0;
  for (size_t op = 0; op < calls_end_.size(); ++op) {
    current_op_ = static_cast<int>(op);
    current_call_ = nullptr;
    if (options.before_op) TIDEPOOL_RETURN_IF_ERROR(options.before_op(current_op_));
    for (; next < calls_end_[op]; ++next) {
      const Call& call = calls_[next];
      current_call_ = &call;
      Push(call, training, &values);
      call.handle.callBoxed(&stack_);
      TIDEPOOL_RETURN_IF_ERROR(Store(call, &values));
    }
    if (options.after_op) options.after_op(current_op_);
  }
  std::vector<at::Tensor> outputs;
  outputs.reserve(graph_->outputs.size());
  for (const model::ValueId id : graph_->outputs) outputs.push_back(values[id]);
  return outputs;
}

std::string OpRunner::Where() const {
  if (current_op_ < 0) return "before the first op";
  if (current_call_ == nullptr) return fmt::format("op '{}'", graph_->ops[current_op_].name);
  return fmt::format("op '{}': {}", graph_->ops[current_op_].name, current_call_->source->op);
}

}  // namespace tidepool::engine
