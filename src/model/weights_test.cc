#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "model/families.h"

namespace tidepool::model {
namespace {

using ::testing::HasSubstr;

std::vector<float> Fill(const Param& param, uint64_t seed, int64_t first, size_t count) {
  std::vector<float> values(count);
  EXPECT_TRUE(FillSeeded(param, seed, first, std::as_writable_bytes(std::span(values))).ok());
  return values;
}

Param Normal(const std::string& name, int64_t elements, double deviation = 1) {
  return {.name = name, .shape = {elements}, .init = {Init::Rule::kNormal, deviation}};
}

uint32_t Bits(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

TEST(SeededWeights, AreTheseBitsOnEveryMachine) {
  const std::vector<float> normal = Fill(Normal("conv1.weight", 4, 0.5), 42, 0, 4);
  const std::vector<float> uniform = Fill({.name = "fc.bias", .shape = {4}, .init = {Init::Rule::kUniform, 0.25}}, 42, 0, 2);
  EXPECT_EQ(StreamKey(42, "conv1.weight"), 0x7cd04a29b7d15f2u);
  EXPECT_EQ(Bits(normal[0]), 0x3f0f4937u);
  EXPECT_EQ(Bits(normal[1]), 0x3f1da2dau);
  EXPECT_EQ(Bits(normal[2]), 0xbec1da24u);
  EXPECT_EQ(Bits(uniform[0]), 0xbe7e327eu);
  EXPECT_EQ(Bits(uniform[1]), 0xbe70c424u);
}

TEST(SeededWeights, DoNotDependOnHowTheTensorIsCut) {
  const Param param = Normal("w", 1000);
  const std::vector<float> whole = Fill(param, 1, 0, 1000);
  for (const int64_t first : {0, 1, 2, 7, 998, 999}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{2}, size_t{3}, size_t{100}}) {
      if (first + static_cast<int64_t>(count) > 1000) continue;
      EXPECT_EQ(Fill(param, 1, first, count),
                std::vector<float>(whole.begin() + first, whole.begin() + first + static_cast<int64_t>(count)));
    }
  }
}

TEST(SeededWeights, DifferBySeedAndByName) {
  EXPECT_NE(Fill(Normal("a", 8), 1, 0, 8), Fill(Normal("a", 8), 2, 0, 8));
  EXPECT_NE(Fill(Normal("a", 8), 1, 0, 8), Fill(Normal("b", 8), 1, 0, 8));
}

TEST(SeededWeights, AreNormallyDistributed) {
  const size_t n = 1'000'000;
  const std::vector<float> values = Fill(Normal("w", n, 2), 3, 0, n);
  double sum = 0, squares = 0, cubes = 0, fourths = 0;
  size_t beyond = 0;
  for (const float value : values) {
    const double x = value / 2.0;
    sum += x;
    squares += x * x;
    cubes += x * x * x;
    fourths += x * x * x * x;
    beyond += std::abs(x) > 3;
  }
  // Five standard errors of each moment.
  EXPECT_NEAR(sum / n, 0, 5e-3);
  EXPECT_NEAR(squares / n, 1, 7.1e-3);
  EXPECT_NEAR(cubes / n, 0, 2e-2);
  EXPECT_NEAR(fourths / n, 3, 5e-2);
  EXPECT_NEAR(static_cast<double>(beyond), 2700, 260);
}

TEST(SeededWeights, FollowBoxAndMullersFormulaClosely) {
  const uint64_t key = StreamKey(9, "w");
  for (uint64_t pair = 0; pair < 100'000; ++pair) {
    const double u = UniformAt(key, 2 * pair) + 0x1p-53;
    const double v = UniformAt(key, 2 * pair + 1);
    const double radius = std::sqrt(-2 * std::log(u));
    ASSERT_NEAR(NormalAt(key, 2 * pair), radius * std::cos(2 * M_PI * v), 1e-12) << pair;
    ASSERT_NEAR(NormalAt(key, 2 * pair + 1), radius * std::sin(2 * M_PI * v), 1e-12) << pair;
  }
}

TEST(SeededWeights, StayWithinTheHalfWidthIfUniform) {
  const std::vector<float> values = Fill({.name = "w", .shape = {100'000}, .init = {Init::Rule::kUniform, 0.5}}, 3, 0, 100'000);
  double sum = 0;
  for (const float value : values) {
    ASSERT_GE(value, -0.5f);
    ASSERT_LE(value, 0.5f);
    sum += value;
  }
  EXPECT_NEAR(sum / 1e5, 0, 5e-3);
}

TEST(SeededWeights, StartNormsAndCountersAsTheyMust) {
  const Graph graph = *BuildGraph("resnet18:width=2,image=8");
  const auto first = [&](const std::string& name) { return Fill(graph.params[*graph.FindParam(name)], 5, 0, 2); };
  EXPECT_EQ(first("bn1.weight"), (std::vector<float>{1, 1}));
  EXPECT_EQ(first("bn1.bias"), (std::vector<float>{0, 0}));
  EXPECT_EQ(first("bn1.running_mean"), (std::vector<float>{0, 0}));
  EXPECT_EQ(first("bn1.running_var"), (std::vector<float>{1, 1}));
  int64_t counter = 7;
  ASSERT_TRUE(
      FillSeeded(graph.params[*graph.FindParam("bn1.num_batches_tracked")], 5, 0, std::as_writable_bytes(std::span(&counter, 1)))
          .ok());
  EXPECT_EQ(counter, 0);
}

TEST(SeededWeights, RefuseTypesThatHaveNoRandomNumbers) {
  std::vector<std::byte> bytes(8);
  const Param param{.name = "w", .dtype = DType::kI64, .shape = {1}, .init = {Init::Rule::kNormal, 1}};
  EXPECT_THAT(MessageOf(FillSeeded(param, 0, 0, bytes)),
              HasSubstr("parameter 'w' of type I64 cannot start at random; allowed: F32"));
  const Param ones{.name = "w", .dtype = DType::kF16, .shape = {4}, .init = {Init::Rule::kOnes, 0}};
  EXPECT_THAT(MessageOf(FillSeeded(ones, 0, 0, bytes)), HasSubstr("parameter 'w' of type F16 cannot start as ones"));
}

}  // namespace
}  // namespace tidepool::model
