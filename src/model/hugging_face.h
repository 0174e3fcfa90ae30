// What a Hugging Face folder says: which network it holds, which files hold its tensors, and how its tensor names map to ours.
// Inside model only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::model {

// The spec that config.json describes. INVALID_ARGUMENT names the key, the value seen and the value that this family has, for
// every setting that would compute something else.
StatusOr<std::string> SpecFromConfig(std::string_view config_json);

// The safetensors files of `folder`: model.safetensors, or those that model.safetensors.index.json lists.
StatusOr<std::vector<std::string>> WeightFiles(const std::string& folder);

// The parameter that a checkpoint's tensor holds, after the family's prefixes and old names.
std::string ParameterName(std::string_view family, std::string_view tensor_name);
// Tensors that checkpoints of the family are known to have and the network does not: causal masks, position numbers, pre-training
// heads, a copy of a shared weight. `name` as ParameterName gives it.
bool IsIgnored(std::string_view family, std::string_view name);

}  // namespace tidepool::model
