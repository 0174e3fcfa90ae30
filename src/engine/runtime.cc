#include "engine/runtime.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string_view>
#include <thread>

#include "base/log.h"
#include "engine/guard.h"
#include "engine/pool_allocator.h"
#include "engine/torch_compat.h"

namespace tidepool::engine {
namespace {

constexpr int kMaxThreads = 1024;
std::atomic<int> configured_threads{0};  // 0 until InitRuntime

// OpenBLAS is an alternative for the reference BLAS behind one library name: which one is loaded shows only at run time.
template <typename Function>
Function* FindSymbol(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

bool WaitsPassively() {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  if (policy != nullptr) {
    const std::string_view text(policy);
    if (text == "passive" || text == "PASSIVE") return true;
  }
  const char* spins = std::getenv("GOMP_SPINCOUNT");
  return spins != nullptr && std::string_view(spins) == "0";
}

std::string DescribeBlas() {
  if (at::hasMKL()) return "MKL";
  if (auto* get_config = FindSymbol<char*()>("openblas_get_config")) {
    // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": the name and the version are enough.
    const std::string_view config(get_config());
    const size_t name_end = config.find(' ');
    return std::string(config.substr(0, config.find(' ', name_end == std::string_view::npos ? name_end : name_end + 1)));
  }
  return "reference";
}

}  // namespace

void ApplyThreadCount() {
  thread_local int applied = 0;
  const int wanted = configured_threads.load(std::memory_order_relaxed);
  if (wanted == applied) return;
  at::set_num_threads(wanted);
  applied = wanted;
}

Status InitRuntime(const RuntimeOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgument("threads is {}; allowed: 0 (all cores) to {}", options.threads, kMaxThreads);
  }
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int threads = options.threads == 0 ? cores : options.threads;
  InstallPoolAllocator();
  configured_threads.store(threads, std::memory_order_relaxed);
  TIDEPOOL_RETURN_IF_ERROR(Guard([&]() -> Status {
    UseDeterministicAlgorithms(at::globalContext(), options.deterministic);
    if (auto* set_threads = FindSymbol<void(int)>("openblas_set_num_threads")) set_threads(threads);
    return {};
  }));
  const RuntimeInfo info = DescribeRuntime();
  if (info.blas == "reference") {
    Log(LogLevel::kWarning, "matrix products use the reference BLAS, which is many times slower; install libopenblas0-pthread");
  }
  if (threads > 1 && !info.passive_wait) {
    Log(LogLevel::kWarning, "idle OpenMP threads spin; start the process with OMP_WAIT_POLICY=passive", {{"threads", threads}});
  }
  return {};
}

RuntimeInfo DescribeRuntime() {
  return {
      .torch_version = TORCH_VERSION, .blas = DescribeBlas(), .threads = at::get_num_threads(), .passive_wait = WaitsPassively()};
}

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (const int64_t dimension : shape) count *= dimension;
  return count;
}

int64_t TensorView::size_bytes() const { return elements() * SizeOf(dtype); }

}  // namespace tidepool::engine
