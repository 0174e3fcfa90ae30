// The groups of planner verbs; AddPlanVerbs (verb.h) adds them all.
#pragma once

#include "cli/verb.h"

namespace tidepool::cli {

void AddPlanSearchVerbs(VerbList* verbs);  // plan, plan ops

}  // namespace tidepool::cli
