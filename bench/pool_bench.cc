// What moving memory costs, beside the limits of this machine: a futex round trip between two threads, a Unix-socket round trip
// between two threads and copying the same bytes. p50 and p99 are in microseconds (of one operation, over the run).
#include <benchmark/benchmark.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "pool/arena.h"
#include "pool/broker.h"
#include "pool/client.h"

namespace tidepool::pool {
namespace {

constexpr int64_t kPage = 2 * kMiB;

// Durations of single operations; their percentiles become counters.
class Latencies {
 public:
  explicit Latencies(benchmark::State& state) : state_(state) { samples_.reserve(1 << 20); }
  ~Latencies() {
    if (samples_.empty()) return;
    std::sort(samples_.begin(), samples_.end());
    auto at = [&](double q) {
      return static_cast<double>(samples_[static_cast<size_t>(q * static_cast<double>(samples_.size() - 1))]) / 1e3;
    };
    state_.counters["p50_us"] = at(0.50);
    state_.counters["p99_us"] = at(0.99);
  }
  template <typename F>
  void Measure(F&& operation) {
    const int64_t start = MonotonicNanos();
    operation();
    samples_.push_back(MonotonicNanos() - start);
  }

 private:
  benchmark::State& state_;
  std::vector<int64_t> samples_;
};

struct Pool {
  std::unique_ptr<device::Device> device;
  std::unique_ptr<Broker> broker;
  std::unique_ptr<Client> client;

  // Empty if the machine cannot give the memory; the state then says why.
  static Pool Make(benchmark::State& state, int64_t pages, int64_t page_bytes = kPage, BrokerOptions options = {}) {
    Pool pool;
    auto device = device::OpenDevice({.name = "host", .capacity_bytes = pages * page_bytes, .page_bytes = page_bytes});
    if (!device.ok()) return state.SkipWithError(ToString(device.status()).c_str()), Pool();
    pool.device = std::move(*device);
    auto broker = Broker::Start(pool.device.get(), std::move(options));
    if (!broker.ok()) return state.SkipWithError(ToString(broker.status()).c_str()), Pool();
    pool.broker = std::move(*broker);
    auto socket = pool.broker->Connect();
    if (!socket.ok()) return state.SkipWithError(ToString(socket.status()).c_str()), Pool();
    auto client = Client::Attach({.connected_socket = std::move(*socket), .name = "bench"});
    if (!client.ok()) return state.SkipWithError(ToString(client.status()).c_str()), Pool();
    pool.client = std::move(*client);
    return pool;
  }
  LeaseId Lease(benchmark::State& state, const LeaseOptions& options) {
    auto lease = client->OpenLease(options, Clock::Real()->Now() + absl::Seconds(5));
    if (!lease.ok()) state.SkipWithError(ToString(lease.status()).c_str());
    return lease.ok() ? *lease : LeaseId();
  }
};

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(5); }

void BM_PoolGrantAndReturn(benchmark::State& state) {
  const int64_t pages = state.range(0);
  Pool pool = Pool::Make(state, 64);
  if (pool.client == nullptr) return;
  const LeaseId lease = pool.Lease(state, {.name = "bench", .burst_pages = 64});
  Latencies latencies(state);
  for (auto _ : state) {
    latencies.Measure([&] {
      auto extents = pool.client->Grow(lease, {.pages = pages}, Soon());
      if (!extents.ok() || !pool.client->Return(lease, *extents).ok()) state.SkipWithError("the pool refused");
    });
  }
}
BENCHMARK(BM_PoolGrantAndReturn)->Arg(1)->Arg(8)->Arg(64)->UseRealTime();

long Futex(std::atomic<int>* word, int operation, int value) {
  return ::syscall(SYS_futex, reinterpret_cast<int*>(word), operation, value, nullptr, nullptr, 0);
}

void BM_FutexRoundTrip(benchmark::State& state) {
  std::atomic<int> turn = 0;  // 0: ours, 1: the other thread's, 2: the end
  std::thread other([&] {
    while (true) {
      int seen;
      while ((seen = turn.load()) == 0) Futex(&turn, FUTEX_WAIT_PRIVATE, 0);
      if (seen == 2) return;
      turn.store(0);
      Futex(&turn, FUTEX_WAKE_PRIVATE, 1);
    }
  });
  {
    Latencies latencies(state);
    for (auto _ : state) {
      latencies.Measure([&] {
        turn.store(1);
        Futex(&turn, FUTEX_WAKE_PRIVATE, 1);
        while (turn.load() == 1) Futex(&turn, FUTEX_WAIT_PRIVATE, 1);
      });
    }
  }
  turn.store(2);
  Futex(&turn, FUTEX_WAKE_PRIVATE, 1);
  other.join();
}
BENCHMARK(BM_FutexRoundTrip)->UseRealTime();

void BM_UnixSocketRoundTrip(benchmark::State& state) {
  auto pair = PacketSocket::Pair();
  if (!pair.ok()) return state.SkipWithError("no socket pair");
  std::thread other([&] {
    char buffer[64];
    ssize_t got;
    while ((got = ::read(pair->second.fd(), buffer, sizeof(buffer))) > 0) {
      if (::write(pair->second.fd(), buffer, static_cast<size_t>(got)) != got) return;
    }
  });
  {
    Latencies latencies(state);
    char buffer[64] = {};
    for (auto _ : state) {
      latencies.Measure([&] {
        if (::write(pair->first.fd(), buffer, 36) != 36 || ::read(pair->first.fd(), buffer, sizeof(buffer)) != 36) {
          state.SkipWithError("the socket broke");
        }
      });
    }
  }
  pair->first.Shutdown();
  other.join();
}
BENCHMARK(BM_UnixSocketRoundTrip)->UseRealTime();

void BM_Memcpy(benchmark::State& state) {
  const auto size = static_cast<size_t>(state.range(0));
  std::vector<char> source(size, 1), target(size, 2);
  Latencies latencies(state);
  for (auto _ : state) {
    latencies.Measure([&] {
      std::memcpy(target.data(), source.data(), size);
      benchmark::ClobberMemory();
    });
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Memcpy)->Arg(kPage)->Arg(256 * kMiB)->UseRealTime();

// 256 MiB change their owner: every page is cleared before the new one sees it.
void BM_PoolFlipAndZero(benchmark::State& state) {
  const int64_t pages = 256 * kMiB / kPage;
  Pool pool = Pool::Make(state, pages, kPage, {.zero_when_idle = false});
  if (pool.client == nullptr) return;
  const LeaseId leases[] = {pool.Lease(state, {.name = "a", .burst_pages = pages}),
                            pool.Lease(state, {.name = "b", .burst_pages = pages})};
  {
    auto extents = pool.client->Grow(leases[1], {.pages = pages}, Soon());
    if (!extents.ok() || !pool.client->Return(leases[1], *extents).ok()) return state.SkipWithError("the pool refused");
  }
  Latencies latencies(state);
  size_t owner = 0;
  for (auto _ : state) {
    latencies.Measure([&] {
      auto extents = pool.client->Grow(leases[owner], {.pages = pages}, Soon());
      if (!extents.ok() || !pool.client->Return(leases[owner], *extents).ok()) state.SkipWithError("the pool refused");
    });
    owner = 1 - owner;
  }
  state.SetBytesProcessed(state.iterations() * pages * kPage);
}
BENCHMARK(BM_PoolFlipAndZero)->UseRealTime()->Unit(benchmark::kMillisecond);

// The same among leases that trust each other: only the ledger changes.
void BM_PoolFlipTrusted(benchmark::State& state) {
  const int64_t pages = 256 * kMiB / kPage;
  Pool pool = Pool::Make(state, pages);
  if (pool.client == nullptr) return;
  const LeaseId leases[] = {pool.Lease(state, {.name = "a", .burst_pages = pages, .trust_label = "t"}),
                            pool.Lease(state, {.name = "b", .burst_pages = pages, .trust_label = "t"})};
  Latencies latencies(state);
  size_t owner = 0;
  for (auto _ : state) {
    latencies.Measure([&] {
      auto extents = pool.client->Grow(leases[owner], {.pages = pages}, Soon());
      if (!extents.ok() || !pool.client->Return(leases[owner], *extents).ok()) state.SkipWithError("the pool refused");
    });
    owner = 1 - owner;
  }
}
BENCHMARK(BM_PoolFlipTrusted)->UseRealTime();

// A working set of blocks in which the oldest is always replaced, as activations are.
constexpr size_t kLiveBlocks = 256;

template <typename Allocate, typename Free>
void ReplaceBlocks(benchmark::State& state, Allocate&& allocate, Free&& free) {
  const int64_t size = state.range(0);
  std::vector<void*> blocks(kLiveBlocks);
  // Sizes differ a little, so that no free list of one size serves all.
  auto size_of = [&](size_t i) { return size + static_cast<int64_t>(i * 64 % 1024); };
  for (size_t i = 0; i < kLiveBlocks; ++i) blocks[i] = allocate(size_of(i));
  size_t next = 0;
  for (auto _ : state) {
    free(blocks[next]);
    blocks[next] = allocate(size_of(next * 7));
    benchmark::ClobberMemory();
    next = (next + 1) % kLiveBlocks;
  }
  for (void* block : blocks) free(block);
}

void BM_ArenaAllocateAndFree(benchmark::State& state) {
  const int64_t pages = std::max<int64_t>(64, 3 * static_cast<int64_t>(kLiveBlocks) * state.range(0) / kPage);
  Pool pool = Pool::Make(state, pages);
  if (pool.client == nullptr) return;
  auto arena = Arena::Create(pool.client.get(), pool.Lease(state, {.name = "bench", .burst_pages = pages}), {});
  ReplaceBlocks(
      state,
      [&](int64_t size) {
        auto block = arena->Allocate(size);
        if (!block.ok()) state.SkipWithError(ToString(block.status()).c_str());
        return block.ok() ? *block : nullptr;
      },
      [&](void* block) {
        if (block != nullptr) arena->Free(block);
      });
}
BENCHMARK(BM_ArenaAllocateAndFree)->Arg(64)->Arg(4096)->Arg(256 * kKiB)->Arg(4 * kMiB);

void BM_MallocAndFree(benchmark::State& state) {
  ReplaceBlocks(
      state, [](int64_t size) { return std::malloc(static_cast<size_t>(size)); }, [](void* block) { std::free(block); });
}
BENCHMARK(BM_MallocAndFree)->Arg(64)->Arg(4096)->Arg(256 * kKiB)->Arg(4 * kMiB);

// As above, and every system page of a block is written once: where malloc maps new memory for it, the page faults belong to its
// price.
template <typename Allocate, typename Free>
void ReplaceAndTouch(benchmark::State& state, Allocate&& allocate, Free&& free) {
  ReplaceBlocks(
      state,
      [&](int64_t size) {
        auto* bytes = static_cast<volatile char*>(allocate(size));
        for (int64_t i = 0; bytes != nullptr && i < size; i += 4096) bytes[i] = 1;
        return const_cast<char*>(bytes);
      },
      free);
}

void BM_ArenaAllocateTouchAndFree(benchmark::State& state) {
  const int64_t pages = 3 * static_cast<int64_t>(kLiveBlocks) * state.range(0) / kPage;
  Pool pool = Pool::Make(state, pages);
  if (pool.client == nullptr) return;
  auto arena = Arena::Create(pool.client.get(), pool.Lease(state, {.name = "bench", .burst_pages = pages}), {});
  ReplaceAndTouch(
      state,
      [&](int64_t size) {
        auto block = arena->Allocate(size);
        if (!block.ok()) state.SkipWithError(ToString(block.status()).c_str());
        return block.ok() ? *block : nullptr;
      },
      [&](void* block) {
        if (block != nullptr) arena->Free(block);
      });
}
BENCHMARK(BM_ArenaAllocateTouchAndFree)->Arg(kMiB)->Arg(4 * kMiB);

void BM_MallocTouchAndFree(benchmark::State& state) {
  ReplaceAndTouch(
      state, [](int64_t size) { return std::malloc(static_cast<size_t>(size)); }, [](void* block) { std::free(block); });
}
BENCHMARK(BM_MallocTouchAndFree)->Arg(kMiB)->Arg(4 * kMiB);

}  // namespace
}  // namespace tidepool::pool

BENCHMARK_MAIN();
