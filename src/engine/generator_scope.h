// Torch's default CPU generator, seeded for one computation and put back after it. Internal to engine.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

namespace tidepool::engine {

// Saves and restores the engine itself, which allocates nothing: the restoring destructor runs while an exception unwinds.
class GeneratorScope {
 public:
  explicit GeneratorScope(uint64_t seed) : generator_(at::detail::getDefaultCPUGenerator()) {
    std::lock_guard<std::mutex> lock(generator_.mutex());
    auto* impl = Impl();
    engine_ = impl->engine();
    next_float_ = impl->next_float_normal_sample();
    next_double_ = impl->next_double_normal_sample();
    impl->set_current_seed(seed);
  }
  ~GeneratorScope() {
    std::lock_guard<std::mutex> lock(generator_.mutex());
    auto* impl = Impl();
    impl->set_engine(engine_);
    impl->set_next_float_normal_sample(next_float_);
    impl->set_next_double_normal_sample(next_double_);
  }
  GeneratorScope(const GeneratorScope&) = delete;

 private:
  at::CPUGeneratorImpl* Impl() { return generator_.get<at::CPUGeneratorImpl>(); }

  at::Generator generator_;
  at::mt19937 engine_;
  decltype(std::declval<at::CPUGeneratorImpl>().next_float_normal_sample()) next_float_;
  decltype(std::declval<at::CPUGeneratorImpl>().next_double_normal_sample()) next_double_;
};

}  // namespace tidepool::engine
