#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/check.h"
#include "profile/plan_csv.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::vector<profile::OpRow> ops;
  std::vector<profile::CollectiveRow> collectives;
  std::vector<profile::LinkRow> links;
  std::vector<std::string> refused;
  Status status;
  switch (data[0] % 3) {
    case 0: status = profile::ParsePlanOpTable(text, "fuzz.csv", {}, &ops); break;
    case 1: status = profile::ParsePlanCollectiveTable(text, "fuzz.csv", {}, &collectives, &refused); break;
    default: status = profile::ParsePlanLinkTable(text, "fuzz.csv", profile::LinkKind::kPeer, &links);
  }
  if (!status.ok()) fuzz::CheckNames(status, "fuzz.csv");
  return 0;
}
