// What the metrics and the page for people say of one device and of several.
#include "api/metrics_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/front_end.h"
#include "api/status_page.h"
#include "api/testing/fake_server.h"
#include "device/device.h"

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class MetricsExport : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 2; ++i) {
      auto device = device::OpenDevice({.capacity_bytes = (i + 1) << 20, .page_bytes = 64 << 10});
      ASSERT_TRUE(device.ok()) << ToString(device.status());
      devices_.push_back(*std::move(device));
      auto broker = pool::Broker::Start(devices_.back().get(), {});
      ASSERT_TRUE(broker.ok()) << ToString(broker.status());
      brokers_.push_back(*std::move(broker));
    }
  }
  FakeServer server_;
  std::vector<std::unique_ptr<device::Device>> devices_;
  std::vector<std::unique_ptr<pool::Broker>> brokers_;
};

TEST_F(MetricsExport, OneDeviceHasNoLabel) {
  const std::string text = RenderMetrics(&server_, {brokers_[0].get()}, {});
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_capacity_pages 16\n"));
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_pages{state=\"free\"} 16\n"));
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_violations_total 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("device=")));
  EXPECT_THAT(text, Not(HasSubstr("tidepool_model_devices")));
}

TEST_F(MetricsExport, EachOfSeveralDevicesHasOne) {
  const std::string text = RenderMetrics(&server_, {brokers_[0].get(), brokers_[1].get()}, {});
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_capacity_pages{device=\"0\"} 16\n"));
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_capacity_pages{device=\"1\"} 32\n"));
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_pages{state=\"free\",device=\"1\"} 32\n"));
  EXPECT_THAT(text, HasSubstr("\ntidepool_pool_violations_total{device=\"1\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\ntidepool_model_devices{model=\"scale\"} 0\n"));
  const std::string family = "# TYPE tidepool_pool_capacity_pages gauge\n";
  ASSERT_THAT(text, HasSubstr(family));
  EXPECT_EQ(text.find(family), text.rfind(family)) << "a family stands once, with the values of all devices";
}

TEST_F(MetricsExport, WithoutAPoolSaysNothingOfOne) {
  EXPECT_THAT(RenderMetrics(&server_, {}, {}), Not(HasSubstr("tidepool_pool")));
}

TEST_F(MetricsExport, ThePageForPeopleHasATablePerDevice) {
  FrontEnd one(&server_, {brokers_[0].get()}, {});
  EXPECT_THAT(RenderStatusPage(&one), HasSubstr("<h2>Device memory</h2>\n<p>1.00 MiB in all"));
  FrontEnd two(&server_, {brokers_[0].get(), brokers_[1].get()}, {});
  const std::string page = RenderStatusPage(&two);
  EXPECT_THAT(page, HasSubstr("<h2>Memory of device 0</h2>\n<p>1.00 MiB in all"));
  EXPECT_THAT(page, HasSubstr("<h2>Memory of device 1</h2>\n<p>2.00 MiB in all"));
}

}  // namespace
}  // namespace tidepool::api
