// What stands behind "emulated:" in the name of a device.
//
//   emulated:BUNDLE[xCOUNT][,key=value]...      emulated:h200   emulated:h200x8,mode=timing   emulated:./my/bundle,capacity=2GiB
//
// docs/device.md has the table of keys.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "device/emulated/emulation.h"

namespace tidepool::device::emulated {

inline constexpr std::string_view kPrefix = "emulated:";
inline constexpr int32_t kMostDevices = 64;

struct Spec {
  std::string bundle;  // a name or a path, as profile/open.h takes it
  int32_t count = 1;
  bool functional = true;
  bool virtual_clock = false;
  int64_t capacity_bytes = 0;  // 0: the caller's, else the hardware's
  uint64_t seed = 0;
  int64_t spin_ns = 0;
  EmulationOptions emulation;  // without `shared`
};

// `name` with the prefix. INVALID_ARGUMENT names the part, the value seen and the values allowed.
StatusOr<Spec> ParseSpec(std::string_view name);

}  // namespace tidepool::device::emulated
