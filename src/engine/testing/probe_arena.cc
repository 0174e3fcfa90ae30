#include "engine/testing/test_pool.h"

namespace tidepool::engine {

void ProbeArena::FailAt(int64_t n) {
  absl::MutexLock lock(&mu_);
  fail_at_ = n;
  failed_ = false;
}

int64_t ProbeArena::allocations() const {
  absl::MutexLock lock(&mu_);
  return allocations_;
}

int64_t ProbeArena::allocated_bytes() const {
  absl::MutexLock lock(&mu_);
  return allocated_bytes_;
}

bool ProbeArena::failed() const {
  absl::MutexLock lock(&mu_);
  return failed_;
}

std::set<std::thread::id> ProbeArena::threads() const {
  absl::MutexLock lock(&mu_);
  return threads_;
}

void ProbeArena::Reset() {
  absl::MutexLock lock(&mu_);
  fail_at_ = -1;
  allocations_ = allocated_bytes_ = 0;
  failed_ = false;
  threads_.clear();
}

StatusOr<void*> ProbeArena::Allocate(int64_t size_bytes) {
  {
    absl::MutexLock lock(&mu_);
    ++allocations_;
    allocated_bytes_ += size_bytes;
    threads_.insert(std::this_thread::get_id());
    if (fail_at_ >= 0 && fail_at_-- == 0) {
      failed_ = true;
      return ResourceExhausted("the probe refuses {} B", size_bytes);
    }
  }
  return arena_->Allocate(size_bytes);
}

}  // namespace tidepool::engine
