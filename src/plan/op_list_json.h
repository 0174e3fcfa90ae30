// Op list files: a network that no family describes, written down op by op. docs/plan.md has the format.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "plan/op_list.h"

namespace tidepool::plan {

inline constexpr int32_t kOpListSchema = 1;

// INVALID_ARGUMENT names `file`, line, the place in it ("ops[3].parameters"), the value seen and what is allowed: not JSON,
// nested too deeply, a key missing, unknown or twice, of a wrong type, out of range, an op in the sequence that is not defined, a
// schema newer than ours, and what OpList::Finish finds. Bounds: 4 MiB, a million ops, 65535 distinct ones.
StatusOr<OpList> ParseOpList(std::string_view text, const std::string& file);
StatusOr<OpList> ReadOpList(const std::string& path);  // NOT_FOUND: no such file

// The text that ParseOpList reads back as the same list (equal hash).
std::string FormatOpList(const OpList& list);

}  // namespace tidepool::plan
