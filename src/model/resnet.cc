// Residual networks (He et al., Deep Residual Learning for Image Recognition, CVPR 2016), with the stride in the 3x3 convolution
// of a bottleneck and the parameter names of torchvision's checkpoints.
#include <cmath>

#include "model/family.h"
#include "model/graph_builder.h"

namespace tidepool::model {
namespace {

struct Depth {
  int64_t depth;
  bool bottleneck;
  int64_t blocks[4];
};

constexpr Depth kDepths[] = {{18, false, {2, 2, 2, 2}},
                             {34, false, {3, 4, 6, 3}},
                             {50, true, {3, 4, 6, 3}},
                             {101, true, {3, 4, 23, 3}},
                             {152, true, {3, 8, 36, 3}}};

const Depth& DepthOf(int64_t depth) {
  for (const Depth& entry : kDepths) {
    if (entry.depth == depth) return entry;
  }
  TIDEPOOL_CHECK(false, "ResNet depth {} was not checked", depth);
  return kDepths[0];
}

struct BlockOptions {
  int64_t channels = 0;  // inside of the block
  int64_t out_channels = 0;
  int64_t stride = 1;
  bool bottleneck = false;
  bool zero_init = false;  // the last norm begins as zero, so the block as the identity
};

ValueId Block(GraphBuilder& b, const std::string& name, ValueId x, const BlockOptions& options) {
  const bool project = options.stride != 1 || b.shape(x)[1] != options.out_channels;
  ValueId y = x;
  const int last = options.bottleneck ? 3 : 2;
  const auto convolve = [&](int index, const GraphBuilder::Conv2dOptions& conv) {
    y = b.Conv2d(fmt::format("{}.conv{}", name, index), y, conv);
    y = b.BatchNorm2d(fmt::format("{}.bn{}", name, index), y, options.zero_init && index == last ? ZerosInit() : OnesInit());
  };
  const auto relu = [&](int index) { y = b.Relu(fmt::format("{}.relu{}", name, index), y); };
  if (options.bottleneck) {
    convolve(1, {.out_channels = options.channels});
    relu(1);
    convolve(2, {.out_channels = options.channels, .kernel = 3, .stride = options.stride, .padding = 1});
    relu(2);
    convolve(3, {.out_channels = options.out_channels});
  } else {
    convolve(1, {.out_channels = options.channels, .kernel = 3, .stride = options.stride, .padding = 1});
    relu(1);
    convolve(2, {.out_channels = options.out_channels, .kernel = 3, .padding = 1});
  }
  if (project) {
    x = b.Conv2d(name + ".downsample.0", x, {.out_channels = options.out_channels, .stride = options.stride});
    x = b.BatchNorm2d(name + ".downsample.1", x);
  }
  y = b.Add(name + ".add", y, x, PartitionAxis::kChannel);
  return b.Relu(name + ".relu", y);
}

StatusOr<Graph> Build(const Spec& spec) {
  const Depth& depth = DepthOf(IntegerOf(spec, "depth"));
  const int64_t width = IntegerOf(spec, "width");
  const int64_t image = IntegerOf(spec, "image");
  const bool small_stem = BoolOf(spec, "small_stem");
  GraphBuilder b(fmt::format("resnet{}", depth.depth), "resnet", spec.config);

  ValueId x = b.Input("image", DType::kF32, {kBatchDim, 3, image, image});
  if (small_stem) {
    x = b.Conv2d("conv1", x, {.out_channels = width, .kernel = 3, .padding = 1});
  } else {
    x = b.Conv2d("conv1", x, {.out_channels = width, .kernel = 7, .stride = 2, .padding = 3});
  }
  x = b.BatchNorm2d("bn1", x);
  x = b.Relu("relu", x);
  if (!small_stem) x = b.MaxPool2d("maxpool", x, 3, 2, 1);

  for (int stage = 0; stage < 4; ++stage) {
    const int64_t channels = width << stage;
    for (int64_t i = 0; i < depth.blocks[stage]; ++i) {
      x = Block(b, fmt::format("layer{}.{}", stage + 1, i), x,
                {.channels = channels,
                 .out_channels = channels * (depth.bottleneck ? 4 : 1),
                 .stride = stage > 0 && i == 0 ? 2 : 1,
                 .bottleneck = depth.bottleneck,
                 .zero_init = BoolOf(spec, "zero_init_residual")});
    }
  }
  x = b.GlobalAvgPool("avgpool", x);
  x = b.Flatten("flatten", x);
  const Init uniform = UniformInit(1 / std::sqrt(static_cast<double>(b.shape(x)[1])));
  x = b.Linear("fc", x, {.out_features = IntegerOf(spec, "classes"), .weight_init = uniform, .bias_init = uniform});
  b.Rename(x, "logits");
  return b.Finish({x});
}

}  // namespace

const Family& ResNetFamily() {
  using Kind = OptionRule::Kind;
  static const auto* const kFamily = new Family{
      .name = "resnet",
      .help = "Residual networks for images, with torchvision's parameter names",
      .options = {{Kind::kInteger, "depth", "18", "weighted layers", 0, 0, {18, 34, 50, 101, 152}},
                  {Kind::kInteger, "classes", "1000", "width of the classifier", 1, 1 << 20, {}},
                  {Kind::kInteger, "image", "224", "height and width of an image in pixels", 8, 4096, {}},
                  {Kind::kInteger, "width", "64", "channels of the first stage", 1, 4096, {}},
                  {Kind::kBool, "small_stem", "false", "3x3 stem without pooling, for images of some 32 pixels", 0, 0, {}},
                  {Kind::kBool, "zero_init_residual", "false", "blocks begin as the identity: deep ones learn sooner", 0, 0, {}}},
      .presets = {{"resnet18", {{"depth", "18"}}},
                  {"resnet34", {{"depth", "34"}}},
                  {"resnet50", {{"depth", "50"}}},
                  {"resnet101", {{"depth", "101"}}},
                  {"resnet152", {{"depth", "152"}}}},
      .build = Build};
  return *kFamily;
}

}  // namespace tidepool::model
