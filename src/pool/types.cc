#include "pool/types.h"

namespace tidepool::pool {

std::string_view Name(LeaseClass lease_class) { return lease_class == LeaseClass::kPinned ? "pinned" : "reclaimable"; }

std::string_view Name(Placement placement) { return placement == Placement::kLow ? "low" : "high"; }

std::string_view Name(FitPolicy policy) {
  switch (policy) {
    case FitPolicy::kFirstFit: return "first-fit";
    case FitPolicy::kBestFit: return "best-fit";
    case FitPolicy::kNextFit: return "next-fit";
  }
  return "unknown";
}

StatusOr<FitPolicy> ParseFitPolicy(std::string_view text) {
  for (const FitPolicy policy : {FitPolicy::kFirstFit, FitPolicy::kBestFit, FitPolicy::kNextFit}) {
    if (text == Name(policy)) return policy;
  }
  return InvalidArgument("fit policy '{}' is unknown; allowed: first-fit, best-fit, next-fit", text);
}

}  // namespace tidepool::pool
