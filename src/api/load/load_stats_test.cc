#include "api/load/load_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;

TEST(LoadStats, TakesExactOrderStatistics) {
  std::vector<absl::Duration> values;
  for (int i = 1000; i >= 1; --i) values.push_back(absl::Milliseconds(i));
  const LatencySummary summary = Summarize(values);
  EXPECT_EQ(summary.count, 1000);
  EXPECT_EQ(summary.mean, absl::Microseconds(500500));
  EXPECT_EQ(summary.p50, absl::Milliseconds(500));
  EXPECT_EQ(summary.p90, absl::Milliseconds(900));
  EXPECT_EQ(summary.p99, absl::Milliseconds(990));
  EXPECT_EQ(summary.p999, absl::Milliseconds(999));
  EXPECT_EQ(summary.max, absl::Milliseconds(1000));
  EXPECT_EQ(Summarize({}).count, 0);
  EXPECT_EQ(Summarize({absl::Seconds(1)}).p999, absl::Seconds(1));
}

LoadResult Result() {
  LoadResult result;
  result.models = {{.model = "a", .slo = absl::Milliseconds(10)}, {.model = "b", .slo = absl::Milliseconds(100)}};
  result.samples = {
      {.planned = absl::Milliseconds(100), .latency = absl::Milliseconds(5), .model = 0},
      {.planned = absl::Milliseconds(200), .latency = absl::Milliseconds(11), .model = 0},
      {.planned = absl::Milliseconds(900), .latency = absl::Milliseconds(1), .model = 0, .code = StatusCode::kResourceExhausted},
      {.planned = absl::Milliseconds(2100), .latency = absl::Milliseconds(100), .model = 1},
      {.planned = absl::Milliseconds(2200), .model = 1, .code = StatusCode::kResourceExhausted, .dropped = true},
  };
  Aggregate(&result);
  return result;
}

TEST(LoadStats, CountsEveryRequestOnce) {
  const LoadResult result = Result();
  EXPECT_EQ(result.overall.planned, 5);
  EXPECT_EQ(result.overall.sent, 4);
  EXPECT_EQ(result.overall.succeeded, 3);
  EXPECT_EQ(result.overall.errors, 1);
  EXPECT_EQ(result.overall.dropped, 1);
  EXPECT_EQ(result.overall.errors_by_code.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_EQ(result.models[0].planned, 3);
  EXPECT_EQ(result.models[1].dropped, 1);
  EXPECT_EQ(result.overall.latency.count, 3);
  EXPECT_EQ(result.overall.latency.max, absl::Milliseconds(100));
}

TEST(LoadStats, CountsFailedAndDroppedRequestsAsOutsideTheObjective) {
  const LoadResult result = Result();
  EXPECT_EQ(result.models[0].within_slo, 1);
  EXPECT_DOUBLE_EQ(result.models[0].slo_attainment, 1.0 / 3);
  EXPECT_DOUBLE_EQ(result.models[1].slo_attainment, 0.5);
  EXPECT_DOUBLE_EQ(result.overall.slo_attainment, 0.4);
}

TEST(LoadStats, FillsSecondsInWhichNothingWasPlanned) {
  const LoadResult result = Result();
  ASSERT_EQ(result.seconds.size(), 3u);
  EXPECT_EQ(result.seconds[0].planned, 3);
  EXPECT_EQ(result.seconds[0].errors, 1);
  EXPECT_EQ(result.seconds[1].planned, 0);
  EXPECT_EQ(result.seconds[2].dropped, 1);
  EXPECT_EQ(result.seconds[2].p50, absl::Milliseconds(100));
}

TEST(LoadStats, PrintsAnEmptyResultToo) {
  LoadResult result;
  Aggregate(&result);
  EXPECT_EQ(result.overall.slo_attainment, 0);
  EXPECT_THAT(ToText(result), HasSubstr("model"));
  EXPECT_TRUE(nlohmann::json::parse(ToJson({}, result)).is_object());
}

TEST(LoadStats, PrintsFiguresAsJsonAndAsText) {
  const LoadResult result = Result();
  const auto json = nlohmann::json::parse(ToJson({}, result, /*with_samples=*/true));
  EXPECT_EQ(json["overall"]["requests"], 5);
  EXPECT_EQ(json["models"][0]["slo_ms"], 10);
  EXPECT_EQ(json["overall"]["errors_by_code"]["RESOURCE_EXHAUSTED"]["count"], 1);
  EXPECT_EQ(json["samples"][4][3], "DROPPED");
  EXPECT_THAT(ToText(result), HasSubstr("1 x RESOURCE_EXHAUSTED"));
}

}  // namespace
}  // namespace tidepool::api
