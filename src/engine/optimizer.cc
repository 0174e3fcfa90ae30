#include "engine/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/ranges.h>

#include <cmath>

#include "engine/tensors.h"

namespace tidepool::engine {
namespace {

void AppendState(const OptimizedParam& param, const char* state, const at::Tensor& tensor, std::vector<NamedTensor>* all) {
  if (tensor.defined()) all->push_back({fmt::format("optimizer.{}.{}", param.name, state), ViewOf(tensor)});
}

class Sgd final : public Optimizer {
 public:
  Sgd(const OptimizerOptions& options, std::vector<OptimizedParam> params) : options_(options), params_(std::move(params)) {
    momentum_.resize(params_.size());
    if (options_.momentum == 0) return;
    for (size_t i = 0; i < params_.size(); ++i) momentum_[i] = at::zeros_like(params_[i].tensor);
  }

  void Step(std::span<at::Tensor> gradients, double learning_rate, int64_t /*step*/) override {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < params_.size(); ++i) {
      at::Tensor& gradient = gradients[i];
      if (!gradient.defined()) continue;
      at::Tensor& param = params_[i].tensor;
      if (options_.weight_decay != 0 && params_[i].decay) gradient.add_(param, options_.weight_decay);
      // Starting from zero gives the same buffer as starting from the first gradient.
      if (options_.momentum != 0) momentum_[i].mul_(options_.momentum).add_(gradient);
      param.add_(options_.momentum != 0 ? momentum_[i] : gradient, -learning_rate);
    }
  }

  std::vector<NamedTensor> State() const override {
    std::vector<NamedTensor> all;
    for (size_t i = 0; i < params_.size(); ++i) AppendState(params_[i], "momentum_buffer", momentum_[i], &all);
    return all;
  }

 private:
  const OptimizerOptions options_;
  std::vector<OptimizedParam> params_;
  std::vector<at::Tensor> momentum_;
};

class AdamW final : public Optimizer {
 public:
  AdamW(const OptimizerOptions& options, std::vector<OptimizedParam> params) : options_(options), params_(std::move(params)) {
    for (const OptimizedParam& param : params_) {
      mean_.push_back(at::zeros_like(param.tensor));
      square_.push_back(at::zeros_like(param.tensor));
    }
  }

  void Step(std::span<at::Tensor> gradients, double learning_rate, int64_t step) override {
    at::NoGradGuard no_grad;
    const double correction1 = 1 - std::pow(options_.beta1, static_cast<double>(step));
    const double correction2 = 1 - std::pow(options_.beta2, static_cast<double>(step));
    for (size_t i = 0; i < params_.size(); ++i) {
      at::Tensor& gradient = gradients[i];
      if (!gradient.defined()) continue;
      at::Tensor& param = params_[i].tensor;
      if (options_.weight_decay != 0 && params_[i].decay) param.mul_(1 - learning_rate * options_.weight_decay);
      mean_[i].mul_(options_.beta1).add_(gradient, 1 - options_.beta1);
      square_[i].mul_(options_.beta2).addcmul_(gradient, gradient, 1 - options_.beta2);
      at::Tensor& denominator = gradient;  // the gradient is not needed any more, its memory is
      at::sqrt_out(denominator, square_[i]);
      denominator.div_(std::sqrt(correction2)).add_(options_.epsilon);
      param.addcdiv_(mean_[i], denominator, -learning_rate / correction1);
    }
  }

  std::vector<NamedTensor> State() const override {
    std::vector<NamedTensor> all;
    for (size_t i = 0; i < params_.size(); ++i) {
      AppendState(params_[i], "exp_avg", mean_[i], &all);
      AppendState(params_[i], "exp_avg_sq", square_[i], &all);
    }
    return all;
  }

 private:
  const OptimizerOptions options_;
  std::vector<OptimizedParam> params_;
  std::vector<at::Tensor> mean_, square_;
};

}  // namespace

Status Validate(const OptimizerOptions& options) {
  std::vector<std::string> faults;
  const auto check = [&](const char* name, double value, bool fits, const char* allowed) {
    if (!fits) faults.push_back(fmt::format("{} is {}; allowed: {}", name, value, allowed));
  };
  const auto is_fraction = [](double value) { return value >= 0 && value < 1; };
  check("learning_rate", options.learning_rate, std::isfinite(options.learning_rate) && options.learning_rate >= 0, "0 or more");
  check("weight_decay", options.weight_decay, std::isfinite(options.weight_decay) && options.weight_decay >= 0, "0 or more");
  if (options.kind == OptimizerOptions::Kind::kSgd) {
    check("momentum", options.momentum, is_fraction(options.momentum), "0 to below 1");
  } else {
    check("beta1", options.beta1, is_fraction(options.beta1), "0 to below 1");
    check("beta2", options.beta2, is_fraction(options.beta2), "0 to below 1");
    check("epsilon", options.epsilon, std::isfinite(options.epsilon) && options.epsilon > 0, "above 0");
  }
  if (faults.empty()) return {};
  return InvalidArgument("optimizer: {}", fmt::join(faults, "; "));
}

std::unique_ptr<Optimizer> Optimizer::Create(const OptimizerOptions& options, std::vector<OptimizedParam> params) {
  at::NoGradGuard no_grad;
  if (options.kind == OptimizerOptions::Kind::kSgd) return std::make_unique<Sgd>(options, std::move(params));
  return std::make_unique<AdamW>(options, std::move(params));
}

}  // namespace tidepool::engine
