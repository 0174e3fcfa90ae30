#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "api/api.h"
#include "api/load/load.h"
#include "api/testing/fake_server.h"

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

class LoadRun : public ::testing::Test {
 protected:
  void SetUp() override {
    StatusOr<std::unique_ptr<Api>> api = Api::Start(&server_, {}, {.http_port = -1, .grpc_port = 0, .metrics_port = -1});
    ASSERT_TRUE(api.ok()) << ToString(api.status());
    api_ = *std::move(api);
    options_.target = api_->grpc_target();
    options_.models = {"scale", "tokens", "text"};
    options_.rate = 200;
    options_.length = absl::Seconds(1);
    options_.slo = absl::Seconds(10);
  }
  FakeServer server_;
  std::unique_ptr<Api> api_;
  LoadOptions options_;
};

TEST_F(LoadRun, SendsThePlanAndCountsTheAnswers) {
  int64_t last_total = 0, last_succeeded = 0;
  const StatusOr<LoadResult> result = RunLoad(options_, [&](const LoadProgress& progress) {
    last_total = progress.planned_total;
    EXPECT_GE(progress.succeeded, last_succeeded);
    last_succeeded = progress.succeeded;
  });
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_GT(result->overall.planned, 100);
  EXPECT_EQ(result->overall.succeeded, result->overall.planned);
  EXPECT_EQ(last_total, result->overall.planned);
  EXPECT_EQ(last_succeeded, result->overall.planned);
  EXPECT_EQ(result->samples.size(), static_cast<size_t>(result->overall.planned));
  EXPECT_EQ(result->models.size(), 3u);
  EXPECT_EQ(result->overall.slo_attainment, 1);
  int64_t served = 0;
  for (const serve::ModelStatus& model : server_.Models()) served += model.requests;
  EXPECT_EQ(served, result->overall.planned);
}

TEST_F(LoadRun, CountsErrorsByTheirCode) {
  options_.models = {"full"};
  const StatusOr<LoadResult> result = RunLoad(options_);
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_EQ(result->overall.errors, result->overall.planned);
  EXPECT_EQ(result->overall.errors_by_code.at("RESOURCE_EXHAUSTED"), result->overall.planned);
  EXPECT_THAT(result->overall.example_by_code.at("RESOURCE_EXHAUSTED"), HasSubstr("queue of model 'full'"));
  EXPECT_EQ(result->overall.slo_attainment, 0);
}

TEST_F(LoadRun, DropsWhatIsBeyondTheLimitAndTimesOutTheRest) {
  options_.models = {"held"};
  options_.max_outstanding = 10;
  options_.timeout = absl::Milliseconds(1500);
  options_.length = absl::Milliseconds(500);
  const StatusOr<LoadResult> result = RunLoad(options_);
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_EQ(result->overall.sent, 10);
  EXPECT_EQ(result->overall.errors_by_code.at("DEADLINE_EXCEEDED"), 10);
  EXPECT_EQ(result->overall.dropped, result->overall.planned - 10);
}

TEST_F(LoadRun, CountsLatencyFromThePlannedTime) {
  options_.models = {"held"};
  options_.rate = 100;
  options_.arrivals = Arrivals::kConstant;
  options_.length = absl::Milliseconds(200);
  options_.slo = absl::Nanoseconds(1);
  const absl::Time start = Clock::Real()->Now();
  std::thread releaser([&] {
    EXPECT_TRUE(server_.WaitForHeld(20, kPatience));
    server_.Release();
  });
  const StatusOr<LoadResult> result = RunLoad(options_);
  releaser.join();
  const absl::Duration whole = Clock::Real()->Now() - start;
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  ASSERT_EQ(result->samples.size(), 20u);
  // All were answered at one moment after the last was sent, so the first waited longest: at least until the last one's time.
  EXPECT_GE(result->samples[0].latency, absl::Milliseconds(190));
  EXPECT_LE(result->samples[0].latency, whole);
  EXPECT_EQ(result->overall.within_slo, 0);
}

TEST_F(LoadRun, StopsEarlyAndCountsOnlyWhatWasMeasured) {
  options_.models = {"held"};
  options_.length = absl::Hours(1);
  options_.rate = 100;
  const StatusOr<LoadResult> result = RunLoad(options_, {}, [&] { return server_.WaitForHeld(5, absl::ZeroDuration()); });
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_TRUE(result->stopped);
  EXPECT_EQ(result->overall.planned, 0);
  EXPECT_TRUE(server_.WaitForCancelled(5, kPatience));
}

TEST_F(LoadRun, TakesObjectivesFromTheServerOrMeasuresThem) {
  options_.slo = absl::ZeroDuration();
  options_.models = {"scale", "tokens", "text"};
  server_.SetSlo("scale", absl::Milliseconds(70), absl::Milliseconds(10));
  server_.SetSlo("tokens", absl::ZeroDuration(), absl::Milliseconds(10));
  bool measured = false;
  const StatusOr<LoadResult> result =
      RunLoad(options_, [&](const LoadProgress& progress) { measured |= progress.measuring && progress.model == "text"; });
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_EQ(result->models[0].slo, absl::Milliseconds(70));
  EXPECT_EQ(result->models[0].slo_source, "server");
  EXPECT_EQ(result->models[1].slo, absl::Milliseconds(40));
  EXPECT_EQ(result->models[2].slo_source, "measured");
  EXPECT_EQ(result->models[2].slo, result->models[2].solo * 4);
  EXPECT_GT(result->models[2].solo, absl::ZeroDuration());
  EXPECT_TRUE(measured);
}

TEST_F(LoadRun, AsksEveryServableModelForAll) {
  options_.models = {"all"};
  const StatusOr<LoadResult> result = RunLoad(options_, {}, [] { return true; });
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  std::vector<std::string> names;
  for (const LoadGroup& group : result->models) names.push_back(group.model);
  EXPECT_EQ(names, (std::vector<std::string>{"copy", "full", "half", "held", "scale", "text", "tokens"}));
}

TEST_F(LoadRun, SaysWhatIsMissing) {
  options_.models = {"nothing"};
  EXPECT_THAT(ToString(RunLoad(options_).status()), HasSubstr("NOT_FOUND: metadata of model 'nothing'"));
  options_.target = "127.0.0.1:1";
  options_.connect_limit = absl::Milliseconds(300);
  EXPECT_THAT(ToString(RunLoad(options_).status()), HasSubstr("UNAVAILABLE: cannot reach the gRPC API at '127.0.0.1:1'"));
}

TEST(LoadOptions, ReportsAllFaultsAtOnce) {
  const LoadOptions options{.target = "x",
                            .arrivals = Arrivals::kBursty,
                            .rate = -1,
                            .burst_rate = 0,
                            .zipf = 11,
                            .length = absl::ZeroDuration(),
                            .batch = 0,
                            .max_outstanding = 0};
  const std::string error = ToString(options.Validate());
  for (const char* part :
       {"target is 'x'", "rate is -1", "burst_rate is 0", "zipf is 11", "seconds is", "batch is 0", "max_outstanding is 0"}) {
    EXPECT_THAT(error, HasSubstr(part));
  }
  EXPECT_THAT(ToString(ParseArrivals("sine").status()), HasSubstr("allowed: constant, poisson, bursty, trace"));
}

}  // namespace
}  // namespace tidepool::api
