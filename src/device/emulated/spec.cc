#include "device/emulated/spec.h"

#include <charconv>
#include <set>

#include "base/units.h"

namespace tidepool::device::emulated {
namespace {

constexpr size_t kLongestName = 4096;

template <typename Number>
StatusOr<Number> ParseNumber(std::string_view text, Number least, Number most) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    return InvalidArgument("'{}'; allowed: {} to {}", text, least, most);
  }
  return value;
}

StatusOr<int64_t> ParseNanos(std::string_view text, absl::Duration least, absl::Duration most) {
  TIDEPOOL_ASSIGN_OR_RETURN(const absl::Duration duration, ParseDuration(text));
  if (duration < least || duration > most) {
    return InvalidArgument("'{}'; allowed: {} to {}", text, tidepool::FormatDuration(least), tidepool::FormatDuration(most));
  }
  return absl::ToInt64Nanoseconds(duration);
}

StatusOr<bool> ParseChoice(std::string_view text, std::string_view no, std::string_view yes) {
  if (text == no) return false;
  if (text == yes) return true;
  return InvalidArgument("'{}'; allowed: {}, {}", text, no, yes);
}

StatusOr<CollectiveAlgorithm> ParseAlgorithm(std::string_view text) {
  if (text == "auto") return CollectiveAlgorithm::kAuto;
  if (text == "ring") return CollectiveAlgorithm::kRing;
  if (text == "tree") return CollectiveAlgorithm::kTree;
  return InvalidArgument("'{}'; allowed: auto, ring, tree", text);
}

// Stores a parsed value, or passes the error on.
template <typename T, typename Target>
Status Store(StatusOr<T> value, Target* target) {
  if (!value.ok()) return value.status();
  *target = *std::move(value);
  return {};
}

Status Set(std::string_view key, std::string_view value, Spec* spec) {
  EmulationOptions& emulation = spec->emulation;
  if (key == "mode") return Store(ParseChoice(value, "timing", "functional"), &spec->functional);
  if (key == "clock") return Store(ParseChoice(value, "real", "virtual"), &spec->virtual_clock);
  if (key == "capacity") {
    TIDEPOOL_RETURN_IF_ERROR(Store(ParseBytes(value), &spec->capacity_bytes));
    return spec->capacity_bytes > 0 ? Status() : InvalidArgument("'{}'; allowed: more than 0", value);
  }
  if (key == "seed") return Store(ParseNumber<uint64_t>(value, 0, UINT64_MAX), &spec->seed);
  if (key == "jitter") return Store(ParseJitter(value), &emulation.jitter);
  if (key == "warmup") return Store(ParseChoice(value, "off", "on"), &emulation.warm_up);
  if (key == "share") return Store(ParseSharing(value), &emulation.sharing);
  if (key == "quantum") return Store(ParseNanos(value, absl::Microseconds(1), absl::Hours(1)), &emulation.quantum_ns);
  if (key == "switch") return Store(ParseNanos(value, absl::ZeroDuration(), absl::Seconds(10)), &emulation.switch_ns);
  if (key == "spin") return Store(ParseNanos(value, absl::ZeroDuration(), absl::Milliseconds(1)), &spec->spin_ns);
  if (key == "pcie-group") return Store(ParseNumber<int32_t>(value, 0, kMostDevices), &emulation.topology.devices_per_switch);
  if (key == "collective") return Store(ParseAlgorithm(value), &emulation.algorithm);
  return InvalidArgument(
      "unknown; allowed: mode, clock, capacity, seed, jitter, warmup, share, quantum, switch, spin, pcie-group, collective");
}

}  // namespace

StatusOr<Spec> ParseSpec(std::string_view name) {
  if (!name.starts_with(kPrefix)) return InvalidArgument("device name '{}' does not begin with '{}'", name, kPrefix);
  if (name.size() > kLongestName)
    return InvalidArgument("a device name of {} characters; allowed: {}", name.size(), kLongestName);
  std::string_view rest = name.substr(kPrefix.size());
  const auto next_part = [&rest] {
    const size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
    return part;
  };
  Spec spec;
  bool more = rest.find(',') != std::string_view::npos;
  std::string_view bundle = next_part();
  // "h200x8": what follows the last x are digits only.
  const size_t x = bundle.rfind('x');
  if (x != std::string_view::npos && x + 1 < bundle.size() &&
      bundle.find_first_not_of("0123456789", x + 1) == std::string_view::npos) {
    const auto count = ParseNumber<int32_t>(bundle.substr(x + 1), 1, kMostDevices);
    if (!count.ok()) return InvalidArgument("device '{}': the number of devices is {}", name, MessageOf(count.status()));
    spec.count = *count;
    bundle = bundle.substr(0, x);
  }
  if (bundle.empty() || bundle.find('\0') != std::string_view::npos) {
    return InvalidArgument(
        "device '{}' names no profile; allowed: emulated:PROFILE[xCOUNT][,key=value]..., for example emulated:h200", name);
  }
  spec.bundle = std::string(bundle);
  std::set<std::string_view> seen;
  while (more) {
    more = rest.find(',') != std::string_view::npos;
    const std::string_view part = next_part();
    const size_t equals = part.find('=');
    const std::string_view key = part.substr(0, equals);
    if (equals == std::string_view::npos) return InvalidArgument("device '{}': '{}' is no key=value", name, part);
    if (!seen.insert(key).second) return InvalidArgument("device '{}': '{}' stands twice", name, key);
    const Status set = Set(key, part.substr(equals + 1), &spec);
    if (!set.ok()) return InvalidArgument("device '{}': {} is {}", name, key, MessageOf(set));
  }
  spec.emulation.topology.devices_per_node = spec.count;
  return spec;
}

}  // namespace tidepool::device::emulated
