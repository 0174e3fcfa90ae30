#include "device/emulated/utilisation.h"

#include <gtest/gtest.h>

namespace tidepool::device::emulated {
namespace {

TEST(Utilisation, OfADeviceThatNeverWaitedIsFull) {
  UtilisationMeter meter;
  EXPECT_EQ(meter.score(), 1);
  meter.AddBusy(0, 100);
  meter.AddBusy(100, 250);
  EXPECT_EQ(meter.score(), 1);
  EXPECT_EQ(meter.busy_ns(), 250);
}

TEST(Utilisation, IdleTimeWithoutWaitingForDataIsTheHosts) {
  UtilisationMeter meter;
  for (int64_t step = 0; step < 1000; ++step) meter.AddBusy(step * 320'000, step * 320'000 + 300'000);
  EXPECT_EQ(meter.score(), 1);
  EXPECT_EQ(meter.host_idle_ns(), 999 * 20'000);
  EXPECT_EQ(meter.storage_idle_ns(), 0);
}

TEST(Utilisation, OnlyWaitingWhileTheDeviceStandsStillCounts) {
  UtilisationMeter meter;
  meter.AddBusy(0, 100);
  meter.AddDataWait(50, 180);  // the device was busy until 100
  meter.AddBusy(200, 300);     // 20 of host code
  EXPECT_EQ(meter.storage_idle_ns(), 80);
  EXPECT_EQ(meter.host_idle_ns(), 20);
  meter.AddDataWait(210, 260);  // hidden behind the device's work
  meter.AddBusy(300, 400);
  EXPECT_EQ(meter.storage_idle_ns(), 80);
  EXPECT_DOUBLE_EQ(meter.score(), 300.0 / 380);
}

TEST(Utilisation, OverlappingWaitsOfSeveralThreadsCountOnce) {
  UtilisationMeter meter;
  meter.AddBusy(0, 10);
  meter.AddDataWait(10, 50);
  meter.AddDataWait(20, 60);
  meter.AddDataWait(55, 58);
  meter.AddDataWait(90, 90);
  meter.AddBusy(100, 110);
  EXPECT_EQ(meter.storage_idle_ns(), 50);
  EXPECT_EQ(meter.host_idle_ns(), 40);
}

TEST(Utilisation, OverlappingOperationsCountOnce) {
  UtilisationMeter meter;
  meter.AddBusy(0, 100);
  meter.AddBusy(50, 150);
  meter.AddBusy(20, 140);
  EXPECT_EQ(meter.busy_ns(), 150);
}

}  // namespace
}  // namespace tidepool::device::emulated
