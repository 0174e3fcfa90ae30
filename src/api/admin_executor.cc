#include "api/admin_executor.h"

#include <utility>

namespace tidepool::api {

AdminExecutor::AdminExecutor(int threads, size_t queue_limit) : queue_limit_(queue_limit) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

AdminExecutor::~AdminExecutor() {
  std::deque<std::function<void(const Status&)>> dropped;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    dropped.swap(queue_);
  }
  for (const auto& task : dropped) task(Unavailable("the server is shutting down"));
  for (std::thread& thread : threads_) thread.join();
}

void AdminExecutor::Submit(std::function<void(const Status&)> task) {
  Status refused;
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) {
      refused = Unavailable("the server is shutting down");
    } else if (queue_.size() >= queue_limit_) {
      refused = ResourceExhausted("{} administrative calls wait already; allowed: {}", queue_.size(), queue_limit_);
    } else {
      queue_.push_back(std::move(task));
      return;
    }
  }
  task(refused);
}

void AdminExecutor::Work() {
  const auto due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !queue_.empty(); };
  while (true) {
    std::function<void(const Status&)> task;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&due));
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task(absl::OkStatus());
  }
}

}  // namespace tidepool::api
