#include "device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidepool::device {
namespace {

using testing::HasSubstr;

TEST(OpenDevice, NamesTheBackendsItKnows) {
  const Status status = OpenDevice({.name = "tpu", .capacity_bytes = 1 << 21}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("device name 'tpu' is unknown; allowed: host, cuda:<index>, emulated:<profile>"));
  for (const char* name : {"cuda:", "cuda:x", "cuda:1234", "cuda:-1"}) {
    EXPECT_EQ(OpenDevice({.name = name, .capacity_bytes = 1 << 21}).status().code(), StatusCode::kInvalidArgument) << name;
  }
}

TEST(OpenDevice, OpensSeveralOnlyWhereSeveralAreWanted) {
  const DeviceOptions options{.name = "emulated:h200x3,mode=timing", .capacity_bytes = 1 << 21};
  EXPECT_THAT(MessageOf(OpenDevice(options).status()), HasSubstr("means 3 devices; allowed here: one"));
  auto devices = OpenDevices(options);
  ASSERT_TRUE(devices.ok()) << ToString(devices.status());
  ASSERT_EQ(devices->size(), 3u);
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ((*devices)[static_cast<size_t>(i)]->info().index, i);
}

TEST(OpenDevice, ChecksItsSizes) {
  EXPECT_THAT(MessageOf(OpenDevice({.name = "host", .capacity_bytes = 4096, .page_bytes = 2 << 20}).status()),
              HasSubstr("capacity is 4096 bytes; allowed: 2097152 (one page) to"));
  EXPECT_THAT(MessageOf(OpenDevice({.name = "host", .capacity_bytes = 1 << 22, .page_bytes = 3 << 20}).status()),
              HasSubstr("page size is 3145728 bytes; allowed: a power of two from 4096"));
}

TEST(AttachDevice, ChecksTheKindAndTheMemory) {
  EXPECT_THAT(MessageOf(AttachDevice({.name = "x", .kind = "tpu"}, MappingMode::kFast, UniqueFd()).status()),
              HasSubstr("device kind 'tpu' is unknown"));
  const DeviceInfo info{.name = "host", .kind = "host", .capacity_bytes = 1 << 22, .page_bytes = 1 << 21};
  EXPECT_FALSE(AttachDevice(info, MappingMode::kFast, UniqueFd()).ok());
  auto small = CreateMemFd("small", 1 << 21);
  ASSERT_TRUE(small.ok());
  EXPECT_THAT(MessageOf(AttachDevice(info, MappingMode::kFast, std::move(*small)).status()),
              HasSubstr("its memory has 2097152 bytes; 4194304 in pages of 2097152 were announced"));
}

}  // namespace
}  // namespace tidepool::device
