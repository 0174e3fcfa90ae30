#include "engine/training.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <optional>

#include "base/clock.h"
#include "engine/generator_scope.h"
#include "engine/guard.h"
#include "engine/loss.h"
#include "engine/op_runner.h"
#include "engine/optimizer.h"
#include "engine/pool_allocator.h"
#include "engine/tensors.h"

namespace tidepool::engine {
namespace {

// Empties autograd's queue after a backward pass that was unwound.
//
// The engine keeps one queue of ready nodes per calling thread. When a node throws, the others that were ready stay in it, with
// their gradients and all of the graph behind them, until a later backward pass on this thread takes them out. It takes the
// youngest nodes first, so a pass over a node that is older than the whole network takes out everything before it comes to an
// end.
class BackwardDrain {
 public:
  // Before the network's forward pass.
  BackwardDrain() {
    MemoryScope memory(nullptr);
    at::AutoGradMode with_grad(true);
    leaf_ = at::zeros({}).set_requires_grad(true);
    result_ = at::mul(leaf_, 1);
  }
  void Run() {
    MemoryScope memory(nullptr);
    result_.backward();
  }

 private:
  at::Tensor leaf_, result_;
};

class TorchTrainingModule final : public TrainingModule {
 public:
  TorchTrainingModule(std::shared_ptr<const model::Graph> graph, pool::Arena* arena, const TrainingOptions& options)
      : graph_(std::move(graph)), arena_(arena), options_(options) {}

  // In order: what holds handles to parameters goes before them.
  ~TorchTrainingModule() override {
    DropStaged();
    gradients_.clear();
    optimizer_.reset();
    runner_.reset();
  }

  Status Load(std::span<const TensorView> weights);

  AbortToken& abort_token() override { return token_; }
  Status BeginGlobalBatch() override;
  StatusOr<MicroBatchResult> RunMicroBatch(const MicroBatch& batch) override;
  Status CommitMicroBatch() override;
  Status AbortMicroBatch() override;
  Status OptimizerStep(double learning_rate) override;
  int64_t steps() const override { return steps_; }
  StatusOr<MicroBatchResult> Evaluate(const MicroBatch& batch) override;
  std::vector<NamedTensor> State() override;
  void SetSteps(int64_t steps) override { steps_ = steps; }

 private:
  enum class Phase : uint8_t {
    kIdle,    // no global batch
    kOpen,    // a global batch; no micro-batch is staged
    kStaged,  // a micro-batch ran and waits for commit or abort
    kFailed,  // a micro-batch failed and waits for abort
  };

  Status CheckBatch(const MicroBatch& batch, int64_t* losses) const;
  StatusOr<MicroBatchResult> Forward(const MicroBatch& batch, bool training, at::Tensor* loss_sum);
  Status SeparateStaged();
  void SaveBuffers();
  void RestoreBuffers();
  void DropStaged();
  Status WrongPhase(const char* call) const;

  const std::shared_ptr<const model::Graph> graph_;
  pool::Arena* const arena_;
  const TrainingOptions options_;
  AbortToken token_;
  std::vector<at::Tensor> params_;   // graph.params
  std::vector<at::Tensor> trained_;  // those with a gradient
  // Accumulated gradients, per trained_. They are allocated once, before any activation: accumulators that lay among activations
  // would keep a page each from being given back.
  std::vector<at::Tensor> gradients_;
  std::vector<bool> has_gradient_;                          // whether one was committed in this global batch
  std::vector<std::pair<at::Tensor, at::Tensor>> buffers_;  // and what each was before the micro-batch
  std::unique_ptr<OpRunner> runner_;
  std::unique_ptr<Optimizer> optimizer_;
  Phase phase_ = Phase::kIdle;
  int64_t committed_ = 0;  // micro-batches of this global batch
  int64_t steps_ = 0;
};

Status TorchTrainingModule::Load(std::span<const TensorView> weights) {
  at::NoGradGuard no_grad;
  MemoryScope memory(arena_);
  std::vector<OptimizedParam> optimized;
  for (size_t i = 0; i < weights.size(); ++i) {
    const model::Param& param = graph_->params[i];
    at::Tensor tensor = at::empty(param.shape, at::TensorOptions().dtype(*ScalarTypeOf(param.dtype)));
    tensor.copy_(Borrow(weights[i]));
    if (param.kind == model::ParamKind::kBuffer) {
      buffers_.emplace_back(tensor, at::empty_like(tensor));
    } else if (tensor.is_floating_point()) {
      tensor.set_requires_grad(true);
      trained_.push_back(tensor);
      optimized.push_back({param.name, tensor, param.decay});
    }
    params_.push_back(std::move(tensor));
  }
  for (const at::Tensor& tensor : trained_) gradients_.push_back(at::empty_like(tensor));
  has_gradient_.assign(trained_.size(), false);
  optimizer_ = Optimizer::Create(options_.optimizer, std::move(optimized));
  TIDEPOOL_ASSIGN_OR_RETURN(runner_, OpRunner::Create(graph_, params_));
  return {};
}

Status TorchTrainingModule::WrongPhase(const char* call) const {
  constexpr const char* kStates[] = {"no global batch is open", "no micro-batch is staged",
                                     "a micro-batch waits for commit or abort", "a failed micro-batch waits for abort"};
  return FailedPrecondition("{}: {}", call, kStates[static_cast<int>(phase_)]);
}

Status TorchTrainingModule::BeginGlobalBatch() {
  if (phase_ == Phase::kStaged || phase_ == Phase::kFailed) return WrongPhase("BeginGlobalBatch");
  has_gradient_.assign(trained_.size(), false);
  committed_ = 0;
  phase_ = Phase::kOpen;
  return {};
}

Status TorchTrainingModule::CheckBatch(const MicroBatch& batch, int64_t* losses) const {
  TIDEPOOL_RETURN_IF_ERROR(BorrowInputs(*graph_, batch.inputs).status());
  const int64_t samples = batch.inputs[0].shape[0];
  if (batch.global_batch_size < samples) {
    return InvalidArgument("a micro-batch of {} samples has global_batch_size {}; allowed: {} or more", samples,
                           batch.global_batch_size, samples);
  }
  *losses = samples * LossesPerSample(*graph_);
  return CheckTarget(*graph_, batch.target, samples);
}

// Everything but the check of the batch runs where exceptions may fly.
StatusOr<MicroBatchResult> TorchTrainingModule::Forward(const MicroBatch& batch, bool training, at::Tensor* loss_sum) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto inputs, BorrowInputs(*graph_, batch.inputs));
  TIDEPOOL_ASSIGN_OR_RETURN(auto outputs, runner_->Run(std::move(inputs), training, {}));
  const at::Tensor target = Borrow(batch.target);
  *loss_sum = LossSum(*graph_, outputs[0], target);
  return MicroBatchResult{
      .loss_sum = loss_sum->item<double>(), .loss_count = target.numel(), .correct = CountCorrect(outputs[0], target)};
}

StatusOr<MicroBatchResult> TorchTrainingModule::RunMicroBatch(const MicroBatch& batch) {
  if (phase_ != Phase::kOpen) return WrongPhase("RunMicroBatch");
  const char* where = "the batch";
  std::optional<BackwardDrain> drain;
  StatusOr<MicroBatchResult> result = Guard([&]() -> StatusOr<MicroBatchResult> {
    int64_t losses = 0;
    TIDEPOOL_RETURN_IF_ERROR(CheckBatch(batch, &losses));
    phase_ = Phase::kFailed;  // until the end is reached
    SaveBuffers();
    drain.emplace();
    arena_->ResetPeak();
    MemoryScope memory(arena_);
    GeneratorScope generator(GeneratorSeed(options_.seed, batch.rng_key));
    AbortScope abortable(batch.abortable ? &token_ : nullptr);
    at::AutoGradMode with_grad(true);
    at::Tensor loss_sum;
    where = "forward";
    const int64_t begin_ns = MonotonicNanos();
    TIDEPOOL_ASSIGN_OR_RETURN(auto forward, Forward(batch, /*training=*/true, &loss_sum));
    const int64_t all_losses = batch.global_batch_size * LossesPerSample(*graph_);
    where = "backward";
    const int64_t middle_ns = MonotonicNanos();
    const at::Tensor loss = at::div(std::move(loss_sum), static_cast<double>(all_losses));
    loss.backward();
    forward.forward_seconds = static_cast<double>(middle_ns - begin_ns) * 1e-9;
    forward.backward_seconds = static_cast<double>(MonotonicNanos() - middle_ns) * 1e-9;
    return forward;
  });
  if (!result.ok()) {
    if (drain.has_value()) {
      TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status {
        drain->Run();
        return {};
      }));
    }
    const std::string place = std::string(where) == "forward" ? runner_->Where() : std::string(where);
    return Annotate(result.status(), place);
  }
  TIDEPOOL_RETURN_IF_ERROR(SeparateStaged());
  result->peak_bytes = arena_->stats().peak_live_bytes;
  phase_ = Phase::kStaged;
  return result;
}

// Autograd may leave the gradients of two parameters in one piece of memory, if both only pass through the same sum. Adding to
// one of them in place would change the other.
Status TorchTrainingModule::SeparateStaged() {
  return Guard([&]() -> Status {
    MemoryScope memory(arena_);
    at::NoGradGuard no_grad;
    for (at::Tensor& param : trained_) {
      at::Tensor& gradient = param.mutable_grad();
      if (gradient.defined() && gradient.storage().use_count() > 1) gradient = gradient.clone();
    }
    return {};
  });
}

Status TorchTrainingModule::CommitMicroBatch() {
  if (phase_ != Phase::kStaged) return WrongPhase("CommitMicroBatch");
  TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status {
    at::NoGradGuard no_grad;
    MemoryScope memory(nullptr);
    for (size_t i = 0; i < trained_.size(); ++i) {
      at::Tensor& staged = trained_[i].mutable_grad();
      if (!staged.defined()) continue;
      if (has_gradient_[i]) {
        gradients_[i].add_(staged);
      } else {
        gradients_[i].copy_(staged);
      }
      has_gradient_[i] = true;
      staged.reset();
    }
    return {};
  }));
  ++committed_;
  phase_ = Phase::kOpen;
  return {};
}

Status TorchTrainingModule::AbortMicroBatch() {
  if (phase_ == Phase::kIdle || phase_ == Phase::kOpen) return {};  // refused before it touched anything
  DropStaged();
  TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status {
    RestoreBuffers();
    return {};
  }));
  phase_ = Phase::kOpen;
  return {};
}

Status TorchTrainingModule::OptimizerStep(double learning_rate) {
  if (phase_ != Phase::kOpen) return WrongPhase("OptimizerStep");
  if (committed_ == 0) return FailedPrecondition("OptimizerStep: no micro-batch was committed in this global batch");
  if (!(learning_rate >= 0)) return InvalidArgument("learning_rate is {}; allowed: 0 or more", learning_rate);
  TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status {
    // The only temporaries are scalars. From the heap, so that no limit of the pool can end a step half way.
    MemoryScope memory(nullptr);
    std::vector<at::Tensor> committed(gradients_.size());  // undefined where there is none
    for (size_t i = 0; i < committed.size(); ++i) {
      if (has_gradient_[i]) committed[i] = gradients_[i];
    }
    optimizer_->Step(committed, learning_rate, steps_ + 1);
    return {};
  }));
  ++steps_;
  phase_ = Phase::kIdle;
  return {};
}

StatusOr<MicroBatchResult> TorchTrainingModule::Evaluate(const MicroBatch& batch) {
  bool ran = false;
  StatusOr<MicroBatchResult> result = Guard([&]() -> StatusOr<MicroBatchResult> {
    int64_t losses = 0;
    TIDEPOOL_RETURN_IF_ERROR(CheckBatch(batch, &losses));
    arena_->ResetPeak();
    MemoryScope memory(arena_);
    AbortScope abortable(batch.abortable ? &token_ : nullptr);
    at::NoGradGuard no_grad;
    at::Tensor loss_sum;
    ran = true;
    return Forward(batch, /*training=*/false, &loss_sum);
  });
  if (!result.ok()) return ran ? Annotate(result.status(), runner_->Where()) : result.status();
  result->peak_bytes = arena_->stats().peak_live_bytes;
  return result;
}

std::vector<NamedTensor> TorchTrainingModule::State() {
  std::vector<NamedTensor> all;
  for (size_t i = 0; i < params_.size(); ++i) all.push_back({graph_->params[i].name, ViewOf(params_[i])});
  for (NamedTensor& state : optimizer_->State()) all.push_back(std::move(state));
  return all;
}

void TorchTrainingModule::SaveBuffers() {
  at::NoGradGuard no_grad;
  MemoryScope memory(nullptr);
  for (auto& [buffer, saved] : buffers_) saved.copy_(buffer);
}

void TorchTrainingModule::RestoreBuffers() {
  at::NoGradGuard no_grad;
  MemoryScope memory(nullptr);
  for (auto& [buffer, saved] : buffers_) buffer.copy_(saved);
}

void TorchTrainingModule::DropStaged() {
  for (at::Tensor& param : trained_) param.mutable_grad().reset();
}

}  // namespace

StatusOr<std::unique_ptr<TrainingModule>> TrainingModule::Create(std::shared_ptr<const model::Graph> graph,
                                                                 std::span<const TensorView> weights, pool::Arena* arena,
                                                                 const TrainingOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(model::Validate(*graph));
  TIDEPOOL_RETURN_IF_ERROR(CheckLossFits(*graph));
  TIDEPOOL_RETURN_IF_ERROR(Validate(options.optimizer));
  if (const Status status = CheckParams(*graph, weights, /*alignment=*/1); !status.ok()) return status;
  auto module = std::make_unique<TorchTrainingModule>(std::move(graph), arena, options);
  TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status { return module->Load(weights); }));
  return module;
}

}  // namespace tidepool::engine
