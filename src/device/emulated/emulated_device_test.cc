#include "device/emulated/emulated_device.h"

#include <unistd.h>

#include <thread>

#include "device/device_contract.h"
#include "device/emulated/testing.h"

namespace tidepool::device::emulated {
namespace {

using ::testing::HasSubstr;

StatusOr<std::unique_ptr<Device>> OpenIt(const std::string& name, int64_t capacity_bytes, int64_t page_bytes) {
  return OpenDevice({.name = name, .capacity_bytes = capacity_bytes, .page_bytes = page_bytes});
}

// A device as another process has it; the one that made the memory is kept no longer than the descriptor.
StatusOr<std::unique_ptr<Device>> AttachIt(int64_t capacity_bytes, int64_t page_bytes, MappingMode mapping) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto maker, OpenIt("emulated:h200", capacity_bytes, page_bytes));
  return AttachDevice(maker->info(), mapping, UniqueFd(::dup(maker->memory().shared_fd())));
}

}  // namespace
}  // namespace tidepool::device::emulated

namespace tidepool::device {
namespace {

INSTANTIATE_TEST_SUITE_P(
    Emulated, DeviceContract,
    testing::Values(
        DeviceFactory{"RealTime", [](int64_t c, int64_t p) { return emulated::OpenIt("emulated:h200", c, p); }},
        DeviceFactory{"Virtual", [](int64_t c, int64_t p) { return emulated::OpenIt("emulated:h200,clock=virtual", c, p); }},
        DeviceFactory{
            "VirtualRoundRobin",
            [](int64_t c, int64_t p) { return emulated::OpenIt("emulated:a100,clock=virtual,share=round-robin", c, p); }},
        DeviceFactory{"OfSeveral",
                      [](int64_t c, int64_t p) -> StatusOr<std::unique_ptr<Device>> {
                        TIDEPOOL_ASSIGN_OR_RETURN(
                            auto all,
                            OpenDevices({.name = "emulated:h200x4,clock=virtual", .capacity_bytes = c, .page_bytes = p}));
                        return std::move(all[2]);
                      }},
        DeviceFactory{"AttachedFast", [](int64_t c, int64_t p) { return emulated::AttachIt(c, p, MappingMode::kFast); }},
        DeviceFactory{"AttachedStrict", [](int64_t c, int64_t p) { return emulated::AttachIt(c, p, MappingMode::kStrict); }}),
    [](const testing::TestParamInfo<DeviceFactory>& factory) { return factory.param.name; });

}  // namespace
}  // namespace tidepool::device
