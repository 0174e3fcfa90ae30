#include "device/capi/tidepool_device.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static int failures = 0;

#define EXPECT(condition)                                                                                  \
  do {                                                                                                     \
    if (!(condition)) {                                                                                    \
      ++failures;                                                                                          \
      printf("%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, tidepool_last_error()); \
    }                                                                                                      \
  } while (0)
#define EXPECT_ERROR(call, code, text)                    \
  do {                                                    \
    EXPECT((call) == (code));                             \
    EXPECT(strstr(tidepool_last_error(), text) != NULL);  \
  } while (0)

static double Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void OpensOnlyWhatItCanPace(void) {
  tidepool_device* device = NULL;
  EXPECT_ERROR(tidepool_device_open("host", &device), 3, "host");
  EXPECT(device == NULL);
  EXPECT_ERROR(tidepool_device_open("emulated:h200x8", &device), 3, "8 devices");
  EXPECT_ERROR(tidepool_device_open("emulated:h200,clock=virtual", &device), 3, "virtual");
  EXPECT_ERROR(tidepool_device_open("emulated:h2000", &device), 5, "h2000");
  EXPECT_ERROR(tidepool_device_open("emulated:h200,speed=9", &device), 3, "speed");
  EXPECT_ERROR(tidepool_device_open(NULL, &device), 3, "null");
  EXPECT_ERROR(tidepool_device_open("emulated:h200", NULL), 3, "null");
  EXPECT_ERROR(tidepool_launch_us(NULL, 1, NULL), 3, "null");
  tidepool_device_close(NULL);
}

static void TakesTheTimeOfTheProfile(tidepool_device* device) {
  tidepool_report before, after;
  EXPECT(tidepool_device_report(device, &before) == 0);
  const double begin = Now();
  int64_t ticket = 0;
  for (int i = 0; i < 100; ++i) EXPECT(tidepool_launch_us(device, 1000, i == 99 ? &ticket : NULL) == 0);
  EXPECT(tidepool_wait(device, ticket, 60) == 0);
  EXPECT(Now() - begin >= 0.0999);  // never earlier; how much later is this machine's business
  EXPECT_ERROR(tidepool_wait(device, ticket, 60), 5, "ticket");
  EXPECT(tidepool_device_report(device, &after) == 0);
  const double busy = after.compute_busy_seconds - before.compute_busy_seconds;
  EXPECT(busy > 0.0999999 && busy < 0.1000001);
  EXPECT(after.operations - before.operations >= 100);
  // A whole network, from the hardware's rates: estimated.
  EXPECT(tidepool_launch(device, "resnet50", TIDEPOOL_STEP, 64, &ticket) == 0);
  EXPECT(tidepool_wait(device, ticket, 60) == 0);
  EXPECT(tidepool_device_report(device, &before) == 0);
  EXPECT(before.compute_busy_seconds > after.compute_busy_seconds);
  EXPECT(before.estimated_operations > after.estimated_operations);
  EXPECT_ERROR(tidepool_launch(device, "no such network", TIDEPOOL_STEP, 64, &ticket), 5, "no such network");
}

static void ArithmeticWaitsForItsBatch(tidepool_device* device) {
  tidepool_report before, after;
  EXPECT(tidepool_device_report(device, &before) == 0);
  int64_t ticket = 0;
  // 157.5 MB over a link of at most 15.75 GB/s: 10 ms or more; then a step.
  EXPECT(tidepool_copy(device, TIDEPOOL_HOST_TO_DEVICE, 157500000, 1, NULL) == 0);
  EXPECT(tidepool_launch_us(device, 2000, &ticket) == 0);
  const double begin = Now();
  EXPECT(tidepool_wait(device, ticket, 60) == 0);
  EXPECT(Now() - begin >= 0.009);
  EXPECT(tidepool_copy(device, TIDEPOOL_DEVICE_TO_HOST, 1000000, 0, &ticket) == 0);
  EXPECT(tidepool_synchronize(device, 60) == 0);
  EXPECT(tidepool_wait(device, ticket, 0) == 0);
  EXPECT(tidepool_device_report(device, &after) == 0);
  EXPECT(after.copy_busy_seconds - before.copy_busy_seconds >= 0.01);
}

static void TellsWhatIsWrong(tidepool_device* device) {
  int64_t ticket = 0;
  EXPECT_ERROR(tidepool_launch_us(device, 0, &ticket), 3, "0 us");
  EXPECT_ERROR(tidepool_launch_us(device, -1.0 / 0.0 * 0, &ticket), 3, "us");
  EXPECT_ERROR(tidepool_launch(device, "resnet50", 9, 1, &ticket), 3, "phase 9");
  EXPECT_ERROR(tidepool_launch(device, "resnet50", 0, 0, &ticket), 3, "batch 0");
  EXPECT_ERROR(tidepool_launch(device, NULL, 0, 1, &ticket), 3, "null");
  EXPECT_ERROR(tidepool_copy(device, 7, 1, 1, &ticket), 3, "direction 7");
  EXPECT_ERROR(tidepool_copy(device, 0, 0, 1, &ticket), 3, "0 bytes");
  EXPECT_ERROR(tidepool_wait(device, 123456, 1), 5, "123456");
  EXPECT(tidepool_launch_us(device, 200000, &ticket) == 0);
  EXPECT_ERROR(tidepool_wait(device, ticket, 0), 4, "");
  EXPECT_ERROR(tidepool_wait(device, ticket, -1), 3, "timeout");
  EXPECT(tidepool_wait(device, ticket, 60) == 0);
  EXPECT_ERROR(tidepool_data_wait_end(device), 9, "no wait");
  EXPECT(tidepool_data_wait_begin(device) == 0);
  EXPECT_ERROR(tidepool_data_wait_begin(device), 9, "begun already");
  EXPECT(tidepool_data_wait_end(device) == 0);
  EXPECT_ERROR(tidepool_device_report(device, NULL), 3, "null");
}

static void ChargesWaitingForData(tidepool_device* device) {
  tidepool_report before, after;
  int64_t ticket = 0;
  EXPECT(tidepool_launch_us(device, 1000, &ticket) == 0);
  EXPECT(tidepool_wait(device, ticket, 60) == 0);
  EXPECT(tidepool_device_report(device, &before) == 0);
  EXPECT(tidepool_data_wait_begin(device) == 0);
  const struct timespec pause = {.tv_sec = 0, .tv_nsec = 50 * 1000 * 1000};
  nanosleep(&pause, NULL);
  EXPECT(tidepool_data_wait_end(device) == 0);
  EXPECT(tidepool_launch_us(device, 1000, &ticket) == 0);
  EXPECT(tidepool_wait(device, ticket, 60) == 0);
  EXPECT(tidepool_device_report(device, &after) == 0);
  EXPECT(after.data_wait_seconds - before.data_wait_seconds >= 0.045);
  EXPECT(after.utilisation < 1);
}

int main(void) {
  OpensOnlyWhatItCanPace();
  tidepool_device* device = NULL;
  EXPECT(tidepool_device_open("emulated:v100", &device) == 0);
  if (device == NULL) return 1;
  TakesTheTimeOfTheProfile(device);
  ArithmeticWaitsForItsBatch(device);
  TellsWhatIsWrong(device);
  ChargesWaitingForData(device);
  tidepool_device_close(device);
  if (failures == 0) printf("all passed\n");
  return failures == 0 ? 0 : 1;
}
