#include "engine/runtime.h"

#include <ATen/ops/empty.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

#include "base/units.h"
#include "engine/guard.h"
#include "engine/testing/test_pool.h"

namespace tidepool::engine {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

at::Tensor Bytes(int64_t count) { return at::empty({count}, at::TensorOptions().dtype(at::kByte)); }

TEST(Runtime, DescribesWhatItRunsOn) {
  const RuntimeInfo info = DescribeRuntime();
  EXPECT_THAT(info.torch_version, AnyOf(StartsWith("1."), StartsWith("2.")));
  EXPECT_THAT(info.blas, AnyOf(StartsWith("OpenBLAS "), "reference", "MKL"));
  EXPECT_EQ(info.threads, 2);
}

TEST(Runtime, GivesEveryThreadItsThreadCount) {
  int threads = 0;
  std::thread([&] {
    const Status status = Guard([]() -> Status { return {}; });
    TIDEPOOL_CHECK(status.ok(), "{}", ToString(status));
    threads = DescribeRuntime().threads;
  }).join();
  EXPECT_EQ(threads, 2);
}

TEST(Runtime, RefusesThreadCountsThatMakeNoSense) {
  EXPECT_THAT(MessageOf(InitRuntime({.threads = -1})), HasSubstr("threads is -1; allowed: 0 (all cores) to 1024"));
  EXPECT_THAT(MessageOf(InitRuntime({.threads = 5000})), HasSubstr("threads is 5000"));
}

TEST(PoolAllocator, TakesFromTheArenaOfTheThreadAndNests) {
  const auto pool = TestPool::Make(4 * kMiB);
  const auto outer = pool->MakeArena(kMiB), inner = pool->MakeArena(kMiB);
  {
    MemoryScope first(outer.get());
    const at::Tensor a = Bytes(1000);
    {
      MemoryScope second(inner.get());
      const at::Tensor b = Bytes(2000);
      EXPECT_GE(inner->stats().live_bytes, 2000);
      MemoryScope heap(nullptr);
      const at::Tensor c = Bytes(3000);
      EXPECT_EQ(pool::Arena::Owner(c.data_ptr()), nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(c.data_ptr()) % 64, 0u);
    }
    EXPECT_EQ(inner->stats().live_bytes, 0);
    EXPECT_GE(outer->stats().live_bytes, 1000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data_ptr()) % 64, 0u);
    const at::Tensor d = Bytes(1000);
    EXPECT_EQ(outer->stats().blocks, 2);
  }
  EXPECT_EQ(outer->stats().live_bytes, 0);
}

TEST(PoolAllocator, FreesFromAnotherThread) {
  const auto pool = TestPool::Make(4 * kMiB);
  const auto arena = pool->MakeArena(kMiB);
  at::Tensor tensor;
  {
    MemoryScope memory(arena.get());
    tensor = Bytes(1000);
  }
  EXPECT_EQ(arena->stats().blocks, 1);
  std::thread([moved = std::move(tensor)]() mutable { moved.reset(); }).join();
  EXPECT_EQ(arena->stats().blocks, 0);
}

TEST(PoolAllocator, AnEmptyTensorTakesNothing) {
  const auto pool = TestPool::Make(4 * kMiB);
  const auto arena = pool->MakeArena(kMiB);
  MemoryScope memory(arena.get());
  const at::Tensor tensor = Bytes(0);
  EXPECT_EQ(tensor.data_ptr(), nullptr);
  EXPECT_EQ(arena->stats().blocks, 0);
}

TEST(Guard, GivesThePoolsOwnErrorWhenItsLimitIsMet) {
  const auto pool = TestPool::Make(4 * kMiB);
  const auto arena = pool->MakeArena(kMiB);
  MemoryScope memory(arena.get());
  const Status status = Guard([&]() -> Status {
    const at::Tensor tensor = Bytes(2 * kMiB);
    return {};
  });
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(status, arena->Allocate(2 * kMiB).status());
}

TEST(Guard, TurnsEachKindOfExceptionIntoItsStatus) {
  const auto status_of = [](auto thrower) {
    return Guard([&]() -> Status {
      thrower();
      return {};
    });
  };
  EXPECT_EQ(status_of([] { throw AbortError(); }).code(), StatusCode::kAborted);
  EXPECT_EQ(status_of([] { throw std::bad_alloc(); }).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(status_of([] { throw 3; }).code(), StatusCode::kInternal);
  const Status logic = status_of([] { throw std::logic_error("first line\nsecond line"); });
  EXPECT_EQ(logic.code(), StatusCode::kInternal);
  EXPECT_EQ(MessageOf(logic), "first line");
  const Status check = status_of([] { TORCH_CHECK(false, "sizes differ"); });
  EXPECT_EQ(check.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(MessageOf(check), "libtorch: sizes differ");
  const Status internal = status_of([] { TORCH_INTERNAL_ASSERT(false, "broken"); });
  EXPECT_EQ(internal.code(), StatusCode::kInternal);
  EXPECT_THAT(MessageOf(internal), Not(HasSubstr("\n")));
  EXPECT_EQ(Guard([]() -> StatusOr<int> { return 4; }).value(), 4);
}

}  // namespace
}  // namespace tidepool::engine
