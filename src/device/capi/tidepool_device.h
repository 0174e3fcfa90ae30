/* C API of emulated devices: lets any program run at the pace of a GPU that is not there.
 *
 * A program queues what its accelerator would do (steps, copies) and waits for it; the calls return when an accelerator with the
 * profile's speed would be done. Time stands on the device's own timeline: being late once does not add up. python/tidepool holds
 * a module over this API, python/examples a PyTorch loader paced by it, docs/device.md the meaning of device names.
 *
 * Every function may be called by any thread. Functions that return int give 0, or an error: 1 cancelled, 3 invalid argument,
 * 4 deadline exceeded, 5 not found, 8 resource exhausted, 9 failed precondition, 12 unimplemented, 13 internal (the numbers of
 * gRPC). tidepool_last_error then says what happened.
 */
#ifndef TIDEPOOL_DEVICE_H
#define TIDEPOOL_DEVICE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TIDEPOOL_API __attribute__((visibility("default")))
#else
#define TIDEPOOL_API
#endif

typedef struct tidepool_device tidepool_device;

/* Of the calling thread's last call that failed; valid until its next call. Never null. */
TIDEPOOL_API const char* tidepool_last_error(void);

/* `name` as everywhere in Tidepool: "emulated:h200", "emulated:v100,seed=3", "emulated:./my/bundle". One device; its results are
 * only timed. The caller closes it with tidepool_device_close, which waits for nothing. */
TIDEPOOL_API int tidepool_device_open(const char* name, tidepool_device** device);
TIDEPOOL_API void tidepool_device_close(tidepool_device* device);

enum { TIDEPOOL_FORWARD = 0, TIDEPOOL_BACKWARD = 1, TIDEPOOL_STEP = 2, TIDEPOOL_OPTIMIZER = 3 };
enum { TIDEPOOL_HOST_TO_DEVICE = 0, TIDEPOOL_DEVICE_TO_HOST = 1 };

/* Queues arithmetic behind what was queued before. `ticket` (may be null) is what tidepool_wait takes. RESOURCE_EXHAUSTED if
 * more is queued than the device holds (1024). */
/* ... a phase of a network by its name in the profile ("resnet50"): NOT_FOUND if the profile cannot tell its time. Times that
 * nobody measured come from the hardware's rates and count as estimated in the report. */
TIDEPOOL_API int tidepool_launch(tidepool_device* device, const char* model, int phase, int64_t batch, int64_t* ticket);
/* ... that takes `microseconds` (0.1 to 60,000,000; rounded to 0.1), whatever the profile says. At most 65,536 different ones. */
TIDEPOOL_API int tidepool_launch_us(tidepool_device* device, double microseconds, int64_t* ticket);
/* Queues a copy between the host and the device, which runs beside arithmetic. Arithmetic that is queued later waits for copies
 * to the device that were queued before it, as a program does that needs its batch. Moves nothing. */
TIDEPOOL_API int tidepool_copy(tidepool_device* device, int direction, int64_t bytes, int pinned, int64_t* ticket);

/* Returns when what the ticket stands for would be done. DEADLINE_EXCEEDED after `timeout_seconds`; NOT_FOUND for a ticket that
 * was waited for already or never given. */
TIDEPOOL_API int tidepool_wait(tidepool_device* device, int64_t ticket, double timeout_seconds);
/* Waits for everything that was queued so far. */
TIDEPOOL_API int tidepool_synchronize(tidepool_device* device, double timeout_seconds);

/* Around the time in which the program waits for its next batch, so that the report can tell waiting for data from the host's own
 * overhead. Of one thread. */
TIDEPOOL_API int tidepool_data_wait_begin(tidepool_device* device);
TIDEPOOL_API int tidepool_data_wait_end(tidepool_device* device);

typedef struct tidepool_report {
  double elapsed_seconds;                                   /* since the device was opened */
  double compute_busy_seconds;                              /* arithmetic */
  double copy_busy_seconds;                                 /* both directions together */
  double data_wait_seconds;                                 /* between operations, while the program waited for data */
  double host_idle_seconds;                                 /* between operations, otherwise */
  double utilisation;                                       /* busy / (busy + data wait) */
  double lateness_p50_us, lateness_p99_us, lateness_max_us; /* how late this machine noticed that something had ended */
  int64_t operations, estimated_operations;
  int32_t host_limited; /* not 0: this machine could not keep up, and what was measured does not fit the device */
} tidepool_report;
TIDEPOOL_API int tidepool_device_report(tidepool_device* device, tidepool_report* report);

#ifdef __cplusplus
}
#endif
#endif
