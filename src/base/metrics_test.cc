#include "base/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "base/testing.h"

namespace tidepool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Metrics, RenderCountersGaugesAndHistograms) {
  Metrics& metrics = Metrics::Default();
  metrics.Counter("tidepool_test_requests_total", "Requests by outcome", {{"outcome", "ok"}}).Increment(3);
  metrics.Gauge("tidepool_test_memory_bytes", "Memory", {{"kind", "free"}}).Set(4096);
  metrics.Histogram("tidepool_test_queue_seconds", "Time in the queue", {{"model", "a\"b\\"}}).Observe(0.02);
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("# TYPE tidepool_test_requests_total counter\ntidepool_test_requests_total{outcome=\"ok\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("tidepool_test_memory_bytes{kind=\"free\"} 4096\n"));
  EXPECT_THAT(text, HasSubstr("tidepool_test_queue_seconds_count{model=\"a\\\"b\\\\\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("le=\"0.025\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("le=\"0.01\"} 0\n"));
}

TEST(Metrics, OfOneNameAndLabelsAreOneObject) {
  Metrics& metrics = Metrics::Default();
  EXPECT_EQ(&metrics.Counter("tidepool_test_same_total", "Same", {{"a", "1"}}),
            &metrics.Counter("tidepool_test_same_total", "Same", {{"a", "1"}}));
  EXPECT_NE(&metrics.Counter("tidepool_test_same_total", "Same", {{"a", "1"}}),
            &metrics.Counter("tidepool_test_same_total", "Same", {{"a", "2"}}));
}

TEST(Metrics, AskCollectorsUntilTheirHandleIsGone) {
  Metrics& metrics = Metrics::Default();
  int asked = 0;
  auto handle = metrics.AddCollector([&] { metrics.Gauge("tidepool_test_asked", "Asked").Set(++asked); });
  EXPECT_THAT(metrics.Render(), HasSubstr("tidepool_test_asked 1\n"));
  EXPECT_THAT(metrics.Render(), HasSubstr("tidepool_test_asked 2\n"));
  handle.reset();
  metrics.Render();
  EXPECT_EQ(asked, 2);
}

TEST(Metrics, NeverCallACollectorAfterItsHandleIsGone) {
  Metrics& metrics = Metrics::Default();
  std::atomic<bool> stop = false;
  std::thread renderer([&] {
    while (!stop) metrics.Render();
  });
  for (int i = 0; i < 200; ++i) {
    std::atomic<bool> alive = true;
    auto handle = metrics.AddCollector([&] { EXPECT_TRUE(alive); });
    handle.reset();
    alive = false;
  }
  stop = true;
  renderer.join();
}

TEST(MetricsDeathTest, RefuseAWrongName) { EXPECT_DEATH(Metrics::Default().Counter("9 lives", "Wrong"), "metric '9 lives'"); }

TEST(Metrics, PassPromtool) {
  if (std::system("command -v promtool > /dev/null 2>&1") != 0) GTEST_SKIP() << "promtool is not installed";
  testing::TempDir directory;
  Metrics& metrics = Metrics::Default();
  metrics.Counter("tidepool_test_requests_total", "Requests by outcome", {{"outcome", "ok"}}).Increment();
  metrics.Histogram("tidepool_test_queue_seconds", "Time in the queue", {{"model", "m"}}).Observe(1);
  const std::string path = directory.Write("metrics", metrics.Render());
  EXPECT_EQ(std::system(("promtool check metrics < " + path).c_str()), 0);
}

}  // namespace
}  // namespace tidepool
