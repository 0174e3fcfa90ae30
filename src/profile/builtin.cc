#include "profile/builtin.h"

#include <algorithm>

#include "profile/bundle_io.h"

namespace tidepool::profile {
namespace {

constexpr double kGB = 1e9;
constexpr double kTera = 1e12;
// PCI Express x16, per direction, after line coding.
constexpr double kPcie3 = 15.754e9, kPcie4 = 31.508e9, kPcie5 = 63.015e9;

// Not on any datasheet, and the same for all: what it takes to start a kernel and a transfer, and how much of a stated rate is
// reached. Copies over PCIe 3 were measured at 12.3 of 15.75 GB/s, ResNets in single precision at 0.5 to 0.6 of the peak of P100
// and V100 (the gpufs tables, see docs/profile.md).
constexpr double kLaunchUs = 5;
constexpr double kLinkLatencyUs = 10;
constexpr double kPeerLatencyUs = 5;
constexpr double kNetworkLatencyUs = 5;
constexpr Efficiency kVectorUnits = {.compute = 0.55, .memory = 0.8, .link = 0.8};
constexpr Efficiency kTensorUnits = {.compute = 0.4, .memory = 0.8, .link = 0.85};

struct Datasheet {
  std::string_view name;
  std::string_view source;
  double memory_bytes = 0, memory_bytes_per_s = 0;
  std::map<DType, double> peak_flops;
  double tf32_flops = 0;
  double pcie = 0;     // per direction
  double peer = 0;     // NVLink, all links of the device, per direction; 0: none
  double network = 0;  // of the vendor's own system, per device and direction; 0: not stated
  Efficiency efficiency;
};

Bundle FromDatasheet(const Datasheet& sheet) {
  Bundle bundle;
  bundle.manifest.name = sheet.name;
  bundle.manifest.source = sheet.source;
  bundle.manifest.licence = "facts from datasheets";
  Hardware& hardware = bundle.manifest.hardware;
  hardware.name = sheet.name;
  hardware.memory_bytes = sheet.memory_bytes;
  hardware.memory_bytes_per_s = sheet.memory_bytes_per_s;
  hardware.peak_flops = sheet.peak_flops;
  hardware.tf32_flops = sheet.tf32_flops;
  hardware.launch_us = kLaunchUs;
  hardware.efficiency = sheet.efficiency;
  const auto link = [&](LinkKind kind, double rate, double latency_us) {
    if (rate == 0) return;
    hardware.link_bytes_per_s[kind] = rate;
    hardware.link_latency_us[kind] = latency_us;
  };
  link(LinkKind::kHostToDevice, sheet.pcie, kLinkLatencyUs);
  link(LinkKind::kDeviceToHost, sheet.pcie, kLinkLatencyUs);
  link(LinkKind::kPeer, sheet.peer, kPeerLatencyUs);
  link(LinkKind::kNetwork, sheet.network, kNetworkLatencyUs);
  return bundle;
}

std::vector<Datasheet> Datasheets() {
  return {
      {.name = "k80",
       .source = "estimated from: NVIDIA Tesla K80 board specification BD-07317-001, one of its two GPUs",
       .memory_bytes = 12 * kGB,
       .memory_bytes_per_s = 240 * kGB,
       .peak_flops = {{DType::kF32, 4.37 * kTera}, {DType::kF64, 1.455 * kTera}},
       .pcie = kPcie3,
       .efficiency = kVectorUnits},
      {.name = "p100",
       .source = "estimated from: NVIDIA Tesla P100 PCIe datasheet (16 GB)",
       .memory_bytes = 16 * kGB,
       .memory_bytes_per_s = 732 * kGB,
       .peak_flops = {{DType::kF16, 18.7 * kTera}, {DType::kF32, 9.3 * kTera}, {DType::kF64, 4.7 * kTera}},
       .pcie = kPcie3,
       .efficiency = kVectorUnits},
      {.name = "v100",
       .source = "estimated from: NVIDIA V100 datasheet (SXM2, 32 GB)",
       .memory_bytes = 32 * kGB,
       .memory_bytes_per_s = 900 * kGB,
       .peak_flops = {{DType::kF16, 125 * kTera}, {DType::kF32, 15.7 * kTera}, {DType::kF64, 7.8 * kTera}},
       .pcie = kPcie3,
       .peer = 150 * kGB,
       .efficiency = kVectorUnits},
      {.name = "t4",
       .source = "estimated from: NVIDIA T4 datasheet",
       .memory_bytes = 16 * kGB,
       .memory_bytes_per_s = 320 * kGB,
       .peak_flops = {{DType::kI8, 130 * kTera}, {DType::kF16, 65 * kTera}, {DType::kF32, 8.1 * kTera}},
       .pcie = kPcie3,
       .efficiency = kVectorUnits},
      {.name = "a100",
       .source = "estimated from: NVIDIA A100 datasheet (SXM4, 80 GB), dense rates; network of the DGX A100",
       .memory_bytes = 80 * kGB,
       .memory_bytes_per_s = 2039 * kGB,
       .peak_flops = {{DType::kI8, 624 * kTera},
                      {DType::kF16, 312 * kTera},
                      {DType::kBF16, 312 * kTera},
                      {DType::kF32, 19.5 * kTera},
                      {DType::kF64, 19.5 * kTera}},
       .tf32_flops = 156 * kTera,
       .pcie = kPcie4,
       .peer = 300 * kGB,
       .network = 25 * kGB,
       .efficiency = kTensorUnits},
      {.name = "h100",
       .source = "estimated from: NVIDIA H100 datasheet (SXM5), dense rates; network of the DGX H100",
       .memory_bytes = 80 * kGB,
       .memory_bytes_per_s = 3350 * kGB,
       .peak_flops = {{DType::kI8, 1979 * kTera},
                      {DType::kF16, 989.5 * kTera},
                      {DType::kBF16, 989.5 * kTera},
                      {DType::kF32, 67 * kTera},
                      {DType::kF64, 67 * kTera}},
       .tf32_flops = 494.7 * kTera,
       .pcie = kPcie5,
       .peer = 450 * kGB,
       .network = 50 * kGB,
       .efficiency = kTensorUnits},
      {.name = "h200",
       .source = "estimated from: NVIDIA H200 datasheet (SXM), dense rates; network of the DGX H200",
       .memory_bytes = 141 * kGB,
       .memory_bytes_per_s = 4800 * kGB,
       .peak_flops = {{DType::kI8, 1979 * kTera},
                      {DType::kF16, 989.5 * kTera},
                      {DType::kBF16, 989.5 * kTera},
                      {DType::kF32, 67 * kTera},
                      {DType::kF64, 67 * kTera}},
       .tf32_flops = 494.7 * kTera,
       .pcie = kPcie5,
       .peer = 450 * kGB,
       .network = 50 * kGB,
       .efficiency = kTensorUnits},
  };
}

// The step times that MLPerf Storage prescribes for its training workloads (DLIO workload files), one accelerator. They do not
// state the precision.
struct StorageStep {
  std::string_view device, model;
  int64_t batch;
  double seconds;
};
constexpr StorageStep kStorageSteps[] = {
    {"a100", "resnet50", 400, 0.435}, {"a100", "unet3d", 7, 0.636}, {"a100", "cosmoflow", 1, 0.00551},
    {"h100", "resnet50", 400, 0.224}, {"h100", "unet3d", 7, 0.323}, {"h100", "cosmoflow", 1, 0.00350},
};

std::vector<Bundle> Build() {
  std::vector<Bundle> bundles;
  for (const Datasheet& sheet : Datasheets()) {
    Bundle bundle = FromDatasheet(sheet);
    for (const StorageStep& step : kStorageSteps) {
      if (step.device != sheet.name) continue;
      bundle.ops.push_back(OpRow{.key = {.model = std::string(step.model), .phase = Phase::kStep, .batch = step.batch},
                                 .median_us = step.seconds * 1e6,
                                 .source = "MLPerf Storage, workload files of DLIO (computation_time)"});
    }
    SortRows(&bundle);
    bundles.push_back(std::move(bundle));
  }
  return bundles;
}

}  // namespace

const std::vector<Bundle>& BuiltinBundles() {
  static const std::vector<Bundle> bundles = Build();
  return bundles;
}

const Bundle* FindBuiltin(std::string_view name) {
  const std::vector<Bundle>& bundles = BuiltinBundles();
  const auto found = std::find_if(bundles.begin(), bundles.end(), [name](const Bundle& b) { return b.manifest.name == name; });
  return found == bundles.end() ? nullptr : &*found;
}

}  // namespace tidepool::profile
