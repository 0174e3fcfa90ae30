#include "engine/testing/test_networks.h"

#include <cstdlib>
#include <random>

#include "base/units.h"
#include "model/families.h"
#include "model/graph_builder.h"

namespace tidepool::engine {
namespace {

constexpr int64_t kAlignment = 64;

model::Graph BuildMlp(int64_t width) {
  model::GraphBuilder b("mlp", "mlp", {});
  model::ValueId x = b.Input("x", DType::kF32, {model::kBatchDim, width});
  x = b.Linear("fc1", x, {.out_features = width, .weight_init = model::NormalInit(0.1)});
  x = b.Relu("relu", x);
  x = b.Dropout("dropout", x, 0.3);
  x = b.Linear("fc2", x, {.out_features = 5, .weight_init = model::NormalInit(0.1)});
  return b.Finish({x}).value();
}

model::Graph BuildConvNet() {
  model::GraphBuilder b("convnet", "convnet", {});
  model::ValueId x = b.Input("image", DType::kF32, {model::kBatchDim, 3, 8, 8});
  x = b.Conv2d("conv1", x, {.out_channels = 4, .kernel = 3, .padding = 1});
  x = b.BatchNorm2d("bn1", x);
  x = b.Relu("relu1", x);
  model::ValueId y = b.Conv2d("conv2", x, {.out_channels = 4, .kernel = 3, .padding = 1});
  y = b.BatchNorm2d("bn2", y);
  y = b.Add("add", y, x);
  y = b.Relu("relu2", y);
  y = b.GlobalAvgPool("pool", y);
  y = b.Flatten("flatten", y);
  y = b.Linear("fc", y, {.out_features = 5, .weight_init = model::NormalInit(0.1)});
  return b.Finish({y}).value();
}

}  // namespace

void TensorSet::Free::operator()(std::byte* block) const { std::free(block); }

TensorView& TensorSet::Add(DType dtype, std::vector<int64_t> shape) {
  TensorView view{.dtype = dtype, .shape = std::move(shape)};
  const size_t size = static_cast<size_t>(RoundUp(std::max<int64_t>(view.size_bytes(), 1), kAlignment));
  view.data = static_cast<std::byte*>(std::aligned_alloc(kAlignment, size));
  blocks_.emplace_back(view.data);
  return views_.emplace_back(std::move(view));
}

std::shared_ptr<const model::Graph> TestGraph(const std::string& spec) {
  if (spec.starts_with("mlp:")) return std::make_shared<model::Graph>(BuildMlp(std::atoll(spec.c_str() + 4)));
  if (spec == "convnet") return std::make_shared<model::Graph>(BuildConvNet());
  StatusOr<model::Graph> graph = model::BuildGraph(spec);
  TIDEPOOL_CHECK(graph.ok(), "{}", ToString(graph.status()));
  return std::make_shared<model::Graph>(*std::move(graph));
}

TensorSet TestWeights(const model::Graph& graph, uint64_t seed) {
  std::mt19937_64 random(seed);
  TensorSet weights;
  for (const model::Param& param : graph.params) {
    TensorView& view = weights.Add(param.dtype, param.shape);
    if (param.dtype == DType::kI64) {
      std::fill_n(reinterpret_cast<int64_t*>(view.data), view.elements(), int64_t{0});
      continue;
    }
    auto* numbers = reinterpret_cast<float*>(view.data);
    const bool is_scale = param.init.rule == model::Init::Rule::kOnes;  // norm weights and variances
    std::uniform_real_distribution<float> draw(is_scale ? 0.5f : -0.2f, is_scale ? 1.5f : 0.2f);
    for (int64_t i = 0; i < view.elements(); ++i) numbers[i] = draw(random);
  }
  return weights;
}

TestBatch::TestBatch(const model::Graph& graph, int64_t samples, uint64_t seed) : samples_(samples) {
  std::mt19937_64 random(seed);
  for (const model::ValueId id : graph.inputs) {
    const model::Value& value = graph.values[id];
    std::vector<int64_t> shape = value.shape;
    shape[0] = samples;
    TensorView& view = inputs_.Add(value.dtype, shape);
    if (value.dtype == DType::kF32) {
      std::uniform_real_distribution<float> draw(-1, 1);
      for (int64_t i = 0; i < view.elements(); ++i) reinterpret_cast<float*>(view.data)[i] = draw(random);
    } else {
      // Token types and masks are 0 or 1; a mask's first position is always attended to.
      const bool is_mask = value.name == "attention_mask";
      const int64_t range = value.name == "input_ids" ? 32 : 2;
      for (int64_t i = 0; i < view.elements(); ++i) {
        const bool is_first = i % shape.back() == 0;
        reinterpret_cast<int64_t*>(view.data)[i] =
            is_mask && is_first ? 1 : static_cast<int64_t>(random() % static_cast<uint64_t>(range));
      }
    }
  }
  std::vector<int64_t> shape = graph.values[graph.outputs[0]].shape;
  const int64_t classes = shape.back();
  shape.pop_back();
  shape[0] = samples;
  TensorView& target = target_.Add(DType::kI64, shape);
  for (int64_t i = 0; i < target.elements(); ++i) {
    reinterpret_cast<int64_t*>(target.data)[i] = static_cast<int64_t>(random() % static_cast<uint64_t>(classes));
  }
}

MicroBatch TestBatch::Slice(int64_t first, int64_t count, uint64_t rng_key) const {
  const auto slice = [&](TensorView view) {
    view.data += first * (view.size_bytes() / samples_);
    view.shape[0] = count;
    return view;
  };
  MicroBatch batch{.target = slice(target_.views()[0]), .global_batch_size = samples_, .rng_key = rng_key};
  for (const TensorView& view : inputs_.views()) batch.inputs.push_back(slice(view));
  return batch;
}

}  // namespace tidepool::engine
