// Torch's default CPU generator, seeded for one computation and put back after it. Internal to engine.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>
#include <mutex>

namespace tidepool::engine {

// Mixes the job's seed with the micro-batch's key. Folded to 32 bits because torch's generator ignores the upper half of a seed.
inline uint64_t GeneratorSeed(uint64_t seed, uint64_t key) {
  uint64_t x = seed * 0x9e3779b97f4a7c15ull + key + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return (x ^ (x >> 32)) & 0xffffffffull;
}

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
