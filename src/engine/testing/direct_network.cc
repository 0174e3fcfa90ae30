#include "engine/testing/direct_network.h"

#include <ATen/ATen.h>
#include <torch/csrc/api/include/torch/optim/adamw.h>
#include <torch/csrc/api/include/torch/optim/sgd.h>

#include <cmath>
#include <limits>
#include <map>

#include "engine/generator_scope.h"
#include "engine/tensors.h"

namespace tidepool::engine {
namespace {

using at::Tensor;

class Network {
 public:
  Network(const model::Graph& graph, std::map<std::string, Tensor> weights) : graph_(graph), weights_(std::move(weights)) {}

  Tensor Forward(const std::vector<Tensor>& inputs, bool training) {
    training_ = training;
    if (graph_.family == "resnet") return ResNet(inputs[0]);
    if (graph_.family == "gpt2") return Gpt2(inputs[0]);
    if (graph_.family == "bert") return Bert(inputs[0], inputs[1], inputs[2]);
    if (graph_.family == "mlp") return Mlp(inputs[0]);
    if (graph_.family == "convnet") return ConvNet(inputs[0]);
    TIDEPOOL_CHECK(false, "no direct network for {}", graph_.family);
    return {};
  }

 private:
  const Tensor& W(const std::string& name) { return weights_.at(name); }
  int64_t Option(const std::string& name) { return std::atoll(graph_.config.at(name).c_str()); }
  double Probability() { return std::atof(graph_.config.at("dropout").c_str()); }

  Tensor Dropout(const Tensor& x, double probability) { return probability > 0 ? at::dropout(x, probability, training_) : x; }
  Tensor Linear(const std::string& name, const Tensor& x) { return at::linear(x, W(name + ".weight"), W(name + ".bias")); }
  Tensor Norm(const std::string& name, const Tensor& x, double epsilon) {
    return at::layer_norm(x, {x.size(-1)}, W(name + ".weight"), W(name + ".bias"), epsilon);
  }
  Tensor ConvBn(const std::string& conv, const std::string& bn, const Tensor& x, int64_t stride, int64_t padding) {
    const Tensor y = at::conv2d(x, W(conv + ".weight"), {}, stride, padding);
    return at::batch_norm(y, W(bn + ".weight"), W(bn + ".bias"), W(bn + ".running_mean"), W(bn + ".running_var"), training_, 0.1,
                          1e-5, true);
  }

  Tensor Mlp(const Tensor& x) { return Linear("fc2", Dropout(at::relu(Linear("fc1", x)), 0.3)); }

  Tensor ConvNet(const Tensor& image) {
    const Tensor x = at::relu(ConvBn("conv1", "bn1", image, 1, 1));
    const Tensor y = at::relu(ConvBn("conv2", "bn2", x, 1, 1) + x);
    return Linear("fc", at::flatten(at::adaptive_avg_pool2d(y, {1, 1}), 1));
  }

  Tensor ResNet(const Tensor& image) {
    const bool small_stem = graph_.config.at("small_stem") == "true";
    Tensor x = at::relu(small_stem ? ConvBn("conv1", "bn1", image, 1, 1) : ConvBn("conv1", "bn1", image, 2, 3));
    if (!small_stem) x = at::max_pool2d(x, 3, 2, 1);
    const std::vector<int64_t> blocks =
        Option("depth") == 18 ? std::vector<int64_t>{2, 2, 2, 2} : std::vector<int64_t>{3, 4, 6, 3};
    for (int stage = 0; stage < 4; ++stage) {
      for (int64_t i = 0; i < blocks[stage]; ++i) {
        const std::string name = fmt::format("layer{}.{}", stage + 1, i);
        const int64_t stride = stage > 0 && i == 0 ? 2 : 1;
        Tensor y = at::relu(ConvBn(name + ".conv1", name + ".bn1", x, stride, 1));
        y = ConvBn(name + ".conv2", name + ".bn2", y, 1, 1);
        if (stride != 1) x = ConvBn(name + ".downsample.0", name + ".downsample.1", x, stride, 0);
        x = at::relu(y + x);
      }
    }
    return Linear("fc", at::flatten(at::adaptive_avg_pool2d(x, {1, 1}), 1));
  }

  // x [B, T, W] to [B, heads, T, W / heads].
  Tensor SplitHeads(const Tensor& x) {
    return x.view({x.size(0), x.size(1), Option("heads"), x.size(2) / Option("heads")}).permute({0, 2, 1, 3});
  }
  Tensor Attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& additive_mask) {
    const Tensor scores = at::matmul(q, k.transpose(-1, -2)) / std::sqrt(static_cast<double>(q.size(-1)));
    const Tensor weights = Dropout(at::softmax(scores + additive_mask, -1), Probability());
    const Tensor mixed = at::matmul(weights, v).permute({0, 2, 1, 3}).contiguous();
    return mixed.view({mixed.size(0), mixed.size(1), mixed.size(2) * mixed.size(3)});
  }

  // As the public GPT-2 code has it: products with [in, out] weights by addmm.
  Tensor Conv1d(const std::string& name, const Tensor& x) {
    const Tensor& weight = W(name + ".weight");
    const Tensor y = at::addmm(W(name + ".bias"), x.view({-1, x.size(-1)}), weight);
    return y.view({x.size(0), x.size(1), weight.size(1)});
  }
  Tensor Gpt2(const Tensor& tokens) {
    const int64_t time = tokens.size(1);
    const Tensor positions = W("wpe.weight").slice(0, 0, time);
    Tensor x = Dropout(at::embedding(W("wte.weight"), tokens) + positions, Probability());
    const Tensor future = at::triu(at::ones({time, time}), 1) * std::numeric_limits<float>::lowest();
    for (int64_t i = 0; i < Option("layers"); ++i) {
      const std::string h = fmt::format("h.{}", i);
      const std::vector<Tensor> qkv = Conv1d(h + ".attn.c_attn", Norm(h + ".ln_1", x, 1e-5)).split(x.size(2), 2);
      const Tensor y = Attend(SplitHeads(qkv[0]), SplitHeads(qkv[1]), SplitHeads(qkv[2]), future);
      x = x + Dropout(Conv1d(h + ".attn.c_proj", y), Probability());
      const Tensor inner = at::gelu(Conv1d(h + ".mlp.c_fc", Norm(h + ".ln_2", x, 1e-5)), "tanh");
      x = x + Dropout(Conv1d(h + ".mlp.c_proj", inner), Probability());
    }
    return at::matmul(Norm("ln_f", x, 1e-5), W("wte.weight").t());
  }

  Tensor Bert(const Tensor& tokens, const Tensor& types, const Tensor& mask) {
    Tensor x = at::embedding(W("embeddings.word_embeddings.weight"), tokens) +
               at::embedding(W("embeddings.token_type_embeddings.weight"), types) +
               W("embeddings.position_embeddings.weight").slice(0, 0, tokens.size(1));
    x = Dropout(Norm("embeddings.LayerNorm", x, 1e-12), Probability());
    const Tensor hidden = (1 - mask.unsqueeze(1).unsqueeze(1).to(at::kFloat)) * std::numeric_limits<float>::lowest();
    for (int64_t i = 0; i < Option("layers"); ++i) {
      const std::string layer = fmt::format("encoder.layer.{}", i);
      const std::string self = layer + ".attention.self";
      // One after the other: the order of the calls is the order in which backward adds their gradients.
      const Tensor q = Linear(self + ".query", x);
      const Tensor k = Linear(self + ".key", x);
      const Tensor v = Linear(self + ".value", x);
      const Tensor mixed = Attend(SplitHeads(q), SplitHeads(k), SplitHeads(v), hidden);
      const Tensor y = Dropout(Linear(layer + ".attention.output.dense", mixed), Probability());
      x = Norm(layer + ".attention.output.LayerNorm", y + x, 1e-12);
      const Tensor z =
          Dropout(Linear(layer + ".output.dense", at::gelu(Linear(layer + ".intermediate.dense", x))), Probability());
      x = Norm(layer + ".output.LayerNorm", z + x, 1e-12);
    }
    const Tensor pooled = at::tanh(Linear("pooler.dense", x.select(1, 0)));
    return Linear("classifier", Dropout(pooled, Probability()));
  }

  const model::Graph graph_;
  std::map<std::string, Tensor> weights_;
  bool training_ = false;
};

class DirectOutputs final : public Outputs {
 public:
  explicit DirectOutputs(Tensor tensor) : tensor_(tensor.contiguous()), views_{ViewOf(tensor_)} {}
  std::span<const TensorView> views() const override { return views_; }

 private:
  const Tensor tensor_;
  const std::vector<TensorView> views_;
};

std::unique_ptr<torch::optim::Optimizer> MakeOptimizer(const OptimizerOptions& options, const std::vector<Tensor>& params) {
  if (options.kind == OptimizerOptions::Kind::kSgd) {
    return std::make_unique<torch::optim::SGD>(
        params, torch::optim::SGDOptions(options.learning_rate).momentum(options.momentum).weight_decay(options.weight_decay));
  }
  return std::make_unique<torch::optim::AdamW>(params, torch::optim::AdamWOptions(options.learning_rate)
                                                           .betas({options.beta1, options.beta2})
                                                           .eps(options.epsilon)
                                                           .weight_decay(options.weight_decay));
}

class Direct final : public DirectNetwork {
 public:
  Direct(const model::Graph& graph, std::span<const TensorView> weights, const TrainingOptions* options) {
    std::map<std::string, Tensor> named;
    std::vector<Tensor> trained;
    for (size_t i = 0; i < weights.size(); ++i) {
      Tensor tensor = Borrow(weights[i]);
      if (options != nullptr) {
        tensor = tensor.clone();
        if (graph.params[i].kind == model::ParamKind::kWeight) trained.push_back(tensor.set_requires_grad(true));
      }
      params_.push_back(named[graph.params[i].name] = tensor);
    }
    network_ = std::make_unique<Network>(graph, std::move(named));
    if (options == nullptr) return;
    seed_ = options->seed;
    optimizer_ = MakeOptimizer(options->optimizer, trained);
  }

  std::unique_ptr<Outputs> Run(std::span<const TensorView> inputs) override {
    at::NoGradGuard no_grad;
    return std::make_unique<DirectOutputs>(network_->Forward(BorrowAll(inputs), false));
  }

  double Train(const MicroBatch& batch) override {
    at::manual_seed(GeneratorSeed(seed_, batch.rng_key));
    optimizer_->zero_grad();
    Tensor logits = network_->Forward(BorrowAll(batch.inputs), true);
    const Tensor target = Borrow(batch.target);
    const Tensor sum = at::cross_entropy_loss(logits.view({-1, logits.size(-1)}), target.view({-1}), {}, at::Reduction::Sum);
    (sum / static_cast<double>(target.numel())).backward();
    optimizer_->step();
    return sum.item<double>();
  }

  std::vector<TensorView> params() const override {
    std::vector<TensorView> views;
    for (const Tensor& tensor : params_) views.push_back(ViewOf(tensor));
    return views;
  }

 private:
  static std::vector<Tensor> BorrowAll(std::span<const TensorView> views) {
    std::vector<Tensor> tensors;
    for (const TensorView& view : views) tensors.push_back(Borrow(view));
    return tensors;
  }

  std::vector<Tensor> params_;
  std::unique_ptr<Network> network_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  uint64_t seed_ = 0;
};

}  // namespace

std::unique_ptr<DirectNetwork> DirectNetwork::ForInference(const model::Graph& graph, std::span<const TensorView> weights) {
  return std::make_unique<Direct>(graph, weights, nullptr);
}

std::unique_ptr<DirectNetwork> DirectNetwork::ForTraining(const model::Graph& graph, std::span<const TensorView> weights,
                                                          const TrainingOptions& options) {
  return std::make_unique<Direct>(graph, weights, &options);
}

}  // namespace tidepool::engine
