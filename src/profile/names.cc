#include <array>
#include <span>

#include "profile/bundle.h"

namespace tidepool::profile {
namespace {

template <typename Kind>
StatusOr<Kind> Parse(std::string_view what, std::string_view name, std::span<const Kind> kinds) {
  std::string allowed;
  for (const Kind kind : kinds) {
    if (NameOf(kind) == name) return kind;
    allowed += allowed.empty() ? "" : ", ";
    allowed += NameOf(kind);
  }
  return InvalidArgument("'{}' is no {}; allowed: {}", name.substr(0, 60), what, allowed);
}

}  // namespace

std::string_view NameOf(Phase phase) {
  switch (phase) {
    case Phase::kForward: return "forward";
    case Phase::kBackward: return "backward";
    case Phase::kStep: return "step";
    case Phase::kOptimizer: return "optimizer";
  }
  return "?";
}

std::string_view NameOf(Origin origin) {
  switch (origin) {
    case Origin::kMeasured: return "measured";
    case Origin::kFitted: return "fitted";
    case Origin::kEstimated: return "estimated";
  }
  return "?";
}

std::string_view NameOf(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::kAllReduce: return "all-reduce";
    case CollectiveKind::kAllGather: return "all-gather";
    case CollectiveKind::kReduceScatter: return "reduce-scatter";
    case CollectiveKind::kAllToAll: return "all-to-all";
  }
  return "?";
}

std::string_view NameOf(LinkKind kind) {
  switch (kind) {
    case LinkKind::kHostToDevice: return "host-to-device";
    case LinkKind::kDeviceToHost: return "device-to-host";
    case LinkKind::kPeer: return "peer";
    case LinkKind::kNetwork: return "network";
  }
  return "?";
}

StatusOr<Phase> ParsePhase(std::string_view name) {
  static constexpr std::array kAll = {Phase::kForward, Phase::kBackward, Phase::kStep, Phase::kOptimizer};
  return Parse<Phase>("phase", name, kAll);
}

StatusOr<CollectiveKind> ParseCollectiveKind(std::string_view name) {
  static constexpr std::array kAll = {CollectiveKind::kAllReduce, CollectiveKind::kAllGather, CollectiveKind::kReduceScatter,
                                      CollectiveKind::kAllToAll};
  return Parse<CollectiveKind>("collective", name, kAll);
}

StatusOr<LinkKind> ParseLinkKind(std::string_view name) {
  static constexpr std::array kAll = {LinkKind::kHostToDevice, LinkKind::kDeviceToHost, LinkKind::kPeer, LinkKind::kNetwork};
  return Parse<LinkKind>("link", name, kAll);
}

std::string ToText(const OpKey& key) {
  std::string text = key.model;
  if (!key.op.empty()) text += "/" + key.op;
  text += fmt::format(" {} B={} {}", NameOf(key.phase), key.batch, SafetensorsName(key.dtype));
  if (key.tensor_parallel != 1) text += fmt::format(" tp={}", key.tensor_parallel);
  if (key.algorithm != 0) text += fmt::format(" algorithm={}", key.algorithm);
  return text;
}

}  // namespace tidepool::profile
