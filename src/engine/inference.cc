#include "engine/inference.h"

#include <c10/core/InferenceMode.h>

#include "engine/guard.h"
#include "engine/op_runner.h"
#include "engine/tensors.h"

namespace tidepool::engine {
namespace {

class TensorOutputs final : public Outputs {
 public:
  explicit TensorOutputs(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const at::Tensor& tensor : tensors_) views_.push_back(ViewOf(tensor));
  }
  std::span<const TensorView> views() const override { return views_; }

 private:
  std::vector<at::Tensor> tensors_;
  std::vector<TensorView> views_;
};

class TorchInferenceModule final : public InferenceModule {
 public:
  TorchInferenceModule(std::shared_ptr<const model::Graph> graph, std::unique_ptr<OpRunner> runner)
      : InferenceModule(std::move(graph)), runner_(std::move(runner)) {}

  StatusOr<std::unique_ptr<Outputs>> Run(std::span<const TensorView> inputs, const RunOptions& options) override {
    bool ran = false;
    StatusOr<std::unique_ptr<Outputs>> outputs = Guard([&]() -> StatusOr<std::unique_ptr<Outputs>> {
      // Without autograd's keys in the dispatch. Kernels and so the bits are the same.
      c10::InferenceMode inference_mode;
      TIDEPOOL_ASSIGN_OR_RETURN(auto borrowed, BorrowInputs(*graph_, inputs));
      ran = true;
      TIDEPOOL_ASSIGN_OR_RETURN(auto tensors, runner_->Run(std::move(borrowed), /*training=*/false, options));
      for (at::Tensor& tensor : tensors) {
        tensor = tensor.contiguous();
        // An output that is a view of an input or a weight must outlive both.
        if (IsBorrowed(tensor)) tensor = tensor.clone();
        TIDEPOOL_RETURN_IF_ERROR(DTypeOf(tensor.scalar_type()).status());
      }
      return std::make_unique<TensorOutputs>(std::move(tensors));
    });
    if (!outputs.ok() && ran) return Annotate(outputs.status(), runner_->Where());
    return outputs;
  }

 private:
  std::unique_ptr<OpRunner> runner_;
};

}  // namespace

StatusOr<std::unique_ptr<InferenceModule>> InferenceModule::Bind(std::shared_ptr<const model::Graph> graph,
                                                                 std::span<const TensorView> params) {
  TIDEPOOL_RETURN_IF_ERROR(model::Validate(*graph));
  TIDEPOOL_RETURN_IF_ERROR(CheckParams(*graph, params, kParamAlignment));
  std::vector<at::Tensor> tensors;
  TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status {
    for (const TensorView& view : params) tensors.push_back(Borrow(view));
    return {};
  }));
  TIDEPOOL_ASSIGN_OR_RETURN(auto runner, OpRunner::Create(graph, std::move(tensors)));
  return std::make_unique<TorchInferenceModule>(std::move(graph), std::move(runner));
}

}  // namespace tidepool::engine
