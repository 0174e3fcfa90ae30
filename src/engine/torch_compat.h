// Every difference between libtorch 1.13 and 2.x that this folder meets. Where a feature can be asked for, it is asked for; the
// version number is the last resort.
#pragma once

#include <ATen/Context.h>
#include <c10/core/Allocator.h>
#include <torch/version.h>

#include <cstring>

namespace tidepool::engine {

// Base of a CPU allocator. c10::Allocator::allocate is const up to 2.2 and not const later, and later versions have a pure
// virtual copy_data. Both forms are declared here without `override`: whichever is virtual in the base is overridden, the other
// is unused.
class CompatAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size_bytes) const { return Allocate(size_bytes); }
  c10::DataPtr allocate(size_t size_bytes) { return Allocate(size_bytes); }
  void copy_data(void* target, const void* source, size_t size_bytes) const { std::memcpy(target, source, size_bytes); }

 protected:
  virtual c10::DataPtr Allocate(size_t size_bytes) const = 0;
};

// From 2.2 deterministic mode fills every fresh tensor with NaN, which costs a pass over memory and changes no result of ours.
template <typename Context>
void UseDeterministicAlgorithms(Context& context, bool on) {
  context.setDeterministicAlgorithms(on, /*warn_only=*/false);
  if constexpr (requires { context.setDeterministicFillUninitializedMemory(false); }) {
    context.setDeterministicFillUninitializedMemory(false);
  }
}

}  // namespace tidepool::engine
