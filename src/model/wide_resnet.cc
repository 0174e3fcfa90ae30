// Wide residual networks (Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016) with bottleneck blocks whose 3x3
// convolution has `widen` times the channels of the 1x1 convolutions around it. Parameter names are those of torchvision's
// ResNets.
#include <cmath>

#include "model/family.h"
#include "model/graph_builder.h"

namespace tidepool::model {
namespace {

struct BlockOptions {
  int64_t channels = 0;
  int64_t widen = 1;
  int64_t stride = 1;
};

ValueId Block(GraphBuilder& b, const std::string& name, ValueId x, const BlockOptions& options) {
  const int64_t wide = options.channels * options.widen, out = 4 * options.channels;
  const bool project = options.stride != 1 || b.shape(x)[1] != out;
  ValueId y = x;
  const auto convolve = [&](int index, const GraphBuilder::Conv2dOptions& conv) {
    y = b.Conv2d(fmt::format("{}.conv{}", name, index), y, conv);
    y = b.BatchNorm2d(fmt::format("{}.bn{}", name, index), y);
  };
  convolve(1, {.out_channels = options.channels});
  y = b.Relu(name + ".relu1", y);
  convolve(2, {.out_channels = wide, .kernel = 3, .stride = options.stride, .padding = 1});
  y = b.Relu(name + ".relu2", y);
  convolve(3, {.out_channels = out});
  if (project) {
    x = b.Conv2d(name + ".downsample.0", x, {.out_channels = out, .stride = options.stride});
    x = b.BatchNorm2d(name + ".downsample.1", x);
  }
  return b.Relu(name + ".relu", b.Add(name + ".add", y, x, PartitionAxis::kChannel));
}

StatusOr<Graph> Build(const Spec& spec) {
  const int64_t channels = IntegerOf(spec, "channels"), image = IntegerOf(spec, "image");
  const int64_t blocks[4] = {3, 4, IntegerOf(spec, "depth") == 101 ? 23 : 6, 3};
  GraphBuilder b("wresnet", "wresnet", spec.config);
  ValueId x = b.Input("image", DType::kF32, {kBatchDim, 3, image, image});
  x = b.Conv2d("conv1", x, {.out_channels = channels, .kernel = 7, .stride = 2, .padding = 3});
  x = b.Relu("relu", b.BatchNorm2d("bn1", x));
  x = b.MaxPool2d("maxpool", x, 3, 2, 1);
  for (int stage = 0; stage < 4; ++stage) {
    for (int64_t i = 0; i < blocks[stage]; ++i) {
      x = Block(b, fmt::format("layer{}.{}", stage + 1, i), x,
                {.channels = channels << stage, .widen = IntegerOf(spec, "widen"), .stride = stage > 0 && i == 0 ? 2 : 1});
    }
  }
  x = b.Flatten("flatten", b.GlobalAvgPool("avgpool", x));
  const Init uniform = UniformInit(1 / std::sqrt(static_cast<double>(b.shape(x)[1])));
  x = b.Linear("fc", x, {.out_features = IntegerOf(spec, "classes"), .weight_init = uniform, .bias_init = uniform});
  b.Rename(x, "logits");
  return b.Finish({x});
}

// A size of which plans were published.
std::map<std::string, std::string> PublishedSize(const char* depth, const char* channels, const char* widen) {
  return {{"depth", depth}, {"channels", channels}, {"widen", widen}, {"classes", "1024"}};
}

}  // namespace

const Family& WideResNetFamily() {
  using Kind = OptionRule::Kind;
  static const auto* const kFamily =
      new Family{.name = "wresnet",
                 .help = "Wide residual networks for images, up to 13 billion parameters",
                 .options = {{Kind::kInteger, "depth", "50", "weighted layers", 0, 0, {50, 101}},
                             {Kind::kInteger, "channels", "64", "channels of the first stage's 1x1 convolutions", 1, 4096, {}},
                             {Kind::kInteger, "widen", "2", "how many times as many a 3x3 convolution has", 1, 64, {}},
                             {Kind::kInteger, "classes", "1000", "width of the classifier", 1, 1 << 20, {}},
                             {Kind::kInteger, "image", "224", "height and width of an image in pixels", 32, 4096, {}}},
                 .presets = {{"wresnet-500m", PublishedSize("50", "224", "2")},
                             {"wresnet-1b", PublishedSize("50", "320", "2")},
                             {"wresnet-2b", PublishedSize("50", "448", "2")},
                             {"wresnet-4b", PublishedSize("50", "640", "2")},
                             {"wresnet-6.8b", PublishedSize("50", "320", "16")},
                             {"wresnet-13b", PublishedSize("101", "320", "16")}},
                 .build = Build};
  return *kFamily;
}

}  // namespace tidepool::model
