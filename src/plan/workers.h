// Threads that share the iterations of a loop. Searches use it so that their results do not depend on the number of threads: an
// iteration writes only what is its own.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace tidepool::plan {

// Thread-compatible. The destructor joins the threads.
class Workers {
 public:
  explicit Workers(int32_t threads);  // 0: one per core. The caller of Run is one of them.
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int32_t threads() const { return static_cast<int32_t>(threads_.size()) + 1; }
  // Calls work(i) once for each i in [0, count), in any order, on any thread; returns when all are done. Must not be nested.
  void Run(int32_t count, const std::function<void(int32_t)>& work);

 private:
  void Loop();
  void Work(const std::function<void(int32_t)>& work, int32_t count);

  absl::Mutex mutex_;
  const std::function<void(int32_t)>* work_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int32_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  int32_t busy_ ABSL_GUARDED_BY(mutex_) = 0;  // threads that have not finished the round
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<int32_t> next_{0};
  std::vector<std::thread> threads_;
};

}  // namespace tidepool::plan
