#include "profile/bundle.h"

namespace tidepool::profile {

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

}  // namespace tidepool::profile
