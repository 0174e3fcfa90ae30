// For tests only: a bundle of planted times on disk.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "profile/bundle_io.h"

namespace tidepool::profile::testing {

// Makes `folder`/planted, measured, with these rows, and returns the name of the device that is emulated from it. The hardware
// has 4 GB, and a copy to it takes 100 us and 1 ns per byte.
inline std::string WritePlantedBundle(const std::string& folder, std::vector<OpRow> rows) {
  Bundle bundle{.ops = std::move(rows)};
  bundle.manifest.name = "planted";
  bundle.manifest.source = "a test";
  bundle.manifest.measured = true;
  Hardware& hardware = bundle.manifest.hardware;
  hardware.name = "planted";
  hardware.memory_bytes = 4e9;
  hardware.memory_bytes_per_s = 1e12;
  hardware.peak_flops[DType::kF32] = 1e13;
  hardware.link_bytes_per_s[LinkKind::kHostToDevice] = hardware.link_bytes_per_s[LinkKind::kDeviceToHost] = 1e9;
  hardware.link_latency_us[LinkKind::kHostToDevice] = hardware.link_latency_us[LinkKind::kDeviceToHost] = 100;
  const std::string path = folder + "/planted";
  const Status written = WriteBundle(bundle, path);
  EXPECT_TRUE(written.ok()) << ToString(written);
  return "emulated:" + path;
}

}  // namespace tidepool::profile::testing
