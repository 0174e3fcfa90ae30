// Torch's CPU allocator on pool arenas. Internal to engine.
#pragma once

#include "engine/runtime.h"

namespace tidepool::engine {

// Makes the pool allocator torch's CPU allocator. Idempotent. It is never destroyed: static tensors may outlive main.
void InstallPoolAllocator();

// While it lives, each allocation of this thread is a check of `token` (null: none) that may unwind with AbortError. Does not
// nest.
class AbortScope {
 public:
  explicit AbortScope(AbortToken* token);
  ~AbortScope();
  AbortScope(const AbortScope&) = delete;

 private:
  AbortToken* token_;
};

}  // namespace tidepool::engine
