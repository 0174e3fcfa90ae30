#include "api/load/load_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kModels = {"a", "b", "c", "d"};

std::vector<PlannedRequest> Plan(const LoadOptions& options) {
  StatusOr<std::vector<PlannedRequest>> plan = MakePlan(options, kModels);
  EXPECT_TRUE(plan.ok()) << ToString(plan.status());
  return plan.ok() ? *std::move(plan) : std::vector<PlannedRequest>();
}

std::vector<double> Gaps(const std::vector<PlannedRequest>& plan) {
  std::vector<double> gaps;
  for (size_t i = 1; i < plan.size(); ++i) gaps.push_back(absl::ToDoubleSeconds(plan[i].at - plan[i - 1].at));
  return gaps;
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double VarianceOverSquaredMean(const std::vector<double>& values) {
  const double mean = Mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return sum / static_cast<double>(values.size()) / (mean * mean);
}

// Requests in windows of one second: variance over mean is 1 for a Poisson process and above it for a bursty one.
double IndexOfDispersion(const std::vector<PlannedRequest>& plan, absl::Duration length) {
  std::vector<double> counts(static_cast<size_t>(absl::ToInt64Seconds(length)));
  for (const PlannedRequest& request : plan) ++counts[static_cast<size_t>(absl::ToInt64Seconds(request.at))];
  return VarianceOverSquaredMean(counts) * Mean(counts);
}

TEST(LoadPlan, IsTheSameForTheSameSeedAndAnotherForAnother) {
  LoadOptions options{.arrivals = Arrivals::kBursty, .rate = 50, .burst_rate = 200, .length = absl::Seconds(20), .seed = 5};
  const auto first = Plan(options), again = Plan(options);
  ASSERT_EQ(first.size(), again.size());
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].at, again[i].at);
    EXPECT_EQ(first[i].model, again[i].model);
  }
  options.seed = 6;
  EXPECT_NE(Plan(options)[0].at, first[0].at);
}

TEST(LoadPlan, IsSortedAndWithinItsLength) {
  for (const Arrivals arrivals : {Arrivals::kConstant, Arrivals::kPoisson, Arrivals::kBursty}) {
    const auto plan = Plan({.arrivals = arrivals, .rate = 100, .burst_rate = 500, .length = absl::Seconds(30)});
    ASSERT_FALSE(plan.empty());
    absl::Duration last;
    for (const PlannedRequest& request : plan) {
      EXPECT_GE(request.at, last);
      last = request.at;
    }
    EXPECT_LT(last, absl::Seconds(30));
  }
}

TEST(LoadPlan, SpacesConstantArrivalsEvenly) {
  const auto plan = Plan({.arrivals = Arrivals::kConstant, .rate = 8, .length = absl::Seconds(2)});
  ASSERT_EQ(plan.size(), 16u);
  for (size_t i = 0; i < plan.size(); ++i) EXPECT_EQ(plan[i].at, absl::Milliseconds(125) * i);
}

TEST(LoadPlan, DrawsPoissonArrivalsWithExponentialGaps) {
  const auto plan = Plan({.arrivals = Arrivals::kPoisson, .rate = 100, .length = absl::Seconds(1000)});
  // 100,000 expected: five standard deviations are 1.6 %.
  EXPECT_NEAR(static_cast<double>(plan.size()), 1e5, 1600);
  const std::vector<double> gaps = Gaps(plan);
  EXPECT_NEAR(Mean(gaps), 0.01, 0.0002);
  EXPECT_NEAR(VarianceOverSquaredMean(gaps), 1, 0.05);
  EXPECT_NEAR(IndexOfDispersion(plan, absl::Seconds(1000)), 1, 0.25);
  // An exponential gap is above its mean with probability 1/e.
  int above = 0;
  for (const double gap : gaps) above += gap > 0.01 ? 1 : 0;
  EXPECT_NEAR(above / static_cast<double>(gaps.size()), std::exp(-1), 0.01);
}

TEST(LoadPlan, AlternatesBetweenCalmAndBurst) {
  const LoadOptions options{.arrivals = Arrivals::kBursty,
                            .rate = 10,
                            .burst_rate = 200,
                            .calm_length = absl::Seconds(4),
                            .burst_length = absl::Seconds(1),
                            .length = absl::Seconds(5000)};
  const auto plan = Plan(options);
  // Four fifths of the time at 10/s and one fifth at 200/s: 48/s on average, with about 1,000 changes.
  EXPECT_NEAR(static_cast<double>(plan.size()) / 5000, 48, 6);
  EXPECT_GT(IndexOfDispersion(plan, options.length), 20);
}

TEST(LoadPlan, IsSilentBetweenBurstsAtRateZero) {
  const auto plan = Plan({.arrivals = Arrivals::kBursty,
                          .rate = 0,
                          .burst_rate = 100,
                          .calm_length = absl::Seconds(5),
                          .burst_length = absl::Seconds(1),
                          .length = absl::Seconds(200)});
  ASSERT_FALSE(plan.empty());
  const std::vector<double> gaps = Gaps(plan);
  EXPECT_GT(*std::max_element(gaps.begin(), gaps.end()), 1);
}

TEST(LoadPlan, SharesTheModelsByZipf) {
  const std::vector<double> shares = ZipfShares(4, 1);
  EXPECT_NEAR(shares[0], 0.48, 1e-9);
  EXPECT_NEAR(shares[3], 0.12, 1e-9);
  const auto plan = Plan({.arrivals = Arrivals::kPoisson, .rate = 1000, .zipf = 1, .length = absl::Seconds(100)});
  std::vector<double> counts(4);
  for (const PlannedRequest& request : plan) ++counts[request.model];
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(counts[i] / static_cast<double>(plan.size()), shares[i], 0.01);
  for (const double share : ZipfShares(4, 0)) EXPECT_EQ(share, 0.25);
}

TEST(LoadPlan, RefusesAPlanThatIsTooLarge) {
  const StatusOr<std::vector<PlannedRequest>> plan =
      MakePlan({.arrivals = Arrivals::kPoisson, .rate = 1e6, .length = absl::Hours(1)}, kModels);
  EXPECT_THAT(ToString(plan.status()), HasSubstr("allowed: 5000000"));
}

TEST(LoadTrace, ReadsRowsInAnyOrder) {
  const auto plan = ParseTrace("seconds,model\n# comment\n1.5, b\r\n\n0.25,a\n99,c\n", kModels, absl::Seconds(10));
  ASSERT_TRUE(plan.ok()) << ToString(plan.status());
  ASSERT_EQ(plan->size(), 2u);
  EXPECT_EQ((*plan)[0].at, absl::Milliseconds(250));
  EXPECT_EQ((*plan)[0].model, 0u);
  EXPECT_EQ((*plan)[1].model, 1u);
}

TEST(LoadTrace, NamesTheLineThatIsWrong) {
  const auto error = [](const char* text) { return ToString(ParseTrace(text, kModels, absl::Seconds(10)).status()); };
  EXPECT_THAT(error("1,a\nx,b\n"), HasSubstr("line 2: 'x' is not a time in seconds"));
  EXPECT_THAT(error("1,a\n-1,b\n"), HasSubstr("line 2: '-1' is not a time"));
  EXPECT_THAT(error("1,a\nnan,b\n"), HasSubstr("line 2: 'nan' is not a time"));
  EXPECT_THAT(error("1,z\n"), HasSubstr("line 1: model 'z' is not part of the load; allowed: a, b, c, d"));
  EXPECT_THAT(error("1\n"), HasSubstr("line 1: '1' has no comma"));
}

TEST(LoadTrace, IsReadFromItsFile) {
  const std::string path = ::testing::TempDir() + "/trace.csv";
  std::ofstream(path) << "0.5,d\n";
  const auto plan = Plan({.arrivals = Arrivals::kTrace, .trace_file = path, .length = absl::Seconds(1)});
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].model, 3u);
  const LoadOptions missing{.arrivals = Arrivals::kTrace, .trace_file = "/nowhere/trace.csv"};
  EXPECT_EQ(MakePlan(missing, kModels).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace tidepool::api
