#include "data/wrapped_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/cache_testing.h"

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;

TEST(WrappedSource, ACacheStandsBeforeTheStorageModelSoHitsCostNoStorageTime) {
  VirtualClock clock;
  const auto base = std::make_shared<MemorySource>(MemorySource::Options{.records = 10, .base_bytes = 1000});
  const auto source = WrappedSource::Create(
      base, {.cache = "minio", .cache_bytes = 5000, .storage = "custom,rate=1MB,latency=1ms,sequential=1ms", .clock = &clock});
  ASSERT_TRUE(source.ok()) << ToString(source.status());
  VirtualClock::Actor actor(&clock);
  const absl::Time start = clock.Now();
  for (int epoch = 0; epoch < 3; ++epoch) {
    for (int64_t record = 0; record < 10; ++record) EXPECT_EQ(TextOf(*(*source)->Read(record)), base->Content(record));
  }
  EXPECT_EQ((*source)->cache()->stats().hits, 2 * 5);
  EXPECT_EQ((*source)->paced()->stats().model.ops, 30 - 2 * 5);
  EXPECT_EQ(clock.Now() - start, (30 - 2 * 5) * absl::Milliseconds(2));
  EXPECT_EQ((*source)->size(), 10);
}

TEST(WrappedSource, WithoutWishesItIsTheContainer) {
  const auto base = std::make_shared<MemorySource>(MemorySource::Options{.records = 10});
  const auto source = WrappedSource::Create(base, {});
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->cache(), nullptr);
  EXPECT_EQ((*source)->paced(), nullptr);
  EXPECT_EQ(TextOf(*(*source)->Read(3)), base->Content(3));
  EXPECT_FALSE(WrapOptions().wraps());
}

TEST(WrappedSource, WishesThatDoNotFitAreNamed) {
  const auto fault = [](const WrapOptions& options) { return ToString(options.Validate()); };
  EXPECT_THAT(fault({.cache = "mini"}), HasSubstr("cache policy 'mini'; allowed: none, page-cache, minio"));
  EXPECT_THAT(fault({.cache = "lru"}), HasSubstr("cache policy 'lru' without a size; give --cache-bytes too"));
  EXPECT_THAT(fault({.cache_bytes = 5}), HasSubstr("a cache of 5 bytes without a policy; give --cache too"));
  EXPECT_THAT(fault({.storage = "floppy"}), HasSubstr("storage 'floppy'; allowed: custom, hdd"));
  EXPECT_THAT(fault({.cache = "lru", .cache_bytes = -1}), HasSubstr("a cache of -1 bytes"));
}

}  // namespace
}  // namespace tidepool::data
