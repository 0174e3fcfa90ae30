#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/check.h"
#include "plan/profile_table.h"
#include "profile/plan_csv.h"

namespace tidepool {
namespace {

constexpr char kFile[] = "fuzz.csv", kModel[] = "fuzz";

// The database as the planner uses it: an op list of the table's ops, and prices from it.
void CheckPrices(const profile::Bundle& bundle) {
  plan::OpList list;
  list.name = list.profile_model = kModel;
  list.dtype = DType::kF16;
  for (const profile::OpRow& row : bundle.ops) {
    if (row.key.phase != profile::Phase::kForward || list.distinct.size() == 1000) continue;
    list.ops.push_back(static_cast<uint16_t>(list.distinct.size()));
    list.distinct.push_back({.name = row.key.op});
  }
  if (list.ops.empty()) return;
  fuzz::Check(list.Finish().ok(), "ops of a table make a list");
  for (const auto& options : {plan::ProfileTableOptions(), plan::kParityTable}) {
    const auto table = plan::ProfileTable::Build(bundle, list, options);
    if (!table.ok()) {
      fuzz::Check(table.status().code() == StatusCode::kInvalidArgument,
                  "only a number is at fault: " + ToString(table.status()));
      continue;
    }
    for (const double mib : {0.0, 1e-3, 0.5, 1.0, 3.0, 1e6}) {
      const double collective = table->Collective(profile::CollectiveKind::kAllReduce, 2, mib).us;
      const double transfer = table->TransferUs(plan::LinkClass::kWithinNode, mib);
      fuzz::Check(std::isfinite(collective) && collective >= 0, "a collective has a price: " + std::to_string(collective));
      fuzz::Check(std::isfinite(transfer) && transfer >= 0, "a transfer has a price: " + std::to_string(transfer));
    }
  }
}

}  // namespace
}  // namespace tidepool

// The input holds one or more tables with a line "---" between them. Each is read as an op table, as a collective's and as a
// link's: headers decide which it can be.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  constexpr std::string_view kBetween = "---\n";
  std::string_view rest = fuzz::TextOf(data, size);
  profile::Bundle bundle;
  std::vector<std::string> refused;
  for (int part = 0; part < 4 && !rest.empty(); ++part) {
    const size_t end = std::min(rest.find(kBetween), rest.size());
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + kBetween.size(), rest.size()));
    std::vector<profile::OpRow> ops;
    std::vector<profile::CollectiveRow> collectives;
    std::vector<profile::LinkRow> links;
    const Status read_ops = profile::ParsePlanOpTable(text, kFile, {.model = kModel}, &ops);
    const Status read_collectives = profile::ParsePlanCollectiveTable(text, kFile, {.model = kModel}, &collectives, &refused);
    const Status read_links = profile::ParsePlanLinkTable(text, kFile, profile::LinkKind::kPeer, &links);
    for (const Status& status : {read_ops, read_collectives, read_links}) {
      if (!status.ok()) fuzz::CheckRefusal(status, kFile);
    }
    if (read_ops.ok() && bundle.ops.empty()) bundle.ops = std::move(ops);
    if (read_collectives.ok() && bundle.collectives.empty()) bundle.collectives = std::move(collectives);
    if (read_links.ok() && bundle.links.empty()) bundle.links = std::move(links);
  }
  for (const profile::LinkRow& row : bundle.links) {
    fuzz::Check(std::isfinite(row.bytes) && std::isfinite(row.median_us), "a link's numbers are finite");
  }
  CheckPrices(bundle);
  return 0;
}
