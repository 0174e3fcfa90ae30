// A Graph as JSON text: what `tidepool model show -o json` prints, complete enough to run the network from it.
#pragma once

#include <string>

#include "model/graph.h"

namespace tidepool::model {

std::string_view Name(PartitionAxis axis);
std::string_view Name(ParamKind kind);
std::string_view Name(Init::Rule rule);

// Format: docs/model.md. `indent` as nlohmann's dump: -1 for one line.
std::string ToJson(const Graph& graph, int indent = -1);

}  // namespace tidepool::model
