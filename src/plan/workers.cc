#include "plan/workers.h"

#include <algorithm>

namespace tidepool::plan {

Workers::Workers(int32_t threads) {
  if (threads <= 0) threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  for (int32_t i = 1; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

Workers::~Workers() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void Workers::Run(int32_t count, const std::function<void(int32_t)>& work) {
  if (threads_.empty() || count <= 1) {
    for (int32_t i = 0; i < count; ++i) work(i);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    work_ = &work;
    count_ = count;
    busy_ = static_cast<int32_t>(threads_.size());
    next_.store(0, std::memory_order_relaxed);
    ++round_;
  }
  Work(work, count);
  absl::MutexLock lock(&mutex_);
  const auto quiet = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return busy_ == 0; };
  mutex_.Await(absl::Condition(&quiet));
}

void Workers::Work(const std::function<void(int32_t)>& work, int32_t count) {
  for (int32_t i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) work(i);
}

void Workers::Loop() {
  int64_t seen = 0;
  for (;;) {
    const std::function<void(int32_t)>* work = nullptr;
    int32_t count = 0;
    {
      absl::MutexLock lock(&mutex_);
      const auto due = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_ || round_ != seen; };
      mutex_.Await(absl::Condition(&due));
      if (stop_) return;
      seen = round_;
      work = work_;
      count = count_;
    }
    Work(*work, count);
    absl::MutexLock lock(&mutex_);
    --busy_;
  }
}

}  // namespace tidepool::plan
