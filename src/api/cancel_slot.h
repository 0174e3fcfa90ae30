// Joins a request that may be cancelled at any moment with the handle that serve gives for it, in whichever order they come.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <memory>
#include <utility>

#include "serve/server.h"

namespace tidepool::api {

// Thread-safe.
class CancelSlot {
 public:
  void Set(std::shared_ptr<serve::InferHandle> handle) {
    {
      absl::MutexLock lock(&mu_);
      if (!cancelled_) {
        handle_ = std::move(handle);
        return;
      }
    }
    if (handle != nullptr) handle->Cancel();
  }
  void Cancel() {
    std::shared_ptr<serve::InferHandle> handle;
    {
      absl::MutexLock lock(&mu_);
      cancelled_ = true;
      handle = std::move(handle_);
    }
    if (handle != nullptr) handle->Cancel();
  }

 private:
  absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<serve::InferHandle> handle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tidepool::api
