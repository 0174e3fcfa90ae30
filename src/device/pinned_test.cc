#include "device/pinned.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace tidepool::device {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PinnedPool, GivesKeptBuffersOutAgainByTheirSize) {
  std::vector<int64_t> pinned;
  PinnedPool pool("dev", {.limit_bytes = 100'000}, [&](int64_t bytes) { pinned.push_back(bytes); });
  const std::byte* first;
  {
    auto buffer = pool.Allocate(30'000);
    ASSERT_TRUE(buffer.ok());
    first = buffer->data();
    std::memset(buffer->data(), 1, 30'000);
  }
  EXPECT_EQ(pool.report().kept_bytes, 30'000);
  auto again = pool.Allocate(30'000);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->data(), first);
  auto other = pool.Allocate(30'001);
  ASSERT_TRUE(other.ok());
  EXPECT_THAT(pinned, ElementsAre(30'000, 30'001)) << "a kept buffer costs nothing";
  EXPECT_EQ(pool.report().pinned_count, 2);
  EXPECT_EQ(pool.report().used_bytes, 60'001);
}

TEST(PinnedPool, KeptBuffersMakeRoomAndTheLimitIsExact) {
  PinnedPool pool("dev", {.limit_bytes = 100});
  { auto kept = pool.Allocate(60); }
  { auto kept = pool.Allocate(30); }
  auto all = pool.Allocate(100);
  ASSERT_TRUE(all.ok()) << ToString(all.status());
  EXPECT_EQ(pool.report().kept_bytes, 0);
  const Status refused = pool.Allocate(1).status();
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(refused), HasSubstr("device 'dev': 1 bytes of pinned memory asked for, 100 of 100 in use"));
  *all = PinnedBuffer();
  EXPECT_TRUE(pool.Allocate(1).ok());
  EXPECT_EQ(pool.Allocate(0).status().code(), StatusCode::kInvalidArgument);
}

TEST(PinnedPool, KnowsItsAddresses) {
  PinnedPool pool("dev", {});
  auto buffer = pool.Allocate(1000);
  ASSERT_TRUE(buffer.ok());
  EXPECT_TRUE(pool.Contains(buffer->data(), 1000));
  EXPECT_TRUE(pool.Contains(buffer->data() + 999, 1));
  EXPECT_FALSE(pool.Contains(buffer->data() + 1, 1000));
  EXPECT_FALSE(pool.Contains(buffer->data(), -1));
  const int local = 0;
  EXPECT_FALSE(pool.Contains(&local, 4));
}

// In a child, because limits and rights cannot be taken back.
void LockTooMuch() {
  if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) std::_Exit(3);  // root may lock what it likes
  const rlimit small{.rlim_cur = 64 << 10, .rlim_max = 64 << 10};
  if (::setrlimit(RLIMIT_MEMLOCK, &small) != 0) std::_Exit(4);
  PinnedPool pool("dev", {.lock = true});
  const Status refused = pool.Allocate(1 << 20).status();
  const bool fits = pool.Allocate(4096).ok();
  std::fprintf(stderr, "%s used %d fits %d\n", ToString(refused).c_str(), static_cast<int>(pool.report().used_bytes), fits);
  std::_Exit(0);
}

TEST(PinnedPoolDeathTest, LockingAboveTheLimitOfTheProcessIsATypedError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizers' mlock locks nothing";
#endif
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      LockTooMuch(), ::testing::ExitedWithCode(0),
      "RESOURCE_EXHAUSTED: device 'dev': 1.00 MiB of host memory could not be locked; RLIMIT_MEMLOCK allows 64.0 KiB for all of "
      "it: raise it .ulimit -l., or do without locking used 0 fits 1");
}

}  // namespace
}  // namespace tidepool::device
