// What a hit of the sample cache costs, beside what other caches pay for the same record: a read of a file that the page cache
// holds, and opening, mapping and copying an object of shared memory, as the MinIO module of the published prototype does.
// Records have the size of ImageNet's pictures. p50 and p99 are of single operations and contain two reads of the clock, of which
// `clock_ns` is the p50.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"
#include "data/augment.h"
#include "data/cache.h"

namespace tidepool::data {
namespace {

constexpr int64_t kRecordBytes = 114'660, kRecords = 512, kPageBytes = 4096;

// Durations of single operations; their percentiles become counters. One of them per thread.
class Percentiles {
 public:
  explicit Percentiles(benchmark::State& state) : state_(state) { samples_.reserve(1 << 20); }
  ~Percentiles() {
    const auto average = benchmark::Counter::kAvgThreads;
    state_.counters["p50_ns"] = benchmark::Counter(At(&samples_, 0.5), average);
    state_.counters["p99_ns"] = benchmark::Counter(At(&samples_, 0.99), average);
    std::vector<int64_t> empty;
    for (int i = 0; i < 10'000; ++i) {
      const int64_t start = MonotonicNanos();
      empty.push_back(MonotonicNanos() - start);
    }
    state_.counters["clock_ns"] = benchmark::Counter(At(&empty, 0.5), average);
  }
  template <typename F>
  void Measure(F&& operation) {
    const int64_t start = MonotonicNanos();
    operation();
    const int64_t end = MonotonicNanos();
    if (samples_.size() < samples_.capacity()) samples_.push_back(end - start);
  }

 private:
  static double At(std::vector<int64_t>* samples, double share) {
    if (samples->empty()) return 0;
    std::sort(samples->begin(), samples->end());
    return static_cast<double>((*samples)[static_cast<size_t>(share * static_cast<double>(samples->size() - 1))]);
  }
  benchmark::State& state_;
  std::vector<int64_t> samples_;
};

class SameBytes : public RecordSource {
 public:
  int64_t size() const override { return kRecords; }
  int64_t classes() const override { return 1; }
  StatusOr<int64_t> SizeBytes(int64_t) const override { return kRecordBytes; }
  std::string Describe(int64_t record) const override { return fmt::format("memory:{}", record); }
  uint64_t fingerprint() const override { return 1; }
  StatusOr<RecordView> Read(int64_t) const override { return RecordView(std::span(*bytes_), bytes_); }
  StatusOr<LabelledPicture> Parse(int64_t, std::span<const std::byte> bytes) const override {
    return LabelledPicture{.picture = bytes};
  }

 private:
  const std::shared_ptr<std::vector<std::byte>> bytes_ = std::make_shared<std::vector<std::byte>>(kRecordBytes);
};

// In no order that a prefetcher knows.
int64_t Next(uint64_t* count) { return static_cast<int64_t>(RandomBits(3, (*count)++, 0) % kRecords); }

std::unique_ptr<Cache> shared_cache;

void FillSharedCache(const benchmark::State& state) {
  static const auto* source = new SameBytes();
  auto cache = Cache::Create(source, {.kind = static_cast<CacheKind>(state.range(0)), .budget_bytes = kRecords * kRecordBytes});
  TIDEPOOL_CHECK(cache.ok(), "{}", ToString(cache.status()));
  shared_cache = *std::move(cache);
  for (int64_t i = 0; i < kRecords; ++i) TIDEPOOL_CHECK(shared_cache->Read(i).ok(), "reading record {}", i);
}
void DropSharedCache(const benchmark::State&) { shared_cache.reset(); }

void CacheHit(benchmark::State& state) {
  uint64_t count = static_cast<uint64_t>(state.thread_index()) << 32;
  Percentiles percentiles(state);
  for (auto _ : state) {
    const int64_t record = Next(&count);
    percentiles.Measure([&] {
      const StatusOr<RecordView> view = shared_cache->Read(record);
      benchmark::DoNotOptimize(view->bytes().data());
    });
  }
  state.SetLabel(std::string(CacheKindName(static_cast<CacheKind>(state.range(0)))));
}
BENCHMARK(CacheHit)
    ->ArgName("policy")
    ->Arg(static_cast<int>(CacheKind::kMinio))
    ->Arg(static_cast<int>(CacheKind::kLru))
    ->Arg(static_cast<int>(CacheKind::kFifo))
    ->Arg(static_cast<int>(CacheKind::kTwoList))
    ->Setup(FillSharedCache)
    ->Teardown(DropSharedCache)
    ->Threads(1)
    ->Threads(2);

// A file of all records, in the page cache or in shared memory.
struct RecordFile {
  explicit RecordFile(const char* folder) : path(fmt::format("{}/tidepool-cache-bench-{}", folder, ::getpid())) {
    const Status written = WriteFileAtomically(path, std::string(static_cast<size_t>(kRecords * kRecordBytes), 'x'));
    TIDEPOOL_CHECK(written.ok(), "{}", ToString(written));
  }
  ~RecordFile() { ::unlink(path.c_str()); }
  const std::string path;
};

void PageCacheRead(benchmark::State& state) {
  const RecordFile file("/tmp");
  const UniqueFd fd(::open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> buffer(kRecordBytes);
  uint64_t count = 0;
  Percentiles percentiles(state);
  for (auto _ : state) {
    const int64_t record = Next(&count);
    percentiles.Measure(
        [&] { TIDEPOOL_CHECK(::pread(fd.get(), buffer.data(), buffer.size(), record * kRecordBytes) == kRecordBytes, "pread"); });
  }
}
BENCHMARK(PageCacheRead);

void MapAndCopy(benchmark::State& state) {
  const RecordFile file("/dev/shm");
  std::vector<std::byte> buffer(kRecordBytes);
  uint64_t count = 0;
  Percentiles percentiles(state);
  for (auto _ : state) {
    const int64_t offset = Next(&count) * kRecordBytes, from = offset - offset % kPageBytes;
    percentiles.Measure([&] {
      const UniqueFd fd(::open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
      const auto size = static_cast<size_t>(offset - from + kRecordBytes);
      void* memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), from);
      TIDEPOOL_CHECK(memory != MAP_FAILED, "mmap");
      std::memcpy(buffer.data(), static_cast<const std::byte*>(memory) + (offset - from), buffer.size());
      ::munmap(memory, size);
    });
    benchmark::DoNotOptimize(buffer.data());
  }
}
BENCHMARK(MapAndCopy);

}  // namespace
}  // namespace tidepool::data
