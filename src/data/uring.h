// The few operations of io_uring that reading ahead needs. Built without liburing, or on a kernel that refuses rings, Create
// fails and callers read with pread.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"

namespace tidepool::data {

class Ring {
 public:
  struct Completion {
    uint64_t tag = 0;
    int result = 0;  // bytes, a descriptor, or a negative errno
  };

  // UNIMPLEMENTED if this build has no liburing; the kernel's error if it refuses (old, or forbidden by a container's policy).
  static StatusOr<std::unique_ptr<Ring>> Create(int entries);
  virtual ~Ring() = default;

  // Queue one operation; false if the queue is full. `path` and `buffer` stay valid until its completion. Operations start with
  // Submit.
  virtual bool PushOpen(const char* path, int flags, uint64_t tag) = 0;
  virtual bool PushRead(int fd, void* buffer, uint32_t length, int64_t offset, uint64_t tag) = 0;
  virtual Status Submit() = 0;

  // Waits until something has completed or the time is over; returns how many entries of `completions` it filled. One caller at a
  // time, which may run beside one caller of the functions above.
  virtual StatusOr<size_t> Wait(absl::Duration timeout, std::span<Completion> completions) = 0;
};

}  // namespace tidepool::data
