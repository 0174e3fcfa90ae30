// The only `try` around torch: what it throws becomes a Status here.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <type_traits>
#include <utility>

#include "base/status.h"

namespace tidepool::engine {

// Thrown by the allocator when the pool has no room; carries the pool's own error.
class PoolLimitError : public c10::OutOfMemoryError {
 public:
  // An empty backtrace: walking the stack would cost milliseconds each time training meets its limit.
  explicit PoolLimitError(Status status) : c10::OutOfMemoryError(MessageOf(status), {}), status_(std::move(status)) {}
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// Thrown by the allocator to unwind a computation that was asked to stop. Derives from std::exception because autograd's engine
// catches only that when it unwinds its own state.
class AbortError : public std::exception {
 public:
  const char* what() const noexcept override { return "the computation was asked to stop"; }
};

// For a catch block: the exception in flight as a Status.
//   PoolLimitError: the pool's Status. AbortError: ABORTED. Out of memory otherwise: RESOURCE_EXHAUSTED. A failed check of
//   torch's arguments: INVALID_ARGUMENT. Anything else: INTERNAL. The text is the first line of the exception's.
Status StatusOfCurrentException();

// Gives this thread the process's thread count: torch keeps that setting per thread.
void ApplyThreadCount();

// Runs `work`, which returns Status or StatusOr<T>, and turns exceptions into its error.
template <typename Work>
std::invoke_result_t<Work> Guard(Work&& work) {
  try {
    ApplyThreadCount();
    return std::forward<Work>(work)();
  } catch (...) {
    return StatusOfCurrentException();
  }
}

}  // namespace tidepool::engine
