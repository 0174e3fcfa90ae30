#include <cstdlib>

#include "base/text.h"
#include "base/units.h"
#include "data/storage_model.h"

namespace tidepool::data {
namespace {

constexpr double kMB = 1e6;
constexpr double kMiBs = static_cast<double>(kMiB);

// Latencies of drives come from one operation of 4 KiB at a time: 1 / IOPS, less the transfer.
std::vector<StorageSpec> MakePresets() {
  return {
      {.name = "hdd",
       .bytes_per_s = 175 * kMB,
       .random_latency = absl::Microseconds(12'360),
       .sequential_latency = absl::ZeroDuration(),
       .depth = 1,
       .origin = "7200 rpm disk: 175 MB/s and 4.16 ms rotation (Seagate Constellation ES.3 product manual), 8.2 ms seek (HGST "
                 "Ultrastar 7K4000 specification)"},
      {.name = "sata-ssd",
       .bytes_per_s = 560 * kMB,
       .random_latency = absl::Microseconds(70),
       .sequential_latency = absl::Microseconds(70),
       .depth = 32,
       .ops_per_s = 98'000,
       .origin = "Samsung 870 EVO data sheet: 560 MB/s, 13,000 IOPS at depth 1, 98,000 at 32"},
      {.name = "nvme",
       .bytes_per_s = 7000 * kMB,
       .random_latency = absl::Microseconds(45),
       .sequential_latency = absl::Microseconds(45),
       .depth = 128,
       .ops_per_s = 1'000'000,
       .origin = "Samsung 980 PRO 1 TB data sheet: 7,000 MB/s, 22,000 IOPS at depth 1, 1,000,000 at most"},
      {.name = "coordl-ssd",
       .bytes_per_s = 530 * kMB,
       .random_latency = absl::ZeroDuration(),
       .sequential_latency = absl::ZeroDuration(),
       .depth = 32,
       .origin = "the SSD server of Mohan et al., VLDB 2021: 530 MB/s random reads of pictures"},
      {.name = "aws-gp3",
       .bytes_per_s = 125 * kMiBs,
       .random_latency = absl::Milliseconds(1),
       .sequential_latency = absl::Milliseconds(1),
       .depth = 64,
       .ops_per_s = 3000,
       .origin = "Amazon EBS documentation: gp3 without extras, 3,000 IOPS, 125 MiB/s, single-digit ms; 1 ms assumed",
       .estimated = true},
      {.name = "aws-io2",
       .bytes_per_s = 4000 * kMiBs,
       .random_latency = absl::Microseconds(500),
       .sequential_latency = absl::Microseconds(500),
       .depth = 256,
       .ops_per_s = 256'000,
       .origin =
           "Amazon EBS documentation: io2 Block Express at its limits, 256,000 IOPS, 4,000 MiB/s, below 1 ms; 0.5 ms assumed",
       .estimated = true},
      {.name = "aws-st1-1tib",
       .bytes_per_s = 250 * kMiBs,
       .random_latency = absl::Milliseconds(8),
       .sequential_latency = absl::Milliseconds(1),
       .depth = 32,
       .ops_per_s = 500,
       .sustained_bytes_per_s = 40 * kMiBs,
       .burst_bytes = 1024.0 * static_cast<double>(kGiB),
       .origin =
           "Amazon EBS documentation: st1 of 1 TiB, 40 MiB/s, bursts of 250 MiB/s from 1 TiB of credits, 500 IOPS; latencies "
           "assumed",
       .estimated = true},
      {.name = "gcp-pd-balanced-1tib",
       .bytes_per_s = 0.28 * 1024 * kMiBs,
       .random_latency = absl::Milliseconds(1),
       .sequential_latency = absl::Milliseconds(1),
       .depth = 64,
       .ops_per_s = 6 * 1024,
       .origin = "Google Persistent Disk documentation: 6 IOPS and 0.28 MiB/s per GiB, without the baseline; 1 ms assumed",
       .estimated = true},
      {.name = "gcp-pd-ssd-1tib",
       .bytes_per_s = 0.48 * 1024 * kMiBs,
       .random_latency = absl::Milliseconds(1),
       .sequential_latency = absl::Milliseconds(1),
       .depth = 64,
       .ops_per_s = 30 * 1024,
       .origin = "Google Persistent Disk documentation: 30 IOPS and 0.48 MiB/s per GiB, without the baseline; 1 ms assumed",
       .estimated = true},
      {.name = "azure-p30",
       .bytes_per_s = 200 * kMB,
       .random_latency = absl::Milliseconds(2),
       .sequential_latency = absl::Milliseconds(2),
       .depth = 64,
       .ops_per_s = 5000,
       .origin = "Azure managed disk documentation: Premium SSD P30, 5,000 IOPS, 200 MB/s; 2 ms assumed",
       .estimated = true},
  };
}

StatusOr<double> ParsePositiveNumber(std::string_view what, const std::string& value) {
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty() || *end != '\0' || !(number > 0) || number > 1e12) {
    return InvalidArgument("{} '{}'; allowed: a number above 0", what, value);
  }
  return number;
}

Status Change(const std::string& part, StorageSpec* spec) {
  const size_t equals = part.find('=');
  if (equals == std::string::npos) {
    return InvalidArgument("'{}'; allowed: rate=, latency=, sequential=, depth=, iops=, sustained=, burst=", part);
  }
  const std::string key = part.substr(0, equals), value = part.substr(equals + 1);
  const auto bytes = [&value](double* target) -> Status {
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t parsed, ParseBytes(value));
    *target = static_cast<double>(parsed);
    return {};
  };
  const auto duration = [&value](absl::Duration* target) -> Status {
    TIDEPOOL_ASSIGN_OR_RETURN(*target, ParseDuration(value));
    return {};
  };
  Status status;
  if (key == "rate") {
    status = bytes(&spec->bytes_per_s);
  } else if (key == "sustained") {
    status = bytes(&spec->sustained_bytes_per_s);
  } else if (key == "burst") {
    status = bytes(&spec->burst_bytes);
  } else if (key == "latency") {
    status = duration(&spec->random_latency);
  } else if (key == "sequential") {
    status = duration(&spec->sequential_latency);
  } else if (key == "depth" || key == "iops") {
    TIDEPOOL_ASSIGN_OR_RETURN(const double number, ParsePositiveNumber(key, value));
    if (key == "iops") {
      spec->ops_per_s = number;
    } else if (number > 65536 || number != static_cast<int>(number)) {
      return InvalidArgument("depth '{}'; allowed: a whole number of 1 to 65536", value);
    } else {
      spec->depth = static_cast<int>(number);
    }
  } else {
    return InvalidArgument("'{}'; allowed: rate, latency, sequential, depth, iops, sustained, burst", key);
  }
  return Annotate(status, key);
}

}  // namespace

const std::vector<StorageSpec>& StoragePresets() {
  static const auto* presets = new std::vector<StorageSpec>(MakePresets());
  return *presets;
}

StatusOr<StorageSpec> ParseStorageSpec(std::string_view text) {
  const std::vector<std::string> parts = SplitText(text, ',');
  if (parts.empty()) return InvalidArgument("storage '{}'; needed: a name", text);
  std::vector<std::string> names = {"custom"};
  StorageSpec spec;
  for (const StorageSpec& preset : StoragePresets()) {
    names.push_back(preset.name);
    if (preset.name == parts[0]) spec = preset;
  }
  if (parts[0] == "custom") {
    spec.name = "custom";
  } else if (spec.name.empty()) {
    const std::string near = NearestName(parts[0], names);
    return InvalidArgument("storage '{}'; allowed: {}{}", parts[0], JoinText(names, ", "),
                           near.empty() ? "" : fmt::format(". Did you mean '{}'?", near));
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    if (const Status status = Change(parts[i], &spec); !status.ok()) return Annotate(status, fmt::format("storage '{}'", text));
  }
  if (parts.size() > 1) {
    spec.name = std::string(text);
    spec.origin = spec.origin.empty() ? "given by hand" : spec.origin + "; changed by hand";
  }
  TIDEPOOL_RETURN_IF_ERROR(spec.Validate());
  return spec;
}

}  // namespace tidepool::data
