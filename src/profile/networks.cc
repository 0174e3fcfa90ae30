#include "profile/networks.h"

#include <algorithm>
#include <array>

namespace tidepool::profile {
namespace {

// name, image, parameters, forward FLOPs, of these by Winograd, of these in the first convolution, output elements, layers
constexpr std::array<KnownNetwork, 37> kNetworks = {{
    {"alexnet", 224, 61100840, 1428376960, 1170579456, 140553600, 1098216, 21},
    {"densenet121", 224, 7978856, 5668323328, 2485518336, 236027904, 38561256, 366},
    {"densenet161", 224, 28681000, 15455814144, 6047612928, 354041856, 70363432, 486},
    {"densenet169", 224, 14149480, 6719686656, 2658926592, 236027904, 45648616, 510},
    {"densenet201", 224, 20013928, 8582731776, 2890137600, 236027904, 57565416, 606},
    {"googlenet", 224, 13004888, 3013496832, 2020386816, 236027904, 7887128, 140},
    {"inception_v3", 299, 27161264, 11437798592, 4705923072, 38363328, 18525264, 198},
    {"mnasnet0_5", 224, 2218512, 208911936, 0, 10838016, 8822280, 141},
    {"mnasnet0_75", 224, 3170208, 430986208, 0, 16257024, 13690136, 141},
    {"mnasnet1_0", 224, 4383312, 628831744, 0, 21676032, 15713640, 141},
    {"mnasnet1_3", 224, 6282256, 1052724864, 0, 27095040, 21145192, 141},
    {"mobilenet_v2", 224, 3504872, 601548544, 0, 21676032, 19464296, 141},
    {"mobilenet_v3_large", 224, 5483032, 433179520, 0, 10838016, 12643984, 168},
    {"mobilenet_v3_small", 224, 2542856, 113020800, 0, 10838016, 4106768, 141},
    {"resnet18", 224, 11689512, 3628146688, 3005743104, 236027904, 7477736, 60},
    {"resnet34", 224, 21797672, 7327522816, 6705119232, 236027904, 11240936, 108},
    {"resnet50", 224, 25557032, 8178368512, 3005743104, 236027904, 32040424, 158},
    {"resnet101", 224, 44549160, 15602810880, 6936330240, 236027904, 47394280, 311},
    {"resnet152", 224, 60192808, 23027253248, 10866917376, 236027904, 66360808, 464},
    {"resnext50_32x4d", 224, 25028904, 8460959744, 0, 236027904, 41900008, 158},
    {"resnext101_32x8d", 224, 88791336, 32828030976, 0, 236027904, 92326888, 311},
    {"shufflenet_v2_x0_5", 224, 1366792, 80952896, 0, 16257024, 2945704, 151},
    {"shufflenet_v2_x1_0", 224, 2278604, 289815984, 0, 16257024, 5464696, 151},
    {"shufflenet_v2_x1_5", 224, 3503624, 591518784, 0, 16257024, 7687336, 151},
    {"shufflenet_v2_x2_0", 224, 7393996, 1166506928, 0, 16257024, 10356856, 151},
    {"squeezenet1_0", 224, 1248424, 1637849152, 882929664, 335329344, 9333112, 57},
    {"squeezenet1_1", 224, 1235496, 698303872, 374759424, 42581376, 5596408, 57},
    {"vgg11", 224, 132863336, 15218180096, 14970912768, 173408256, 16433128, 29},
    {"vgg11_bn", 224, 132868840, 15218180096, 14970912768, 173408256, 23859176, 37},
    {"vgg13", 224, 133047848, 22616932352, 22369665024, 173408256, 26066920, 33},
    {"vgg13_bn", 224, 133053736, 22616932352, 22369665024, 173408256, 38309864, 43},
    {"vgg16", 224, 138357544, 30940528640, 30693261312, 173408256, 28676072, 39},
    {"vgg16_bn", 224, 138365992, 30940528640, 30693261312, 173408256, 42223592, 52},
    {"vgg19", 224, 143667240, 39264124928, 39016857600, 173408256, 31285224, 45},
    {"vgg19_bn", 224, 143678248, 39264124928, 39016857600, 173408256, 46137320, 61},
    {"wide_resnet50_2", 224, 68883240, 22796042240, 12022972416, 236027904, 41900008, 158},
    {"wide_resnet101_2", 224, 126886696, 45506101248, 27745320960, 236027904, 62371816, 311},
}};

constexpr double kWinograd = 2.25;

// What the pass does, of layers that need every gradient, and of the first convolution.
struct Passes {
  double all = 0, first = 0;
};
Passes PassesOf(Phase phase) {
  switch (phase) {
    case Phase::kForward: return {1, 1};
    case Phase::kBackward: return {2, 1};
    case Phase::kStep: return {3, 2};
    case Phase::kOptimizer: return {0, 0};
  }
  return {};
}

}  // namespace

std::span<const KnownNetwork> KnownNetworks() { return kNetworks; }

const KnownNetwork* FindNetwork(std::string_view name) {
  const auto found = std::find_if(kNetworks.begin(), kNetworks.end(), [name](const KnownNetwork& n) { return n.name == name; });
  return found == kNetworks.end() ? nullptr : &*found;
}

double FlopsPerSample(const KnownNetwork& network, Phase phase) {
  const Passes passes = PassesOf(phase);
  return passes.all * (network.forward_flops - network.first_conv_flops) + passes.first * network.first_conv_flops;
}

double LeastFlopsPerSample(const KnownNetwork& network, Phase phase) {
  // The first convolution of some of these networks is among the fast ones; counting it as such in each pass errs to the low
  // side.
  return FlopsPerSample(network, phase) - PassesOf(phase).all * network.winograd_flops * (1 - 1 / kWinograd);
}

OpCost CostOf(const KnownNetwork& network, Phase phase, DType dtype) {
  const auto element_bytes = static_cast<double>(SizeOf(dtype));
  const Passes passes = PassesOf(phase);
  OpCost cost;
  cost.flops_per_sample = FlopsPerSample(network, phase);
  cost.bytes_per_sample = 2 * passes.all * network.output_elements * element_bytes;
  cost.launches = std::max(1.0, passes.all * network.layers);
  cost.fixed_bytes = passes.all * network.parameters * element_bytes;
  // SGD with momentum in single precision reads and writes the weight and its momentum, and reads the gradient.
  if (phase == Phase::kStep || phase == Phase::kOptimizer) cost.fixed_bytes += 5 * network.parameters * 4;
  return cost;
}

}  // namespace tidepool::profile
