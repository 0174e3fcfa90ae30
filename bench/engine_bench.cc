// The engine beside direct ATen calls and beside plain torch on the process's heap. Both sides run alternately in one loop, so
// that a busy machine disturbs them alike; the time of a row is the engine's, the counters hold both.
#include <benchmark/benchmark.h>

#include <atomic>
#include <thread>

#include "base/clock.h"
#include "engine/inference.h"
#include "engine/testing/direct_network.h"
#include "engine/testing/test_networks.h"
#include "engine/testing/test_pool.h"

namespace tidepool::engine {
namespace {

constexpr int64_t kPoolBytes = 512 * kMiB;
constexpr int64_t kPageBytes = 2 * kMiB;
constexpr int kWarmup = 3;

template <typename Work>
int64_t NanosOf(Work work) {
  const int64_t start_ns = MonotonicNanos();
  work();
  return MonotonicNanos() - start_ns;
}

template <typename T>
T Take(StatusOr<T> value) {
  TIDEPOOL_CHECK(value.ok(), "{}", ToString(value.status()));
  return std::move(value).value();
}

// Alternates the two and reports microseconds of each per run.
template <typename Ours, typename Theirs>
void Compare(benchmark::State& state, const char* theirs_name, Ours ours, Theirs theirs) {
  for (int i = 0; i < kWarmup; ++i) {
    ours();
    theirs();
  }
  int64_t ours_ns = 0, theirs_ns = 0;
  for (auto _ : state) {
    const int64_t nanos = NanosOf(ours);
    ours_ns += nanos;
    theirs_ns += NanosOf(theirs);
    state.SetIterationTime(static_cast<double>(nanos) * 1e-9);
  }
  const double runs = static_cast<double>(state.iterations()) * 1e3;
  state.counters["engine_us"] = static_cast<double>(ours_ns) / runs;
  state.counters[theirs_name] = static_cast<double>(theirs_ns) / runs;
  state.counters["ratio"] = static_cast<double>(ours_ns) / static_cast<double>(theirs_ns);
}

void Infer(benchmark::State& state, const std::string& spec, int64_t samples, bool in_pool) {
  const auto graph = TestGraph(spec);
  const TensorSet weights = TestWeights(*graph, 1);
  const TestBatch batch(*graph, samples, 2);
  const auto pool = TestPool::Make(kPoolBytes, kPageBytes);
  const auto arena = pool->MakeArena(kPoolBytes);
  const auto module = Take(InferenceModule::Bind(graph, weights.views()));
  const auto direct = DirectNetwork::ForInference(*graph, weights.views());
  Compare(
      state, "direct_us",
      [&] {
        MemoryScope memory(in_pool ? arena.get() : nullptr);
        benchmark::DoNotOptimize(Take(module->Run(batch.inputs(), {})));
      },
      [&] { benchmark::DoNotOptimize(direct->Run(batch.inputs())); });
  size_t calls = 0;
  for (const model::Op& op : graph->ops) calls += op.body.size();
  state.counters["calls"] = static_cast<double>(calls);
  state.counters["overhead_us_per_call"] =
      (state.counters["engine_us"] - state.counters["direct_us"]) / static_cast<double>(calls);
}

BENCHMARK_CAPTURE(Infer, mlp_b1_heap, "mlp:16", 1, false)->UseManualTime();
BENCHMARK_CAPTURE(Infer, mlp_b1_pool, "mlp:16", 1, true)->UseManualTime();
BENCHMARK_CAPTURE(Infer, resnet18_64px_b1_heap, "resnet18:image=64", 1, false)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Infer, resnet18_64px_b1_pool, "resnet18:image=64", 1, true)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Infer, resnet18_224px_b8_pool, "resnet18", 8, true)->UseManualTime()->Unit(benchmark::kMillisecond);

// Training in a pool of touched pages beside plain torch with torch.optim, whose tensors come from malloc.
void Train(benchmark::State& state, const std::string& spec, int64_t samples, const OptimizerOptions& optimizer) {
  const auto graph = TestGraph(spec);
  const TensorSet weights = TestWeights(*graph, 1);
  const TestBatch batch(*graph, samples, 2);
  const auto pool = TestPool::Make(kPoolBytes, kPageBytes);
  const auto arena = pool->MakeArena(kPoolBytes);
  const TrainingOptions options{.optimizer = optimizer};
  const auto module = Take(TrainingModule::Create(graph, weights.views(), arena.get(), options));
  const auto direct = DirectNetwork::ForTraining(*graph, weights.views(), options);
  module->abort_token().ResetLongest();
  int64_t peak_bytes = 0;
  Compare(
      state, "plain_torch_us",
      [&] {
        TIDEPOOL_CHECK(module->BeginGlobalBatch().ok(), "no global batch");
        peak_bytes = Take(module->RunMicroBatch(batch.All(1))).peak_bytes;
        TIDEPOOL_CHECK(module->CommitMicroBatch().ok() && module->OptimizerStep(1e-3).ok(), "the step failed");
      },
      [&] { direct->Train(batch.All(1)); });
  state.counters["peak_MiB"] = static_cast<double>(peak_bytes) / static_cast<double>(kMiB);
  state.counters["longest_gap_us"] = static_cast<double>(module->abort_token().longest_gap_ns()) * 1e-3;
}

constexpr OptimizerOptions kSgd{.learning_rate = 1e-3};
constexpr OptimizerOptions kAdamW{.kind = OptimizerOptions::Kind::kAdamW, .learning_rate = 1e-3};
BENCHMARK_CAPTURE(Train, resnet18_32px_b32, "resnet18:classes=10,image=32,small_stem=true", 32, kSgd)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Train, gpt2_4l_128d_b8_t64, "gpt2:layers=4,width=128,heads=4,vocab=256,context=64", 8, kAdamW)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Train, gpt2_4l_512d_b1_t64, "gpt2:layers=4,width=512,heads=8,vocab=256,context=64", 1, kAdamW)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// From the request of another thread, at a varying point of the step, until the memory of the micro-batch is free again. The
// limit it stands beside is the longest stretch between two allocations.
void AbortLatency(benchmark::State& state) {
  const auto graph = TestGraph("resnet18:classes=10,image=32,small_stem=true");
  const TensorSet weights = TestWeights(*graph, 1);
  const TestBatch batch(*graph, 32, 2);
  const auto pool = TestPool::Make(kPoolBytes, kPageBytes);
  const auto arena = pool->MakeArena(kPoolBytes);
  const auto module = Take(TrainingModule::Create(graph, weights.views(), arena.get(), {}));
  TIDEPOOL_CHECK(module->BeginGlobalBatch().ok(), "no global batch");
  AbortToken& token = module->abort_token();
  int64_t step_checks = token.checks();
  Take(module->RunMicroBatch(batch.All(1)));
  TIDEPOOL_CHECK(module->AbortMicroBatch().ok(), "the abort failed");
  step_checks = token.checks() - step_checks;
  token.ResetLongest();
  int64_t longest_ns = 0, at = 0;
  for (auto _ : state) {
    at = (at + step_checks / 7) % (step_checks - 1);
    std::atomic<int64_t> requested_ns{0};
    const int64_t start_checks = token.checks();
    std::thread requester([&] {
      while (token.checks() < start_checks + at) std::this_thread::yield();
      requested_ns = MonotonicNanos();
      token.Request();
    });
    const Status status = module->RunMicroBatch(batch.All(1)).status();
    TIDEPOOL_CHECK(module->AbortMicroBatch().ok(), "the abort failed");
    const int64_t end_ns = MonotonicNanos();
    requester.join();
    token.Clear();
    const int64_t nanos = std::max<int64_t>(end_ns - requested_ns, 1);
    if (!status.ok()) longest_ns = std::max(longest_ns, nanos);
    state.SetIterationTime(static_cast<double>(nanos) * 1e-9);
  }
  state.counters["longest_us"] = static_cast<double>(longest_ns) * 1e-3;
  state.counters["longest_gap_us"] = static_cast<double>(token.longest_gap_ns()) * 1e-3;
}
BENCHMARK(AbortLatency)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tidepool::engine

int main(int argc, char** argv) {
  const tidepool::Status status = tidepool::engine::InitRuntime({});
  TIDEPOOL_CHECK(status.ok(), "{}", tidepool::ToString(status));
  const tidepool::engine::RuntimeInfo info = tidepool::engine::DescribeRuntime();
  benchmark::AddCustomContext("torch", info.torch_version);
  benchmark::AddCustomContext("blas", info.blas);
  benchmark::AddCustomContext("threads", std::to_string(info.threads));
  benchmark::AddCustomContext("passive_wait", info.passive_wait ? "yes" : "no");
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
