#include "device/host/host_device.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "device/device_contract.h"

namespace tidepool::device {
namespace {

using testing::HasSubstr;

StatusOr<std::unique_ptr<Device>> OpenHost(int64_t capacity_bytes, int64_t page_bytes, MappingMode mapping) {
  return OpenDevice({.name = "host", .capacity_bytes = capacity_bytes, .page_bytes = page_bytes, .mapping = mapping});
}

// A device as another process has it; the one that made the memory is kept no longer than the descriptor.
StatusOr<std::unique_ptr<Device>> AttachHost(int64_t capacity_bytes, int64_t page_bytes, MappingMode mapping) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto maker, OpenHost(capacity_bytes, page_bytes, mapping));
  return AttachDevice(maker->info(), mapping, UniqueFd(::dup(maker->memory().shared_fd())));
}

INSTANTIATE_TEST_SUITE_P(
    Host, DeviceContract,
    testing::Values(DeviceFactory{"OpenedFast", [](int64_t c, int64_t p) { return OpenHost(c, p, MappingMode::kFast); }},
                    DeviceFactory{"OpenedStrict", [](int64_t c, int64_t p) { return OpenHost(c, p, MappingMode::kStrict); }},
                    DeviceFactory{"AttachedFast", [](int64_t c, int64_t p) { return AttachHost(c, p, MappingMode::kFast); }},
                    DeviceFactory{"AttachedStrict", [](int64_t c, int64_t p) { return AttachHost(c, p, MappingMode::kStrict); }}),
    [](const testing::TestParamInfo<DeviceFactory>& factory) { return factory.param.name; });

constexpr int64_t kPage = 64 * 1024;

struct TwoSides {
  std::unique_ptr<Device> maker, client;
};

TwoSides MakeTwoSides(MappingMode mapping) {
  auto maker = OpenHost(8 * kPage, kPage, mapping);
  EXPECT_TRUE(maker.ok()) << ToString(maker.status());
  auto client = AttachDevice((*maker)->info(), mapping, UniqueFd(::dup((*maker)->memory().shared_fd())));
  EXPECT_TRUE(client.ok()) << ToString(client.status());
  return {std::move(*maker), std::move(*client)};
}

TEST(HostMemory, IsSharedBetweenItsMakerAndWhoAttaches) {
  for (const MappingMode mapping : {MappingMode::kFast, MappingMode::kStrict}) {
    TwoSides sides = MakeTwoSides(mapping);
    ASSERT_TRUE(sides.client->memory().Map({2, 1}).ok());
    sides.client->memory().base()[2 * kPage + 5] = std::byte{42};
    EXPECT_EQ(sides.maker->memory().base()[2 * kPage + 5], std::byte{42});
    ASSERT_TRUE(sides.maker->memory().Zero({2, 1}).ok());
    EXPECT_EQ(sides.client->memory().base()[2 * kPage + 5], std::byte{0});
  }
}

TEST(HostMemory, StrictClientClearsPagesThatItCannotReach) {
  TwoSides sides = MakeTwoSides(MappingMode::kStrict);
  sides.maker->memory().base()[kPage] = std::byte{7};
  ASSERT_TRUE(sides.client->memory().Zero({1, 1}).ok());
  EXPECT_EQ(sides.maker->memory().base()[kPage], std::byte{0});
}

// Page faults of this thread while it writes to every system page.
int64_t FaultsOfTouching(std::byte* address, int64_t size_bytes) {
  rusage before{}, after{};
  ::getrusage(RUSAGE_THREAD, &before);
  for (int64_t i = 0; i < size_bytes; i += 4096) *reinterpret_cast<volatile char*>(address + i) = 1;
  ::getrusage(RUSAGE_THREAD, &after);
  return after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt;
}

TEST(HostMemory, FaultsInNoProcessWhenItIsUsed) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer's own memory faults with every page";
#endif
  TwoSides sides = MakeTwoSides(MappingMode::kFast);
  // A few faults may come from elsewhere; 128 pages are touched.
  EXPECT_LT(FaultsOfTouching(sides.maker->memory().base(), 8 * kPage), 32);
  EXPECT_LT(FaultsOfTouching(sides.client->memory().base(), 8 * kPage), 32);
}

TEST(StrictMappingDeathTest, TouchingAPageThatWasGivenBackFaults) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  TwoSides sides = MakeTwoSides(MappingMode::kStrict);
  auto touch = [&](int page) { *reinterpret_cast<volatile char*>(sides.client->memory().base() + page * kPage) = 1; };
  // Without this the test would pass in a child that had no mapping at all.
  EXPECT_EXIT(
      {
        if (!sides.client->memory().Map({3, 2}).ok()) std::abort();
        touch(3);
        touch(4);
        if (!sides.client->memory().Unmap({3, 1}).ok()) std::abort();
        touch(4);
        std::_Exit(0);
      },
      testing::ExitedWithCode(0), "");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const char* const fault = "SEGV";
  auto died = [](int) { return true; };
#else
  const char* const fault = "";
  auto died = testing::KilledBySignal(SIGSEGV);
#endif
  EXPECT_EXIT(
      {
        if (!sides.client->memory().Map({3, 2}).ok()) std::abort();
        touch(3);
        if (!sides.client->memory().Unmap({3, 1}).ok()) std::abort();
        touch(3);
        std::_Exit(0);
      },
      died, fault);
  EXPECT_EXIT(
      {
        touch(0);
        std::_Exit(0);
      },
      died, fault);
}

TEST(OpenHostDevice, NamesTheMemoryItNeedsAndWhatIsAvailable) {
  const Status status = OpenHost(int64_t{1} << 50, 1 << 21, MappingMode::kFast).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("device 'host' needs 1024 TiB of memory and "));
  EXPECT_THAT(MessageOf(status), HasSubstr("is available; give it a smaller capacity"));
}

TEST(OpenCudaDevice, SaysThatThisBuildHasNone) {
  const Status status = OpenDevice({.name = "cuda:0", .capacity_bytes = 1 << 21}).status();
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_THAT(MessageOf(status), HasSubstr("device 'cuda:0': this build has no CUDA backend; available: host"));
}

TEST(AttachHostDevice, RefusesMemoryThatCouldShrink) {
  UniqueFd fd(::memfd_create("unsealed", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(fd.get(), 4 * kPage), 0);
  const DeviceInfo info{.name = "host", .kind = "host", .capacity_bytes = 4 * kPage, .page_bytes = kPage};
  EXPECT_THAT(MessageOf(AttachDevice(info, MappingMode::kFast, std::move(fd)).status()), HasSubstr("sealed against shrinking"));
}

class AvailableMemory : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/tidepool-memory-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  std::string root_;
};

TEST_F(AvailableMemory, IsTheKernelsEstimateWithoutALimit) {
  Write("/proc/meminfo", "MemTotal:  900 kB\nMemAvailable:     300 kB\n");
  Write("/sys/fs/cgroup/memory.max", "max\n");
  Write("/sys/fs/cgroup/memory.current", "1000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_).value(), 300 * 1024);
}

TEST_F(AvailableMemory, IsWhatALimitLeaves) {
  Write("/proc/meminfo", "MemAvailable: 300 kB\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "100000\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "60000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_).value(), 40000);
}

TEST_F(AvailableMemory, IsAnErrorWithoutTheKernelsTable) {
  EXPECT_THAT(MessageOf(AvailableMemoryBytes(root_).status()), HasSubstr("has no MemAvailable"));
}

}  // namespace
}  // namespace tidepool::device
