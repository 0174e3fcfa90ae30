// Reads the planning databases that were published as folders of CSV files (op times and sizes per width and batch, collectives,
// point-to-point bandwidth) into a Bundle. docs/plan.md has the formats.
//
// Models are named as the planner's options name them: files of gpt_1_3B become "gpt:1.3b", resnet_500M becomes "wresnet:500m",
// gpt_scale-layer becomes "gpt-layers".
//
// Rows in the bundle: per op one row for the forward phase, with all sizes (reserved_bytes of the forward pass), and one for the
// backward phase, with reserved_bytes only. Sizes in the files are MiB with three decimals and become bytes. Point-to-point
// tables become LinkRows: kPeer within a node, kNetwork between nodes (absent where the folder has no such table).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "profile/bundle.h"

namespace tidepool::profile {

struct PlanCsvOptions {
  std::vector<std::string> models;  // only these; empty: all
};

struct PlanCsvDatabase {
  Bundle bundle;
  int32_t files = 0;
  // Collectives that the source marks as skipped or failed (1000000000 and 1000000): "gpt:13b all-gather of 2, 3200 MiB:
  // skipped". They are not in the bundle.
  std::vector<std::string> refused;
};

// NOT_FOUND: no such folder, no CSV file of the wanted models. INVALID_ARGUMENT names file, line and column: wrong header, wrong
// number of fields, not a number, neither 0 nor from 1e-9 to 1e12, an op twice, tables of one model with different ops, a
// sentinel as an op time, more than 65535 rows or 4096 sizes of a link.
StatusOr<PlanCsvDatabase> ReadPlanCsv(const std::string& directory, const PlanCsvOptions& options = {});

// The parts, for tests. `file` is used in messages only.
struct PlanCsvTableKey {
  std::string model;
  DType dtype = DType::kF16;
  int64_t batch = 1;
  int32_t tensor_parallel = 1;
  int32_t algorithm = 0;
};
// Appends two rows per op, in the order of the file, so not sorted.
Status ParsePlanOpTable(std::string_view text, const std::string& file, const PlanCsvTableKey& key, std::vector<OpRow>* rows);
struct PlanCsvCollectiveKey {
  std::string model;
  CollectiveKind kind = CollectiveKind::kAllReduce;
  int32_t ranks = 2;
};
Status ParsePlanCollectiveTable(std::string_view text, const std::string& file, const PlanCsvCollectiveKey& key,
                                std::vector<CollectiveRow>* rows, std::vector<std::string>* refused);
Status ParsePlanLinkTable(std::string_view text, const std::string& file, LinkKind kind, std::vector<LinkRow>* rows);

}  // namespace tidepool::profile
