// What a pass over a whole network does, in plain numbers, for times that no profile has measured (profile/lookup.h).
#pragma once

#include "model/graph.h"
#include "profile/lookup.h"

namespace tidepool::model {

// Per device, without recompute. Counts as profile/networks.h has them for networks that it knows: a backward pass is two forward
// passes, each op reads what it keeps and writes as much, weights are read once per pass, each ATen call is one kernel. The
// optimizer is one kernel per parameter; it reads gradients, and reads and writes weights and `optimizer_states` numbers per
// weight (SGD with momentum 1, AdamW 2).
profile::OpCost CostOf(const Graph& graph, profile::Phase phase, int optimizer_states = 1);

}  // namespace tidepool::model
