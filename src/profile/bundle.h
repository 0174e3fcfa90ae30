// What is known of one piece of hardware: its description, and the times and sizes that were measured on it.
//
// A Bundle is one directory on disk (docs/profile.md has the format) and the only source of op times in the project: the emulated
// device takes its delays from one, the planner its costs, the stall analyzer its ingestion rates.
//
// Units: times in microseconds, sizes in bytes as double (tables of others hold fractions of a byte after averaging; scaling
// from MiB is exact). Thread-compatible; a loaded bundle is not changed any more and may be read by any number of threads.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"

namespace tidepool::profile {

// What part of the work a row times.
enum class Phase : uint8_t {
  kForward,
  kBackward,
  kStep,  // forward, backward and optimizer together
  kOptimizer,
};

// Where a number comes from; printed wherever it is used.
enum class Origin : uint8_t {
  kMeasured,   // a row of a measured table, for exactly this key
  kFitted,     // between or beyond measured batches of the same op: neighbours or affine fit
  kEstimated,  // roofline from the hardware description; nothing was measured
};

struct OpKey {
  std::string model;  // "resnet50", "gpt:1.3b": the network, with the options that change its ops
  std::string op;     // an op of it by name; empty: the network as one unit
  Phase phase = Phase::kForward;
  int64_t batch = 1;  // samples on one device
  DType dtype = DType::kF32;
  int32_t tensor_parallel = 1;  // devices that share the op
  int32_t algorithm = 0;        // which axis is split; 0 is the default one
  friend auto operator<=>(const OpKey&, const OpKey&) = default;
};

// Per device. Zero where it was not recorded.
struct OpMemory {
  double input_bytes = 0;
  double output_bytes = 0;
  double weight_bytes = 0;
  double activation_bytes = 0;  // kept from forward to backward
  double reserved_bytes = 0;    // further memory that the allocator took while the op ran
  double peak_bytes = 0;        // everything together at the highest point
  friend bool operator==(const OpMemory&, const OpMemory&) = default;
};

struct OpRow {
  OpKey key;
  int32_t repeats = 0;  // 0: the source does not say
  double median_us = 0;
  double p10_us = 0, p90_us = 0;  // 0: not recorded
  double first_us = 0;            // the first run, with warm-up; 0: not recorded
  OpMemory memory;
  std::string source;  // empty: the manifest's; else where this row comes from, and then it counts as measured
  friend bool operator==(const OpRow&, const OpRow&) = default;
};

enum class CollectiveKind : uint8_t { kAllReduce, kAllGather, kReduceScatter, kAllToAll };

// One measured collective of `ranks` devices with messages of `bytes` per device.
struct CollectiveRow {
  std::string model;  // empty: any
  CollectiveKind kind = CollectiveKind::kAllReduce;
  int32_t ranks = 2;
  double bytes = 0;
  double median_us = 0;
  friend bool operator==(const CollectiveRow&, const CollectiveRow&) = default;
};

enum class LinkKind : uint8_t { kHostToDevice, kDeviceToHost, kPeer, kNetwork };

// One measured transfer over a link.
struct LinkRow {
  LinkKind kind = LinkKind::kHostToDevice;
  bool pinned = true;
  double bytes = 0;
  double median_us = 0;
  friend bool operator==(const LinkRow&, const LinkRow&) = default;
};

// The time to pin (lock) a host buffer of `bytes`.
struct PinRow {
  double bytes = 0;
  double median_us = 0;
  friend bool operator==(const PinRow&, const PinRow&) = default;
};

// The share of a stated rate that work reaches. Estimates use it, measured rows do not.
struct Efficiency {
  double compute = 1;
  double memory = 1;
  double link = 1;
  friend bool operator==(const Efficiency&, const Efficiency&) = default;
};

// The description of a device, from a datasheet or from what the driver says.
struct Hardware {
  std::string name;  // "h200"
  double memory_bytes = 0;
  double memory_bytes_per_s = 0;
  std::map<DType, double> peak_flops;  // dense, per dtype; FLOP/s
  // Per direction, in bytes/s; absent: there is no such link.
  std::map<LinkKind, double> link_bytes_per_s;
  std::map<LinkKind, double> link_latency_us;  // time of a transfer of no bytes; absent: 0
  double launch_us = 0;                        // host time to start one op
  double tf32_flops = 0;                       // peak of F32 ops that may round their inputs to TF32; 0: there is no such unit
  Efficiency efficiency;
  friend bool operator==(const Hardware&, const Hardware&) = default;
};

struct Manifest {
  std::string name;  // of the bundle: "p100-cudnn"
  Hardware hardware;
  std::map<std::string, std::string> software;  // "torch" -> "1.13.1"
  std::string source;                           // who measured, or which datasheet
  std::string licence;
  std::string date;       // YYYY-MM-DD
  bool measured = false;  // false: every time is an estimate from the hardware's description
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

struct Bundle {
  Manifest manifest;
  std::vector<OpRow> ops;  // sorted by key, keys are unique
  std::vector<CollectiveRow> collectives;
  std::vector<LinkRow> links;
  std::vector<PinRow> pins;
  friend bool operator==(const Bundle&, const Bundle&) = default;
};

std::string_view NameOf(Phase phase);
std::string_view NameOf(Origin origin);
std::string_view NameOf(CollectiveKind kind);
std::string_view NameOf(LinkKind kind);
// INVALID_ARGUMENT with the value seen and the values allowed.
StatusOr<Phase> ParsePhase(std::string_view name);
StatusOr<CollectiveKind> ParseCollectiveKind(std::string_view name);
StatusOr<LinkKind> ParseLinkKind(std::string_view name);

// "resnet50 step B=64 F32", with the op, the split and its axis where they are set: for messages.
std::string ToText(const OpKey& key);

}  // namespace tidepool::profile
